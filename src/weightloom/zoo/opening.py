"""The one way into the index of a zoo: reading, and transactions of writers.

Whoever reads opens the index for reading only, and sees one state of it. Whoever writes is alone, and what it
adds is there as a whole or not at all, its shard's file included. A zoo is made by its first transaction. An
index of version 1 is read as it is, and becomes one of the present version when it is first written. Knows
nothing of what rows mean.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from weightloom.errors import CheckpointError, InputError, WeightloomError
from weightloom.io import (
    alone,
    atomic_file,
    atomic_folder,
    make_folder,
    open_regular,
    require_plain,
    sweep,
    write_text,
)
from weightloom.unfinished import Undoing
from weightloom.zoo.admission import (
    MARKS,
    SECONDS,
    SIDE_FILES,
    UnfinishedIndex,
    admit,
    code_of,
    connect,
    empty,
    explained,
    keeps_a_log,
    limit_work,
    require_sound,
)
from weightloom.zoo.index import INDEX, SCHEMA, check_shard_name, has_shard, seal_the_rest

T = TypeVar("T")

ADDING = "zoo.adding"
"""A file that names the shard that is being added or dropped: if the index does not name it too, its file was
never committed."""

# -- reading -----------------------------------------------------------------------------------


@contextmanager
def opened(
    path: Path, *, planned: bool = False, whole: bool = True, writing: bool = False
) -> Iterator[sqlite3.Connection]:
    """A connection to the index at ``path``, for reading one state of it, that is closed afterwards.

    Args:
        path: the index.
        planned: whether an index that is not there counts as one without rows.
        whole: whether all its pages are checked first, for whoever reads more than a row.
        writing: whether the caller is inside :func:`locked`.

    Raises:
        CheckpointError: the file is no index, is broken, or holds more than an index does.
        WeightloomError: it cannot be used now: locked for long, or left by a killed writer in a folder that
            cannot be written.
    """
    with explained(path), closing(_reading(path, planned, writing)) as db:
        if whole:
            require_sound(path, db)
        yield db


def _reading(path: Path, planned: bool, writing: bool) -> sqlite3.Connection:
    while True:
        if planned and _is_absent(path):
            return empty(":memory:")
        try:
            return _admitted(path)
        except UnfinishedIndex:
            if not planned:
                raise
            return empty(":memory:")
        except (CheckpointError, sqlite3.OperationalError) as error:
            if isinstance(error, sqlite3.Error) and code_of(error) == sqlite3.SQLITE_READONLY_ROLLBACK:
                # Its first statement takes back what a killed writer left. That can be needed again: writers
                # can be killed faster than a reader reads.
                with nullcontext() if writing else locked(path.parent), closing(_writable(path)):
                    pass
            elif not (planned and _is_absent(path)):  # removed since it was looked for
                raise


def _admitted(path: Path) -> sqlite3.Connection:
    """A connection in a transaction that reads one state of the index, the one that is admitted."""
    place = "mode=ro"
    if keeps_a_log(path):
        if os.access(path.parent, os.W_OK) and os.access(path, os.W_OK):
            place = "mode=rw"  # the log is read through files that SQLite makes beside the index
        elif not os.path.lexists(f"{path}-wal"):
            place = "mode=ro&immutable=1"  # nothing can be written there, so nothing changes either
    db = connect(path, place)
    try:
        db.execute("BEGIN")
        admit(path, db)
        limit_work(path, db)  # while it waited for a writer, the index may have grown
        return db
    except BaseException:
        db.close()
        raise


# -- writing -----------------------------------------------------------------------------------


def transact(folder: Path, work: Callable[[sqlite3.Connection, Path], T], *, create: bool = False) -> T:
    """Call ``work`` inside one transaction on a zoo's index, all of it or nothing; other writers wait.

    Args:
        folder: the zoo's folder.
        work: given a connection, and the folder below which shards are written, by :func:`adding`. It may be
            called again, on another state of the zoo.
        create: make the zoo with this transaction if there is none. A folder that is missing appears as a
            whole or not at all.

    Returns:
        What ``work`` returns.

    Raises:
        CheckpointError: there is no zoo, or its index is no index, broken, or holds more than an index does.
        InputError: nothing can be written there.
        WeightloomError: the disk is full, or the index is locked for long.
    """
    index = folder / INDEX
    while True:
        if create and not os.path.lexists(folder):
            try:
                with atomic_folder(folder, commit=False) as place:
                    return begin(place, work)
            except InputError:
                if not os.path.lexists(folder):
                    raise  # nobody else has made it meanwhile
        try:
            with explained(index), locked(folder) as in_place:
                if not (create and _is_absent(index)):
                    with closing(_writable(index)) as db:
                        try:
                            version = admit(index, db)
                        except UnfinishedIndex:
                            if not create:
                                raise
                        else:
                            return _continue(folder, db, version, work)
                make_folder(folder / "shards")
                if in_place():  # and stays there, now that it is not empty
                    return begin(folder, work)
        except CheckpointError:
            if not create or os.path.lexists(folder):
                raise  # and not removed meanwhile, as a zoo without a shard


def _continue(
    folder: Path, db: sqlite3.Connection, version: int, work: Callable[[sqlite3.Connection, Path], T]
) -> T:
    """One transaction on an index that is there."""
    index = folder / INDEX
    if version == 1:
        require_sound(index, db, "integrity_check")  # before anything of it is changed
    _end_log(index, db)
    db.execute("PRAGMA synchronous=EXTRA")
    db.execute("BEGIN IMMEDIATE")
    with Undoing(partial(_undo, folder)):
        try:
            if version == 1:
                _upgrade(db)
            _take_back(folder, db)
            result = work(db, folder)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            with suppress(sqlite3.Error, OSError, WeightloomError):  # the next writer does it otherwise
                _take_back(folder, db)
            raise
        with suppress(sqlite3.Error, OSError, WeightloomError):  # it is committed
            _take_back(folder, db)
    return result


def _end_log(index: Path, db: sqlite3.Connection) -> None:
    """Wait until nobody reads the index, then let it keep no log any more. SQLite does not wait here."""
    last = time.monotonic() + SECONDS
    while True:
        try:
            if db.execute("PRAGMA journal_mode=DELETE").fetchone()[0] == "delete":
                return
        except sqlite3.OperationalError as error:
            if code_of(error) & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise
        if time.monotonic() > last:
            raise WeightloomError(f"{index}: the index cannot be used now (another process has it open)")
        time.sleep(0.02)


def adding(place: Path, shard: str) -> None:
    """Note that a shard's file is written or dropped in this transaction, before either begins."""
    write_text(place / ADDING, shard, durable=False)


