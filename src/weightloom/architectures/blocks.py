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
_LEAST = 1e-4
"""Added under a root, whose slope at zero would be infinite."""

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


class Rescale(nn.Module):
    """Pixels in [-1, 1] to the scale that a published network was trained on; constants, no weights.

    Grey pictures become colour pictures of three equal channels.

    Args:
        mean: of the three channels, where pixels are from 0 to 1.
        deviation: as ``mean``.
    """

    def __init__(self, mean: tuple[float, float, float], deviation: tuple[float, float, float]) -> None:
        super().__init__()
        # As numbers, so that neither a checkpoint nor torch.func.functional_call has to know of them.
        self.gain = [1 / (2 * d) for d in deviation]
        self.shift = [(0.5 - m) / d for m, d in zip(mean, deviation, strict=True)]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, 3, H, W)`` or ``(B, 1, H, W)`` to ``(B, 3, H, W)``."""
        gain, shift = x.new_tensor(self.gain), x.new_tensor(self.shift)
        return x * gain[:, None, None] + shift[:, None, None]


class Residual(nn.Module):
    """Layers one after another; the input is added where the shape stays."""

    def __init__(self, layers: list[nn.Module], keeps_shape: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.keeps_shape = keeps_shape

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to what the layers make of it."""
        y: Tensor = self.layers(x)
        return x + y if self.keeps_shape else y


def photograph_problem(input: tuple[int, int, int] | None) -> str | None:
    """Why a network that was published for photographs cannot read such pictures, or None."""
    if input is not None and input[0] not in (1, 3):
        return f"it reads pictures of 1 or 3 channels, not {input[0]}"
    return None


class Root(nn.Module):
    """Square roots of features that are not negative, scaled to length 1: ``(B, H)`` to the same shape.

    Few strong features then count less, and distances between the features of pictures are Hellinger's.

    Source: Arandjelovic and Zisserman, "Three things everyone should know to improve object retrieval"
    (CVPR 2012), section 3.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = x + _LEAST
        return (x / x.sum(dim=1, keepdim=True)).sqrt()  # the roots' squares have the sum 1


Ending = Annotated[str, Choice(("root", "plain"), "what the head sees: roots of length 1, or plain averages")]
"""How the trunk of a published network ends; ``plain`` is how it was published."""


def ending(name: str) -> list[nn.Module]:
    """The last modules of the trunk of a published network: its average over places, and what follows."""
    return [GlobalAverage(), *([Root()] if name == "root" else [])]


Scale = Annotated[int, Whole(5, 200, "channels in per cent of the published network's")]


def scaled_width(channels: int, scale: float) -> int:
    """``channels`` times ``scale`` as a multiple of 8, at least nine tenths of it; below 16 any from 2.

    Source: the published code of MobileNetV2 and EfficientNet, which round like this.
    """
    wanted = channels * scale
    if wanted < 16:
        return max(2, round(wanted))
    rounded = int(wanted + 4) // 8 * 8
    return rounded + 8 if rounded < 0.9 * wanted else rounded


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
