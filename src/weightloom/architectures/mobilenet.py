"""``mobilenet``: inverted residual blocks around depthwise convolutions.

Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (CVPR 2018),
section 3, in three stages for small pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor, nn

from weightloom.architectures.blocks import (
    Activation,
    ConvBlock,
    ConvNorm,
    GlobalAverage,
    Kernel,
)
from weightloom.architectures.spec import ArchitectureSpec, Whole, architecture

_LAST = 8  # channels before the global average, times the first width: twice the last stage's


class InvertedResidual(nn.Module):
    """Widen, convolve each channel by itself, narrow without activation.

    The input is added where the shape stays. As in the paper, a bottleneck's normalisation has a
    shift although the next block's batch norm takes most of it away again.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        expansion: int,
        stride: int,
        kernel: int,
        norm: str,
        activation_name: str,
    ) -> None:
        super().__init__()
        inner = channels * expansion
        self.widen = (
            ConvBlock(channels, inner, kernel=1, norm=norm, activation_name=activation_name)
            if expansion > 1
            else None
        )
        self.depthwise = ConvBlock(
            inner,
            inner,
            kernel=kernel,
            stride=stride,
            groups=inner,
            norm=norm,
            activation_name=activation_name,
        )
        self.narrow = ConvBlock(inner, width, kernel=1, norm=norm)
        self.keeps_shape = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        """``(B, channels, H, W)`` to ``(B, width, H / stride, W / stride)``, rounded up."""
        y: Tensor = x if self.widen is None else self.widen(x)
        y = self.narrow(self.depthwise(y))
        return x + y if self.keeps_shape else y


@architecture("mobilenet")
@dataclass(frozen=True, kw_only=True)
class MobileNetSpec(ArchitectureSpec):
    """A stem, ``depth`` inverted residual blocks in three stages of widths w, 2w, 4w, a 1 x 1 convolution.

    The first block of the second and of the third stage halves the map; fewer than three blocks
    leave the last stages out.
    """

    depth: Annotated[int, Whole(1, 200, "number of inverted residual blocks")] = 6
    width: Annotated[int, Whole(2, 4096, "channels of the first stage, doubled at each next")] = 8
    expansion: Annotated[int, Whole(1, 16, "how many times wider a block is inside")] = 4
    kernel: Kernel = 3
    norm: ConvNorm = "batch"
    activation: Activation = "relu"

    def body(self, input: tuple[int, int, int]) -> tuple[nn.Module, int]:
        channels = self.width
        layers: list[nn.Module] = [
            ConvBlock(input[0], channels, kernel=self.kernel, norm=self.norm, activation_name=self.activation)
        ]
        for index in range(self.depth):
            stage = index * 3 // self.depth
            begins = index > 0 and stage != (index - 1) * 3 // self.depth
            width = self.width * 2**stage
            layers.append(
                InvertedResidual(
                    channels,
                    width,
                    expansion=self.expansion,
                    stride=2 if begins else 1,
                    kernel=self.kernel,
                    norm=self.norm,
                    activation_name=self.activation,
                )
            )
            channels = width
        last = self.width * _LAST
        layers.append(ConvBlock(channels, last, kernel=1, norm=self.norm, activation_name=self.activation))
        layers.append(GlobalAverage())
        return nn.Sequential(*layers), last

    @classmethod
    def example_texts(cls) -> tuple[str, ...]:
        return (
            "mobilenet(depth=6,width=8)",
            "mobilenet(depth=3,width=16,expansion=2,kernel=5,activation=silu)",
        )
