"""The architecture, token by token: kind, layer, place in the layer, shape -> one vector a token.

Known (architecture, token) pairs may add a vector of their own; an architecture that was not in
training does without. Nothing drops these vectors in training yet, so doing without is not learned.

Shapes: T tokens, F features, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weightloom.weights import TokenSlots
from weightloom.weights.chunking import NUM_FEATURES
from weightloom.weights.layout import KINDS

MAX_CLASSES = 64
_WAVES = 8


class SlotEncoder(nn.Module):
    """Descriptions of T tokens to (T, D)."""

    def __init__(self, *, width: int, known: dict[str, int]) -> None:
        """``known``: trunk tokens (all but the head) of each architecture that has vectors of its own."""
        super().__init__()
        self.known = dict(known)
        self.kinds = nn.Embedding(len(KINDS), width)
        self.classes = nn.Embedding(MAX_CLASSES + 1, width)  # the last one: not a head token
        self.describe = nn.Sequential(
            nn.Linear(NUM_FEATURES + 4 * _WAVES, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.own = nn.ParameterDict(
            {
                parameter_key(name): nn.Parameter(0.02 * torch.randn(count + 1, width))
                for name, count in known.items()
            }
        )

    def forward(self, slots: TokenSlots, architecture: str | None) -> Tensor:
        """(T, D); ``architecture`` is the known name, or None to do without its own vectors."""
        rate = 2.0 ** -torch.arange(_WAVES, device=slots.features.device)
        waves = [
            wave
            for index in (slots.layer, slots.position)
            for wave in ((index[:, None] * rate).sin(), (index[:, None] * rate).cos())
        ]
        x = self.describe(torch.cat([slots.features, *waves], dim=-1)) + self.kinds(slots.kind)
        is_head = slots.class_index >= 0
        x = x + self.classes(torch.where(is_head, slots.class_index.clamp_max(MAX_CLASSES - 1), MAX_CLASSES))
        if architecture is not None and parameter_key(architecture) in self.own:
            own = self.own[parameter_key(architecture)]
            x = x + own[token_places(slots, len(own) - 1)]
        return x


def token_places(slots: TokenSlots, trunk: int) -> Tensor:
    """(T,) where each token finds what its architecture holds for it: trunk tokens count through, and all
    head tokens share the last place, whatever their class.
    """
    is_head = slots.class_index >= 0
    return torch.where(is_head, trunk, (~is_head).long().cumsum(0) - 1)


def parameter_key(name: str) -> str:
    """An architecture's text as a parameter name."""
    return "".join(c if c.isalnum() else "_" for c in name).strip("_")
