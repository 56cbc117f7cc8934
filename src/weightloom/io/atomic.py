"""Writing so that a reader sees the old bytes or the new ones, and never half of either.

A file or folder is built under a temporary name beside its place (``NAME.tmp-1a2b3c4d``), flushed
to the disk and renamed. A folder gets a ``COMMIT.json`` last, with the SHA-256 of every file: a
folder without it was never finished. A writer that was killed leaves only litter, which
:func:`sweep` removes; a writer that lives holds a lock on its temporary name, so that it is never
swept away. Knows nothing of what is written.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from weightloom.errors import CheckpointError, InputError, WeightloomError
from weightloom.io.files import open_regular, read_bytes, sha256_of
from weightloom.io.locks import (
    HAS_LOCKS,
    LITTER,
    abandoned,
    let_go,
    lock_folder,
    make_temporary_folder,
    open_temporary,
    temporary_name,
)
from weightloom.unfinished import Undoing, written

COMMIT_FILE = "COMMIT.json"

_COMMIT_LIMIT = 16 << 20
# What the caller can mend by naming another place; anything else (a full disk) is a failed write.
_WRONG_PLACE = {
    errno.EACCES, errno.EEXIST, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG,
    errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY, errno.EPERM, errno.EROFS,
}  # fmt: skip


@contextmanager
def atomic_file(path: str | Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A binary handle whose bytes become ``path`` when the block ends without an exception.

    Missing parent folders are made. Inside the block the file is called ``handle.name``. The mode follows
    the umask. With ``durable=False`` the file is still whole or absent after a crash of the process, but not
    after a power cut.

    Raises:
        InputError: nothing can be written at this place (a folder, no permission, read-only).
        WeightloomError: the write failed (a full disk); the old file is untouched.
    """
    path = _checked(path)
    with _write_errors(path):
        _make_parents(path)
        temporary = temporary_name(path)
        with Undoing(partial(_remove, temporary)):
            handle = open_temporary(temporary)
            try:
                with handle:
                    yield handle
                    handle.flush()
                    if durable:
                        os.fsync(handle.fileno())
                    if not HAS_LOCKS:
                        handle.close()
                    os.replace(temporary, path)  # before the close: that is what lets go of the lock
                    _tell(path)
            except BaseException:
                _remove(temporary)
                raise
        if durable:
            sync_folder(path.parent)


def write_bytes(path: str | Path, data: bytes, *, durable: bool = True) -> None:
    """Write ``data`` to ``path`` atomically. Raises as :func:`atomic_file`."""
    with atomic_file(path, durable=durable) as handle:
        handle.write(data)


def write_text(path: str | Path, text: str, *, durable: bool = True) -> None:
    """Write ``text`` to ``path`` atomically, in UTF-8. Raises as :func:`atomic_file`."""
    write_bytes(path, text.encode("utf-8"), durable=durable)


@contextmanager
def atomic_folder(
    path: str | Path,
    *,
    overwrite: bool = False,
    durable: bool = True,
    commit: bool = True,
    digests: Mapping[str, str] | None = None,
) -> Iterator[Path]:
    """A temporary folder that becomes ``path``, all at once, when the block ends without an exception.

    The last thing written into it is ``COMMIT.json``. With ``overwrite`` an existing folder is
    exchanged for the new one, but only if it was written here too (it has a ``COMMIT.json``) and
    nothing else is in it: what a user put there is never replaced. An empty folder counts as absent.
    What killed writers of the same folder left is removed.

    ``digests`` may be filled inside the block: the SHA-256 of files, by their names, from whoever
    computed it while writing; the others are read again. Without ``commit`` there is no ``COMMIT.json``: for
    a folder whose files go on changing, and are flushed to the disk by whoever writes them.

    Raises:
        InputError: the place is taken, or nothing can be written there.
        WeightloomError: the write failed (a full disk); the old folder is untouched.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp()) / "model"
        >>> with atomic_folder(place) as folder:
        ...     _ = (folder / "config.json").write_text("{}")
        >>> sorted(file.name for file in place.iterdir())
        ['COMMIT.json', 'config.json']
        >>> list(verify_folder(place))
        ['config.json']
    """
    path = _checked(path)
    with _write_errors(path):
        sweep(path.parent, name=path.name)
        _refuse_taken(path, overwrite)
        _make_parents(path)
        temporary = temporary_name(path)
        with Undoing(partial(shutil.rmtree, temporary, ignore_errors=True)):
            descriptor = make_temporary_folder(temporary)
            try:
                yield temporary
                if commit:
                    _commit(temporary, durable, digests or {})
                elif durable:
                    for entry in (*(entry for entry in temporary.rglob("*") if entry.is_dir()), temporary):
                        sync_folder(entry)
                _refuse_taken(path, overwrite)
                if overwrite:
                    _move_into_place(temporary, path)
                else:
                    os.rename(temporary, path)  # which fails where somebody else has come first
                _tell(path)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            finally:
                let_go(descriptor)
        if durable:
            sync_folder(path.parent)


