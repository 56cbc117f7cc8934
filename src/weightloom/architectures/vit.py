"""``vit``: small vision transformers made of plain linear layers.

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words" (ICLR 2021), equations 1 to 4, with
pre-normalised blocks; query, key and value are three layers, so that each is one weight matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from weightloom.architectures.blocks import Activation, activation
from weightloom.architectures.spec import ArchitectureSpec, Choice, Whole, architecture


def _norm(name: str, width: int) -> nn.Module:
    return nn.LayerNorm(width) if name == "layer" else nn.Identity()


class Attention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.query = nn.Linear(width, width)
        # Softmax ignores what is added to all keys alike: a bias here would be a parameter without effect.
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, T, width)`` to ``(B, T, width)``."""

        def split(y: Tensor) -> Tensor:
            # (B, T, width) -> (B, T, heads, width / heads) -> (B, heads, T, width / heads)
            return y.reshape(*y.shape[:2], self.heads, -1).transpose(1, 2)

        # Written out: torch.func.vmap has no rule for the fused kernel on a CPU and would loop over
        # the networks of a population, with a warning.
        query = split(self.query(x)) * self.scale
        weights = torch.softmax(query @ split(self.key(x)).transpose(2, 3), dim=-1)  # (B, heads, T, T)
        y = weights @ split(self.value(x))
        # (B, heads, T, width / heads) -> (B, T, heads, width / heads) -> (B, T, width)
        mixed: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return mixed


class Block(nn.Module):
    """Attention and a two-layer perceptron, each added to what it read."""

    def __init__(self, width: int, *, heads: int, mlp: int, norm: str, activation_name: str) -> None:
        super().__init__()
        self.attention_norm = _norm(norm, width)
        self.attention = Attention(width, heads)
        self.mlp_norm = _norm(norm, width)
        self.widen = nn.Linear(width, width * mlp)
        self.activation = activation(activation_name)
        self.narrow = nn.Linear(width * mlp, width)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, T, width)`` to ``(B, T, width)``."""
        x = x + self.attention(self.attention_norm(x))
        y: Tensor = self.narrow(self.activation(self.widen(self.mlp_norm(x))))
        return x + y


class Patches(nn.Module):
    """A picture as a row of embedded patches with learned positions, after a class token if there is one."""

    def __init__(self, input: tuple[int, int, int], *, patch: int, width: int, token: bool) -> None:
        super().__init__()
        channels, high, wide = input
        self.patch = patch
        self.embed = nn.Linear(channels * patch * patch, width)
        count = (high // patch) * (wide // patch) + int(token)
        self.position = nn.Parameter(torch.empty(count, width))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.token = nn.Parameter(torch.empty(width)) if token else None
        if self.token is not None:
            nn.init.trunc_normal_(self.token, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, T, width)``."""
        p = self.patch
        batch, channels, high, wide = x.shape
        # (B, C, H, W) -> (B, C, H/p, p, W/p, p) -> (B, H/p, W/p, C, p, p) -> (B, H/p * W/p, C * p * p)
        x = x.reshape(batch, channels, high // p, p, wide // p, p).permute(0, 2, 4, 1, 3, 5)
        x = self.embed(x.flatten(3).flatten(1, 2))
        if self.token is not None:
            x = torch.cat([self.token.expand(batch, 1, -1), x], dim=1)
        return x + self.position


class Pool(nn.Module):
    """Tokens to one vector: the class token's, or the mean of all."""

    def __init__(self, *, token: bool) -> None:
        super().__init__()
        self.token = token

    def forward(self, x: Tensor) -> Tensor:
        """``(B, T, width)`` to ``(B, width)``."""
        return x[:, 0] if self.token else x.mean(dim=1)


@architecture("vit")
@dataclass(frozen=True, kw_only=True)
class ViTSpec(ArchitectureSpec):
    """Patches, ``depth`` transformer blocks, a last normalisation, then a mean or a class token."""

    depth: Annotated[int, Whole(1, 200, "number of transformer blocks")] = 4
    width: Annotated[int, Whole(2, 4096, "size of a token")] = 32
    heads: Annotated[int, Whole(1, 64, "attention heads, a divisor of width")] = 4
    patch: Annotated[int, Whole(1, 256, "side of a patch, a divisor of the picture's sides")] = 4
    mlp: Annotated[int, Whole(1, 16, "how many times wider the perceptron is inside")] = 2
    pool: Annotated[str, Choice(("mean", "token"), "what the head sees")] = "mean"
    norm: Annotated[str, Choice(("none", "layer"), "normalisation before attention and perceptron")] = "layer"
    activation: Activation = "gelu"

    def contradiction(self) -> str | None:
        if self.width % self.heads:
            return f"width={self.width} cannot be split among heads={self.heads}"
        if self.input is not None and any(side % self.patch for side in self.input[1:]):
            own = "x".join(map(str, self.input))
            return f"pictures of {own} cannot be cut into patches of side patch={self.patch}"
        return None

    def body(self, input: tuple[int, int, int]) -> tuple[nn.Module, int]:
        token = self.pool == "token"
        return nn.Sequential(
            Patches(input, patch=self.patch, width=self.width, token=token),
            *(
                Block(
                    self.width,
                    heads=self.heads,
                    mlp=self.mlp,
                    norm=self.norm,
                    activation_name=self.activation,
                )
                for _ in range(self.depth)
            ),
            _norm(self.norm, self.width),
            Pool(token=token),
        ), self.width

    @classmethod
    def example_texts(cls) -> tuple[str, ...]:
        return ("vit(depth=4,width=32)", "vit(depth=2,width=48,heads=6,patch=8,pool=token,norm=none)")
