"""Blocks that tokenizer families share: token vectors refined with and without sight of one another."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class TokenRefiner(nn.Module):
    """(N, T, a) to (N, T, b) through ``depth`` residual blocks of ``width``, tokens described by (T, width).

    With ``attention`` every token sees all others, so that a network is coded as a whole.
    """

    def __init__(self, a: int, b: int, *, width: int, depth: int, attention: bool) -> None:
        super().__init__()
        self.inward = nn.Linear(a, width)
        self.describe = nn.Linear(width, width, bias=False)
        self.blocks = nn.ModuleList(_Block(width, attention) for _ in range(depth))
        self.norm = nn.RMSNorm(width)
        self.outward = nn.Linear(width, b)

    def forward(self, x: Tensor, described: Tensor) -> Tensor:
        """Refine; ``described`` is added before the first block and modulates each."""
        x = self.inward(x) + self.describe(described)
        for block in self.blocks:
            x = block(x, described)
        return self.outward(self.norm(x))


class _Block(nn.Module):
    def __init__(self, width: int, attention: bool) -> None:
        super().__init__()
        self.heads = 4
        self.attention_norm = nn.RMSNorm(width) if attention else None
        self.qkv = nn.Linear(width, 3 * width, bias=False) if attention else None
        self.attention_out = nn.Linear(width, width, bias=False) if attention else None
        self.feed_norm = nn.RMSNorm(width)
        self.modulate = nn.Linear(width, 2 * width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, described: Tensor) -> Tensor:
        if self.qkv is not None and self.attention_norm is not None and self.attention_out is not None:
            n, t, w = x.shape
            qkv = self.qkv(self.attention_norm(x)).view(n, t, 3, self.heads, w // self.heads)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (N, H, T, E)
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, w)
            x = x + self.attention_out(y)
        scale, shift = self.modulate(described).chunk(2, dim=-1)
        return x + self.down(F.silu(self.up(self.feed_norm(x) * (1 + scale) + shift)))
