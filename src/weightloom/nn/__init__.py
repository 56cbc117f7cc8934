"""Learned blocks that users may also import alone."""

from weightloom.nn.dynamic import DynamicLinear
from weightloom.nn.graph import GatedGraphNetwork, GraphBatch, GraphTransformer, NodeEncoder
from weightloom.nn.hyper_layers import (
    HyperConv1d,
    HyperConv2d,
    HyperConv3d,
    HyperLayer,
    HyperLinear,
    hyperize,
    hyperize_together,
    materialize,
)
from weightloom.nn.hyper_recurrent import HyperLSTM, HyperLSTMCell, HyperRNN, HyperScales
from weightloom.nn.rates import parameter_groups
from weightloom.nn.tensor_decoder import CoordinateDecoder, TilingDecoder
from weightloom.nn.transformer import CausalTransformer, KeyValueCache
from weightloom.nn.weight_generators import (
    BlockGenerator,
    CoordinateGenerator,
    SeparableGenerator,
    WeightGenerator,
)

__all__ = [
    "BlockGenerator",
    "CausalTransformer",
    "CoordinateDecoder",
    "CoordinateGenerator",
    "DynamicLinear",
    "GatedGraphNetwork",
    "GraphBatch",
    "GraphTransformer",
    "HyperConv1d",
    "HyperConv2d",
    "HyperConv3d",
    "HyperLSTM",
    "HyperLSTMCell",
    "HyperLayer",
    "HyperLinear",
    "HyperRNN",
    "HyperScales",
    "KeyValueCache",
    "NodeEncoder",
    "SeparableGenerator",
    "TilingDecoder",
    "WeightGenerator",
    "hyperize",
    "hyperize_together",
    "materialize",
    "parameter_groups",
]
