"""How much a network's output moves when a weight does, layer by layer, on real inputs.

For a layer ``y = W x`` and a network's output f, the mean of ``|df|^2`` over inputs is taken to be
``trace(B dW A dW^T)``: A, the second moments of what the layer reads, B, those of the output's gradient
there. That is a Kronecker-factored Gauss-Newton matrix (Martens and Grosse, arXiv 1503.05671, section 3). A
is kept in blocks where a layer reads much, of B only the diagonal where units read inputs of their own.
Knows nothing of codes.

Shapes: m units of a layer, g groups, n inputs of a unit, B inputs of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from weightloom.consolidation.networks import Forward
from weightloom.seeding import torch_generator

BLOCK = 1536
"""Inputs of a unit that are treated together at most."""
PLACES = 4096
"""Gradients of a layer's output that are looked at, of all there are, at most, in one batch."""
ROWS = 2048
"""Patches of a layer's input that are looked at, of all there are, at most, in one batch."""


@dataclass
class Layer:
    """What is known of one weight.

    Attributes:
        moments: blocks of A, each (g, n', n'); their n' add up to n. For a table, whose rows are looked up,
            that is B and stands for what is known of the columns.
        rows: how many patches A is the mean of.
        gradient: (m, m) B, summed over an input's places, or its diagonal (m,).
        places: how many gradients B is made of.
    """

    moments: list[Tensor] = field(default_factory=list)
    rows: int = 0
    gradient: Tensor = field(default_factory=lambda: torch.zeros(()))
    places: int = 0

    @property
    def energy(self) -> float:
        """The trace of B. (Its sum would be zero before a layer norm, which takes out what all share.)"""
        return float((self.gradient.diagonal() if self.gradient.dim() == 2 else self.gradient).sum())


