"""Baseline: the mean of the weights of the nearest tasks' checkpoints.

Good where a zoo's members share their start, noise where each has its own.

Shapes: M samples, P values of a network.
Source: averages of fine-tuned models, model soups (arXiv 2203.05482), section 2, the uniform soup.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from weightloom.conditioning import SupportEncoder
from weightloom.generators.base import Request, Validity, generators, merge_reports
from weightloom.generators.fingerprint import Fingerprint
from weightloom.generators.nearest import ZooGenerator, mean_accuracy, require_positive


@generators.register("average")
class AverageCheckpoint(ZooGenerator):
    """Mean raw weights, batch-norm variances as they are; every checkpoint of a task counts alike.

    The same for every seed and sample: nothing is drawn.
    """

    kind: ClassVar[str] = "average"

    def __init__(
        self,
        fingerprint: Fingerprint,
        images: SupportEncoder,
        validity: Validity,
        *,
        tasks: int = 1,
        name: str | None = None,
    ) -> None:
        """``tasks``: of how many nearest tasks; the rest as in :class:`ZooGenerator`."""
        super().__init__(fingerprint, images, validity, name=name)
        self.tasks = require_positive("tasks", tasks)

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
