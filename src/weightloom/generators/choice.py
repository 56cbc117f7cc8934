"""Which of several generators' networks is the best on examples.

Every head is judged by examples that it was not made from; codes and statistics have seen them.

Shapes: C classes, S examples a class, H features of a trunk.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from weightloom.fitting import copies_of, discriminant_left_out, trunk_features
from weightloom.generators.sample import Sample
from weightloom.tasks import SupportSet

LEFT_OUT = "support_scores"
"""What a report has where its scores on the examples are honest already."""


@torch.no_grad()
def left_out_loss(sample: Sample, support: SupportSet) -> float:
    """Mean loss of each example, answered by a head that was made without it; infinite with one example a
    class.

    It is the sample's own where its report has that. Else heads are made anew on the features of its trunk,
    linear discriminants, whichever of several is best: so it says how good the trunk is for the task.
    """
    if LEFT_OUT in sample.report:
        return float(sample.report["support_loss"])
    classes, shots = support.images.shape[:2]
    copies = copies_of(support.images)
    judged = copies < shots  # the others are all that their class has
    if not judged.any():
        return math.inf
    images, labels = support.flat()
    features = trunk_features(sample.architecture, sample.flat[None], images)[0]
    features = features.unflatten(0, (classes, shots))  # (C*S, H) -> (C, S, H)
    return min(
        float(
            F.cross_entropy(
                scale * discriminant_left_out(features, shrinkage, copies)[judged], labels[judged]
            )
        )
        for shrinkage in (0.1, 0.3, 0.6, 0.9)
        for scale in (0.1, 0.3, 1.0)
    )
