"""``mlp``: multi-layer perceptrons on the picture's pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import nn

from weightloom.architectures.blocks import Activation, activation
from weightloom.architectures.spec import ArchitectureSpec, Choice, Whole, architecture


@architecture("mlp")
@dataclass(frozen=True, kw_only=True)
class MLPSpec(ArchitectureSpec):
    """The flattened picture through ``depth`` hidden layers; depth 0 is a linear classifier."""

    depth: Annotated[int, Whole(0, 200, "number of hidden layers")] = 2
    width: Annotated[int, Whole(2, 4096, "neurons of every hidden layer")] = 32
    norm: Annotated[
        str, Choice(("none", "batch", "layer"), "normalisation after each hidden layer's product")
    ] = "none"
    activation: Activation = "relu"

    def body(self, input: tuple[int, int, int]) -> tuple[nn.Module, int]:
        width = input[0] * input[1] * input[2]
        layers: list[nn.Module] = [nn.Flatten()]  # (B, C, H, W) -> (B, C * H * W)
        for _ in range(self.depth):
            layers.append(nn.Linear(width, self.width, bias=self.norm == "none"))
            if self.norm != "none":
                layers.append({"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}[self.norm](self.width))
            layers.append(activation(self.activation))
            width = self.width
        return nn.Sequential(*layers), width

    def place(self, layer: str) -> tuple[str, float]:
        number = int(layer.split(".")[1])  # body.0 flattens; then a product, a norm if any, an activation
        each = 2 if self.norm == "none" else 3
        hidden, part = divmod(number - 1, each)
        what = "linear" if part == 0 else "norm"
        if hidden == 0:
            return f"first.{what}", 0.0
        return f"hidden.{what}", (hidden - 1) / max(1, self.depth - 2)

    @classmethod
    def example_texts(cls) -> tuple[str, ...]:
        return ("mlp(depth=2,width=64)", "mlp(depth=4,width=32,norm=layer,activation=gelu)")