def make_folder(path: str | Path) -> Path:
    """Make a folder and its parents, unless it is there. Raises as :func:`atomic_file`."""
    path = Path(path)
    with _write_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def verify_folder(path: str | Path, *, required: Sequence[str] = ()) -> dict[str, str]:
    """Check that a folder is complete and that no byte of it has changed since it was written.

    Files that the commit does not name (a note that somebody added) are not looked at.

    Args:
        path: a folder written by :func:`atomic_folder`.
        required: names that must be among the committed files.

    Returns:
        The committed files, as paths relative to the folder in ``/`` form, with their SHA-256.

    Raises:
        CheckpointError: unfinished, incomplete, changed, or with names that lead out of the folder.
    """
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(path, "is not a folder" if path.exists() else "does not exist")
    if not (path / COMMIT_FILE).exists():
        raise CheckpointError(path, f"has no {COMMIT_FILE}: it was not written to the end")
    files = committed_files(path / COMMIT_FILE)
    for name in required:
        if name not in files:
            raise CheckpointError(path, f"lacks {name!r}")
    for name, (digest, size) in files.items():
        with open_regular(path / name) as (_, found):
            if found != size:
                raise CheckpointError(path / name, f"has {found:,} bytes where {size:,} were written")
        if sha256_of(path / name) != digest:
            raise CheckpointError(path / name, "has changed since it was written (its SHA-256 differs)")
    return {name: digest for name, (digest, _) in files.items()}


def sweep(
    folder: str | Path, *, name: str | None = None, keep: Callable[[Path], bool] = lambda _: False
) -> list[Path]:
    """Remove what killed writers left directly in ``folder``; returns what was removed.

    What a living writer is still building is left alone. A folder that a killed writer had moved
    aside but not yet replaced is put back. With a ``name`` only what was to become that is removed, and
    nothing that ``keep`` says is to stay: in a folder that is not ours alone.
    """
    removed: list[Path] = []
    try:
        entries = sorted(Path(folder).iterdir())
    except OSError:
        return removed
    for entry in entries:
        match = LITTER.fullmatch(entry.name)
        if match is None or name not in (None, match["name"]) or keep(entry):
            continue
        place = entry.with_name(match["name"])
        with suppress(OSError), abandoned(entry) as free:
            if not free:
                continue
            if match["kind"] == "old" and not place.exists():
                os.rename(entry, place)
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
            removed.append(entry)
    return removed


# -- errors ------------------------------------------------------------------------------------


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not _concerns(error, path):
            raise
        reason = f"cannot write {path}: {(error.strerror or str(error)).lower()}"
        raise (InputError if error.errno in _WRONG_PLACE else WeightloomError)(reason) from error


def _concerns(error: OSError, path: Path) -> bool:
    """Whether ``error`` is about ``path`` and not about another file that the caller's block touched."""
    if error.filename is None:
        return True
    name = os.fsdecode(error.filename)
    return name.startswith(str(path)) or Path(name) in path.parents