def patches(
    x: Tensor, weight: Tensor, options: Mapping[str, Any], choose: Tensor
) -> Callable[[int, int], Tensor]:
    """A convolution's input as patches: a function of channels from and to, giving (R, channels, kh, kw).

    Args:
        x: (B, channels, height, width).
        weight: (m, channels / g, kh, kw).
        options: stride, padding and dilation, as pairs.
        choose: (R,) random numbers in [0, 1) that choose the patches.
    """
    (ph, pw), (sh, sw), dilation = options["padding"], options["stride"], options["dilation"]
    if dilation != (1, 1):
        raise NotImplementedError("dilated convolutions are not watched")
    x = F.pad(x, (pw, pw, ph, ph))
    windows = x.unfold(2, weight.shape[2], sh).unfold(3, weight.shape[3], sw)  # (B, c, h, w, kh, kw)
    b, _, h, w = windows.shape[:4]
    at = (choose * (b * h * w)).long()
    return lambda first, last: windows[:, first:last].permute(0, 2, 3, 1, 4, 5)[
        at // (h * w), at // w % h, at % w
    ]


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def second_moments(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], rows: int, seed: int
) -> tuple[list[Tensor], int]:
    """Blocks of A, each (g, n', n'), as sums over at most ``rows`` patches, and how many these are."""
    x, weight = args[0].detach(), args[1].detach()
    generator = torch_generator("patches", seed)
    if func is F.linear:
        flat = x.reshape(-1, x.shape[-1])
        if len(flat) > rows:
            flat = flat[torch.randperm(len(flat), generator=generator)[:rows]]
        pieces = [piece.contiguous() for piece in flat.split(BLOCK, 1)]
        return [(p.T @ p)[None] for p in pieces], len(flat)
    names = ("stride", "padding", "dilation", "groups")
    given = dict(zip(names, args[3:], strict=False)) | {k: v for k, v in kwargs.items() if k in names}
    groups = int(given.get("groups", 1))
    options = {k: _pair(given.get(k, 0 if k == "padding" else 1)) for k in names[:3]}
    if func is F.conv1d:
        x, weight = x[:, :, None], weight[:, :, None]
        options = {k: (int(k != "padding"), v[0]) for k, v in options.items()}
    places = (
        x.shape[0] * max(1, x.shape[2] // options["stride"][0]) * max(1, x.shape[3] // options["stride"][1])
    )
    count = min(rows, places)
    read = patches(x, weight, options, torch.rand(count, generator=generator))
    if groups > 1:
        p = read(0, x.shape[1]).reshape(count, groups, -1).transpose(0, 1)  # (g, R, n)
        return [p.transpose(1, 2) @ p], count
    area = weight.shape[2] * weight.shape[3]
    step = max(1, BLOCK // area)
    blocks = []
    for first in range(0, x.shape[1], step):
        p = read(first, min(first + step, x.shape[1])).reshape(count, -1)  # (R, c * kh * kw)
        blocks.append((p.T @ p)[None])
    return blocks, count


class _Watch(TorchFunctionMode):
    def __init__(self, names: Mapping[int, str], layers: dict[str, Layer], seed: int) -> None:
        super().__init__()
        self.names, self.layers, self.seed = names, layers, seed

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func in (F.linear, F.conv1d, F.conv2d) and id(args[1]) in self.names:
            name = self.names[id(args[1])]
            layer = self.layers.setdefault(name, Layer())
            if not torch.is_grad_enabled():
                # A layer that is used at every step of a recurrence is looked at a little at each.
                rows = ROWS if args[0].dim() != 2 or len(args[0]) > 512 else 512
                blocks, count = second_moments(func, args, kwargs, rows, self.seed)
                old = layer.moments
                layer.moments = [a + b for a, b in zip(old, blocks, strict=True)] if old else blocks
                layer.rows += count
                return out
            axis = -1 if func is F.linear else 1
            grouped = func is not F.linear and args[0].shape[1] != args[1].shape[1]

            def tell(gradient: Tensor) -> None:
                flat = gradient.transpose(axis, -1).reshape(-1, gradient.shape[axis])  # (places, m)
                layer.places += len(flat)
                if grouped:
                    layer.gradient = layer.gradient + flat.square().sum(0)
                    return
                share = max(1, len(flat) // PLACES)
                kept = flat[
                    torch.randperm(len(flat), generator=torch_generator("places", self.seed))[::share]
                ]
                layer.gradient = layer.gradient + kept.T @ kept * (len(flat) / len(kept))

            out.register_hook(tell)
        elif (
            func is torch.Tensor.__getitem__
            and out.requires_grad
            and id(args[0]) in self.names
            and args[0].dim() == 2
        ):
            table = self.layers.setdefault(self.names[id(args[0])], Layer())
            count = len(args[0])

            def hear(gradient: Tensor) -> None:
                flat = gradient.reshape(-1, gradient.shape[-1])
                moments = (flat.T @ flat)[None] / count
                table.moments = [table.moments[0] + moments] if table.moments else [moments]
                table.rows += len(flat)

            out.register_hook(hear)
        return out


def measure(
    forward: Forward,
    weights: Mapping[str, Tensor],
    inputs: Tensor,
    *,
    batch: int = 32,
    gradients: int = 128,
    seed: int = 0,
) -> tuple[dict[str, Layer], float]:
    """What every layer's weights mean for the output, and the mean square size of an output.

    Args:
        forward: the network.
        weights: its weights by name.
        inputs: (B, ...) real inputs.
        batch: how many go through at once.
        gradients: how many of them, the first, gradients are taken for; each in one random direction.
        seed: of the directions.
    """
    plain = {k: v.detach().clone() for k, v in weights.items()}
    names = {id(v): k for k, v in plain.items() if v.dim() > 1 and v.is_floating_point()}
    layers: dict[str, Layer] = {}
    size = 0.0
    with torch.no_grad():
        for start in range(0, len(inputs), batch):
            with _Watch(names, layers, seed + start):
                out = forward(plain, inputs[start : start + batch])
            size += float(out.square().sum())
    wanted = [plain[name].requires_grad_() for name in names.values()]
    chosen = inputs[torch.linspace(0, len(inputs) - 1, min(gradients, len(inputs))).long()]
    for start in range(0, len(chosen), batch):
        with torch.enable_grad(), _Watch(names, layers, seed):
            out = forward(plain, chosen[start : start + batch])
            direction = torch.randn(out.shape, generator=torch_generator("probe", seed, start))
            torch.autograd.grad(out, wanted, direction, allow_unused=True)
    for name, layer in layers.items():
        if layer.places:
            layer.moments = [block / max(1, layer.rows) for block in layer.moments]
            layer.gradient = layer.gradient / len(chosen)
        else:  # a table
            layer.moments = [block / len(chosen) for block in layer.moments]
            layer.gradient = torch.ones(len(plain[name]))
    return layers, size / len(inputs)
