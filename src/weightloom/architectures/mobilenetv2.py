"""``mobilenetv2``: the published network for photographs, whose trunk ``pretrained`` finishes.

Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (arXiv 1801.04381), table 2.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from weightloom.architectures.blocks import (
    Ending,
    Rescale,
    Residual,
    Scale,
    ending,
    photograph_problem,
    scaled_width,
)
from weightloom.architectures.spec import ArchitectureSpec, architecture

_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Widening, channels, blocks and first stride of each stage."""

_STEM, _LAST = 32, 1280


def _block(channels: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution and batch norm."""
    conv = nn.Conv2d(channels, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(width)]


def _bottleneck(channels: int, width: int, expansion: int, stride: int) -> Residual:
    """Widen, convolve each channel by itself, narrow."""
    inner = channels * expansion
    layers = [] if expansion == 1 else [*_block(channels, inner, 1), nn.ReLU6()]
    layers += [*_block(inner, inner, 3, stride, inner), nn.ReLU6(), *_block(inner, width, 1)]
    return Residual(layers, keeps_shape=stride == 1 and channels == width)


@architecture("mobilenetv2")
@dataclass(frozen=True, kw_only=True)
class MobileNetV2Spec(ArchitectureSpec):
    """MobileNetV2 with its scaling of colours inside."""

    scale: Scale = 100
    ending: Ending = "root"

    def contradiction(self) -> str | None:
        return photograph_problem(self.input)

    def body(self, input: tuple[int, int, int]) -> tuple[nn.Module, int]:
        channels = scaled_width(_STEM, self.scale / 100)
        last = scaled_width(_LAST, self.scale / 100)
        layers: list[nn.Module] = [
            Rescale((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), *_block(3, channels, 3, 2), nn.ReLU6()
        ]  # fmt: skip
        for expansion, wide, blocks, stride in _STAGES:
            width = scaled_width(wide, self.scale / 100)
            for index in range(blocks):
                layers.append(_bottleneck(channels, width, expansion, 1 if index else stride))
                channels = width
        layers += [*_block(channels, last, 1), nn.ReLU6(), *ending(self.ending)]
        return nn.Sequential(*layers), last

    @classmethod
    def example_texts(cls) -> tuple[str, ...]:
        return ("mobilenetv2(scale=10)",)
