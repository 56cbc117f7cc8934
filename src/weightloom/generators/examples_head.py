"""Parts of the heads that are made from examples: regressions without an example, discriminants from shares.

Shapes: C classes, N examples, H features of the trunk, K columns of a design, D targets.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def left_out_residuals(design: Tensor, wanted: Tensor, copies: Tensor) -> Callable[[Tensor], Tensor]:
    """What ridge regressions on a design (N, K) leave of targets (N, D) where an example is left out, by
    penalty.

    ``copies`` (N,) of one example are left out together: they count as one with their weight.

    Source: leave-one-out residuals of ridge regression, Hastie et al., "The Elements of Statistical
    Learning", equation 7.64.
    """
    # (1 - leverage) and the residual come from one decomposition; a whole basis keeps what is small exact.
    root = copies.to(design.dtype).sqrt()[:, None]
    whole = len(design) <= design.shape[1]
    left, values, _ = torch.linalg.svd(design, full_matrices=False)
    inner, size = left.T @ wanted, values.square()

    def residual(penalty: Tensor) -> Tensor:
        kept, lost = size / (size + penalty), penalty / (size + penalty)
        if whole:
            rest, free = left @ (lost[:, None] * inner), left.square() @ lost
        else:
            rest, free = wanted - left @ (kept[:, None] * inner), 1 - left.square() @ kept
        # Of g copies each has the same leverage h: without them the residual is divided by 1 - g * h.
        together = 1 - root[:, 0].square() * (1 - free)
        return rest / torch.where(root[:, 0] > 1, together, free).clamp_min(1e-6)[:, None]

    return residual


def gaussian_head(features: Tensor, given: Tensor, shrinkage: Tensor) -> tuple[Tensor, Tensor]:
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
