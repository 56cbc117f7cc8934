"""Learned blocks that users may also import alone."""

from weightloom.nn.graph import GatedGraphNetwork, GraphBatch, GraphTransformer, NodeEncoder
from weightloom.nn.tensor_decoder import CoordinateDecoder, TilingDecoder
from weightloom.nn.transformer import CausalTransformer, KeyValueCache

__all__ = [
    "CausalTransformer",
    "CoordinateDecoder",
    "GatedGraphNetwork",
    "GraphBatch",
    "GraphTransformer",
    "KeyValueCache",
    "NodeEncoder",
    "TilingDecoder",
]
