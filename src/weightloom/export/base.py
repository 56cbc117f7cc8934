"""What a target is: it writes files into a folder, and runs them there on pictures.

Knows no target.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from weightloom.errors import DataUnavailableError
from weightloom.export.facts import Facts
from weightloom.registry import Registry

MOST_DIFFERENCE = 1e-4
"""Largest difference of logits, as a share of their standard deviation, where nothing is rounded."""

MOST_ROUNDED = 1.0
"""The same for int8, where no test pictures say what rounding costs."""

_MOST_AT_ONCE, _VALUES_AT_ONCE = 250, 1 << 22


@dataclass(frozen=True)
class Job:
    """A network on its way out.

    Attributes:
        network: in eval mode, on the CPU, in float32.
        facts: what the file says of it.
        folder: where the target writes; nobody else does.
        name: of the file that the user asked for, suffix included.
        int8: whether weights are rounded to 8 bits.
        probabilities: whether the file also gives probabilities.
        calibration: (N, channels, height, width) pictures that show the activations' ranges, or None.
    """

    network: nn.Module
    facts: Facts
    folder: Path
    name: str
    int8: bool = False
    probabilities: bool = False
    calibration: Tensor | None = None

    @property
    def file(self) -> Path:
        """The file that the user asked for, while it is in the folder."""
        return self.folder / self.name


@dataclass(frozen=True)
class Exported:
    """A file that is in its place, and what was found out about it.

    Attributes:
        to: the target's name.
        files: all that belongs to it; the one that was asked for is first.
        checked: what ran it, or None where that is missing here.
        unchecked: why it was not run, where it was not.
        difference: largest difference of logits ÷ their standard deviation.
        accuracy: of the network and of the file, on ``num_images`` test pictures; None without a task.
        facts: what it says of the network.
        int8: whether it was rounded.
        more: what a target alone has to tell, such as bytes of flash.
    """

    to: str
    files: tuple[Path, ...]
    checked: str | None
    unchecked: str | None
    difference: float | None
    accuracy: tuple[float, float] | None
    num_images: int
    facts: Facts
    int8: bool
    more: dict[str, Any] = field(default_factory=dict)


def batches(images: Tensor) -> tuple[Tensor, ...]:
    """(N, channels, height, width) in parts whose maps fit into memory."""
    return images.split(max(1, min(_MOST_AT_ONCE, _VALUES_AT_ONCE // max(1, images[0].numel()))))


class NotChecked(Exception):
    """What would run the file is not on this machine; the text says what. It never leaves this room."""


class Target(ABC):
    """A kind of file that a network can become."""

    name: ClassVar[str]
    suffix: ClassVar[str]
    rounds: ClassVar[bool] = False
    """Whether there is an int8 file of this kind."""
    calibrates: ClassVar[bool] = False
    """Whether rounding needs pictures."""
    gives_probabilities: ClassVar[bool] = False
    """Whether probabilities can be had beside the logits."""

    def refusal(self, network: nn.Module) -> str | None:
        """Why this network cannot become such a file, seen before any work; None if it can."""
        return None

    @abstractmethod
    def write(self, job: Job) -> list[Path]:
        """Write the files into the job's folder; the first is the one that was asked for.

        Raises:
            UnsupportedRequestError: the target lacks an operation of the network.
            DataUnavailableError: what writes it is not installed.
        """

    @abstractmethod
    def run(self, job: Job, images: Tensor) -> tuple[Tensor, str]:
        """Logits (N, classes) of the written file for (N, channels, height, width), and what ran it.

        Raises:
            NotChecked: what runs it is not on this machine.
            WeightloomError: it does not run.
        """

    def more(self, job: Job) -> dict[str, Any]:
        """What only this kind of file has to tell."""
        return {}


targets: Registry[Target] = Registry("target")
"""Every target by name."""


def needs_extra(what: str) -> DataUnavailableError:
    """The one sentence where the packages behind a target are missing."""
    return DataUnavailableError(f"{what} is not installed: pip install 'weightloom[export]'")
