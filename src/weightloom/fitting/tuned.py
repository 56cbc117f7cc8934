"""What a fine-tuning within seconds is asked for, what it tries, and what comes out. How is in tuning.py.

Shapes: P values of a network, K parts, n training images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from weightloom.errors import SpecError
from weightloom.fitting.interval import interval_of
from weightloom.seeding import check_seed
from weightloom.whole import whole_fields


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """How the seconds are spent.

    Attributes:
        seconds: wall clock in all.
        held_back: share of the training images that judge, at most 1,500 images.
        few: up to so many training images each is left out once, in ``folds`` parts.
        folds: parts then.
        batch_size: images a step; fewer of networks above half a million parameters.
        seed: decides the parts and the batches.
    """

    seconds: float = 60.0
    held_back: float = 0.15
    few: int = 400
    folds: int = 4
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        whole_fields(self, {"few": (0, 10**9), "folds": (2, 100), "batch_size": (2, 10**6)})
        object.__setattr__(self, "seed", check_seed(self.seed))
        if not 0 < self.held_back < 1:
            raise SpecError(f"held_back must be between 0 and 1, not {self.held_back}")
        if not 0 < self.seconds <= 7 * 86400:
            raise SpecError(f"seconds must be above 0 and at most a week, not {self.seconds}")


@dataclass(frozen=True, kw_only=True)
class Start:
    """A network before fine-tuning, and what is known of it.

    Attributes:
        flat: (P,) weights.
        unseen: (n,) which training images it was not made from; None where that is not known.
        accuracy: on examples, each when it is left out. Counts where the images that judge may be among
            those that it was made from: there it cannot be measured.
        features: what its trunk gives for images, where there is a faster way than to run it.
    """

    flat: Tensor
    unseen: Tensor | None = None
    accuracy: float | None = None
    features: Callable[[Tensor], Tensor] | None = None


@dataclass
class Trial:
    """A candidate: what moves, how, and how well it did on images held back.

    Attributes:
        what: ``"start"``, ``"last layer"`` or ``"all layers"``.
        how: rate, shift, flip or pull.
        accuracy: on images that it did not learn from.
        loss: there.
        steps, seconds: of training.
        after: the pull of the last layer that it begins with; None where that is the start's.
    """

    what: str
    how: dict[str, Any] = field(default_factory=dict)
    accuracy: float = 0.0
    loss: float = 0.0
    steps: int = 0
    seconds: float = 0.0
    after: float | None = None
    flats: Tensor = field(default_factory=lambda: torch.zeros(0), repr=False)  # (K, P)
    logits: Tensor = field(default_factory=lambda: torch.zeros(0), repr=False)  # of the images that judge
    right: Tensor = field(default_factory=lambda: torch.zeros(0), repr=False)  # which of them were answered

    def to_json(self, images: int) -> dict[str, Any]:
        """Plain values, without the weights; ``images`` judged."""
        kept = {k: v for k, v in self.__dict__.items() if k not in ("flats", "logits", "right", "how")}
        sure = {"interval": interval_of(self.accuracy, images), "num_images": images}
        return {**kept, **sure, **self.how}


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What came out.

    Attributes:
        flat: (P,) the network.
        chosen: which trial it is of.
        start: the start's.
        trials: all of them, in the order in which they were made.
        judged_on: how many images judged.
        folds: parts that each were left out once; 1 where one part was held back.
        calibration: ``temperature`` and what it was measured ``on``; None where that cannot be.
        remarks: sentences on what was not done and why.
        seconds: wall clock.
    """

    flat: Tensor
    chosen: Trial
    start: Trial
    trials: list[Trial]
    judged_on: int
    folds: int
    calibration: dict[str, Any] | None
    remarks: list[str]
    seconds: float

    @property
    def sentence(self) -> str:
        """What was chosen."""
        if self.chosen.what == "start":
            return (
                "nothing did better on the images held back by more than chance would have it: the network "
                "is the start, unchanged"
            )
        steps = f"{self.chosen.steps:,} step{'s' * (self.chosen.steps != 1)}"
        how = self.chosen.how
        if self.chosen.what == "last layer":
            return f"the last layer, fitted anew on the features of the others (pull {how['pull']:g})"
        moved = (
            f"moved by up to {how['shift']} pixel{'s' * (how['shift'] != 1)}"
            if how["shift"]
            else "as they are"
        )
        moved += " and mirrored" if how["flip"] else ""
        moved += "; the mean of its weights and those before" if "mix" in how else ""
        return f"all layers, {steps} of AdamW, rate up to {how['rate']:g} in one cycle, pictures {moved}"

    def to_json(self) -> dict[str, Any]:
        """Plain values for a file."""
        return {
            "chosen": self.chosen.to_json(self.judged_on),
            "sentence": self.sentence,
            "held_back": {
                "before": self.start.accuracy,
                "before_interval": interval_of(self.start.accuracy, self.judged_on),
                "after": self.chosen.accuracy,
                "after_interval": interval_of(self.chosen.accuracy, self.judged_on),
                "num_images": self.judged_on,
                "parts": self.folds,
            },
            "trials": [trial.to_json(self.judged_on) for trial in self.trials],
            "calibration": self.calibration,
            "remarks": self.remarks,
            "seconds": self.seconds,
        }
