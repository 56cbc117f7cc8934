"""Last layers in closed form from labelled features, with what is known beforehand as their start.

A head that was made beforehand, from the names of the classes say, is the start of a ridge regression: only
what it leaves of the labels is fitted. How much of it is taken, and the penalty, are those with which the
examples are answered best when each of them is left out. Knows no network and no names.

Shapes: N examples, C classes, H features, K directions of a metric, U pictures without labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from weightloom.fitting.calibration import fit_temperature
from weightloom.fitting.closed_form import left_out_residuals
from weightloom.fitting.precision import full_precision

PENALTIES = (0.3, 1.0, 3.0)
"""Of the ridge regression, in units of an example's mean squared length."""

SMALLER, MANY = (0.01, 0.03, 0.1), 30
"""Penalties that are tried too where the classes have so many examples on average."""

SHARES = (0.1, 0.2)
"""What a start's logits of deviation 1 are multiplied by to be shares of a label. More choices, wider apart,
were worse: with few examples left-out ones rate a start too high, for it loses nothing by leaving one out."""

SCALES = tuple(2.0 ** (k / 2) for k in range(-2, 16))
"""What fitted labels, between 0 and 1, are multiplied by to be logits."""

MOST_ANSWERS = 200_000
"""Numbers, examples times classes, that a penalty is chosen by at most."""

ONE_PENALTY, ONE_SHARE, ONE_SCALE = 3.0, 0.1, 8.0
"""Penalty, share and scale where each class has one example, which cannot be left out."""

ROUNDS, CERTAINTY, FLOOR = 15, 15.0, 5.0
"""Of :func:`spread_to`: rounds, how sure an answer is made by its cosine, and pictures that each class is
thought to have beside those found."""


