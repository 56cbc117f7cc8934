"""Weight space without learning: layouts, chunks, statistics, guards."""

from weightloom.weights.chunking import Chunking, TokenSlots, chunk_layout
from weightloom.weights.guard import require_finite
from weightloom.weights.layout import Layer, Layout, Slot, layout_of
from weightloom.weights.normalise import BoundStatistics, WeightStatistics

__all__ = [
    "BoundStatistics",
    "Chunking",
    "Layer",
    "Layout",
    "Slot",
    "TokenSlots",
    "WeightStatistics",
    "chunk_layout",
    "layout_of",
    "require_finite",
]
