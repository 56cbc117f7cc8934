"""Weight space without learning: layouts, chunks, statistics, guards, permutation alignment."""

from weightloom.weights.alignment import (
    align,
    match_activations,
    match_weights,
    permute,
    random_permutations,
)
from weightloom.weights.chunking import Chunking, TokenSlots, chunk_layout
from weightloom.weights.guard import checked_flats, require_finite
from weightloom.weights.layout import Layer, Layout, Slot, layout_of
from weightloom.weights.normalise import BoundStatistics, WeightStatistics
from weightloom.weights.symmetry import Axis, PermutationSpec, permutation_spec, permutation_spec_of

__all__ = [
    "Axis",
    "BoundStatistics",
    "Chunking",
    "Layer",
    "Layout",
    "PermutationSpec",
    "Slot",
    "TokenSlots",
    "WeightStatistics",
    "align",
    "checked_flats",
    "chunk_layout",
    "layout_of",
    "match_activations",
    "match_weights",
    "permutation_spec",
    "permutation_spec_of",
    "permute",
    "random_permutations",
    "require_finite",
]