@dataclass(frozen=True)
class Head:
    """A last linear layer: ``weight`` (C, H) and ``bias`` (C,).

    Example:
        >>> Head(torch.eye(2), torch.zeros(2))(torch.tensor([[3.0, 1.0]]))
        tensor([[3., 1.]])
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """(N, C) logits of features (N, H)."""
        return features @ self.weight.T + self.bias

    def scaled(self, factor: float | Tensor) -> Head:
        """All logits times ``factor``, a number or one a class (C,)."""
        factor = torch.as_tensor(factor, dtype=self.weight.dtype)
        return Head(self.weight * factor.reshape(-1, 1), self.bias * factor)

    def plus(self, other: Head) -> Head:
        """The head whose logits are the sum of both."""
        return Head(self.weight + other.weight, self.bias + other.bias)

    def standardised(self, features: Tensor, each: bool) -> Head:
        """Logits of mean 0 over ``features`` (N, H) for each class, and of deviation 1: each class's own, or
        one for all.
        """
        logits = self(features)
        spread = logits.std(0, correction=0)
        spread = spread if each else spread.mean().expand(len(spread))
        shifted = Head(self.weight, self.bias - logits.mean(0))
        return shifted.scaled(1 / spread.clamp_min(1e-6))


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A head and how well it answers examples that are left out.

    Attributes:
        head: its logits are calibrated on the examples left out.
        share: of the start that was taken, 0 where none was; ``start`` says which one.
        start: place among those handed in, or None.
        penalty: of the regression.
        loss: cross-entropy of the examples left out; None where none can be left out.
        accuracy: share of them answered rightly; None as ``loss``.
        judged: how many different examples could be left out.
    """

    head: Head
    share: float
    start: int | None
    penalty: float
    loss: float | None = None
    accuracy: float | None = None
    judged: int = 0


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Features with labels.

    Attributes:
        features: (N, H).
        labels: (N,) from 0.
        classes: C.
        copies: (N,) how often each example is there; copies are left out together.
    """

    features: Tensor
    labels: Tensor
    classes: int
    copies: Tensor

    @property
    def judged(self) -> Tensor:
        """(N,) bool: those of whose class others remain when they are left out."""
        return self.copies < torch.bincount(self.labels, minlength=self.classes)[self.labels]

    @property
    def can_judge(self) -> bool:
        """Whether examples of every class can be left out: of some alone they say nothing of the rest."""
        return len(self.labels[self.judged].unique()) == self.classes

    def pictures(self, chosen: Tensor | None = None) -> int:
        """How many different examples there are, among ``chosen`` (N,) bool where that is given."""
        copies = self.copies if chosen is None else self.copies[chosen]
        return round(float((1 / copies.double()).sum()))


@full_precision
def fit_head(shown: Labelled, metric: Tensor, starts: Sequence[Head] = ()) -> Fitted:
    """The best of ridge regressions on ``shown`` in ``metric`` (H, K), from nothing or from a start.

    The starts' logits have deviation 1. They must not have seen the labels.

    Source: leave-one-out residuals, see :func:`weightloom.fitting.left_out_residuals`; ridge heads,
    Bertinetto et al. (arXiv 1805.08136).

    Example:
        >>> x = torch.randn(40, 3) + torch.tensor([4.0, 0, 0]) * (torch.arange(40) % 2)[:, None]
        >>> ones = torch.ones(40, dtype=torch.int64)
        >>> shown = Labelled(features=x, labels=torch.arange(40) % 2, classes=2, copies=ones)
        >>> fit_head(shown, torch.eye(3)).accuracy > 0.9
        True
    """
    middle = shown.features.mean(0)
    inner = (shown.features - middle) @ metric  # (N, K)
    size = inner.square().sum(1).mean().clamp_min(1e-12)
    # (N, K + 1): the last column is a constant, as long as an example.
    design = torch.cat([inner, size.sqrt().expand(len(inner), 1)], 1)
    wanted = F.one_hot(shown.labels, shown.classes).to(inner.dtype) - 1 / shown.classes  # (N, C)
    options: list[tuple[int | None, float]] = [(None, 0.0)]
    options += [(place, share) for place in range(len(starts)) for share in SHARES]
    answers = [start(shown.features) for start in starts]
    answers = [logits - logits.mean(1, keepdim=True) for logits in answers]
    begun = [0 * wanted if place is None else share * answers[place] for place, share in options]
    judged = shown.judged
    place: int | None = len(starts) - 1 if starts else None
    share, penalty, scale = ONE_SHARE if starts else 0.0, ONE_PENALTY, ONE_SCALE
    loss: float | None = None
    hit: float | None = None
    if shown.can_judge:
        residual = left_out_residuals(design, torch.cat([wanted - b for b in begun], 1), shown.copies)
        found: list[tuple[float, Tensor, float, int | None, float]] = []
        more = SMALLER if len(wanted) >= MANY * shown.classes else ()
        labels = shown.labels[judged]
        some = slice(
            None, None, max(1, labels.numel() * shown.classes // MOST_ANSWERS)
        )  # enough to choose by
        for one in (*more, *PENALTIES):
            left = residual(size * one).unflatten(1, (len(options), shown.classes))
            for number, option in enumerate(options):
                logits = (wanted - left[:, number])[judged]  # (N', C): fitted labels of those left out
                found.append((_least_loss(logits[some], labels[some]), logits, one, *option))
        _, logits, penalty, place, share = min(found, key=lambda one: one[0])
        scale = 1 / fit_temperature(logits[some], labels[some])  # a few right answers do not make it sure
        loss = float(F.cross_entropy(scale * logits, labels))
        hit = float((logits.argmax(1) == labels).float().mean())
    rest = wanted - (0 if place is None else share * answers[place])
    rows, constant = _ridge(design, rest, float(size) * penalty)
    weight = (metric @ rows).T  # (K, C) -> (C, H)
    head = Head(weight, constant * size.sqrt() - weight @ middle)
    if place is not None:
        start = starts[place]
        centred = Head(start.weight - start.weight.mean(0), start.bias - start.bias.mean())
        head = head.plus(centred.scaled(share))
    return Fitted(
        head=head.scaled(scale), share=share, start=place, penalty=penalty, loss=loss, accuracy=hit,
        judged=0 if loss is None else shown.pictures(judged),
    )  # fmt: skip


def _least_loss(logits: Tensor, labels: Tensor) -> float:
    """The least loss of logits times a scale."""
    return min(float(F.cross_entropy(scale * logits, labels)) for scale in SCALES)


def _ridge(design: Tensor, wanted: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """(K, C) and (C,): the regression of ``wanted`` (N, C) on ``design`` (N, K + 1), the last row apart."""
    count, width = design.shape
    if count <= width:
        inner = design @ design.T
        inner.diagonal().add_(penalty)
        rows = design.T @ torch.linalg.solve(inner, wanted)
    else:
        inner = design.T @ design
        inner.diagonal().add_(penalty)
        rows = torch.linalg.solve(inner, design.T @ wanted)
    return rows[:-1], rows[-1]


@full_precision
def spread_to(
    start: Head | None, unlabelled: Tensor, shown: Labelled | None, certainty: float = CERTAINTY
) -> Head:
    """A head from pictures without labels (U, H), from a start, from examples, or from both.

    Each class's middle is that of the pictures that are taken for it, each as much as it is sure; what is
    sure is told by the start and by the middles of the round before. Where one class takes many pictures it
    takes less of each.

    Args:
        start: logits of deviation 1 over the pictures, or None; then there must be examples.
        unlabelled: (U, H).
        shown: examples, which belong to their classes from the first round to the last.
        certainty: what a cosine to a class's middle is multiplied by to be a logit.

    Source: expectation and maximisation over unlabelled examples, Nigam et al. (Machine Learning, 2000);
    on the sphere, Banerjee et al. (JMLR 2005).
    """
    every = unlabelled if shown is None else torch.cat([shown.features, unlabelled])
    middle = every.mean(0)
    away = (unlabelled - middle).norm(dim=1).mean().clamp_min(1e-6)
    inner = F.normalize(unlabelled - middle, dim=1)
    anchors: Tensor | None = None
    if shown is not None:
        own = F.normalize(shown.features - middle, dim=1)
        anchors = F.one_hot(shown.labels, shown.classes).to(own.dtype).T @ own  # (C, H)
    told = None if start is None else start(unlabelled)
    middles = anchors
    for _ in range(ROUNDS):
        logits = torch.zeros(()) if told is None else told
        if middles is not None:
            logits = logits + certainty * inner @ F.normalize(middles, dim=1).T
        shares = logits.softmax(1)
        shares = shares / (shares.sum(0) + FLOOR).sqrt()
        shares = shares / shares.sum(1, keepdim=True)
        middles = shares.T @ inner + (0 if anchors is None else anchors)
    assert middles is not None
    rows = certainty * F.normalize(middles, dim=1) / away  # as if all were as far from the middle
    head = Head(rows, -rows @ middle)
    return head if start is None else head.plus(start)
