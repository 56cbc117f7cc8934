"""Not a test: what a reader is, for readers.py and kept_readers.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Reader:
    """A file that is changed, and what then reads it; ``share`` of the full size's million inputs."""

    file: Path
    read: Callable[[Path], Any]
    quick: int = 60
    share: float = 0.1
    folder: Path | None = None
    """What is put back before each input, where reading itself may write."""
    refuses: bool = True
    """Whether some changed files cannot be read; others leave out what they cannot read."""
