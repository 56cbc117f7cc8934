"""What a user would do without us: logistic regression and a support vector machine on the pixels.

Shapes: N examples of C classes, (C, S, channels, height, width).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

SIDES = {"logistic regression on pixels": 16, "SVM on pixels": 32}
"""Pixels of a side that each of the classifiers sees at most: the first is slow with more, and no better."""

MOST_SIDE = max(SIDES.values())

FOLDS = 4
MOST = 2000
"""Examples that they are judged on at most."""


@dataclass(frozen=True)
class Floor:
    """A plain classifier and how it answers examples that are left out, in four parts.

    Attributes:
        name: what it is.
        accuracy: share answered rightly.
        judged: of how many different ones.
    """

    name: str
    accuracy: float
    judged: int


def pixel_rows(images: Tensor, side: int) -> np.ndarray[Any, Any]:
    """(N, D) float32: images (N, channels, height, width) as rows, no larger than ``side``."""
    if images.shape[-1] > side:
        images = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
    if images.shape[1] == 3 and bool(
        (images[:, 0] == images[:, 1]).all() & (images[:, 0] == images[:, 2]).all()
    ):
        images = images[:, :1]
    return images.flatten(1).numpy()


def plain_classifiers() -> dict[str, Any]:
    """Untrained ones by name, as scikit-learn's pipelines."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    return {
        "logistic regression on pixels": make_pipeline(
            StandardScaler(), LogisticRegression(C=0.01, max_iter=200)
        ),
        "SVM on pixels": make_pipeline(StandardScaler(with_std=False), SVC(C=10.0, gamma="scale")),
    }


def floors(images: Tensor) -> list[Floor]:
    """The plain classifiers, judged on the examples (C, S, ...) by four-fold cross-validation.

    Copies of a picture are kept in one part. Empty where a class has fewer than two pictures of its own.
    """
    from sklearn.exceptions import ConvergenceWarning

    classes, shots = images.shape[:2]
    kept = min(shots, max(2, MOST // classes))
    shown = images[:, :kept].flatten(0, 1)
    rows = pixel_rows(shown, MOST_SIDE)
    labels = np.repeat(np.arange(classes), kept)
    _, group = np.unique(rows, axis=0, return_inverse=True)
    group = group.reshape(-1)
    own = [len(set(group[labels == label].tolist())) for label in range(classes)]
    folds = min(FOLDS, *own)
    if folds < 2:
        return []
    part = np.empty(len(rows), dtype=np.int64)
    for label in range(classes):
        members = np.flatnonzero(labels == label)
        place = {g: n for n, g in enumerate(dict.fromkeys(group[members].tolist()))}
        part[members] = [place[g] % folds for g in group[members].tolist()]
    found = []
    for name, model in plain_classifiers().items():
        hits, rows = 0, pixel_rows(shown, SIDES[name])
        for fold in range(folds):
            train, test = part != fold, part == fold
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                hits += int((model.fit(rows[train], labels[train]).predict(rows[test]) == labels[test]).sum())
        found.append(Floor(name, hits / len(rows), sum(own)))
    return found