def being_added(folder: Path) -> str | None:
    """The shard whose file may be there without a row: a writer is at it, or was killed."""
    try:
        require_plain(folder / ADDING)
        with open_regular(folder / ADDING) as (handle, _):
            return check_shard_name(folder / ADDING, handle.read(256).decode("ascii", "replace"))
    except CheckpointError:
        return None


def shards_folder(folder: Path) -> Path:
    """Where a zoo's shards lie. Raises :class:`CheckpointError` where that is no plain folder inside it."""
    place = folder / "shards"
    with suppress(OSError):
        if not stat.S_ISDIR(os.lstat(place).st_mode):
            raise CheckpointError(place, "is no plain folder of the zoo")
    return place


def shard_file(folder: Path, name: str) -> Path:
    """Where a shard lies. Raises :class:`CheckpointError` for a name that leads out of the folder."""
    check_shard_name(folder / INDEX, name)
    return shards_folder(folder) / f"{name}.safetensors"


def _take_back(folder: Path, db: sqlite3.Connection) -> None:
    """Remove the shard of a transaction that was not committed, and the note of it."""
    if not os.path.lexists(folder / ADDING):
        return
    shard = being_added(folder)
    if shard is not None and not has_shard(db, shard):
        shard_file(folder, shard).unlink(missing_ok=True)
        sweep(shards_folder(folder))
    (folder / ADDING).unlink(missing_ok=True)
    sweep(folder, name=ADDING)


