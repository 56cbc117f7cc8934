"""Learned blocks that users may also import alone."""

from weightloom.nn.dynamic import DynamicLinear
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
from weightloom.nn.transformer import CausalTransformer, KeyValueCache
from weightloom.nn.weight_generators import BlockGenerator, CoordinateGenerator, WeightGenerator

__all__ = [
    "BlockGenerator",
    "CausalTransformer",
    "CoordinateGenerator",
    "DynamicLinear",
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
    "WeightGenerator",
    "hyperize",
    "hyperize_together",
    "materialize",
]
