"""Learned blocks that users may also import alone."""

from weightloom.nn.transformer import CausalTransformer, KeyValueCache

__all__ = ["CausalTransformer", "KeyValueCache"]
