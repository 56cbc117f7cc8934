"""A first guess at a task's network without a gradient step: a trunk as it is, its head in closed form.

The trunk's batch norms are measured on the support set and the head is that of linear discriminant
analysis on the trunk's features. Knows nothing of generators: they start from it, and it is a baseline.

Shapes: P values of a network, C classes, S examples a class, H features of the trunk.
Source: linear discriminant analysis with a shrunk covariance, Hastie et al., "The Elements of Statistical
Learning", equations 4.10 and 4.16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weightloom.architectures import ArchitectureSpec
from weightloom.fitting.population import recalibrate, trunk_features
from weightloom.weights import layout_of

SHRINKAGE = 0.3
"""Share of the pooled covariance that gives way to a multiple of the identity."""


@torch.no_grad()
def closed_form_network(
    spec: ArchitectureSpec,
    flat: Tensor,
    support: Tensor,
    *,
    head_rms: float | None = None,
    shrinkage: float = SHRINKAGE,
) -> Tensor:
    """(P,) network with the trunk of ``flat`` (P,) and a discriminant head for ``support`` (C, S, ch, h, w).

    ``head_rms`` is the root mean square that the head's weights are scaled to; a scale changes how sure the
    network is, never its answer. A support set with one example a class has no spread within classes;
    distances are then plain ones.
    """
    classes, shots = support.shape[:2]
    images = support.flatten(0, 1)  # (C, S, ...) -> (C*S, ...)
    measured = recalibrate(spec, flat[None], images)[0]
    features = trunk_features(spec, measured, images).unflatten(0, (classes, shots))  # (C, S, H)
    weight, bias = discriminant_head(features, shrinkage)
    if head_rms is not None:
        factor = head_rms / weight.square().mean().sqrt().clamp_min(1e-8)
        weight, bias = weight * factor, bias * factor
    layout = layout_of(spec)
    state = layout.unflatten(measured)
    head = next(layer for layer in layout.layers if layer.kind == "head")
    state[head.slots[0].name] = weight
    state[head.slots[1].name] = bias
    return layout.flatten(state)


def discriminant_head(features: Tensor, shrinkage: float = SHRINKAGE) -> tuple[Tensor, Tensor]:
    """Weight (C, H) and bias (C,) of linear discriminant analysis on features (C, S, H), differentiable.

    With one example a class there is no spread within classes; distances are then plain ones.
    """
    classes, shots = features.shape[:2]
    means = features.mean(1)  # (C, H)
    inner = (features - means[:, None]).flatten(0, 1)  # (C*S, H)
    covariance = inner.T @ inner / max(1, classes * (shots - 1))
    spread = covariance.diagonal().mean().clamp_min(1e-6)
    eye = torch.eye(len(covariance))
    if shots < 2:
        covariance, spread = eye, torch.ones(())
    shrunk = (1 - shrinkage) * covariance + shrinkage * spread * eye
    middle = means.mean(0)
    weight = torch.linalg.solve(shrunk, (means - middle).T).T  # (C, H)
    bias = -0.5 * ((means + middle) * weight).sum(1)  # (C,)
    return weight, bias
