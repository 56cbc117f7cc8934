"""Weight tokenizers: networks to short sequences of code stacks, and back."""

import sys

from weightloom.registry import discover
from weightloom.tokenizers.base import (
    CodebookHealth,
    WeightTokenizer,
    architecture_key,
    load_tokenizer,
    tokenizers,
)

discover(sys.modules[__name__])

__all__ = ["CodebookHealth", "WeightTokenizer", "architecture_key", "load_tokenizer", "tokenizers"]
