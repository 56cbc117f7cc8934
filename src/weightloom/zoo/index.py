"""The index of a zoo: one SQLite file, its schema, its rows as records, and the seals on them.

A seal is the SHA-256 of everything the index says of one shard, or under one key: a byte that changes in a
row of the index is found like a byte that changes in a shard. Knows nothing of weights or shards on disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.errors import CheckpointError, WeightloomError
from weightloom.tasks import Task, parse_task

INDEX = "zoo.sqlite3"

SCHEMA = """
CREATE TABLE IF NOT EXISTS about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS shards (name TEXT PRIMARY KEY, sha256 TEXT NOT NULL, networks INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS checkpoints (
    id TEXT PRIMARY KEY, shard TEXT NOT NULL REFERENCES shards(name), row INTEGER NOT NULL,
    architecture TEXT NOT NULL, task TEXT NOT NULL, dataset TEXT NOT NULL, classes INTEGER NOT NULL,
    split TEXT NOT NULL, member INTEGER NOT NULL, step INTEGER NOT NULL, final INTEGER NOT NULL,
    accuracy REAL, loss REAL, provenance TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS by_task ON checkpoints (architecture, dataset, split, final);
CREATE INDEX IF NOT EXISTS by_shard ON checkpoints (shard);
CREATE INDEX IF NOT EXISTS by_words ON checkpoints (task);
CREATE INDEX IF NOT EXISTS by_accuracy ON checkpoints (dataset, split, accuracy);
CREATE TABLE IF NOT EXISTS seals (name TEXT PRIMARY KEY, sha256 TEXT NOT NULL);
"""

# What another moment or another place may mend; anything else that SQLite reports is a broken file.
_PASSING = {
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN,
}  # fmt: skip
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One checkpoint's row in the index; ``accuracy`` is on the task's test split, in [0, 1]."""

    id: str
    shard: str
    row: int
    architecture: str
    task: str
    dataset: str
    classes: int
    split: str
    member: int
    step: int
    final: bool
    accuracy: float | None
    loss: float | None
    provenance: dict[str, Any]

    def spec(self) -> ArchitectureSpec:
        """The resolved architecture."""
        return parse_architecture(self.architecture)

    def parsed_task(self) -> Task:
        """The task."""
        return parse_task(self.task)


COLUMNS = tuple(field.name for field in fields(Record))
_TEXTS = ("id", "shard", "architecture", "task", "dataset", "split", "provenance")
_COUNTS = ("row", "classes", "member", "step", "final")
_SHARED = ("shard", "architecture", "task", "dataset", "split")
"""Columns whose values many rows have in common: kept once in memory."""


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to the index at ``path`` that is closed afterwards, in autocommit mode.

    Raises:
        CheckpointError: the file is no index, or broken.
        WeightloomError: it cannot be used now: locked for long, a full disk, a read-only folder.
    """
    try:
        with closing(_connect(path)) as db:
            db.row_factory = sqlite3.Row
            yield db
    except sqlite3.DatabaseError as error:
        raise _explained(path, error) from None
    except UnicodeDecodeError as error:  # of SQLite's own message, where it quotes what the file holds
        raise CheckpointError(path, f"the index cannot be read ({error})") from None


@contextmanager
def writing(path: Path) -> Iterator[sqlite3.Connection]:
    """As :func:`opened`, inside one transaction, all of it or nothing; other writers of the zoo wait."""
    with opened(path) as db:
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")


def _connect(path: Path) -> sqlite3.Connection:
    if os.access(path.parent, os.W_OK) or Path(f"{path}-wal").exists():
        return sqlite3.connect(path, timeout=30, isolation_level=None)
    # SQLite would make its log beside the index even to read it; where nothing can be written, nothing
    # changes either.
    place = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    return sqlite3.connect(place, timeout=30, isolation_level=None, uri=True)


def _explained(path: Path, error: sqlite3.DatabaseError) -> WeightloomError:
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None and code & 0xFF in _PASSING:
        return WeightloomError(f"{path}: the index cannot be used now ({error})")
    return CheckpointError(path, f"the index cannot be read ({error})")


def check_shard_name(path: Path, name: object) -> str:
    """``name`` if it can name a file inside the folder of shards. Raises :class:`CheckpointError`."""
    if not isinstance(name, str) or not _SHARD.fullmatch(name) or ".." in name:
        raise CheckpointError(path, f"names a shard {str(name)[:80]!r}, which is no place inside the zoo")
    return name


def to_row(record: Record, shard: str, row: int) -> tuple[Any, ...]:
    """The values of ``record`` as the index holds them, in the order of :data:`COLUMNS`."""
    values = {name: getattr(record, name) for name in COLUMNS}
    values |= {"shard": shard, "row": row, "final": int(record.final)}
    values["provenance"] = json.dumps(record.provenance, sort_keys=True)
    return tuple(values[name] for name in COLUMNS)


def to_record(path: Path, row: sqlite3.Row) -> Record:
    """A row of the index as a record.

    Raises:
        CheckpointError: a value that no record of ours has.
    """
    try:
        values = dict(zip(COLUMNS, (row[name] for name in COLUMNS), strict=True))
        for name in _TEXTS:
            if type(values[name]) is not str:
                raise ValueError(f"{name} is no text")
        for name in _COUNTS:
            if type(values[name]) is not int or values[name] < 0:
                raise ValueError(f"{name} is no count")
        for name in ("accuracy", "loss"):
            if not (values[name] is None or type(values[name]) is float):
                raise ValueError(f"{name} is no number")
        for name in _SHARED:
            values[name] = sys.intern(values[name])
        values["final"] = bool(values["final"])
        values["provenance"] = json.loads(values["provenance"])
        if not isinstance(values["provenance"], dict):
            raise ValueError("provenance is no object")
    except (IndexError, RecursionError, ValueError) as error:
        raise CheckpointError(path, f"holds a checkpoint that cannot be read ({error})") from None
    return Record(**values)


# -- seals -------------------------------------------------------------------------------------


def seal_of_shard(db: sqlite3.Connection, name: str) -> str:
    """The SHA-256 of the index's row of a shard and of its checkpoints, as they are read back."""
    digest = hashlib.sha256()
    for row in db.execute("SELECT name, sha256, networks FROM shards WHERE name = ?", (name,)):
        digest.update(_line(row))
    query = f"SELECT {', '.join(COLUMNS)} FROM checkpoints WHERE shard = ? ORDER BY row, id"
    for row in db.execute(query, (name,)):
        digest.update(_line(row))
    return digest.hexdigest()


def seal_of_key(key: str, value: str) -> str:
    """The SHA-256 of one thing that the zoo says of itself."""
    return hashlib.sha256(_line((key, value))).hexdigest()


def _line(row: Any) -> bytes:
    return json.dumps([str(value) if isinstance(value, bytes) else value for value in row]).encode() + b"\n"


def put_seal(db: sqlite3.Connection, name: str, sha256: str) -> None:
    """Keep a seal; an index of before there were seals gets its table for them."""
    db.execute("CREATE TABLE IF NOT EXISTS seals (name TEXT PRIMARY KEY, sha256 TEXT NOT NULL)")
    db.execute("INSERT OR REPLACE INTO seals VALUES (?, ?)", (name, sha256))


def drop_seal(db: sqlite3.Connection, name: str) -> None:
    """Forget a seal, if the index has any."""
    if seals(db) is not None:
        db.execute("DELETE FROM seals WHERE name = ?", (name,))


def seals(db: sqlite3.Connection) -> dict[str, str] | None:
    """Every seal by name; None in an index of before there were seals."""
    if db.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'seals'").fetchone() is None:
        return None
    return {row["name"]: row["sha256"] for row in db.execute("SELECT name, sha256 FROM seals")}
