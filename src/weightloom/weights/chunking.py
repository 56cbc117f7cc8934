"""Layers cut into weight tokens of one fixed size, and put together again, exactly.

A token holds whole rows of one layer (neurons, filters) while they fit, else a piece of one row.
Rows of the head are never packed together: its token c belongs to class c. Every token is
described by what layer it comes from, where it stands there and how long it is. Knows nothing
of learned parameters.

Shapes: P values of a network, T tokens, K values a token, F description features.
Source: chunking with a padding mask as in IGPG (arXiv 2504.02012, section 2.2), by layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from weightloom.defaults import with_plain_defaults
from weightloom.errors import SpecError
from weightloom.weights.layout import KINDS, Layout

NUM_FEATURES = 12


@dataclass(frozen=True)
class TokenSlots:
    """What is known of every token before its values: the architecture as a sequence.

    kind (T,) int64 index into :data:`KINDS`; layer (T,) int64; position (T,) int64 within the layer;
    class_index (T,) int64, the class of a head token or -1; features (T, F) float32.
    """

    kind: Tensor
    layer: Tensor
    position: Tensor
    class_index: Tensor
    features: Tensor

    def __len__(self) -> int:
        return len(self.kind)


@dataclass(frozen=True)
class Chunking:
    """Index maps between a vector of P values and (T, K) tokens.

    gather (T, K) int64 indices into the vector, P where the token is padding;
    scatter (P,) int64 indices into the flattened tokens.
    """

    gather: Tensor
    scatter: Tensor
    slots: TokenSlots

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.gather)

    @cached_property
    @with_plain_defaults
    def mask(self) -> Tensor:
        """(T, K) bool: True where a token holds a value and not padding."""
        return self.gather < len(self.scatter)

    def to_tokens(self, flat: Tensor) -> Tensor:
        """(..., P) to (..., T, K), padded with zeros."""
        padded = torch.cat([flat, flat.new_zeros(*flat.shape[:-1], 1)], dim=-1)
        return padded[..., self.gather]

    def from_tokens(self, tokens: Tensor) -> Tensor:
        """(..., T, K) to (..., P); what stands in the padding is dropped."""
        return tokens.flatten(-2)[..., self.scatter]


def chunk_layout(layout: Layout, size: int) -> Chunking:
    """Cut ``layout`` into tokens of ``size`` values.

    Raises:
        SpecError: ``size`` is not a positive whole number.

    Example:
        >>> from weightloom.architectures import parse_architecture
        >>> from weightloom.weights import layout_of
        >>> layout = layout_of(parse_architecture("mlp(depth=1,width=4,classes=3,input=1x2x2)"))
        >>> chunking = chunk_layout(layout, 8)
        >>> flat = torch.arange(layout.size, dtype=torch.float32)
        >>> torch.equal(chunking.from_tokens(chunking.to_tokens(flat)), flat)
        True
    """
    if size < 1:
        raise SpecError(f"a weight token needs at least one value, not {size}")
    gather, kinds, layers, positions, classes, features = [], [], [], [], [], []
    start = 0
    depth = max(1, len(layout.layers) - 1)
    for number, layer in enumerate(layout.layers):
        pieces: list[tuple[int, int, int, int]] = []  # first row, rows, first column, columns
        if layer.cols <= size:
            step = 1 if layer.kind == "head" else max(1, size // layer.cols)
            pieces = [(r, min(step, layer.rows - r), 0, layer.cols) for r in range(0, layer.rows, step)]
        else:
            count = math.ceil(layer.cols / size)
            width = math.ceil(layer.cols / count)  # equal pieces rather than one short last piece
            pieces = [
                (r, 1, c, min(width, layer.cols - c))
                for r in range(layer.rows)
                for c in range(0, layer.cols, width)
            ]
        for position, (row, rows, col, cols) in enumerate(pieces):
            r = torch.arange(row, row + rows)[:, None] * layer.cols
            index = (start + r + torch.arange(col, col + cols)[None, :]).reshape(-1)  # (rows*cols,)
            padded = torch.full((size,), layout.size, dtype=torch.long)
            padded[: len(index)] = index
            gather.append(padded)
            kinds.append(KINDS.index(layer.kind))
            layers.append(number)
            positions.append(position)
            classes.append(row if layer.kind == "head" else -1)
            features.append(
                [
                    number / depth,
                    1 - number / depth,
                    math.log2(1 + len(layout.layers)) / 6,
                    math.log2(1 + layer.rows) / 10,
                    math.log2(1 + layer.cols) / 12,
                    row / layer.rows,
                    (row + rows) / layer.rows,
                    col / layer.cols,
                    (col + cols) / layer.cols,
                    rows * cols / size,
                    position / len(pieces),
                    math.log2(1 + len(pieces)) / 10,
                ]
            )
        start += layer.rows * layer.cols
    table = torch.stack(gather)  # (T, K)
    held = table < layout.size
    scatter = torch.empty(layout.size, dtype=torch.long)
    scatter[table[held]] = torch.arange(table.numel()).reshape(table.shape)[held]
    slots = TokenSlots(
        kind=torch.tensor(kinds),
        layer=torch.tensor(layers),
        position=torch.tensor(positions),
        class_index=torch.tensor(classes),
        features=torch.tensor(features, dtype=torch.float32),
    )
    assert slots.features.shape[1] == NUM_FEATURES
    return Chunking(table, scatter, slots)
