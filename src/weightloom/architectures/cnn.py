"""``cnn``: plain convolutional networks of one width, ending at a 2 x 2 map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import nn

from weightloom.architectures.blocks import (
    Activation,
    ConvBlock,
    ConvNorm,
    Kernel,
    average_to_two,
    halving,
)
from weightloom.architectures.spec import ArchitectureSpec, Whole, architecture

_OWN = 3
"""Convolutions with a role of their own: on small pictures those are the ones that halve."""


@architecture("cnn")
@dataclass(frozen=True, kw_only=True)
class CNNSpec(ArchitectureSpec):
    """``depth`` times convolution, normalisation, activation and halving, then a 2 x 2 average.

    A side that halving would bring under two places is halved no further, so that the features are
    always ``width * 4`` (pictures of one pixel's height or width apart).
    """

    depth: Annotated[int, Whole(1, 200, "number of convolutions")] = 3
    width: Annotated[int, Whole(2, 4096, "channels of every convolution")] = 16
    kernel: Kernel = 3
    norm: ConvNorm = "batch"
    activation: Activation = "relu"

    def body(self, input: tuple[int, int, int]) -> tuple[nn.Module, int]:
        channels, high, wide = input
        layers: list[nn.Module] = []
        for _ in range(self.depth):
            pool, high, wide = halving(high, wide)
            layers.append(
                ConvBlock(
                    channels,
                    self.width,
                    kernel=self.kernel,
                    norm=self.norm,
                    activation_name=self.activation,
                    pool=pool,
                )
            )
            channels = self.width
        average, high, wide = average_to_two(high, wide)
        if average is not None:
            layers.append(average)
        layers.append(nn.Flatten())  # (B, width, high, wide) -> (B, width * high * wide)
        return nn.Sequential(*layers), self.width * high * wide

    def place(self, layer: str) -> tuple[str, float]:
        _, number, part = layer.split(".")  # body.2.conv
        if int(number) < _OWN:
            return f"{number}.{part}", 0.0
        return f"deep.{part}", (int(number) - _OWN) / max(1, self.depth - _OWN - 1)

    @classmethod
    def example_texts(cls) -> tuple[str, ...]:
        return ("cnn(depth=3,width=16)", "cnn(depth=4,width=32,kernel=5,norm=group,activation=gelu)")
