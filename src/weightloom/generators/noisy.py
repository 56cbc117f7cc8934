"""Baseline: checkpoints of the nearest task with noise added to their weights.

Shapes: M samples, P values of a network.
Source: the noise baseline of Zeng et al. (arXiv 2506.07998): a copy with errors is no better than a copy.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from weightloom.conditioning import SupportEncoder
from weightloom.generators.base import Request, Validity, generators, sample_generators
from weightloom.generators.nearest import ZooGenerator
from weightloom.generators.zoo_index import ZooIndex
from weightloom.weights.mixing import add_noise, check_size


@generators.register("noisy")
class NoisyCheckpoint(ZooGenerator):
    """What ``nearest`` gives, plus Gaussian noise; one draw a sample."""

    kind: ClassVar[str] = "noisy"

    def __init__(
        self,
        zoo_index: ZooIndex,
        images: SupportEncoder,
        validity: Validity,
        *,
        noise: float = 0.1,
        name: str | None = None,
    ) -> None:
        """``noise``: its size in units of the zoo's spread (:func:`weightloom.weights.mixing.add_noise`).

        Raises:
            SpecError: the size is out of range.
        """
        super().__init__(zoo_index, images, validity, name=name)
        self.noise = check_size("noise", noise)

    def sample_flats(self, request: Request) -> tuple[Tensor, list[dict[str, Any]]]:
        """(M, P) checkpoints of the nearest task, each sample with its own noise."""
        found = self.neighbours(request)
        rows = found.of_nearest_task(request.num_samples)
        bound = self.zoo_index.bind(request.architecture)
        flats = add_noise(bound, self.flats(found)[rows], sample_generators(request), self.noise)
        reports = [
            {
                "checkpoint": found.group.rows[row].get("id"),
                "checkpoint_task": found.group.rows[row]["task"],
                "noise": self.noise,
            }
            for row in rows
        ]
        return flats, reports
