"""What the index of a zoo holds: its schema, its rows as records, and the seals on them.

A seal is the SHA-256 of everything the index says of one shard, or under one key: a byte that changes in a
row of the index is found like a byte that changes in a shard. Every shard and every key has one, but for
indexes of version 1, which were written before there were seals or before all had to have one. Knows nothing
of weights, of shards on disk, or of how the file is opened.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sqlite3
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.errors import CheckpointError
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
            if not (values[name] is None or (type(values[name]) is float and math.isfinite(values[name]))):
                raise ValueError(f"{name} is no number")
        for name in _SHARED:
            values[name] = sys.intern(values[name])
        values["final"] = bool(values["final"])
        values["provenance"] = json.loads(values["provenance"], parse_constant=_no_number)
        if not isinstance(values["provenance"], dict):
            raise ValueError("provenance is no object")
    except (IndexError, RecursionError, ValueError) as error:
        raise CheckpointError(path, f"holds a checkpoint that cannot be read ({error})") from None
    return Record(**values)


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


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
    """Keep a seal."""
    db.execute("INSERT OR REPLACE INTO seals VALUES (?, ?)", (name, sha256))


def seal_shard(db: sqlite3.Connection, name: str) -> None:
    """Keep the seal of what the index now says of a shard."""
    put_seal(db, f"shard/{name}", seal_of_shard(db, name))


def has_shard(db: sqlite3.Connection, name: str) -> bool:
    """Whether the index names a shard."""
    return db.execute("SELECT 1 FROM shards WHERE name = ?", (name,)).fetchone() is not None


def drop_shard(db: sqlite3.Connection, name: str) -> None:
    """Forget a shard, its checkpoints and its seal."""
    db.execute("DELETE FROM checkpoints WHERE shard = ?", (name,))
    db.execute("DELETE FROM shards WHERE name = ?", (name,))
    drop_seal(db, f"shard/{name}")


def drop_seal(db: sqlite3.Connection, name: str) -> None:
    """Forget a seal."""
    db.execute("DELETE FROM seals WHERE name = ?", (name,))


def seals(db: sqlite3.Connection) -> dict[str, str] | None:
    """Every seal by name; None in an index of before there were seals."""
    if db.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'seals'").fetchone() is None:
        return None
    return {row["name"]: row["sha256"] for row in db.execute("SELECT name, sha256 FROM seals")}


def seal_the_rest(db: sqlite3.Connection) -> int:
    """Seal as they are the shards and keys that have no seal; returns how many shards these were."""
    kept = seals(db) or {}
    for row in db.execute("SELECT key, value FROM about").fetchall():
        if f"about/{row['key']}" not in kept:
            put_seal(db, f"about/{row['key']}", seal_of_key(row["key"], row["value"]))
    names = [row["name"] for row in db.execute("SELECT name FROM shards ORDER BY name").fetchall()]
    unsealed = [name for name in names if f"shard/{name}" not in kept]
    for name in unsealed:
        seal_shard(db, name)
    return len(unsealed)