def _refuse_taken(path: Path, overwrite: bool) -> None:
    if not path.exists() and not path.is_symlink():
        return
    if path.is_symlink() or not path.is_dir():
        raise InputError(f"cannot write {path}: there is something else of that name")
    try:
        if not any(path.iterdir()):
            return
    except FileNotFoundError:  # removed meanwhile
        return
    if not overwrite:
        raise InputError(f"cannot write {path}: the folder exists and is not empty")
    if not (path / COMMIT_FILE).is_file():
        raise InputError(f"cannot replace {path}: it has no {COMMIT_FILE}, so Weightloom did not write it")
    ours = {COMMIT_FILE, *committed_files(path / COMMIT_FILE)}
    others = (file.relative_to(path).as_posix() for file in sorted(path.rglob("*")) if not file.is_dir())
    if (other := next((name for name in others if name not in ours), None)) is not None:
        raise InputError(f"cannot replace {path}: {other!r} in it is not Weightloom's")


# -- places -----------------------------------------------------------------------------------


def _tell(path: Path) -> None:
    """``path`` is in its place, unless that is inside a folder which is not."""
    if not any(LITTER.fullmatch(part) for part in path.parts):
        written(path)


def _remove(path: Path) -> None:
    with suppress(OSError):
        os.unlink(path)


def _checked(path: str | Path) -> Path:
    path = Path(path)
    if not path.name or path.name == ".." or "\0" in str(path):
        raise InputError(f"cannot write {str(path)!r}: it is not the name of a file or folder")
    return path


def _make_parents(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)


# -- commit and rename -------------------------------------------------------------------------


def _commit(folder: Path, durable: bool, digests: Mapping[str, str]) -> None:
    files: dict[str, dict[str, str | int]] = {}
    folders = [folder]
    for entry in sorted(folder.rglob("*")):
        name = entry.relative_to(folder).as_posix()
        if entry.is_symlink() or not (entry.is_dir() or entry.is_file()):
            raise InputError(f"cannot write {folder}: {name!r} is neither a file nor a folder")
        if entry.is_dir():
            folders.append(entry)
            continue
        with entry.open("rb") as handle:
            digest = digests.get(name) or hashlib.file_digest(handle, "sha256").hexdigest()
            if durable:
                os.fsync(handle.fileno())
            size = os.fstat(handle.fileno()).st_size
        files[name] = {"bytes": size, "sha256": digest}
    assert digests.keys() <= files.keys(), "digests of files that were not written"
    assert COMMIT_FILE not in files, f"{COMMIT_FILE} is written by atomic_folder itself"
    text = json.dumps({"version": 1, "files": files}, indent=1, sort_keys=True) + "\n"
    with (folder / COMMIT_FILE).open("w", encoding="utf-8") as note:
        note.write(text)
        note.flush()
        if durable:
            os.fsync(note.fileno())
    if durable:
        for entry in reversed(folders):
            sync_folder(entry)


def _move_into_place(temporary: Path, path: Path) -> None:
    if not path.exists() or not any(path.iterdir()):
        os.rename(temporary, path)
        return
    if _exchange(temporary, path):
        shutil.rmtree(temporary, ignore_errors=True)  # by now this name holds the old folder
        return
    # Two renames, with an instant between them when the name is free: sweep() mends that one.
    aside = temporary_name(path, "old")
    held = lock_folder(path)
    try:
        os.rename(path, aside)
        try:
            os.rename(temporary, path)
        except BaseException:
            os.rename(aside, path)
            raise
    finally:
        let_go(held)
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step where the system can (Linux ``renameat2``); False where it cannot."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in ``folder``, on systems that can."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # a system without it
            raise
    finally:
        os.close(descriptor)


def committed_files(path: Path) -> dict[str, tuple[str, int]]:
    """SHA-256 and size of every file that a commit names. Raises :class:`CheckpointError`."""
    try:
        note = json.loads(read_bytes(path, limit=_COMMIT_LIMIT))
        files = {name: (entry["sha256"], entry["bytes"]) for name, entry in note["files"].items()}
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(path, "is not a list of the folder's files") from error
    for name, (digest, size) in files.items():
        parts = name.split("/")
        if any(part in ("", ".", "..") for part in parts) or re.search(r"[\\:\x00-\x1f]", name):
            raise CheckpointError(path, f"names {name!r}, which is no place inside the folder")
        if not (isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) and type(size) is int):
            raise CheckpointError(path, f"has no checksum for {name!r}")
    return files
