"""Codes drawn from logits, one private random stream a request. Knows no prior."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weightloom.generators.base import Sampling


def draw_codes(logits: Tensor, noise: Sequence[torch.Generator], sampling: Sampling) -> Tensor:
    """(B, D) codes from (B, D, V) logits; only codes that the limits leave can be drawn.

    The Gumbel-max trick with one private stream a request, so that a batch equals its singles.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / sampling.temperature
    if sampling.top_k and sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.softmax(-1).sort(-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= sampling.top_p  # the first code always stays
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)
    uniform = torch.stack([torch.rand(logits.shape[1:], generator=g) for g in noise]).to(logits.device)
    return (logits - (-uniform.clamp(1e-12, 1 - 1e-7).log()).log()).argmax(-1)
