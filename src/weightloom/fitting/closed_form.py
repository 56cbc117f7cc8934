"""A first guess at a task's network without a gradient step: a trunk as it is, its head in closed form.

The trunk's batch norms are measured on the support set and the head is that of linear discriminant
analysis on the trunk's features. Knows nothing of generators: they start from it, and it is a baseline.

Shapes: P values of a network, C classes, S examples a class, H features of the trunk.
Source: linear discriminant analysis with a shrunk covariance, Hastie et al., "The Elements of Statistical
Learning", equations 4.10 and 4.16.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from weightloom.architectures import ArchitectureSpec
from weightloom.defaults import with_plain_defaults
from weightloom.errors import InputError
from weightloom.fitting.population import recalibrate, trunk_features
from weightloom.fitting.precision import full_precision
from weightloom.tasks.data import checked_images
from weightloom.weights import layout_of

SHRINKAGE = 0.3
"""Share of the pooled covariance that gives way to a multiple of the identity."""


@full_precision
def discriminant(
    features: Tensor, shrinkage: float | Tensor = SHRINKAGE, moves: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weight (..., C, H) and bias (..., C) of a linear discriminant on features (..., C, S, H);
    differentiable.

    One example a class shows no spread within classes; distances are then plain ones. ``moves`` (..., C, H)
    move the class means, in units of how uncertain S examples leave them: standard normal moves draw heads
    from what the examples allow (the posterior of the means under a flat prior).
    """
    classes, shots, width = features.shape[-3:]
    means = features.mean(-2)  # (..., C, H)
    eye = torch.eye(width, device=features.device)
    if shots < 2:
        shrunk = eye
    else:
        inner = (features - means[..., None, :]).flatten(-3, -2)  # (..., C*S, H)
        covariance = inner.mT @ inner / (classes * (shots - 1))
        spread = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None].clamp_min(1e-6)
        shrunk = (1 - shrinkage) * covariance + shrinkage * spread * eye
    if moves is not None:
        root = torch.linalg.cholesky(shrunk)  # (..., H, H)
        means = means + moves @ root.mT / shots**0.5
    middle = means.mean(-2, keepdim=True)
    weight = torch.linalg.solve(shrunk, (means - middle).mT).mT  # (..., C, H)
    return weight, -0.5 * ((means + middle) * weight).sum(-1)


