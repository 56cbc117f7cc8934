"""``tinycnn``: the two networks of the Tiny Model Zoo, layer for layer.

Source: Schürholt et al., "Model Zoos: A Dataset of Diverse Populations of Neural Network Models"
(NeurIPS 2022 Datasets and Benchmarks), the CNN-small and CNN-medium of its appendix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import nn

from weightloom.architectures.blocks import Activation, activation
from weightloom.architectures.spec import ArchitectureSpec, Choice, architecture

# (channels, kernel, pooled) of each convolution; no padding.
_VARIANTS = {
    "small": ((8, 5, True), (6, 5, True), (4, 2, False)),
    "medium": ((16, 3, True), (32, 3, True), (15, 3, True)),
}
_HIDDEN = 20


@architecture("tinycnn")
@dataclass(frozen=True, kw_only=True)
class TinyCNNSpec(ArchitectureSpec):
    """Three unpadded convolutions and two linear layers, without normalisation.

    ``small`` has 2,464 parameters on 1x28x28 and ``medium`` 10,853 on 3x32x32, for 10 classes each.

    Example:
        >>> TinyCNNSpec(variant="medium", classes=10, input=(3, 32, 32)).num_parameters()
        10853
    """

    variant: Annotated[
        str, Choice(tuple(_VARIANTS), "small is the grey-scale network, medium the colour one")
    ] = "small"
    activation: Activation = "tanh"

    def contradiction(self) -> str | None:
        least = {"small": 20, "medium": 22}[self.variant]
        if self.input is not None and min(self.input[1:]) < least:
            own = "x".join(map(str, self.input))
            return f"variant={self.variant} needs pictures of at least {least} x {least} pixels, got {own}"
        return None

    def body(self, input: tuple[int, int, int]) -> tuple[nn.Module, int]:
        channels, high, wide = input
        layers: list[nn.Module] = []
        for width, kernel, pooled in _VARIANTS[self.variant]:
            layers.append(nn.Conv2d(channels, width, kernel))
            high, wide = high - kernel + 1, wide - kernel + 1
            if pooled:
                layers.append(nn.MaxPool2d(2))
                high, wide = high // 2, wide // 2
            layers.append(activation(self.activation))
            channels = width
        layers.append(nn.Flatten())  # (B, channels, high, wide) -> (B, channels * high * wide)
        layers.append(nn.Linear(channels * high * wide, _HIDDEN))
        layers.append(activation(self.activation))
        return nn.Sequential(*layers), _HIDDEN

    @classmethod
    def example_texts(cls) -> tuple[str, ...]:
        return (
            "tinycnn(variant=small,classes=10,input=1x28x28)",
            "tinycnn(variant=medium,activation=gelu,classes=10,input=3x32x32)",
        )
