"""From a node's state to a tensor of any shape: by tiling a block, or from coordinates.

Both give every width exactly, differentiably, and tensors of about unit variance at the start. Knows nothing
of graphs, layers or normalisation.

Shapes: K tensors of one shape at once, D width of a state, O and I output and input channels, k kernel sides.
Sources: tiling, GHN-2 (arXiv 2110.13100), section 3.2 and appendix A; centred kernels, GHN-3 (arXiv
2303.04143); weights as a product of small factors, LoGAH (arXiv 2405.16287); weights from their coordinates,
NeRN (arXiv 2212.13554), section 3.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TensorDecoder(nn.Module, ABC):
    """States (K, D) to tensors."""

    @abstractmethod
    def weight(self, states: Tensor, shape: tuple[int, int, int, int], scale: float = 1.0) -> Tensor:
        """(K, O, I, kh, kw) for ``shape`` (O, I, kh, kw), times ``scale``."""

    @abstractmethod
    def vectors(self, states: Tensor, length: int) -> Tensor:
        """(K, 2, length): a weight and a bias for each state."""

    @abstractmethod
    def head(self, states: Tensor, into: int) -> Tensor:
        """(K, classes, into): the last layer, whose rows are the classes in their order."""

    @abstractmethod
    def head_bias(self, states: Tensor) -> Tensor:
        """(K, classes)."""


_RELU_VARIANCE = 0.5 - 0.5 / math.pi
"""Of max(0, z) for standard normal z."""

_QUIET = 0.3
"""What heads, gains and biases start with, of what tensors of unit variance would be: a network with random
gains and a loud head loses to an ordinary initialisation (`docs/experiments.md`)."""


def _unit(layer: nn.Linear, *, after_relu: bool = False) -> nn.Linear:
    """Start with outputs of unit variance for inputs of unit variance.

    After a ReLU all inputs share a positive mean, which would make the tensors of all nodes alike: each row's
    weights then sum to zero, so that only what differs between inputs comes through.
    """
    variance = _RELU_VARIANCE if after_relu else 1.0
    nn.init.normal_(layer.weight, std=(variance * layer.in_features) ** -0.5)
    if after_relu:
        with torch.no_grad():
            layer.weight -= layer.weight.mean(1, keepdim=True)
    nn.init.zeros_(layer.bias)
    return layer


def _resized(kernel: Tensor, sides: tuple[int, int]) -> Tensor:
    """(K, A, B, S, S) kernels to larger sides, bilinearly."""
    k, a, b = kernel.shape[:3]
    wide = F.interpolate(kernel.flatten(0, 1), size=sides, mode="bilinear", align_corners=False)
    return wide.reshape(k, a, b, *sides)  # (K * A, B, kh, kw) -> (K, A, B, kh, kw)


class TilingDecoder(TensorDecoder):
    """A block of at most ``block`` x ``block`` channels, repeated and cut to the shape that is wanted.

    A tensor wider than the block holds exact copies of it. Only the part of the block that is needed is
    computed, as rows and columns of the last layer's weight, so that every width below the block works too.

    Args:
        width: D.
        classes: rows of the head.
        block: largest number of channels that are not copies.
        kernel: largest kernel side that is not interpolated.
        centred: smaller kernels are cut from the middle (GHN-3) instead of the corner (GHN-2).

    Example:
        >>> decoder = TilingDecoder(8, classes=3, block=4, kernel=3)
        >>> w = decoder.weight(torch.randn(2, 8), (7, 4, 3, 3))
        >>> w.shape, torch.equal(w[:, 4:], w[:, :3])
        (torch.Size([2, 7, 4, 3, 3]), True)
    """

    def __init__(
        self, width: int, *, classes: int, block: int = 64, kernel: int = 11, centred: bool = False
    ) -> None:
        super().__init__()
        self.block, self.kernel, self.centred, inner = block, kernel, centred, 4 * width
        self.seed = _unit(nn.Linear(width, inner * kernel * kernel))
        self.mix = _unit(nn.Linear(inner, 2 * inner), after_relu=True)
        self.out = _unit(nn.Linear(2 * inner, block * block), after_relu=True)
        self.vector = nn.Sequential(
            _unit(nn.Linear(width, 2 * width)),
            nn.ReLU(),
            _unit(nn.Linear(2 * width, 2 * block), after_relu=True),
        )
        self.classes = _unit(nn.Linear(block, classes), after_relu=True)
        self.class_bias = _unit(nn.Linear(block, classes), after_relu=True)

    def _block(self, states: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
        """(K, o, i, kh, kw) with o and i at most ``block`` and sides at most ``kernel``."""
        o, i, high, wide = shape
        s, m = self.kernel, self.block
        top, left = ((s - high) // 2, (s - wide) // 2) if self.centred else (0, 0)
        part = slice(top, top + high), slice(left, left + wide)
        weight = self.seed.weight.view(-1, s, s, states.shape[1])[:, part[0], part[1]]  # (4D, kh, kw, D)
        bias = self.seed.bias.view(-1, s, s)[:, part[0], part[1]]
        seed = torch.relu(torch.einsum("chwd,kd->khwc", weight, states) + bias.permute(1, 2, 0))
        mixed = torch.relu(self.mix(seed))  # (K, kh, kw, 8D)
        rows = self.out.weight.view(m, m, -1)[:o, :i].flatten(0, 1)  # (o, i, 8D) -> (o * i, 8D)
        block = F.linear(mixed, rows, self.out.bias.view(m, m)[:o, :i].flatten())
        # (K, kh, kw, o * i) -> (K, o, i, kh, kw)
        return block.unflatten(-1, (o, i)).permute(0, 3, 4, 1, 2)

    def weight(self, states: Tensor, shape: tuple[int, int, int, int], scale: float = 1.0) -> Tensor:
        """(K, O, I, kh, kw)."""
        o, i, high, wide = shape
        small = min(o, self.block), min(i, self.block), min(high, self.kernel), min(wide, self.kernel)
        block = self._block(states, small) * scale  # before the copies are made: they are most of the work
        if (high, wide) != small[2:]:
            block = _resized(block, (high, wide))
        return _tiled(_tiled(block, o, 1), i, 2)

    def vectors(self, states: Tensor, length: int) -> Tensor:
        """(K, 2, length)."""
        return _QUIET * _tiled(self.vector(states).unflatten(-1, (2, self.block)), length, 2)

    def head(self, states: Tensor, into: int) -> Tensor:
        """(K, classes, into)."""
        block = self._block(states, (self.block, min(into, self.block), 1, 1))[..., 0, 0]  # (K, block, i)
        rows = self.classes(torch.relu(block).transpose(1, 2)).transpose(1, 2)  # (K, classes, i)
        return _QUIET * _tiled(rows, into, 2)

    def head_bias(self, states: Tensor) -> Tensor:
        """(K, classes)."""
        rows: Tensor = self.class_bias(torch.relu(self.vectors(states, self.block)[:, 1]))
        return rows


def _tiled(x: Tensor, length: int, dim: int) -> Tensor:
    """Repeat ``x`` along ``dim`` and cut it to ``length``."""
    have = x.shape[dim]
    if length <= have:
        return x.narrow(dim, 0, length)
    return torch.cat([x] * -(-length // have), dim).narrow(dim, 0, length)


class CoordinateDecoder(TensorDecoder):
    """Each output and input channel has its own factor, made from its number and the node's state.

    ``W[o, i, y, x] = sum_r U_r(o) V_r(i) S_r(y, x) / sqrt(rank)``: no channel is a copy of another, whatever
    the width, and the cost of the factors grows with O + I. Numbers are seen as sines and cosines.

    Args:
        width: D.
        classes: rows of the head.
        rank: number of terms.
        kernel: largest kernel side that is not interpolated.
        centred: smaller kernels are cut from the middle instead of the corner.

    Example:
        >>> decoder = CoordinateDecoder(8, classes=3, rank=4, kernel=3)
        >>> w = decoder.weight(torch.randn(2, 8), (300, 5, 3, 3))
        >>> w.shape, bool((w[0, 64:128] == w[0, :64]).any())
        (torch.Size([2, 300, 5, 3, 3]), False)
    """

    def __init__(
        self, width: int, *, classes: int, rank: int = 32, kernel: int = 11, centred: bool = True
    ) -> None:
        super().__init__()
        self.rank, self.kernel, self.centred = rank, kernel, centred
        self.out = _Channels(width, rank)
        self.into = _Channels(width, rank)
        self.vector = _Channels(width, 2)
        self.sides = _unit(nn.Linear(width, rank * kernel * kernel))
        self.classes = nn.Parameter(torch.randn(classes, _FEATURES))
        self.class_bias = _unit(nn.Linear(width, classes))

    def weight(self, states: Tensor, shape: tuple[int, int, int, int], scale: float = 1.0) -> Tensor:
        """(K, O, I, kh, kw)."""
        o, i, high, wide = shape
        s = self.kernel
        sides = self.sides(states).view(-1, 1, self.rank, s, s)
        if max(high, wide) > s:
            sides = _resized(sides, (max(high, s), max(wide, s)))
        top, left = ((sides.shape[-2] - high) // 2, (sides.shape[-1] - wide) // 2) if self.centred else (0, 0)
        sides = sides[:, 0, :, top : top + high, left : left + wide].flatten(2)  # (K, r, kh * kw)
        rows, columns = self.out(states, _coordinates(o, states)), self.into(states, _coordinates(i, states))
        # (K, O, 1, r) * (K, 1, kh * kw, r) -> (K, O * kh * kw, r), then by (K, r, I)
        left_part = (rows[:, :, None] * sides.transpose(1, 2)[:, None]).flatten(1, 2)
        full = left_part @ (columns.transpose(1, 2) * (scale * self.rank**-0.5))
        # (K, O * kh * kw, I) -> (K, O, kh, kw, I) -> (K, O, I, kh, kw)
        return full.unflatten(1, (o, high, wide)).permute(0, 1, 4, 2, 3)

    def vectors(self, states: Tensor, length: int) -> Tensor:
        """(K, 2, length)."""
        return _QUIET * self.vector(states, _coordinates(length, states)).transpose(1, 2)

    def head(self, states: Tensor, into: int) -> Tensor:
        """(K, classes, into)."""
        rows = self.out(states, self.classes)
        return _QUIET * rows @ self.into(states, _coordinates(into, states)).transpose(1, 2) * self.rank**-0.5

    def head_bias(self, states: Tensor) -> Tensor:
        """(K, classes)."""
        rows: Tensor = self.class_bias(states)
        return rows


_FEATURES = 32


class _Channels(nn.Module):
    """Numbers of channels, as features (L, F), and states (K, D) to factors (K, L, rank)."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        inner = 4 * width
        self.place = _unit(nn.Linear(_FEATURES, inner))
        self.state = _unit(nn.Linear(width, inner))
        self.gain = _unit(nn.Linear(width, inner))
        self.factor = _unit(nn.Linear(inner, rank), after_relu=True)

    def forward(self, states: Tensor, places: Tensor) -> Tensor:
        # The state turns the features of the place, and does not only shift them.
        turned = self.place(places)[None] * (1 + torch.tanh(self.gain(states)))[:, None]
        inner = torch.relu((turned + self.state(states)[:, None]) * 0.5**0.5)  # (K, L, 4D)
        factors: Tensor = self.factor(inner)
        return factors


def _coordinates(length: int, like: Tensor) -> Tensor:
    """(length, F) sines and cosines of the numbers below ``length``, of unit variance."""
    rate = math.pi * 0.5 ** (torch.arange(_FEATURES // 2) * 12 / (_FEATURES // 2))  # periods of 2 to 4,500
    phase = torch.arange(length)[:, None] * rate
    return (torch.cat([phase.sin(), phase.cos()], 1) * 2**0.5).to(like)
