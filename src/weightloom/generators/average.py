"""Baseline: the mean of the weights of the nearest tasks' checkpoints.

Good where a zoo's members share their start, noise where each has its own.

Shapes: M samples, P values of a network.
Source: averages of fine-tuned models, model soups (arXiv 2203.05482), section 2, the uniform soup.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from weightloom.generators.base import Request, generators, merge_reports
from weightloom.generators.nearest import TasksGenerator, mean_accuracy


@generators.register("average")
class AverageCheckpoint(TasksGenerator):
    """Mean raw weights, batch-norm variances as they are; every checkpoint of a task counts alike.

    The same for every seed and sample: nothing is drawn.
    """

    kind: ClassVar[str] = "average"
    draws: ClassVar[bool] = False

    def sample_flats(self, request: Request) -> tuple[Tensor, list[dict[str, Any]]]:
        """(M, P): the same mean M times."""
        found = self.neighbours(request)
        tasks = found.tasks(self.tasks)
        rows = [row for task in tasks for row in found.rows_of(task)]
        mean = self.flats(found)[rows].mean(0)
        report = {
            "checkpoints": len(rows),
            "checkpoint_tasks": tasks,
            "checkpoint_accuracy": mean_accuracy([found.group.rows[row] for row in rows]),
        }
        return mean.repeat(request.num_samples, 1), merge_reports(request.num_samples, report)
