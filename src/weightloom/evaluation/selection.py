"""What a choice of an architecture is asked for, and what it finds. How it is made is in halving.py.

Knows neither generators nor tasks.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Any

from weightloom.architectures import ArchitectureSpec
from weightloom.errors import InputError, SpecError
from weightloom.evaluation.candidates import Candidate
from weightloom.fitting import FitSettings, interval_of
from weightloom.generators import Sample
from weightloom.seeding import check_seed
from weightloom.tasks import NetworkCard
from weightloom.whole import whole_fields

_UNITS = {"": 1.0, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_BUDGETS = (1.0, 7 * 86400.0)

FIGURES = {
    "accuracies_on_test_images": ["accuracy"],
    "accuracies_on_images_held_back": [
        "validation_accuracy",
        *(f"ranking.{name}" for name in ("accuracy", "zero_shot", "probe", "rungs", "curve")),
    ],
    "rankings": ["ranking.predicted_place"],
}
"""Which figures of a selection are accuracies, on what images, and which only rank."""


def parse_budget(text: str | float) -> float:
    """Seconds that ``60s``, ``2m``, ``1.5h`` or a number of seconds stands for.

    Raises:
        InputError: it is no time, below a second or above a week.

    Example:
        >>> parse_budget("2m"), parse_budget("1.5h"), parse_budget(20)
        (120.0, 5400.0, 20.0)
    """
    match = re.fullmatch(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*([a-z]*)\s*", str(text).lower()[:60])
    if match is None or match[2] not in _UNITS:
        raise InputError(f"a budget is a time such as 60s, 2m or 1h, not {str(text)[:60]!r}")
    seconds = float(match[1]) * _UNITS[match[2]]
    if not _BUDGETS[0] <= seconds <= _BUDGETS[1]:
        raise InputError(f"a budget is from 1 second to 7 days, not {str(text)[:60]!r}")
    return seconds


@dataclass(frozen=True, kw_only=True)
class SelectionSettings:
    """How a selection spends its seconds.

    Attributes:
        budget: wall-clock seconds in all, generation included.
        shots: examples a class that the generator sees.
        samples: networks generated for each candidate; the best on the examples goes on.
        probe_steps: training steps before a candidate is scored.
        eta: of the candidates of a rung, one in so many goes on.
        entrants: candidates of the first rung, the best by prediction; None: the best third, at least 3.
        held_back: share of the training images that judge, at most 1,500 images.
        learning_rate, batch_size: of every training.
        seed: decides examples, samples and batches.
    """

    budget: float = 60.0
    shots: int = 16
    samples: int = 1
    probe_steps: int = 32
    eta: int = 3
    entrants: int | None = None
    held_back: float = 0.2
    learning_rate: float = 3e-3
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {"shots": (1, 1000), "samples": (1, 4096), "probe_steps": (1, 100_000), "eta": (2, 100)}
        whole_fields(self, limits)
        if self.entrants is not None:
            whole_fields(self, {"entrants": (1, 1_000_000)})
        object.__setattr__(self, "seed", check_seed(self.seed))
        if not 0 < self.held_back < 1:
            raise SpecError(f"held_back must be between 0 and 1, not {self.held_back}")
        if not _BUDGETS[0] <= self.budget <= _BUDGETS[1]:
            raise SpecError(f"budget must be from 1 second to 7 days, not {self.budget}")
        self.fit(1)  # checks the others

    def fit(self, steps: int, snapshots: tuple[int, ...] = ()) -> FitSettings:
        """Training of so many steps."""
        return FitSettings(
            steps=steps, learning_rate=self.learning_rate, batch_size=self.batch_size, snapshots=snapshots
        )


@dataclass
class Selection:
    """What was found.

    Attributes:
        task: the task's name.
        generator: the generator's name.
        settings: what was asked for.
        ranking: the candidates, best first.
        spent: wall-clock seconds by purpose; they sum to ``seconds``.
        seconds: wall-clock seconds in all.
        rungs: how many candidates each rung had.
        images: training, held-back and support images.
        card: of the winner's network, calibrated on the held-back images.
        interrupted: whether it was stopped before its time.
    """

    task: str
    generator: str
    settings: SelectionSettings
    ranking: list[Candidate]
    spent: dict[str, float]
    seconds: float
    rungs: list[int]
    images: dict[str, int]
    card: NetworkCard
    interrupted: bool = False

    @property
    def winner(self) -> Candidate:
        """The best candidate; it always has a network."""
        return self.ranking[0]

    @property
    def predicted(self) -> list[Candidate]:
        """The candidates in the order in which they were expected before any rung."""
        return sorted(self.ranking, key=lambda c: -math.inf if c.predicted is None else -c.predicted)

    def predicted_places(self) -> dict[ArchitectureSpec, int]:
        """Each candidate's place, from 1, in the order that was expected before any rung; without those for
        which nothing was expected. What the order comes from is no accuracy.
        """
        return {c.spec: place + 1 for place, c in enumerate(self.predicted) if c.predicted is not None}

    def sample(self) -> Sample:
        """The winner's network, with how it was chosen in its report."""
        best = self.winner
        assert best.flat is not None
        report = {
            **{name: value for name, value in best.report.items() if name != "calibration"},
            "selected": {
                "task": self.task,
                "from": [str(c.spec) for c in self.ranking],
                "budget": self.settings.budget,
                "seed": self.settings.seed,
                "validation_accuracy": best.accuracy,
                "steps": best.steps,
            },
        }
        return Sample(best.spec, best.flat, report, self.card)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a file."""
        held_back, places = self.images["held_back"], self.predicted_places()
        return {
            "task": self.task,
            "generator": self.generator,
            "settings": asdict(self.settings),
            "winner": self.winner.spec.full_text(),
            "validation_accuracy": self.winner.accuracy,
            "validation_interval": interval_of(self.winner.accuracy, held_back),
            "validation_images": held_back,
            "ranking": [
                {
                    **{key: value for key, value in c.to_json().items() if key != "predicted"},
                    "predicted_place": places.get(c.spec),
                    "interval": interval_of(c.accuracy, held_back),
                    "num_images": held_back,
                }
                for c in self.ranking
            ],
            "figures": dict(FIGURES),
            "rungs": self.rungs,
            "images": self.images,
            "spent": self.spent,
            "seconds": self.seconds,
            "interrupted": self.interrupted,
        }
