"""Target networks without weights: a declarative spec per family, from which a module is built.

A new family is one new file in this package (see ``spec.py`` for what it has to define); nothing
else has to change.
"""

from __future__ import annotations

import sys

from weightloom.architectures.spec import (
    ArchitectureSpec,
    Option,
    TargetNetwork,
    architecture_families,
    architecture_from_json,
    architectures,
    parse_architecture,
)
from weightloom.registry import discover

discover(sys.modules[__name__])

__all__ = [
    "ArchitectureSpec",
    "Option",
    "TargetNetwork",
    "architecture_families",
    "architecture_from_json",
    "architectures",
    "parse_architecture",
]
