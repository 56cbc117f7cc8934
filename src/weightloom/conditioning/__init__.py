"""Encoders of words, examples and architectures; together they are a generator's condition."""

from weightloom.conditioning.architecture import SlotEncoder
from weightloom.conditioning.condition import Condition, stack_conditions
from weightloom.conditioning.images import SupportEncoder
from weightloom.conditioning.text import TEXT_WIDTH, encode_text

__all__ = [
    "TEXT_WIDTH",
    "Condition",
    "SlotEncoder",
    "SupportEncoder",
    "encode_text",
    "stack_conditions",
]
