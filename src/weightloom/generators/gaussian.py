"""Baseline: every weight drawn by itself, with the mean and spread that it has over checkpoints.

Shapes: M samples, P values of a network.
Source: the "gaussian" baseline of Zeng et al. (arXiv 2506.07998).
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from weightloom.conditioning import SupportEncoder
from weightloom.generators.base import Request, Validity, generators, merge_reports, sample_generators
from weightloom.generators.fingerprint import Fingerprint
from weightloom.generators.nearest import ZooGenerator, require_positive
from weightloom.weights.mixing import gaussian


@generators.register("gaussian")
class GaussianWeights(ZooGenerator):
    """Independent Gaussians over the checkpoints of the nearest tasks.

    One checkpoint alone has no spread, and is given as it is.
    """

    kind: ClassVar[str] = "gaussian"

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
        """(M, P) draws."""
        found = self.neighbours(request)
        tasks = found.tasks(self.tasks)
        rows = [row for task in tasks for row in found.rows_of(task)]
        bound = self.fingerprint.tokenizer.bind(request.architecture)[2]
        flats = gaussian(bound, self.flats(found)[rows], sample_generators(request))
        report = {"checkpoints": len(rows), "checkpoint_tasks": tasks}
        return flats, merge_reports(request.num_samples, report)
