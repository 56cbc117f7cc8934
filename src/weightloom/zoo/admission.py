"""What is checked before the index of a zoo is used, and what SQLite may do with it then.

A stranger may have written it, and a database can hold more than rows: views and triggers that run when a
table is read or written, side files that are replayed into it, pages that lead to each other for ever. So the
index and what lies beside it are plain files; it has the schema that this package writes, word for word, and
nothing else, which is checked before any other statement; and statements may take no more steps than a file
of its size can be worth.

The format's version is in two fields of SQLite's own header that no flipped bit turns into another version.
Version 1 has zeros there, and keeps a write-ahead log. Knows nothing of what rows mean.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from itertools import chain, repeat
from pathlib import Path
from threading import RLock
from typing import Any, BinaryIO

from weightloom.errors import CheckpointError, WeightloomError
from weightloom.io import open_regular, require_plain
from weightloom.zoo.index import SCHEMA

APPLICATION = int.from_bytes(b"WLzo", "big")
"""SQLite's ``application_id`` of an index, from version 2 on."""

VERSION = 2

SIDE_FILES = ("-journal", "-wal", "-shm")
_NEEDED = ("about", "shards", "checkpoints")  # what every index of version 1 has

SECONDS = 60.0
"""How long a statement waits for another process that is writing."""

