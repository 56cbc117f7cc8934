"""How sure a network may be of its answers: one number that its outputs are divided by.

Measured on pictures that the network was not made from. Changes no answer, only its probability. Knows
nothing of generators.

Shapes: P values of a network, N pictures, C classes.
Sources: temperature scaling, Guo et al., "On Calibration of Modern Neural Networks" (arXiv 1706.04599),
section 4.2; targets of N answers that may all be right, Platt, "Probabilistic Outputs for Support Vector
Machines" (1999), section 2.2.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from weightloom.architectures import ArchitectureSpec
from weightloom.defaults import with_plain_defaults
from weightloom.fitting.population import images_at_once, run_networks
from weightloom.tasks import TaskData

LEAST, MOST = 1e-3, 1e3
"""Temperatures that are looked at."""

FEWEST = 20
"""Pictures of which a temperature is measured, at least."""


@with_plain_defaults
def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature for logits (N, C) of pictures with labels (N,) that has the highest likelihood.

    Of N answers that are all right it does not follow that none would be wrong: each label counts for
    1 - 1 / (N + 2), the rest is shared by the other classes.

    Example:
        >>> sure = torch.tensor([[8.0, 0.0]] * 8 + [[0.0, 8.0]] * 2)
        >>> t = fit_temperature(sure, torch.zeros(10, dtype=torch.int64))
        >>> round(float((sure[0] / t).softmax(0)[0]), 2)
        0.75
    """
    count, classes = logits.shape
    doubt = 1 / (count + 2)
    wanted = F.one_hot(labels, classes).double() * (1 - doubt - doubt / (classes - 1)) + doubt / (classes - 1)
    logits = logits.double()
    low, high = math.log(LEAST), math.log(MOST)

    def slope(middle: float) -> float:
        """Of the loss by the logarithm of 1 / temperature, but for its sign."""
        shares = (logits * math.exp(-middle)).softmax(1)
        return float(((wanted - shares) * logits).sum())

    for _ in range(60):  # the loss is convex in 1 / temperature, so that its slope has one change of sign
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return math.exp((low + high) / 2)


def calibration(logits: Tensor, labels: Tensor, what: str) -> dict[str, Any] | None:
    """The temperature for logits (N, C) and what it was measured on, as reports have it; None of few.

    Example:
        >>> calibration(torch.eye(2).repeat(10, 1), torch.arange(2).repeat(10), "examples")["on"]
        '20 examples'
    """
    if len(labels) < FEWEST:
        return None
    return {"temperature": fit_temperature(logits, labels), "on": f"{len(labels):,} {what}"}


@torch.no_grad()
@with_plain_defaults
def calibration_on(spec: ArchitectureSpec, flat: Tensor, data: TaskData, what: str) -> dict[str, Any] | None:
    """:func:`calibration` of a network (P,) on ``data``."""
    if len(data) < FEWEST:
        return None
    answers = []
    for index in torch.arange(len(data)).split(images_at_once(spec)):
        images, _ = data.batch(index)
        answers.append(run_networks(spec, flat[None], images)[0])
    return calibration(torch.cat(answers), data.labels, what)
