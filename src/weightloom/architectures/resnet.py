"""``resnet``: residual networks for small pictures.

Source: He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), section 4.2, with a
1 x 1 convolution as the shortcut where the shape changes (its option B).
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
    activation,
)
from weightloom.architectures.spec import ArchitectureSpec, Whole, architecture


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, which is the identity where the shape stays."""

    def __init__(
        self, channels: int, width: int, *, stride: int, kernel: int, norm: str, activation_name: str
    ) -> None:
        super().__init__()
        self.first = ConvBlock(
            channels, width, kernel=kernel, stride=stride, norm=norm, activation_name=activation_name
        )
        self.second = ConvBlock(width, width, kernel=kernel, norm=norm)
        self.shortcut = (
            ConvBlock(channels, width, kernel=1, stride=stride, norm=norm)
            if stride != 1 or channels != width
            else None
        )
        self.activation = activation(activation_name)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, channels, H, W)`` to ``(B, width, H / stride, W / stride)``, rounded up."""
        beside = x if self.shortcut is None else self.shortcut(x)
        y: Tensor = self.activation(self.second(self.first(x)) + beside)
        return y


@architecture("resnet")
@dataclass(frozen=True, kw_only=True)
class ResNetSpec(ArchitectureSpec):
    """A stem, three stages of ``(depth - 2) / 6`` blocks of widths w, 2w, 4w, a global average."""

    depth: Annotated[int, Whole(8, 200, "number of weighted layers, 6n+2")] = 8
    width: Annotated[int, Whole(2, 4096, "channels of the first stage, doubled at each next")] = 16
    kernel: Kernel = 3
    norm: ConvNorm = "batch"
    activation: Activation = "relu"

    def contradiction(self) -> str | None:
        if (self.depth - 2) % 6:
            below = (self.depth - 2) // 6 * 6 + 2
            return f"depth must be 6n+2 (8, 14, 20, ...), got {self.depth}; take {below} or {below + 6}"
        return None

    def body(self, input: tuple[int, int, int]) -> tuple[nn.Module, int]:
        width = self.width
        layers: list[nn.Module] = [
            ConvBlock(input[0], width, kernel=self.kernel, norm=self.norm, activation_name=self.activation)
        ]
        for stage in range(3):
            for block in range((self.depth - 2) // 6):
                layers.append(
                    ResidualBlock(
                        width,
                        self.width * 2**stage,
                        stride=2 if stage > 0 and block == 0 else 1,
                        kernel=self.kernel,
                        norm=self.norm,
                        activation_name=self.activation,
                    )
                )
                width = self.width * 2**stage
        layers.append(GlobalAverage())
        return nn.Sequential(*layers), width

    def place(self, layer: str) -> tuple[str, float]:
        _, number, *part = layer.split(".")  # body.0.conv, or body.3.first.conv
        if number == "0":
            return ".".join(["stem", *part]), 0.0
        blocks = (self.depth - 2) // 6
        stage, block = divmod(int(number) - 1, blocks)
        if block == 0:
            return ".".join([f"stage{stage}.0", *part]), 0.0
        return ".".join([f"stage{stage}.rest", *part]), (block - 1) / max(1, blocks - 2)

    @classmethod
    def example_texts(cls) -> tuple[str, ...]:
        return ("resnet(depth=8,width=16)", "resnet(depth=14,width=8,norm=group,activation=silu)")