# Steps of SQLite's machine: to read and verify every row takes 0.6 a byte, measured on indexes of 7 to 17 MB.
_STEPS, _STEPS_A_BYTE, _STEPS_OF_A_WRITER, _STEPS_AT_ONCE = 100_000, 4, 10_000_000, 1000
_LONGEST = 64 << 20  # bytes of a value that is written
_APPARENT, _PACKED = 64 << 20, 16  # bytes that need not be on the disk; how far a file system may compress
_LIMITS = {
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 100_000,
    sqlite3.SQLITE_LIMIT_COLUMN: 32,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 32,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 2,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 4,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 1,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")

# What another moment or another place may mend; anything else that SQLite reports is a broken file.
_PASSING = {
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN,
}  # fmt: skip


class ForeignIndex(CheckpointError):
    """An index that no damage explains: somebody put more into it, or a later version wrote it."""


class UnfinishedIndex(CheckpointError):
    """An index of version 1 whose making was killed before it held anything."""


class DamagedIndex(CheckpointError):
    """An index whose pages are not those that were written; what can be read of it can be copied."""


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """What SQLite raises inside the block becomes an error of ours."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise _ours(path, error) from None
    except UnicodeDecodeError as error:  # of SQLite's own message, where it quotes what the file holds
        raise CheckpointError(path, f"the index cannot be read ({error})") from None


def code_of(error: sqlite3.Error) -> int:
    """SQLite's own number for an error; 0 for those that Python itself finds."""
    return getattr(error, "sqlite_errorcode", None) or 0


def _ours(path: Path, error: sqlite3.DatabaseError) -> WeightloomError:
    code = code_of(error)
    if code == sqlite3.SQLITE_READONLY_ROLLBACK:
        return WeightloomError(
            f"{path}: its last writer was killed, and what it left cannot be taken back where nothing can be "
            "written; open the zoo once where it can"
        )
    if code == sqlite3.SQLITE_INTERRUPT:  # of the handler in connect(); nothing else interrupts
        return CheckpointError(
            path, "the index cannot be read (it asks for more work than an index of its size can)"
        )
    if code & 0xFF in _PASSING:
        return WeightloomError(f"{path}: the index cannot be used now ({error})")
    return CheckpointError(path, f"the index cannot be read ({error})")


# -- what an index is --------------------------------------------------------------------------


def _code(version: int) -> int:
    """A version twice in one number: no flipped bit makes another version of it."""
    return version << 16 | version


MARKS = (f"PRAGMA application_id={APPLICATION}", f"PRAGMA user_version={_code(VERSION)}")


def empty(place: str) -> sqlite3.Connection:
    """A new index of this version, in memory or in a file that is not yet in its place."""
    db = sqlite3.connect(place, isolation_level=None)
    db.row_factory = sqlite3.Row
    db.execute("PRAGMA journal_mode=OFF")
    db.execute("PRAGMA synchronous=OFF")
    db.executescript(f"BEGIN;{SCHEMA};{';'.join(MARKS)};COMMIT;")
    return db


@cache
def expected() -> dict[tuple[str, str], tuple[str, str | None]]:
    """Every object of an index: its table and the text that made it, by kind and name."""
    with closing(empty(":memory:")) as db:
        rows = db.execute("SELECT type, name, tbl_name, sql FROM sqlite_master")
        return {(kind, name): (table, text) for kind, name, table, text in rows}


def admit(path: Path, db: sqlite3.Connection) -> int:
    """The version of an index whose schema is that of a zoo and nothing else: the first thing that is read.

    Raises:
        ForeignIndex: it holds a view, a trigger or a virtual table, or is of another version.
        UnfinishedIndex: its making was killed.
        CheckpointError: it is anything else than an index.
    """
    rows = [tuple(row) for row in db.execute("SELECT type, name, tbl_name, sql FROM sqlite_master LIMIT 100")]
    for kind, name, _, text in rows:
        virtual = isinstance(text, str) and text.upper().startswith("CREATE VIRTUAL")
        if kind in ("view", "trigger") or virtual:
            what = "virtual table" if virtual else kind
            raise ForeignIndex(
                path, f"holds the {what} {_short(name)}; no zoo has one, so this index is not used"
            )
    version = version_of(db)
    if version is None:
        raise CheckpointError(path, "the index cannot be read (its header is not that of a zoo)")
    if version > VERSION:
        raise ForeignIndex(
            path, f"is of format {version}, and this version of Weightloom reads 1 to {VERSION}"
        )
    wanted = expected()
    for kind, name, table, text in rows:
        if wanted.get((kind, name)) != (table, text):
            raise CheckpointError(path, f"the index cannot be read (its {kind} {_short(name)} is no zoo's)")
    present = {(kind, name) for kind, name, *_ in rows}
    missing = [name for kind, name in wanted if (kind, name) not in present]
    if len(present) != len(rows):
        raise CheckpointError(path, "the index cannot be read (it has two tables of one name)")
    if version == VERSION and missing:
        raise CheckpointError(path, f"the index cannot be read (it lacks {missing[0]!r})")
    needed = [name for name in _NEEDED if name in missing]
    if needed:
        tables = [name for kind, name in present if kind == "table"]
        if any(db.execute(f"SELECT 1 FROM {name} LIMIT 1").fetchone() for name in tables):
            raise CheckpointError(path, f"the index cannot be read (it lacks {needed[0]!r})")
        raise UnfinishedIndex(path, "the index cannot be read (the zoo's making was killed)")
    return version


def require_sound(path: Path, db: sqlite3.Connection, check: str = "quick_check") -> None:
    """Raise :class:`DamagedIndex` unless every page of the index is used once, and as what it is.

    Only then is there an end to the rows of a table, and no more in them than the file has bytes.
    """
    damage = [str(row[0]) for row in db.execute(f"PRAGMA {check}(1)")]
    if damage != ["ok"]:
        first = " ".join(damage[0].split())[:200]
        raise DamagedIndex(
            path, f"the index is damaged ({first}); `weightloom zoo repair` copies what can be read"
        )


def version_of(db: sqlite3.Connection) -> int | None:
    """The version of the format that an index's header says, which may be a later one; None: it says none."""
    fields = ("application_id", "user_version")
    application, code = (db.execute(f"PRAGMA {field}").fetchone()[0] for field in fields)
    if (application, code) == (0, 0):
        return 1
    version = int(code) & 0xFFFF
    known = application == APPLICATION and code == _code(version) and version >= VERSION
    return version if known else None


def _short(name: object) -> str:
    return repr(str(name)[:80])


# -- files and connections ---------------------------------------------------------------------


def keeps_a_log(path: Path) -> bool:
    """Whether the index keeps a write-ahead log, as those of version 1 do.

    Raises:
        CheckpointError: it is no plain file, does not begin as an index does, or something lies beside it
            that SQLite would read into it and that is not its own.
    """
    require_plain(path)
    versions = _format_of(path)
    for suffix in SIDE_FILES:
        side = Path(f"{path}{suffix}")
        if not _is_there(side) or suffix == "-journal" or versions == (2, 2):
            continue
        if _format_of(path) == versions:  # it was not a writer's, killed while it turned a log off
            raise CheckpointError(
                side, "lies beside an index that has no such file; `weightloom zoo repair` puts it aside"
            )
        return True
    return versions == (2, 2)


def _format_of(path: Path) -> tuple[int, ...]:
    """The format of an index, for writing and for reading; 2 is with a log."""
    with _ONE, open_regular(path) as (handle, _):
        head = handle.read(100)
    versions = tuple(head[18:20])
    if head[:15] != b"SQLite format 3" or versions not in ((1, 1), (2, 2)):
        raise CheckpointError(path, "the index cannot be read (it begins with other bytes than were written)")
    return versions


def _is_there(side: Path) -> bool:
    """Whether something lies beside an index, a plain file. Raises :class:`CheckpointError` if it is no file.

    One look decides: the writer whose journal it is removes it at any moment.
    """
    try:
        require_plain(side)
    except CheckpointError as error:
        if _is_gone(error):
            return False
        raise
    return True


def _is_gone(error: CheckpointError) -> bool:
    return isinstance(error.__cause__, FileNotFoundError)


def check_replayed(path: Path) -> None:
    """Refuse a journal or a log that SQLite must not replay when it opens the index for writing.

    A journal can name another file, which SQLite then removes; both can say how large the index is to become.

    Raises:
        ForeignIndex: one does.
    """
    size = require_plain(path).st_size
    for suffix, refused in (("-journal", _journal_is_foreign), ("-wal", _log_is_foreign)):
        side = Path(f"{path}{suffix}")
        if not _is_there(side):
            continue
        try:
            with open_regular(side) as (handle, length):
                foreign = refused(handle, length, size)
        except CheckpointError as error:
            if not _is_gone(error):
                raise
        else:
            if foreign:
                raise ForeignIndex(
                    side, "is not what a zoo's writer leaves; without it the zoo can be opened"
                )


def _journal_is_foreign(handle: BinaryIO, length: int, size: int) -> bool:
    """Whether a journal names another one, or an index larger than it is.

    https://www.sqlite.org/fileformat.html, section 3, and ``readSuperJournal`` in SQLite's pager.c.
    """
    head = handle.read(28)
    handle.seek(max(0, length - 8))
    if handle.read(8) == _JOURNAL_MAGIC and length >= 16:
        return True
    pages, page = (int.from_bytes(head[start : start + 4], "big") for start in (16, 24))
    return head[:8] == _JOURNAL_MAGIC and len(head) == 28 and pages * page > size


def _log_is_foreign(handle: BinaryIO, length: int, size: int) -> bool:
    """Whether a write-ahead log names pages far beyond those that index and log have (section 4, there)."""
    page = int.from_bytes(handle.read(32)[8:12], "big")
    if page not in (1 << power for power in range(9, 17)):
        return False  # SQLite reads no such log
    most = 2 * (size + length) // page + 1000
    for start in range(32, length, page + 24):
        handle.seek(start)
        head = handle.read(8)
        if max(int.from_bytes(head[:4], "big"), int.from_bytes(head[4:], "big")) > most:
            return True
    return False


_ONE = RLock()
"""Held by a thread while it has an index open.

On POSIX systems a process that closes a file gives up all its locks on it, those of SQLite in other threads
included; and readers in several threads, which share one lock, can keep a writer in another process waiting.
"""
if hasattr(os, "register_at_fork"):  # no thread but the one that forks is in the child
    os.register_at_fork(after_in_child=lambda: globals().update(_ONE=RLock()))


class _OnlyConnection(sqlite3.Connection):
    """A connection that other threads wait for until it is closed."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._lock: RLock | None = None
        _ONE.acquire()
        try:
            super().__init__(*arguments, **options)
        except BaseException:
            _ONE.release()
            raise
        self._lock = _ONE

    def close(self) -> None:
        super().close()
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()


def copy_index(index: Path, place: Path) -> None:
    """Copy the file of an index, while no thread of this process has it open."""
    with _ONE:
        shutil.copyfile(index, place)


def connect(path: Path, place: str, *, writes: bool = False, waits: bool = True) -> sqlite3.Connection:
    """A connection on which nothing of a stranger's is run or replayed, and no statement goes on for ever.

    Args:
        path: the index.
        place: ``mode=ro``, ``mode=rw``, or ``mode=ro&immutable=1``.
        writes: whether it is for more rows than the file has, of our own.
        waits: whether it waits for other threads; one that undoes what another one was at must not.

    Raises:
        ForeignIndex: something lies beside it that SQLite must not replay.
    """
    if place == "mode=rw":
        check_replayed(path)
    address = f"{path.absolute().as_uri()}?{place}"
    kind = _OnlyConnection if waits else sqlite3.Connection
    db = sqlite3.connect(address, timeout=SECONDS, isolation_level=None, uri=True, factory=kind)
    try:
        for limit, most in _LIMITS.items():
            db.setlimit(limit, most)
        if sys.version_info >= (3, 12):
            _configure(db)
        if hasattr(db, "enable_load_extension"):
            db.enable_load_extension(False)
        for pragma in ("trusted_schema=OFF", "cell_size_check=ON", "mmap_size=0", "temp_store=MEMORY"):
            db.execute(f"PRAGMA {pragma}")
        limit_work(path, db, writes=writes)
        db.row_factory = sqlite3.Row
    except BaseException:
        db.close()
        raise
    return db


def limit_work(path: Path, db: sqlite3.Connection, *, writes: bool = False) -> None:
    """Statements on ``db`` may take what an index as large as it is now is worth, and no more."""
    worth = sum(_worth(file) for file in (str(path), *(f"{path}{suffix}" for suffix in SIDE_FILES)))
    longest = 2 * worth + (_LONGEST if writes else 1 << 16)  # no value is longer than the file it is from
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, min(longest, (1 << 31) - 1))
    steps = _STEPS_A_BYTE * worth + (_STEPS_OF_A_WRITER if writes else _STEPS)
    # Ends the statement when there are no steps left. No code of Python's runs in it, in which an
    # interrupt would come up and be lost.
    ends = chain(repeat(0, steps // _STEPS_AT_ONCE), repeat(1)).__next__
    db.set_progress_handler(ends, _STEPS_AT_ONCE)


def _worth(file: str) -> int:
    """Bytes that a file can hold: of a large one with holes, no more than its blocks."""
    try:
        status = os.stat(file)
    except OSError:
        return 0
    blocks = getattr(status, "st_blocks", status.st_size)  # of 512 bytes
    return min(status.st_size, max(_APPARENT, 512 * blocks * _PACKED))


def _configure(db: sqlite3.Connection) -> None:
    """What Python offers from 3.12 on: no triggers, no views, and no changes of the schema's own table."""
    off = ("TRUSTED_SCHEMA", "ENABLE_TRIGGER", "ENABLE_VIEW", "ENABLE_LOAD_EXTENSION", "WRITABLE_SCHEMA")
    for name, value in (("DEFENSIVE", True), *((name, False) for name in off)):
        option = getattr(sqlite3, f"SQLITE_DBCONFIG_{name}", None)
        if option is not None:
            with suppress(sqlite3.Error):  # an older SQLite does not know it
                db.setconfig(option, value)  # type: ignore[attr-defined]
