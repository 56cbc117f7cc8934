"""The registry of generators that are trained: each family's file in this room registers how.

Knows none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from weightloom.errors import CheckpointError, InputError
from weightloom.generators import Generator
from weightloom.generators.consolidated import Consolidated
from weightloom.registry import Registry
from weightloom.training.loop import Progress
from weightloom.zoo import Zoo

Trainer = Callable[[Path, Path | None, Path, Progress], Generator | Consolidated]
"""From a recipe's file, a zoo's folder (None without one), the folder to write to and what is told of the
progress to the trained generator, which that folder then holds."""

trainers: Registry[Trainer] = Registry("trained generator")


def open_zoo(zoo: Path | None, kind: str) -> Zoo:
    """The zoo that a generator of ``kind`` learns from.

    Raises:
        InputError: there is none.
        CheckpointError: the folder is no zoo, or something in it is not what was written.
    """
    if zoo is None:
        raise InputError(f"a {kind!r} generator learns from a zoo; name one with --zoo")
    held = Zoo(zoo)
    if problems := held.verify():
        raise CheckpointError(zoo, f"{problems[0]}; `weightloom zoo repair` drops what is broken")
    return held
