"""Baseline: every weight drawn by itself, with the mean and spread that it has over checkpoints.

Shapes: M samples, P values of a network.
Source: the "gaussian" baseline of Zeng et al. (arXiv 2506.07998).
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from weightloom.generators.base import Request, generators, merge_reports, sample_generators
from weightloom.generators.nearest import TasksGenerator
from weightloom.weights.mixing import gaussian


@generators.register("gaussian")
class GaussianWeights(TasksGenerator):
    """Independent Gaussians over the checkpoints of the nearest tasks.

    One checkpoint alone has no spread, and is given as it is.
    """

    kind: ClassVar[str] = "gaussian"

    def sample_flats(self, request: Request) -> tuple[Tensor, list[dict[str, Any]]]:
        """(M, P) draws."""
        found = self.neighbours(request)
        tasks = found.tasks(self.tasks)
        rows = [row for task in tasks for row in found.rows_of(task)]
        bound = self.zoo_index.bind(request.architecture)
        flats = gaussian(bound, self.flats(found)[rows], sample_generators(request))
        report = {"checkpoints": len(rows), "checkpoint_tasks": tasks}
        return flats, merge_reports(request.num_samples, report)