def begin(place: Path, work: Callable[[sqlite3.Connection, Path], T]) -> T:
    """A new index in ``place``, with what ``work`` writes."""
    index = place / INDEX
    for suffix in SIDE_FILES:  # of whatever was here before: they must not be read into the new one
        Path(f"{index}{suffix}").unlink(missing_ok=True)
    sweep(place, name=INDEX)
    with Undoing(partial(_undo, place)):
        try:
            make_folder(place / "shards")
            with explained(index), atomic_file(index) as handle, closing(empty(handle.name)) as db:
                _take_back(place, db)
                db.execute("BEGIN")
                result = work(db, place)
                db.execute("COMMIT")
        except BaseException:
            _forget_shard(place)
            raise
        (place / ADDING).unlink(missing_ok=True)
    return result


def _forget_shard(place: Path) -> None:
    """Take back what is being added to a zoo whose index is not there."""
    with suppress(sqlite3.Error, OSError, WeightloomError), closing(empty(":memory:")) as none:
        _take_back(place, none)
    with suppress(OSError):
        (place / "shards").rmdir()  # unless there is something in it


def _undo(folder: Path) -> None:
    """Take back what an interrupt left uncommitted, as far as that can be told at once; else the next writer
    does it. The connection of the transaction is still open, and holds its locks.
    """
    index = folder / INDEX
    if not os.path.lexists(index):
        _forget_shard(folder)
        return
    with (
        suppress(sqlite3.Error, OSError, WeightloomError),
        closing(connect(index, "mode=ro", waits=False)) as db,
    ):
        db.execute("PRAGMA busy_timeout=0")
        _take_back(folder, db)


def tidy(folder: Path) -> None:
    """Remove what killed writers left, if there is a zoo and anything is there."""
    if not os.path.lexists(folder / INDEX):
        return
    sweep(shards_folder(folder))
    try:
        if os.path.lexists(folder / ADDING):
            transact(folder, lambda *_: None)
    except CheckpointError:
        if os.path.lexists(folder / INDEX):
            raise  # and not removed meanwhile, as a zoo without a shard


def discard_empty(folder: Path, *, keep_folder: bool) -> None:
    """Remove a zoo that has no shard; one that cannot be looked into stays."""
    index = folder / INDEX
    with suppress(WeightloomError), explained(index), locked(folder):
        with closing(_writable(index)) as db:
            admit(index, db)
            _take_back(folder, db)
            if db.execute("SELECT 1 FROM shards LIMIT 1").fetchone() is not None:
                return
        index.unlink()
        for place in (folder / "shards", *(() if keep_folder else (folder,))):
            with suppress(OSError):  # there is something in it
                place.rmdir()


def _upgrade(db: sqlite3.Connection) -> None:
    """An index of version 1 becomes one of version 2: every shard and every key is sealed.

    What has a seal keeps it, so that rows which are not what was written are still found.
    """
    for statement in SCHEMA.split(";"):
        db.execute(statement)
    seal_the_rest(db)
    for statement in MARKS:
        db.execute(statement)


@contextmanager
def locked(folder: Path) -> Iterator[Callable[[], bool]]:
    """One writer of the zoo at a time; yields whether the folder is still in its place.

    Raises:
        CheckpointError: there is no such folder.
    """
    with ExitStack() as stack:
        try:
            in_place = stack.enter_context(alone(folder))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise CheckpointError(folder, f"no zoo can be used here ({reason})") from None
        yield in_place


def _writable(path: Path) -> sqlite3.Connection:
    """A connection that may write, after what a killed writer left has been taken back."""
    keeps_a_log(path)
    db = connect(path, "mode=rw", writes=True)
    try:
        db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
    except BaseException:
        db.close()
        raise
    return db


def _is_absent(path: Path) -> bool:
    """Whether there is nothing at ``path``, or an empty file that a killed writer left."""
    try:
        status = os.lstat(path)
    except OSError:
        return True
    return stat.S_ISREG(status.st_mode) and status.st_size == 0