@full_precision
def discriminant_of_shares(features: Tensor, given: Tensor, shrinkage: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (C, H) and biases (C,) of a linear discriminant on features (N, H) that belong to the classes by
    the shares ``given`` (N, C); differentiable.

    Source: the step of expectation maximisation for normal distributions with one shrunk covariance, Hastie
    et al., "The Elements of Statistical Learning", section 8.5.
    """
    counts = given.sum(0)  # (C,)
    means = given.T @ features / counts[:, None]  # (C, H)
    total = features.T @ (given.sum(1, keepdim=True) * features)
    within = (total - (counts[:, None] * means).T @ means) / counts.sum()  # (H, H)
    spread = within.diagonal().mean().clamp_min(1e-6)
    eye = torch.eye(len(within), device=within.device)
    shrunk = (1 - shrinkage) * within + (shrinkage + 1e-3) * spread * eye
    middle = means.mean(0)
    rows = torch.linalg.solve(shrunk, (means - middle).T).T
    return rows, -0.5 * ((means + middle) * rows).sum(1)


def copies_of(images: Tensor) -> Tensor:
    """(C*S,) how often each of the examples (C, S, ...) stands in its class: small classes repeat their
    pictures.

    Example:
        >>> copies_of(torch.tensor([[[1.0], [2.0], [1.0]], [[3.0], [4.0], [5.0]]])).tolist()
        [2, 1, 2, 1, 1, 1]
    """
    counts = []
    for own in images.flatten(2):  # (C, S, ...) -> C times (S, pixels)
        _, place, count = torch.unique(own, dim=0, return_inverse=True, return_counts=True)
        counts.append(count[place])
    return torch.cat(counts)


@full_precision
def discriminant_left_out(
    features: Tensor, shrinkage: float = SHRINKAGE, copies: Tensor | None = None
) -> Tensor:
    """(C*S, C) logits of examples with features (C, S, H), S at least 2, each by the discriminant of the
    others.

    Without an example its class's mean moves and the covariance loses one product, which its inverse follows
    in closed form. How many examples the covariance is divided by, and its mean spread, are those of all.
    ``copies`` (C*S,), of :func:`copies_of`, are left out together; where a class is one picture, its answers
    mean nothing.

    Source: the inverse of a matrix plus one product, Sherman and Morrison (1950).

    Example:
        >>> x = torch.randn(2, 6, 3) + torch.tensor([[[4.0]], [[-4.0]]])
        >>> discriminant_left_out(x).argmax(1).tolist()
        [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
    """
    classes, shots, width = features.shape
    means = features.mean(1)  # (C, H)
    flat = features.flatten(0, 1)  # (C, S, H) -> (C*S, H)
    inner = (features - means[:, None]).flatten(0, 1)  # (C*S, H)
    covariance = inner.T @ inner / (classes * (shots - 1))
    spread = covariance.diagonal().mean().clamp_min(1e-6)
    shrunk = (1 - shrinkage) * covariance + shrinkage * spread * torch.eye(width, device=flat.device)
    inverse = torch.linalg.inv(shrunk)
    out = flat.new_ones(len(flat)) if copies is None else copies.to(flat.dtype)
    larger = shots / (shots - out).clamp_min(0.5)  # (C*S,)
    away = flat[:, None] - means  # (C*S, C, H)
    labels = torch.arange(classes, device=flat.device).repeat_interleave(shots)
    rows = torch.arange(len(flat), device=flat.device)
    away[rows, labels] *= larger[:, None]  # from the mean of the others
    turned = inner @ inverse  # (C*S, H)
    share = (1 - shrinkage) / (classes * (shots - 1)) * out * larger  # (C*S,)
    own = (turned * inner).sum(1)  # (C*S,)
    across = torch.einsum("nch,nh->nc", away, turned)
    distance = torch.einsum("nch,hk,nck->nc", away, inverse, away)
    moved = share / (1 - share * own).clamp_min(1e-3)
    return -0.5 * (distance + moved[:, None] * across.square())


RIDGE = 0.3
"""Penalty of :func:`left_out`, in units of an example's mean squared length."""

CERTAINTY = 8.0
"""What the ridge's answers, between 0 and 1, are multiplied by to be logits."""


@full_precision
def left_out(features: Tensor, labels: Tensor, classes: int, ridge: float = RIDGE) -> Tensor:
    """(B, C) logits of examples by ridge regressions that never saw them; differentiable.

    How good features (B, H) are for telling the classes apart, whatever head they will get: example i is
    judged by the regression on the B - 1 others, all of them from one inverse.

    Source: leave-one-out residuals of ridge regression, Hastie et al., "The Elements of Statistical
    Learning", equation 7.64; ridge heads in meta-learning, Bertinetto et al. (arXiv 1805.08136).

    Example:
        >>> x = torch.eye(2).repeat(8, 1)
        >>> left_out(x, torch.arange(2).repeat(8), 2).argmax(1).tolist()[:4]
        [0, 1, 0, 1]
    """
    count = len(features)
    centred = features - features.mean(0)
    centred = centred / (centred.square().mean().sqrt() + 1e-3)
    design = torch.cat([centred, centred.new_ones(count, 1)], 1)  # (B, H + 1)
    wanted = torch.nn.functional.one_hot(labels, classes).to(features.dtype) - 1 / classes
    kernel = design @ design.T
    penalty = ridge * kernel.diagonal().mean().detach()
    inverse = torch.linalg.inv(kernel + penalty * torch.eye(count, device=features.device))
    return CERTAINTY * (wanted - inverse @ wanted / inverse.diagonal()[:, None])


_TALL = 2
"""Examples, in units of features, from which on a regression is decomposed by its features."""


def left_out_residuals(design: Tensor, wanted: Tensor, copies: Tensor) -> Callable[[Tensor], Tensor]:
    """What ridge regressions on a design (N, K) leave of targets (N, D) where an example is left out, by
    penalty. It is :func:`left_out` for many penalties at once, without gradients.

    ``copies`` (N,) of one example are left out together: they count as one with their weight.

    Source: leave-one-out residuals of ridge regression, Hastie et al., "The Elements of Statistical
    Learning", equation 7.64.
    """
    # (1 - leverage) and the residual come from one decomposition; a whole basis keeps what is small exact.
    whole = len(design) <= design.shape[1]
    if len(design) > _TALL * design.shape[1]:  # of its columns' products: many times faster
        size, right = torch.linalg.eigh((design.T @ design).double())
        size = size.clamp_min(0).to(design.dtype)
        left = design @ (right.to(design.dtype) * size.clamp_min(1e-12).rsqrt())
    else:
        left, values, _ = torch.linalg.svd(design, full_matrices=False)
        size = values.square()
    inner = left.T @ wanted

    def residual(penalty: Tensor) -> Tensor:
        kept, lost = size / (size + penalty), penalty / (size + penalty)
        if whole:
            rest, free = left @ (lost[:, None] * inner), left.square() @ lost
        else:
            rest, free = wanted - left @ (kept[:, None] * inner), 1 - left.square() @ kept
        # Of g copies each has the same leverage h: without them the residual is divided by 1 - g * h.
        free = torch.where(copies > 1, 1 - copies * (1 - free), free)
        return rest / free.clamp_min(1e-6)[:, None]

    return residual


@torch.no_grad()
@with_plain_defaults
def closed_form_network(
    spec: ArchitectureSpec,
    flat: Tensor,
    support: Tensor,
    *,
    head_rms: float | None = None,
    shrinkage: float | Tensor = SHRINKAGE,
    moves: Tensor | None = None,
    measured: bool = False,
) -> Tensor:
    """(P,) network with the trunk of ``flat`` (P,) and a discriminant head for ``support`` (C, S, ch, h, w).

    ``head_rms`` is the root mean square that the head's weights are scaled to; a scale changes how sure the
    network is, never its answer. ``measured`` says that the statistics of ``flat`` are those of the examples
    already.

    Raises:
        InputError: the network is not of ``spec``, or it cannot read the examples.
    """
    support = checked_images(support, "the examples", spec.input)
    if support.dim() != 5:
        raise InputError(f"examples are (C, S, channels, height, width), not {tuple(support.shape)}")
    images = support.flatten(0, 1)  # (C, S, ...) -> (C*S, ...)
    flats = flat[None] if measured else recalibrate(spec, flat[None], images)
    features = trunk_features(spec, flats, images)[0].unflatten(0, support.shape[:2])  # (C, S, H)
    weight, bias = discriminant(features, shrinkage, moves)
    if head_rms is not None:
        factor = head_rms / weight.square().mean().sqrt().clamp_min(1e-8)
        weight, bias = weight * factor, bias * factor
    layout = layout_of(spec)
    state = layout.unflatten(flats[0])
    head = next(layer for layer in layout.layers if layer.kind == "head")
    state[head.slots[0].name] = weight
    state[head.slots[1].name] = bias
    return layout.flatten(state)
