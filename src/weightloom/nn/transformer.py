"""A small causal transformer with a static key-value cache. Knows nothing of tokens, codes or weights.

Pre-norm blocks, rotary positions, SwiGLU feed-forward, scaled-dot-product attention.

Shapes: B batch, S sequence, D width, H heads, E width of a head.
Sources: attention, Vaswani et al. (arXiv 1706.03762); rotary positions, Su et al. (arXiv 2104.09864);
SwiGLU, Shazeer (arXiv 2002.05202).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightloom.errors import SpecError


@dataclass
class KeyValueCache:
    """Keys and values of everything seen so far, in buffers of a fixed size: (layers, B, H, limit, E)."""

    keys: Tensor
    values: Tensor
    length: int = 0

    @property
    def limit(self) -> int:
        """Positions that fit."""
        return self.keys.shape[3]


class CausalTransformer(nn.Module):
    """(B, S, D) embeddings to (B, S, D) hidden states, position i seeing positions up to i.

    Example:
        >>> model = CausalTransformer(width=16, depth=2, heads=2).eval()
        >>> x = torch.randn(1, 5, 16)
        >>> cache = model.new_cache(batch_size=1, limit=8)
        >>> parts = torch.cat([model(x[:, :3], cache), model(x[:, 3:], cache)], dim=1)
        >>> torch.allclose(parts, model(x), atol=1e-5)
        True
    """

    def __init__(self, *, width: int, depth: int, heads: int) -> None:
        super().__init__()
        if width % heads or (width // heads) % 2:
            raise SpecError(f"a width of {width} cannot be split into {heads} heads of even size")
        self.width, self.depth, self.heads = width, depth, heads
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.RMSNorm(width)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                # Residual branches start small, so that depth does not change the scale at the start.
                scale = 0.02 / (2 * depth) ** 0.5 if name.endswith("_out.weight") else 0.02
                nn.init.normal_(weight, std=scale)

    def new_cache(self, batch_size: int, limit: int) -> KeyValueCache:
        """An empty cache for ``limit`` positions."""
        shape = (self.depth, batch_size, self.heads, limit, self.width // self.heads)
        like = self.norm.weight
        return KeyValueCache(like.new_zeros(shape), like.new_zeros(shape))

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Hidden states of ``x`` (B, S, D); with a cache, ``x`` goes on where the cache ends."""
        first = 0 if cache is None else cache.length
        if cache is not None and first + x.shape[1] > cache.limit:
            raise SpecError(f"the cache holds {cache.limit} positions, not {first + x.shape[1]}")
        angles = _angles(first, x.shape[1], self.width // self.heads, x)
        for number, block in enumerate(self.blocks):
            x = block(x, angles, cache, number)
        if cache is not None:
            cache.length = first + x.shape[1]
        return self.norm(x)

    def attention(self, x: Tensor) -> Tensor:
        """(depth, B, H, S, S) share of its attention that each position of ``x`` (B, S, D) gives to each."""
        angles = _angles(0, x.shape[1], self.width // self.heads, x)
        seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        found = []
        for number, block in enumerate(self.blocks):
            assert isinstance(block, _Block)
            q, k, _ = block.queries_keys_values(x, angles)
            scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~seen, -torch.inf)
            found.append(scores.softmax(-1))
            x = block(x, angles, None, number)
        return torch.stack(found)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        hidden = 32 * round(8 * width / 3 / 32)
        self.attention_norm = nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.feed_norm = nn.RMSNorm(width)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.feed_out = nn.Linear(hidden, width, bias=False)

    def queries_keys_values(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        b, s, d = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(b, s, 3, self.heads, d // self.heads)  # (B, S, 3, H, E)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, S, E)
        return _rotate(q, angles), _rotate(k, angles), v

    def forward(
        self, x: Tensor, angles: tuple[Tensor, Tensor], cache: KeyValueCache | None, number: int
    ) -> Tensor:
        b, s, d = x.shape
        q, k, v = self.queries_keys_values(x, angles)  # each (B, H, S, E)
        if cache is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            stop = cache.length + s
            cache.keys[number, :, :, cache.length : stop] = k
            cache.values[number, :, :, cache.length : stop] = v
            mask = None
            if s > 1:
                mask = torch.ones(s, stop, dtype=torch.bool, device=x.device).tril(cache.length)
            y = F.scaled_dot_product_attention(
                q, cache.keys[number, :, :, :stop], cache.values[number, :, :, :stop], attn_mask=mask
            )
        x = x + self.attention_out(y.transpose(1, 2).reshape(b, s, d))  # (B, H, S, E) -> (B, S, D)
        gate, up = self.gate_up(self.feed_norm(x)).chunk(2, dim=-1)
        return x + self.feed_out(F.silu(gate) * up)


def _angles(first: int, length: int, size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (S, E/2) each, of rotary positions ``first`` ... ``first + length - 1``."""
    rate = 10_000.0 ** (-torch.arange(0, size, 2, device=like.device, dtype=torch.float32) / size)
    phase = torch.arange(first, first + length, device=like.device, dtype=torch.float32)[:, None] * rate
    return phase.cos().to(like.dtype), phase.sin().to(like.dtype)


def _rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = angles
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
