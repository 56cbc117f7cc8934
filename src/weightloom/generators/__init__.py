"""Generators: one file a method, found through the registry."""

import sys

from weightloom.generators.base import (
    Generator,
    Request,
    Sample,
    Sampling,
    Validity,
    best_of,
    generators,
)
from weightloom.registry import discover

discover(sys.modules[__name__])

__all__ = ["Generator", "Request", "Sample", "Sampling", "Validity", "best_of", "generators"]
