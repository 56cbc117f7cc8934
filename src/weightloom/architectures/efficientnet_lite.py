"""``efficientnet-lite``: published networks for photographs, whose trunks ``pretrained`` finishes.

Source: Tan and Le, "EfficientNet" (arXiv 1905.11946), table 1, without squeezing and with relu6: the "lite"
networks of its authors. Sizes 0, 1 and 2 are scaled in width by 1, 1 and 1.1 and in depth by 1, 1.1 and 1.2;
stem, last convolution and the number of blocks of the first and last stage are not scaled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

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
from weightloom.architectures.spec import ArchitectureSpec, Whole, architecture

_STAGES = (
    (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5), (6, 320, 1, 1, 3),
)  # fmt: skip
"""Widening, channels, blocks, first stride and kernel of each stage of size 0."""

_SCALES = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2))
"""Width and depth of each size."""

_STEM, _LAST, _EPS = 32, 1280, 1e-3


def _same(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after a side, which becomes side / stride, rounded up; an odd one comes after."""
    pad = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return pad // 2, pad - pad // 2


@dataclass
class _Map:
    """The size of the map while a body is made."""

    height: int
    width: int

    def convolution(
        self, channels: int, width: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> list[nn.Module]:
        """Padding where it is needed, convolution and batch norm; the map gets its new size."""
        pads = (*_same(self.width, kernel, stride), *_same(self.height, kernel, stride))
        self.height, self.width = -(-self.height // stride), -(-self.width // stride)
        conv = nn.Conv2d(channels, width, kernel, stride, groups=groups, bias=False)
        return [*([nn.ZeroPad2d(pads)] if any(pads) else []), conv, nn.BatchNorm2d(width, eps=_EPS)]


@architecture("efficientnet-lite")
@dataclass(frozen=True, kw_only=True)
class EfficientNetLiteSpec(ArchitectureSpec):
    """EfficientNet-Lite with its scaling of colours inside."""

    size: Annotated[int, Whole(0, len(_SCALES) - 1, "0, 1 or 2: the larger, the better and the slower")] = 0
    scale: Scale = 100
    ending: Ending = "root"

    def contradiction(self) -> str | None:
        return photograph_problem(self.input)

    def body(self, input: tuple[int, int, int]) -> tuple[nn.Module, int]:
        width_scale, depth_scale = _SCALES[self.size]
        place = _Map(input[1], input[2])
        width_scale *= self.scale / 100
        channels, last = (scaled_width(width, self.scale / 100) for width in (_STEM, _LAST))
        layers: list[nn.Module] = [
            Rescale((0.498,) * 3, (0.502,) * 3), *place.convolution(3, channels, 3, 2), nn.ReLU6()
        ]  # fmt: skip
        for stage, (expansion, width, blocks, stride, kernel) in enumerate(_STAGES):
            width = scaled_width(width, width_scale)
            ends = stage in (0, len(_STAGES) - 1)
            for index in range(blocks if ends else math.ceil(depth_scale * blocks)):
                step = 1 if index else stride
                inner = channels * expansion
                parts = [] if expansion == 1 else [*place.convolution(channels, inner, 1), nn.ReLU6()]
                parts += [*place.convolution(inner, inner, kernel, step, inner), nn.ReLU6()]
                parts += place.convolution(inner, width, 1)
                layers.append(Residual(parts, keeps_shape=step == 1 and channels == width))
                channels = width
        layers += [*place.convolution(channels, last, 1), nn.ReLU6(), *ending(self.ending)]
        return nn.Sequential(*layers), last

    @classmethod
    def example_texts(cls) -> tuple[str, ...]:
        return ("efficientnet-lite(scale=10)", "efficientnet-lite(size=2,scale=8,ending=plain)")
