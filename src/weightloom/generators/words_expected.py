"""What accuracy to expect of a network made from words alone, before any picture has been seen.

A linear model of a few things that are known beforehand: how many classes there are, how alike their names
are, whether training has seen their words, and which pictures of training the request is most about. It is
fitted on test pictures of tasks of training, and of names kept for choices. Knows no files and no training.

Shapes: C classes, S sources of pictures, F features.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightloom.conditioning.lexicon import define
from weightloom.conditioning.names import NAME_WIDTH, readable
from weightloom.conditioning.text import TEXT_WIDTH
from weightloom.tasks.vocabulary import stems

_SHARPNESS = 12.0
_PLAIN = 5


class ExpectedAccuracy(nn.Module):
    """One row of weights for each part; ``sources`` S is 0 until it is fitted."""

    names: Tensor
    sentences: Tensor
    weights: Tensor

    def __init__(self, parts: int, sources: int) -> None:
        super().__init__()
        self.register_buffer("names", torch.zeros(sources, NAME_WIDTH))
        self.register_buffer("sentences", torch.zeros(sources, TEXT_WIDTH))
        self.register_buffer("weights", torch.zeros(parts, _PLAIN + 3 * sources))
        self.vocabulary: frozenset[str] = frozenset()

    def features(self, names: Sequence[str], vectors: Tensor, sentence: Tensor | None) -> Tensor:
        """(F,) of class names, their vectors (C, D) and a sentence's vector (E,) or none."""
        seen = [bool(own) and own <= self.vocabulary for own in map(stems, map(readable, names))]
        share = sum(seen) / len(seen)
        count = math.log(len(names))
        unit = F.normalize(vectors[:, :TEXT_WIDTH], dim=1)
        alike = (unit @ unit.T).sum() - len(names)
        alike = alike / (len(names) * (len(names) - 1))
        about = F.normalize(vectors, dim=1).mean(0) @ self.names.T  # (S,)
        if sentence is not None:
            about = about + sentence @ self.sentences.T
        about = torch.softmax(_SHARPNESS * about, 0)
        plain = vectors.new_tensor([1.0, count, share, count * share, float(alike)])
        return torch.cat([plain, about, about * count, about * share])

    def forward(self, part: int, features: Tensor, classes: int) -> Tensor:
        """Accuracy from chance to 1 of features (..., F)."""
        chance = 1 / classes
        return chance + (1 - chance) * torch.sigmoid(features @ self.weights[part])

    def unknown(self, names: Sequence[str]) -> list[str]:
        """The names of which neither training nor the lexicon knows a word: their rows are guesses."""
        return [
            name
            for name in names
            if not stems(readable(name)) & self.vocabulary and define(readable(name)) is None
        ]


def fit_expected(features: Tensor, reached: Tensor, chance: Tensor, ridge: float = 0.3) -> Tensor:
    """(F,) weights from features (N, F) and accuracies (N,) above ``chance`` (N,): a ridge regression."""
    share = ((reached - chance) / (1 - chance)).clamp(0.02, 0.98)
    wanted = torch.logit(share)
    gram = features.T @ features + ridge * torch.eye(features.shape[1])
    return torch.linalg.solve(gram, features.T @ wanted)


def vocabulary_of(names: Collection[str]) -> frozenset[str]:
    """The stems of all words of ``names``."""
    return frozenset(stem for name in names for stem in stems(readable(name)))
