"""Baseline: the zoo's mean trunk with a head in closed form. One of IGPG's first guesses, as a generator.

A linear discriminant on the features that the zoo's mean network has for the support set: whatever IGPG is
worth on a new task, it is worth above this.

Shapes: M samples, P values of a network.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from weightloom.errors import InputError
from weightloom.fitting import closed_form_network
from weightloom.generators.base import Baseline, Generator, Request, Validity, generators, merge_reports
from weightloom.tokenizers import WeightTokenizer


@generators.register("closed-form")
class ClosedForm(Baseline):
    """The same network for every seed and sample: nothing is drawn."""

    kind: ClassVar[str] = "closed-form"
    draws: ClassVar[bool] = False

    def __init__(self, tokenizer: WeightTokenizer, validity: Validity, *, name: str = "closed-form") -> None:
        """``tokenizer`` holds the mean networks."""
        self.tokenizer, self.validity, self.name = tokenizer, validity, name

    @classmethod
    def from_generator(cls, model: Generator) -> ClosedForm:
        """The baseline of ``model``, on the mean networks of its tokenizer.

        Raises:
            InputError: the generator has no weight tokenizer.
        """
        tokenizer = getattr(model, "tokenizer", None)
        if not isinstance(tokenizer, WeightTokenizer):
            raise InputError(f"generator {model.name} has no weight tokenizer with mean networks")
        return cls(tokenizer, model.validity)

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
            self.tokenizer.centre(spec),
            request.support.images,
            head_rms=self.tokenizer.head_rms(spec),
        )
        return flat.repeat(request.num_samples, 1), merge_reports(request.num_samples, {})
