"""Pieces that several families share: activations, normalisations, convolution blocks, pooling.

Everything here runs under ``torch.func.vmap``: nothing in place on an input, no branch on data, and
sizes that depend on the picture are chosen when the module is made. Knows no family.
"""

from __future__ import annotations

import math
from typing import Annotated

from torch import Tensor, nn

from weightloom.architectures.spec import Choice, Whole

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}

Activation = Annotated[str, Choice(tuple(ACTIVATIONS), "nonlinearity")]
ConvNorm = Annotated[str, Choice(("none", "batch", "group", "layer"), "normalisation after each convolution")]
Kernel = Annotated[int, Whole(1, 11, "side of the convolutions' kernel", odd=True)]


def activation(name: str) -> nn.Module:
    """The nonlinearity called ``name``, a new module without parameters."""
    return ACTIVATIONS[name]()


def conv_norm(name: str, channels: int) -> nn.Module | None:
    """The normalisation of maps ``(B, channels, H, W)``, or None for ``none``.

    ``layer`` is over channels and places together; ``group`` has up to eight groups, each of at least
    two channels, because a group of one channel on a 1 x 1 map would always be zero.
    """
    if name == "batch":
        return nn.BatchNorm2d(channels)
    if name == "group":
        return nn.GroupNorm(math.gcd(channels // 2, 8) if channels % 2 == 0 else 1, channels)
    if name == "layer":
        return nn.GroupNorm(1, channels)
    assert name == "none", name
    return None


class ConvBlock(nn.Module):
    """Convolution, normalisation, activation, pooling; each of the last three may be missing.

    The convolution keeps the map's size (before ``stride``), and has a bias only where no
    normalisation follows it.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        norm: str = "none",
        activation_name: str | None = None,
        pool: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            channels, width, kernel, stride, padding=kernel // 2, groups=groups, bias=norm == "none"
        )
        self.norm = conv_norm(norm, width)
        self.activation = None if activation_name is None else activation(activation_name)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """``(B, channels, H, W)`` to ``(B, width, H', W')``."""
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        if self.activation is not None:
            x = self.activation(x)
        if self.pool is not None:
            x = self.pool(x)
        return x


class GlobalAverage(nn.Module):
    """Mean over places: ``(B, C, H, W)`` to ``(B, C)``."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


def halving(height: int, width: int, *, least: int = 2) -> tuple[nn.MaxPool2d | None, int, int]:
    """A max-pooling that halves each side that has at least ``least`` places left afterwards.

    Returns:
        The pooling (None if neither side can be halved) and the map's size after it.
    """
    factors = tuple(2 if side >= 2 * least else 1 for side in (height, width))
    pool = None if factors == (1, 1) else nn.MaxPool2d(factors)
    return pool, height // factors[0], width // factors[1]


def average_to_two(height: int, width: int) -> tuple[nn.AvgPool2d | None, int, int]:
    """An ordinary average pooling to 2 x 2, the same numbers as ``AdaptiveAvgPool2d(2)``.

    Returns:
        The pooling (None if the map is no larger than 2 x 2) and the map's size after it: 2 x 2,
        unless a side has only one place.
    """
    # Two windows over `side` places, `stride` apart and together touching every place.
    strides = tuple(max(side // 2, 1) for side in (height, width))
    kernels = tuple(max(side - stride, 1) for side, stride in zip((height, width), strides, strict=True))
    after = tuple(
        (side - kernel) // stride + 1
        for side, kernel, stride in zip((height, width), kernels, strides, strict=True)
    )
    pool = None if after == (height, width) else nn.AvgPool2d(kernels, strides)  # type: ignore[arg-type]
    return pool, after[0], after[1]
