"""Learning rates for what makes weights, in parameter groups of torch's optimisers.

Adam moves every parameter by about its learning rate, whatever the parameter's size. What makes weights is
not of the weights' size: embeddings of static hypernetworks are of size 1, a kernel's entries near 0.1,
and scalings of dynamic ones are spread from entries near 0.02. At one rate for all the first stand still and
the second jump. The factors are what did best on validation data of small networks (`docs/experiments.md`).
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from weightloom.errors import InputError
from weightloom.nn.hyper_cells import HyperCell
from weightloom.nn.hyper_layers import HyperLayer


def parameter_groups(
    module: nn.Module, lr: float, *, embeddings: float = 30.0, scalings: float = 0.1
) -> list[dict[str, Any]]:
    """Groups for an optimiser such as Adam: every parameter of ``module`` once.

    Args:
        module: any module with hypernetwork layers in it, or without.
        lr: learning rate of all that is neither of the following.
        embeddings: what it is multiplied by for the embeddings of generated layers (:class:`HyperLayer`).
        scalings: what it is multiplied by for what makes the scalings and biases of a dynamic layer
            (``embed_weight``, ``embed_bias`` and ``spread`` of HyperLSTM's and HyperRNN's cells).

    Raises:
        InputError: a rate or factor that is not a finite number above 0.

    Example:
        >>> from weightloom.nn import HyperLSTM, hyperize
        >>> net = nn.ModuleList([hyperize(nn.Conv2d(8, 8, 3), embedding_size=4), HyperLSTM(8, 16)])
        >>> [(len(group["params"]), round(group["lr"], 4)) for group in parameter_groups(net, 0.01)]
        [(11, 0.01), (1, 0.3), (3, 0.001)]
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"a module is needed, not {type(module).__name__}")
    for name, value in (("lr", lr), ("embeddings", embeddings), ("scalings", scalings)):
        if not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} must be a number above 0, not {value!r}")
    fast: dict[int, nn.Parameter] = {}
    slow: dict[int, nn.Parameter] = {}
    for part in module.modules():
        if isinstance(part, HyperLayer):
            fast[id(part.embedding)] = part.embedding
        elif isinstance(part, HyperCell):
            for parameter in (part.embed_weight, part.embed_bias, part.spread):
                slow[id(parameter)] = parameter
    rest = [p for p in module.parameters() if id(p) not in fast and id(p) not in slow]
    groups = [(rest, lr), (list(fast.values()), lr * embeddings), (list(slow.values()), lr * scalings)]
    return [{"params": parameters, "lr": rate} for parameters, rate in groups if parameters]
