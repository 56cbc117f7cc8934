"""Generators: one file a method, found through the registry."""

import sys

from weightloom.generators.base import (
    Generator,
    Request,
    Sampling,
    Validity,
    generators,
)
from weightloom.generators.sample import Sample, best_of
from weightloom.registry import discover

discover(sys.modules[__name__])

__all__ = ["Generator", "Request", "Sample", "Sampling", "Validity", "best_of", "generators"]
