"""Baseline: the zoo's mean trunk with a head in closed form.

A linear discriminant on the features that the zoo's mean network has for the support set: whatever a method
that learned from a zoo is worth on a new task, it is worth above this.

Shapes: M samples, P values of a network.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from weightloom.errors import InputError
from weightloom.fitting import closed_form_network
from weightloom.generators.base import (
    Baseline,
    Generator,
    Request,
    Validity,
    generators,
    measured_on_support,
    merge_reports,
)
from weightloom.generators.zoo_index import ZooIndex


@generators.register("closed-form")
class ClosedForm(Baseline):
    """The same network for every seed and sample: nothing is drawn."""

    kind: ClassVar[str] = "closed-form"
    draws: ClassVar[bool] = False
    makes_statistics: ClassVar[bool] = True

    zoo_index: ZooIndex

    def __init__(self, zoo_index: ZooIndex, validity: Validity, *, name: str = "closed-form") -> None:
        """``zoo_index`` has the mean networks."""
        self.zoo_index, self.validity, self.name = zoo_index, validity, name

    @classmethod
    def from_generator(cls, model: Generator) -> ClosedForm:
        """The baseline of ``model``, on the mean networks of its zoo.

        Raises:
            InputError: the generator carries no index of its zoo.
        """
        if model.zoo_index is None:
            raise InputError(f"generator {model.name} carries no checkpoints of its zoo to take a mean of")
        return cls(model.zoo_index, model.validity)

    @torch.no_grad()
    def sample_flats(self, request: Request) -> tuple[Tensor, list[dict[str, Any]]]:
        """(M, P), all alike.

        Raises:
            InputError: the request has no support set.
        """
        if request.support is None:
            raise InputError(f"generator {self.name} makes its head from examples; give examples of the task")
        spec = request.architecture
        flat = closed_form_network(
            spec,
            self.zoo_index.bind(spec).mean_network(),
            request.support.images,
            head_rms=self.zoo_index.head_rms(spec),
        )
        return flat.repeat(request.num_samples, 1), merge_reports(
            request.num_samples, measured_on_support(request)
        )
