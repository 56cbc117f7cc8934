"""Architectures to choose from, and what the accuracy of each is expected to become in training.

The prediction reads accuracies after no steps and after a few, sizes and families. Knows generators by their
contract, and nothing of how seconds are spent.

Shapes: P values of a network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.errors import InputError
from weightloom.generators import Generator

DEFAULT_CANDIDATES = (
    "mlp(depth=1,width=16)",
    "mlp(depth=2,width=32)",
    "mlp(depth=3,width=64)",
    "cnn(depth=2,width=8)",
    "cnn(depth=3,width=16)",
    "cnn(depth=4,width=16)",
    "cnn(depth=4,width=32)",
    "resnet(depth=8,width=8)",
    "resnet(depth=8,width=16)",
    "resnet(depth=14,width=8)",
)
"""What is chosen from where a generator names no architectures of its own."""

WEIGHTS = {"zero_shot": 0.0, "probe": 0.2, "log_multiply_adds": 0.317, "log_parameters": 0.552}
"""The prediction: what a unit of each signal adds to the log-odds of the trained accuracy, both over the mean
of the task's candidates. Fitted on training tasks only (``python benchmarks/selection.py calibrate``)."""

FAMILIES = {"mlp": -0.225, "cnn": 0.339, "resnet": -0.114}
"""What a family adds to it at equal signals, fitted together with them; others add the mean of these."""

GAIN = 1.436
"""Log-odds that training adds to the accuracy after the probe, a mean over the same training tasks."""

TRAINED = 600
"""Steps of the trainings that the prediction was fitted to: after so many, accuracy speaks for itself."""


@dataclass
class Candidate:
    """One architecture and how far it came.

    Attributes:
        spec: resolved architecture.
        parameters: trainable parameters.
        multiply_adds: of one image.
        flat: (P,) its best network so far, None where none was made.
        zero_shot: accuracy as generated, on images held back.
        probe: accuracy after the probe's steps.
        predicted: accuracy that training is expected to reach; only the order is meant seriously.
        accuracy: of ``flat``, on images held back.
        rung: rungs of successive halving it has been through.
        rungs: accuracy after each of them.
        steps: training steps in all.
        seconds: spent on it.
        curve: ``(seconds since the start, accuracy)`` wherever it was measured.
        problem: why it was left out, in a sentence; empty where it was not.
    """

    spec: ArchitectureSpec
    parameters: int
    multiply_adds: int
    flat: Tensor | None = None
    zero_shot: float | None = None
    probe: float | None = None
    predicted: float | None = None
    accuracy: float | None = None
    rung: int = 0
    rungs: list[float] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    curve: list[list[float]] = field(default_factory=list)
    problem: str = ""
    step_seconds: float = 0.0
    measure_seconds: float = 0.0
    report: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the weights."""
        kept = {k: v for k, v in self.__dict__.items() if k not in ("spec", "flat", "report")}
        return {"architecture": self.spec.full_text(), **kept}


def candidates_of(generator: Generator) -> list[ArchitectureSpec]:
    """Architectures to choose from where none are named: those that the generator lists, and those of
    :data:`DEFAULT_CANDIDATES` that it makes too.
    """
    limits = generator.validity
    found: list[ArchitectureSpec] = []
    for text in (*limits.architectures, *DEFAULT_CANDIDATES):
        try:
            spec = parse_architecture(text)
            asked = spec.resolve(classes=limits.min_classes, input=limits.input)
            generator.check(asked, None, None, 1, 0, None)
        except InputError:  # not made, or no architecture but a description of many
            continue
        plain = replace(spec, input=None)
        if plain not in found:
            found.append(plain)
    return found


@lru_cache(maxsize=512)
def multiply_adds(spec: ArchitectureSpec) -> int:
    """Multiplications of one image's pass through the convolutions and linear layers of a resolved spec.

    Example:
        >>> multiply_adds(parse_architecture("mlp(depth=1,width=4,classes=3,input=1x2x2)"))
        28
    """
    total = 0

    def count(module: nn.Module, _: Any, out: Tensor) -> None:
        nonlocal total
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            total += out.numel() * (module.weight.numel() // module.weight.shape[0])

    assert spec.input is not None
    with torch.device("meta"):
        module = spec.build().eval()
        for child in module.modules():
            child.register_forward_hook(count)
        module(torch.empty(1, *spec.input))
    return max(total, 1)


def predict(candidates: Sequence[Candidate]) -> None:
    """Set ``predicted`` of every candidate with a network, from its accuracies, its size and its family.

    Linear in the log-odds of the accuracies and the logarithms of the sizes, each over the candidates' mean:
    of a task only the differences between its candidates count.
    """
    known = [c for c in candidates if c.zero_shot is not None]
    if not known:
        return
    # What was not probed is expected to gain from the probe's steps what the others did.
    gains = [log_odds(c.probe) - log_odds(c.zero_shot or 0.0) for c in known if c.probe is not None]
    gain = sum(gains) / len(gains) if gains else 0.0
    rows = []
    for candidate in known:
        assert candidate.zero_shot is not None
        probe = candidate.zero_shot if candidate.probe is None else candidate.probe
        row = signals(candidate.zero_shot, probe, candidate.multiply_adds, candidate.parameters)
        rows.append(row if candidate.probe is not None else {**row, "probe": row["probe"] + gain})
    means = {name: sum(row[name] for row in rows) / len(rows) for name in WEIGHTS}
    family = sum(family_score(c.spec) for c in known) / len(known)
    for candidate, row in zip(known, rows, strict=True):
        score = sum(weight * (row[name] - means[name]) for name, weight in WEIGHTS.items())
        score += family_score(candidate.spec) - family
        candidate.predicted = 1 / (1 + math.exp(-(means["probe"] + GAIN + score)))


def expected(candidate: Candidate, probe_steps: int) -> float:
    """Log-odds of the accuracy that full training of a candidate is expected to reach.

    The prediction, where it has had no more steps than the probe; its accuracy, where it has had as many as a
    full training; in between a mixture by the logarithm of its steps. Without this a rung would favour what
    learns fast over what learns more.
    """
    if candidate.accuracy is None:
        return -math.inf
    own = log_odds(candidate.accuracy)
    if candidate.predicted is None:
        return own
    span = math.log(max(TRAINED, probe_steps + 1) / probe_steps)
    doubt = math.log(TRAINED / max(candidate.steps, 1)) / span
    doubt = min(max(doubt, 0.0), 1.0)
    return (1 - doubt) * own + doubt * log_odds(candidate.predicted)


def signals(zero_shot: float, probe: float, operations: int, parameters: int) -> dict[str, float]:
    """What the prediction is made of, by the names in :data:`WEIGHTS`."""
    return {
        "zero_shot": log_odds(zero_shot),
        "probe": log_odds(probe),
        "log_multiply_adds": math.log10(operations),
        "log_parameters": math.log10(parameters),
    }


def family_score(spec: ArchitectureSpec) -> float:
    """What the family of ``spec`` adds to the prediction."""
    return FAMILIES.get(spec.family, sum(FAMILIES.values()) / len(FAMILIES))


def log_odds(share: float) -> float:
    """Log-odds of an accuracy, with perfect and hopeless ones kept finite."""
    kept = min(max(share, 0.002), 0.998)
    return math.log(kept / (1 - kept))
