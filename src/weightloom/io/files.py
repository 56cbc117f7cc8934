"""Reading plain files, and nothing else: no pipe, no device, no folder, never more than was agreed.

Every reader of the package opens through here, so that a broken path has one error type.
Knows nothing of what is inside a file.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from weightloom.errors import CheckpointError

_CHUNK = 1 << 20


@contextmanager
def open_regular(path: str | Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file for reading; yields the handle and the file's size in bytes.

    Symbolic links are followed (a hub cache is made of them); what they lead to must be a regular
    file. An ``OSError`` while the file is open becomes a :class:`CheckpointError` too.

    Raises:
        CheckpointError: the file is missing, unreadable, or not a regular file.
    """
    path = Path(path)
    if "\0" in str(path):
        raise CheckpointError(repr(str(path)), "cannot be read (a path has no NUL in it)")
    try:
        # Without O_NONBLOCK the open of a pipe waits for a writer that never comes.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as handle:
            status = os.fstat(handle.fileno())
            if not stat.S_ISREG(status.st_mode):
                kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
                raise CheckpointError(path, f"is {kind}")
            yield handle, status.st_size
    except OSError as error:
        raise CheckpointError(path, _reason(error)) from error


def require_plain(path: str | Path) -> os.stat_result:
    """What the system says of a plain file; nothing is opened, and a link is not followed.

    Raises:
        CheckpointError: there is none of that name, or it is a link, a folder, a pipe or a device.
    """
    try:
        status = os.lstat(path)
    except OSError as error:
        raise CheckpointError(path, _reason(error)) from error
    except ValueError:
        raise CheckpointError(repr(str(path)), "cannot be read (a path has no NUL in it)") from None
    if not stat.S_ISREG(status.st_mode):
        kind = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe"}
        what = kind.get(stat.S_IFMT(status.st_mode), "no file")
        raise CheckpointError(path, f"is {what}, and must be a plain file of its folder")
    return status


def read_bytes(path: str | Path, *, limit: int) -> bytes:
    """The whole file, at most ``limit`` bytes of it.

    Raises:
        CheckpointError: the file cannot be read or is larger than ``limit``.
    """
    with open_regular(path) as (handle, size):
        data = handle.read(limit + 1) if size <= limit else b""
        if size > limit or len(data) > limit:
            raise CheckpointError(path, f"has more than the {limit:,} bytes that such a file may have")
        return data


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits.

    Raises:
        CheckpointError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with open_regular(path) as (handle, _):
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, IsADirectoryError):
        return "is a folder"
    return f"cannot be read ({error.strerror or error})"
