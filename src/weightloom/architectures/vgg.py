"""``vgg``: stacks of small convolutions whose width doubles at every halving.

Source: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition"
(ICLR 2015), with one linear layer after a global average instead of its three, as usual for small
pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import nn

from weightloom.architectures.blocks import (
    Activation,
    ConvBlock,
    ConvNorm,
    GlobalAverage,
    Kernel,
    halving,
)
from weightloom.architectures.spec import ArchitectureSpec, Whole, architecture

_WIDEST = 8  # times the first width; the paper's 512 to its 64


@architecture("vgg")
@dataclass(frozen=True, kw_only=True)
class VGGSpec(ArchitectureSpec):
    """``depth`` convolutions, ``stage`` of each width w, 2w, 4w, 8w, 8w, ..., halving after each stage."""

    depth: Annotated[int, Whole(1, 200, "number of convolutions")] = 6
    width: Annotated[int, Whole(2, 4096, "channels of the first stage, doubled up to 8 times")] = 16
    stage: Annotated[int, Whole(1, 16, "convolutions of one width, between halvings")] = 2
    kernel: Kernel = 3
    norm: ConvNorm = "batch"
    activation: Activation = "relu"

    def body(self, input: tuple[int, int, int]) -> tuple[nn.Module, int]:
        channels, high, wide = input
        layers: list[nn.Module] = []
        for index in range(self.depth):
            width = self.width * min(2 ** (index // self.stage), _WIDEST)
            pool = None
            if (index + 1) % self.stage == 0:
                pool, high, wide = halving(high, wide)
            layers.append(
                ConvBlock(
                    channels,
                    width,
                    kernel=self.kernel,
                    norm=self.norm,
                    activation_name=self.activation,
                    pool=pool,
                )
            )
            channels = width
        layers.append(GlobalAverage())
        return nn.Sequential(*layers), channels

    @classmethod
    def example_texts(cls) -> tuple[str, ...]:
        return ("vgg(depth=6,width=16)", "vgg(depth=8,width=8,stage=3,norm=layer,activation=leaky_relu)")
