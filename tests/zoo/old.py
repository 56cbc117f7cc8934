"""Not a test: indexes as earlier versions wrote them, with the rows of a zoo of today."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

FIRST = """
CREATE TABLE IF NOT EXISTS about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS shards (name TEXT PRIMARY KEY, sha256 TEXT NOT NULL, networks INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS checkpoints (
    id TEXT PRIMARY KEY, shard TEXT NOT NULL REFERENCES shards(name), row INTEGER NOT NULL,
    architecture TEXT NOT NULL, task TEXT NOT NULL, dataset TEXT NOT NULL, classes INTEGER NOT NULL,
    split TEXT NOT NULL, member INTEGER NOT NULL, step INTEGER NOT NULL, final INTEGER NOT NULL,
    accuracy REAL, loss REAL, provenance TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS by_task ON checkpoints (architecture, dataset, split, final);
"""
LATER = """
CREATE INDEX IF NOT EXISTS by_shard ON checkpoints (shard);
CREATE INDEX IF NOT EXISTS by_words ON checkpoints (task);
CREATE INDEX IF NOT EXISTS by_accuracy ON checkpoints (dataset, split, accuracy);
CREATE TABLE IF NOT EXISTS seals (name TEXT PRIMARY KEY, sha256 TEXT NOT NULL);
"""
KINDS = {"first": FIRST, "sealed": FIRST + LATER}


def old_zoo(zoo: Path, place: Path, kind: str, *, log: bool = False) -> Path:
    """A copy of ``zoo`` with an index as it was before version 2.

    Args:
        zoo: a zoo of today.
        place: where the copy goes.
        kind: ``first``, without seals, or ``sealed``.
        log: leave everything in the write-ahead log, as a writer that was killed did.
    """
    shutil.copytree(zoo, place)
    index = place / "zoo.sqlite3"
    index.unlink()
    with closing(sqlite3.connect(index)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.executescript(KINDS[kind])
        db.execute("ATTACH ? AS new", (f"{zoo / 'zoo.sqlite3'}",))
        with db:
            for table in ("about", "shards", "checkpoints", *(("seals",) if kind == "sealed" else ())):
                db.execute(f"INSERT INTO {table} SELECT * FROM new.{table}")
        if log:
            kept = {name: Path(f"{index}{name}").read_bytes() for name in ("", "-wal", "-shm")}
    if log:
        for name, data in kept.items():
            Path(f"{index}{name}").write_bytes(data)
    return place
