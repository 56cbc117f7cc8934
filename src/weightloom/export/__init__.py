"""The way out: a network as a file that runs without Weightloom, put in its place when its answers agree.

One target a file, filed under its name in :data:`targets`: ``onnx``, ``pt2``, ``python`` and ``c``. Knows
networks as modules and what is said of them; nothing of the command line or of how they were made.
"""

from __future__ import annotations

import sys

from weightloom.export.base import Exported, Target, targets
from weightloom.export.carrying_out import export_network
from weightloom.export.facts import Facts, facts_of
from weightloom.registry import discover

discover(sys.modules[__name__])

__all__ = ["Exported", "Facts", "Target", "export_network", "facts_of", "targets"]
