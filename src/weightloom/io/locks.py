"""Temporary names beside the place of what is written, and locks that tell living writers from dead ones.

A writer holds a lock on what it makes under a temporary name, from just after it is made until it has its own
name; whoever removes litter holds the same lock meanwhile. Knows nothing of what is written.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl

HAS_LOCKS = fcntl is not None

LITTER = re.compile(r"(?P<name>.+)\.(?P<kind>tmp|old)-[0-9a-f]{8}")
_ABANDONED_SECONDS = 3600.0


@contextmanager
def alone(folder: str | Path) -> Iterator[Callable[[], bool]]:
    """One process at a time inside the block; others wait. The lock is on the folder itself: no file is left.

    Where a file system has no locks there is none. Yields a function that says whether the folder still has
    its name: an empty one can be removed or replaced while it is locked. Raises OSError for a folder that
    cannot be opened.
    """
    if fcntl is None:
        yield lambda: True
        return
    while True:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not is_at(descriptor, Path(folder)):
                continue  # who was waited for has removed or replaced it
            yield partial(is_at, descriptor, Path(folder))
            return
        finally:
            os.close(descriptor)


def temporary_name(path: Path, kind: str = "tmp") -> Path:
    """A free name beside ``path`` that a sweep takes for litter of it."""
    while True:
        name = path.with_name(f"{path.name}.{kind}-{secrets.token_hex(4)}")
        if not os.path.lexists(name):
            return name


def open_temporary(temporary: Path) -> BinaryIO:
    """Make a file and hold it, so that no sweep takes it, until it is closed."""
    while True:
        handle = open(temporary, "x+b")  # noqa: SIM115 - the caller closes it
        if _lock(handle.fileno()) and is_at(handle.fileno(), temporary):
            return handle
        handle.close()  # a sweep came between the open and the lock
        _wait_for_sweep(temporary)


def _wait_for_sweep(temporary: Path) -> None:
    """Until a sweep has removed what it found without a lock; one that was killed did not come to that."""
    while os.path.lexists(temporary):
        with suppress(OSError), abandoned(temporary) as free:
            if free:
                (os.rmdir if temporary.is_dir() else os.unlink)(temporary)
        time.sleep(0.001)


def make_temporary_folder(temporary: Path, mode: int = 0o777) -> int | None:
    """Make a folder and hold it, so that no sweep takes it; :func:`let_go` of what is returned."""
    while True:
        os.mkdir(temporary, mode)
        if fcntl is None:
            return None
        with suppress(FileNotFoundError):  # here too
            descriptor = os.open(temporary, os.O_RDONLY)
            if _lock(descriptor) and is_at(descriptor, temporary):
                return descriptor
            os.close(descriptor)
        _wait_for_sweep(temporary)


def _try_lock(descriptor: int) -> bool | None:
    """Whether the lock was free, and now is ours; None on a file system without locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None  # litter is then told by its age
    return True


def _lock(descriptor: int) -> bool:
    return _try_lock(descriptor) is not False


def lock_folder(folder: Path) -> int | None:
    """Hold a folder, if nobody else does, until :func:`let_go`."""
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    _lock(descriptor)
    return descriptor


def let_go(descriptor: int | None) -> None:
    """What :func:`make_temporary_folder` holds is no longer held."""
    if descriptor is not None:
        os.close(descriptor)


def is_at(descriptor: int, path: Path) -> bool:
    """Whether what is open has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


@contextmanager
def abandoned(entry: Path) -> Iterator[bool]:
    """Whether no writer holds ``entry``: its lock is free, or, without locks, it is old.

    The lock is held inside the block: a writer that has made ``entry`` and not locked it yet sees that
    somebody else has it, and makes another one.
    """
    descriptor, free = None, None
    try:
        with suppress(OSError):
            if fcntl is not None:
                descriptor = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                free = _try_lock(descriptor)
        if free is None:
            try:
                free = time.time() - entry.lstat().st_mtime > _ABANDONED_SECONDS
            except OSError:
                free = False
        yield free
    finally:
        let_go(descriptor)
