"""Folders for what a command needs while it runs, in the system's temporary folder.

They are gone when it ends: well, by an error, or by an interrupt. One that a killed command left goes when
the next one asks for its own. Knows nothing of what is put there.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from weightloom.io.atomic import sweep
from weightloom.io.locks import let_go, make_temporary_folder, temporary_name
from weightloom.unfinished import Undoing

_NAME, _INSIDE = "weightloom", "files"


@contextmanager
def temporary_folder(parent: str | Path | None = None, *, mode: int = 0o700) -> Iterator[Path]:
    """A new folder in ``parent``, the system's temporary folder by default, that is removed after the block.

    Args:
        parent: where it is made.
        mode: who may look into it; by default nobody else.

    Raises:
        OSError: it cannot be made there.

    Example:
        >>> with temporary_folder() as folder:
        ...     _ = (folder / "notes.txt").write_text("mine")
        >>> folder.exists()
        False
    """
    place = Path(tempfile.gettempdir() if parent is None else parent)
    sweep_temporary(place)
    folder = temporary_name(place / _NAME)
    with Undoing(partial(shutil.rmtree, folder, ignore_errors=True)):
        descriptor = make_temporary_folder(folder, mode)
        try:
            # Below it: what is locked against a sweep is not what its user may want to lock.
            (folder / _INSIDE).mkdir(mode)
            yield folder / _INSIDE
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            let_go(descriptor)


def sweep_temporary(place: str | Path | None = None) -> list[Path]:
    """Remove what killed commands of this user left in the temporary folder; returns what was removed."""
    place = Path(tempfile.gettempdir() if place is None else place)
    return sweep(place, name=_NAME, keep=_not_ours)


def _not_ours(entry: Path) -> bool:
    """Whether somebody else made it: the folder is everybody's."""
    with suppress(OSError):
        return hasattr(os, "getuid") and entry.lstat().st_uid != os.getuid()
    return True
