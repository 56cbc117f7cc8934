"""Baseline: the architecture's own initialisation, what training from scratch starts from.

Knows nothing of zoos, tasks or examples: whatever a generator is worth, it is worth above this.

Shapes: M samples, P values of a network.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from weightloom.fitting import initial_flats
from weightloom.generators.base import (
    ANY_ARCHITECTURE,
    Baseline,
    Generator,
    Request,
    Validity,
    generators,
    merge_reports,
)
from weightloom.seeding import seed_for


@generators.register("random-init")
class RandomInit(Baseline):
    """A fresh initialisation for each sample.

    Example:
        >>> validity = Validity(architectures=("mlp(depth=1,width=4,input=1x8x8)",), input=(1, 8, 8),
        ...                     min_classes=2, max_classes=10)
        >>> model = RandomInit(validity)
        >>> first, second = model.generate_many("mlp(depth=1,width=4,classes=3)", num_samples=2)
        >>> first.flat.shape, torch.equal(first.flat, second.flat)
        (torch.Size([275]), False)
    """

    kind: ClassVar[str] = "random-init"

    def __init__(self, validity: Validity, *, name: str = "random-init") -> None:
        self.validity, self.name = validity, name

    @classmethod
    def from_generator(cls, model: Generator) -> RandomInit:
        """The baseline of ``model``: for the same images and class counts, and any architecture."""
        return cls(replace(model.validity, architectures=(ANY_ARCHITECTURE,)))

    def sample_flats(self, request: Request) -> tuple[Tensor, list[dict[str, Any]]]:
        """(M, P) networks, one seed for each sample."""
        seeds = [seed_for("random-init", request.seed, index) for index in range(request.num_samples)]
        return initial_flats(request.architecture, seeds), merge_reports(len(seeds), {})
