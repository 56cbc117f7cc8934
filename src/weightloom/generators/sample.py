"""What generators give: the weights of one network, with how they were made and what it is for.

Shapes: P values of a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightloom import __version__
from weightloom.architectures import ArchitectureSpec
from weightloom.defaults import with_plain_defaults
from weightloom.errors import InputError
from weightloom.fitting import Prediction, calibration_on, predict, run_networks, with_card
from weightloom.io import dump_json, save_tensors
from weightloom.tasks import NetworkCard, SupportSet, Task
from weightloom.tasks.data import not_shown
from weightloom.weights import checked_flats, layout_of, require_finite

CALIBRATION_IMAGES = 1000
"""Images at most that a temperature is measured on."""

FEW_IMAGES = 100
"""The same of a large network, which takes its time for each."""

LARGE = 500_000
"""Parameters from which on a temperature that was measured on left-out examples is good enough."""


@dataclass(frozen=True)
class Sample:
    """Generated weights of one architecture with a report of how they were made.

    Attributes:
        architecture: the resolved spec.
        flat: (P,) weights in layout order.
        report: generator, seed, seconds, support scores and, where measured, accuracy and novelty.
        card: class names, input and what else a user of the network needs; left out, what the report says.
    """

    architecture: ArchitectureSpec
    flat: Tensor
    report: dict[str, Any]
    card: NetworkCard = None  # type: ignore[assignment]  # made below

    def __post_init__(self) -> None:
        spec = self.architecture
        card = self.card
        if card is None:
            card = NetworkCard.from_report(self.report, input=spec.input, classes=spec.classes)
        object.__setattr__(self, "card", replace(card, input=spec.input))

    @cached_property
    @with_plain_defaults
    def state_dict(self) -> dict[str, Tensor]:
        """The weights by name, buffers included. Raises :class:`InputError` where ``flat`` is no network."""
        if not isinstance(self.flat, Tensor) or self.flat.is_nested or self.flat.dim() != 1:
            raise InputError("a sample's weights are one tensor (P,)")
        flat = checked_flats(self.architecture, self.flat[None])[0].detach()
        return {k: v.clone() for k, v in layout_of(self.architecture).unflatten(flat).items()}

    @cached_property
    @with_plain_defaults
    def module(self) -> nn.Module:
        """An ordinary module in eval mode."""
        with torch.device("meta"):
            module = self.architecture.build()
        module.load_state_dict({k: v.clone() for k, v in self.state_dict.items()}, assign=True)
        for parameter in module.parameters():
            parameter.requires_grad_(True)
        return with_card(module.eval(), self.card)

    def predict(
        self, pictures: Any, top: int = 3, reject: float | None = None, *, skip_broken: bool = False
    ) -> list[Prediction]:
        """What the network answers to pictures: see :func:`weightloom.fitting.predict`."""

        def run(images: Tensor) -> Tensor:
            return run_networks(self.architecture, self.flat[None].float(), images)[0]

        return predict(run, self.card, pictures, top, reject, skip_broken=skip_broken)

    def for_task(self, task: Task | None, support: SupportSet | None) -> Sample:
        """The same network with what ``task`` says in its card, calibrated where that is possible; as it is
        without a task.

        A temperature is measured on training images of the task that are none of ``support``, the examples
        that the network was made from; of fewer than twenty, what the card has stays.
        """
        if task is None or support is None:
            return self
        if self.architecture.num_parameters() > LARGE and self.card.temperature is not None:
            return replace(self, card=self.card.for_task(task).calibrated(self.report.get("calibration")))
        most = CALIBRATION_IMAGES if self.architecture.num_parameters() <= LARGE else FEW_IMAGES
        rest = not_shown(task.data("train"), support, most, ("calibration", str(task)))
        what = "training pictures that it was not made from"
        found = calibration_on(self.architecture, self.flat, rest, what)
        card = self.card.for_task(task)
        return replace(self, card=card if found is None else card.calibrated(found))

    @with_plain_defaults
    def save(self, path: str | Path) -> Path:
        """Write the state dict as safetensors, with its card and its provenance in the header.

        Raises:
            CheckpointError: the file cannot be written.
        """
        require_finite(self.state_dict, "this sample")
        metadata = {
            "weightloom": __version__,
            "architecture": self.architecture.full_text(),
            "report": dump_json(self.report),
            **self.card.to_metadata(),
        }
        path = Path(path)
        save_tensors(path, {k: v.contiguous() for k, v in self.state_dict.items()}, metadata)
        return path


def best_of(samples: Sequence[Sample]) -> Sample:
    """The sample with the lowest loss on the support set; the first one where there was none."""
    return min(samples, key=lambda s: s.report.get("support_loss", float("inf")))
