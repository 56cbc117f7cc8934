"""The last layer of a network, fitted on features that are computed once.

Shapes: P values of a network, n images, H features, C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from weightloom.architectures import ArchitectureSpec
from weightloom.fitting.heads import Head
from weightloom.fitting.precision import full_precision
from weightloom.weights import layout_of

PULLS = (1e-1, 1e-2, 1e-3)
"""How strongly a fitted layer is drawn to the one before, in units of a feature's deviation."""

_ROUNDS = 60


def last_layer(spec: ArchitectureSpec, flat: Tensor) -> Head | None:
    """The last layer of a network (P,); None where it is not made of weights and biases."""
    layer = layout_of(spec).layers[-1]
    if layer.kind != "head" or [len(slot.shape) for slot in layer.slots] != [2, 1]:
        return None
    matrix = flat[layout_of(spec).trunk_size :].reshape(layer.rows, layer.cols)  # (C, H + 1)
    return Head(matrix[:, :-1], matrix[:, -1])


def with_last_layer(spec: ArchitectureSpec, flat: Tensor, head: Head) -> Tensor:
    """The network (P,) with another last layer."""
    values = torch.cat([head.weight, head.bias[:, None]], 1).reshape(-1)
    return torch.cat([flat[: layout_of(spec).trunk_size], values.to(flat.dtype)])


@full_precision
@torch.enable_grad()
def fit_last_layer(head: Head, features: Tensor, labels: Tensor, pull: float) -> Head:
    """The layer of least cross-entropy on features (n, H) with labels (n,), drawn to ``head`` by ``pull``.

    Example:
        >>> features, labels = torch.eye(2).repeat(8, 1), torch.arange(2).repeat(8)
        >>> found = fit_last_layer(Head(torch.zeros(2, 2), torch.zeros(2)), features, labels, 1e-2)
        >>> bool((found(features).argmax(1) == labels).all())
        True
    """
    middle = features.mean(0)
    spread = features.std(0, correction=0)
    spread = spread.clamp_min(1e-3 * float(spread.mean()) + 1e-12)
    seen = (features - middle) / spread
    weight = torch.zeros_like(head.weight, requires_grad=True)  # what is added, of features of deviation 1
    bias = torch.zeros_like(head.bias, requires_grad=True)
    before = head(features).detach()
    optimiser = torch.optim.LBFGS(
        [weight, bias], max_iter=_ROUNDS, history_size=10, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        found = F.cross_entropy(before + seen @ weight.T + bias, labels)
        found = found + 0.5 * pull * weight.square().sum() / len(weight)
        found.backward()  # type: ignore[no-untyped-call]
        return found

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    added = (weight / spread).detach()
    return Head(head.weight + added, head.bias + bias.detach() - added @ middle)
