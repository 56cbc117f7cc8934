"""Whether a zoo is whole, and making it whole again by dropping what is broken.

Every shard is compared with its checksum, every row of the index with its seal. Knows nothing of weights.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightloom.errors import CheckpointError, WeightloomError
from weightloom.io import sha256_of, sweep, temporary_folder
from weightloom.zoo.index import (
    COLUMNS,
    INDEX,
    SCHEMA,
    check_shard_name,
    drop_seal,
    opened,
    seal_of_key,
    seal_of_shard,
    seals,
    to_record,
    writing,
)

_TABLES = {
    "about": ("key", "value"),
    "shards": ("name", "sha256", "networks"),
    "checkpoints": COLUMNS,
    "seals": ("name", "sha256"),
}


_MAGIC = b"SQLite format 3\0"
_HEADER = {0: _MAGIC + b"\x10\0\2\2\0\x40\x20\x20", 44: b"\0\0\0\4", 56: b"\0\0\0\1"}
"""What never changes in an index, by its offset: format and page size, schema format, UTF-8. Where the file
format of SQLite puts it: https://www.sqlite.org/fileformat.html, section 1.3."""


@dataclass(frozen=True)
class Problem:
    """Something broken, in words, and what has to go with it: rows of a shard, a key, a seal, a file."""

    text: str
    shard: str | None = None
    key: str | None = None
    seal: str | None = None
    file: Path | None = None
    index: bool = False
    """The index itself is damaged: what can be read of it is copied to a new one."""


def shard_file(folder: Path, name: str) -> Path:
    """Where a shard lies. Raises :class:`CheckpointError` for a name that leads out of the folder."""
    check_shard_name(folder / INDEX, name)
    return folder / "shards" / f"{name}.safetensors"


def find_problems(folder: Path) -> list[Problem]:
    """Everything that is wrong with the zoo in ``folder``.

    Raises:
        CheckpointError: the index cannot be read at all.
    """
    with opened(folder / INDEX) as db:
        db.execute("BEGIN")  # one state of the index, whatever is added meanwhile
        found, shards = _problems_of_index(folder, db)
        db.execute("ROLLBACK")
    broken = {problem.shard for problem in found}
    for name, sha256, networks in shards:
        if name in broken:
            continue
        file = shard_file(folder, name)
        if not file.is_file():
            found.append(Problem(f"shard {name} is missing ({networks} networks)", shard=name))
            continue
        try:
            same = sha256_of(file) == sha256
        except CheckpointError as error:
            found.append(Problem(f"shard {name} cannot be read ({error.reason})", shard=name))
            continue
        if not same:
            found.append(
                Problem(f"shard {name} is not what was written: its checksum differs", shard=name, file=file)
            )
    return found + _strays(folder)


def _problems_of_index(
    folder: Path, db: sqlite3.Connection
) -> tuple[list[Problem], list[tuple[str, str, int]]]:
    """What is wrong in the index alone, and the shards that it names."""
    found = []
    with (folder / INDEX).open("rb") as handle:
        head = handle.read(20)
    if head[:16] != _MAGIC or head[18:19] != head[19:20]:  # the versions that read and write it
        found.append(Problem("the index begins with other bytes than were written", index=True))
    damage = [str(row[0]) for row in db.execute("PRAGMA integrity_check(5)")]
    if damage != ["ok"]:
        found.append(Problem(f"the index is damaged ({damage[0].splitlines()[0][:200]})", index=True))
    sealed, used = seals(db), set()
    for row in db.execute("SELECT key, value FROM about"):
        name = f"about/{row['key']}"
        used.add(name)
        if sealed is not None and sealed.get(name) not in (None, seal_of_key(row["key"], row["value"])):
            text = f"what the index says under {row['key']!r} is not what was written"
            found.append(Problem(text, key=row["key"], seal=name))
    shards = []
    counts = dict(db.execute("SELECT shard, count(*) FROM checkpoints GROUP BY shard").fetchall())
    for row in db.execute("SELECT name, sha256, networks FROM shards ORDER BY name").fetchall():
        name = row["name"]
        used.add(f"shard/{name}")
        held = counts.pop(name, 0)
        try:
            check_shard_name(folder / INDEX, name)
            for entry in db.execute("SELECT * FROM checkpoints WHERE shard = ?", (name,)):
                to_record(folder / INDEX, entry)
        except CheckpointError as error:
            found.append(Problem(f"shard {str(name)[:80]}: the index {error.reason}", shard=name))
            continue
        if held != row["networks"]:
            text = f"shard {name} has {held} checkpoints in the index where {row['networks']} were written"
            found.append(Problem(text, shard=name))
        elif sealed is not None and sealed.get(f"shard/{name}") not in (None, seal_of_shard(db, name)):
            text = f"shard {name}: what the index says of its checkpoints is not what was written"
            found.append(Problem(text, shard=name))
        else:
            shards.append((name, str(row["sha256"]), row["networks"]))
    for name, count in counts.items():
        found.append(
            Problem(f"{count} checkpoints are of a shard {str(name)[:80]!r} that is none", shard=name)
        )
    for name in sorted(set(sealed or ()) - used, key=str):
        found.append(
            Problem(f"the index has a seal of {str(name)[:80]!r}, which it does not hold", seal=name)
        )
    return found, shards


def _strays(folder: Path) -> list[Problem]:
    """Files among the shards that the index does not name: a killed writer's, or the index has lost them."""

    def unnamed(db: sqlite3.Connection) -> list[Problem]:
        named = {f"{row[0]}.safetensors" for row in db.execute("SELECT name FROM shards")}
        files = sorted((folder / "shards").glob("*.safetensors"))
        return [
            Problem(f"shard {file.stem} is on disk but not in the index", file=file)
            for file in files
            if file.name not in named
        ]

    try:
        with writing(folder / INDEX) as db:  # no writer is between its file and its row
            return unnamed(db)
    except CheckpointError:
        raise
    except WeightloomError:  # where nothing can be written, there is no writer
        with opened(folder / INDEX) as db:
            return unnamed(db)


def repair(folder: str | Path) -> list[str]:
    """Drop every checkpoint that is broken, files that the index does not name, and what killed writers left.

    A build of the same recipe then makes the dropped shards again. An index that is damaged itself is copied
    to a new one as far as it can be read; the old one stays beside it as ``zoo.sqlite3.broken``.

    Returns:
        What was dropped, in words; nothing where the zoo is whole.

    Raises:
        CheckpointError: the folder is no zoo, or nothing of its index can be read.
        WeightloomError: the folder cannot be written.
    """
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        raise CheckpointError(folder, f"this is not a zoo (it has no {INDEX})")
    said = [
        f"removed {entry.name}, left by a killed writer" for entry in sweep(folder) + sweep(folder / "shards")
    ]
    try:
        problems = find_problems(folder)
    except CheckpointError as error:
        problems = [Problem(error.reason, index=True)]
    if any(problem.index for problem in problems):
        said.append(_salvage(folder))
        problems = find_problems(folder)
    with writing(folder / INDEX) as db:
        for problem in problems:
            if problem.shard is not None:
                db.execute("DELETE FROM checkpoints WHERE shard = ?", (problem.shard,))
                db.execute("DELETE FROM shards WHERE name = ?", (problem.shard,))
                drop_seal(db, f"shard/{problem.shard}")
            if problem.key is not None:
                db.execute("DELETE FROM about WHERE key = ?", (problem.key,))
            if problem.seal is not None:
                drop_seal(db, problem.seal)
    for problem in problems:
        if problem.file is not None:
            problem.file.unlink(missing_ok=True)
        said.append(f"dropped: {problem.text}")
    # Shards whose rows were dropped above are files without rows now.
    for problem in _strays(folder):
        assert problem.file is not None
        problem.file.unlink(missing_ok=True)
    return said


def _salvage(folder: Path) -> str:
    """Copy what can be read of a damaged index to a new one, which takes its place."""
    index = folder / INDEX
    rows = {table: _readable(index, table, columns) for table, columns in _TABLES.items()}
    if not rows["shards"] and not rows["about"]:
        rows = _readable_behind_its_header(index)
    if not rows["shards"] and not rows["about"]:
        raise CheckpointError(
            index, "nothing of the index can be read; build the zoo again in another folder"
        )
    shutil.copyfile(index, folder / f"{INDEX}.broken")
    fresh = folder / f"{INDEX}.tmp-{secrets.token_hex(4)}"
    with opened(fresh) as db:
        db.executescript(SCHEMA)
        db.execute("BEGIN")
        for table, columns in _TABLES.items():
            marks = ",".join("?" * len(columns))
            db.executemany(
                f"INSERT OR IGNORE INTO {table} ({','.join(columns)}) VALUES ({marks})", rows[table]
            )
        db.execute("COMMIT")
    with suppress(WeightloomError), opened(fresh) as db:
        db.execute("PRAGMA journal_mode=WAL")
    for suffix in ("-wal", "-shm"):  # of the old file: they must not be read into the new one
        Path(f"{index}{suffix}").unlink(missing_ok=True)
    os.replace(fresh, index)
    count = len(rows["checkpoints"])
    return f"the index was damaged: {count} checkpoints were read from it, the old one is {INDEX}.broken"


def _readable_behind_its_header(index: Path) -> dict[str, list[tuple[Any, ...]]]:
    """What a copy holds whose first bytes are those that every index of ours begins with."""
    with temporary_folder(index.parent) as place:
        copy = place / INDEX
        shutil.copyfile(index, copy)
        with suppress(FileNotFoundError):
            shutil.copyfile(f"{index}-wal", f"{copy}-wal")
        with copy.open("r+b") as handle:
            pages = (copy.stat().st_size // 4096).to_bytes(4, "big")
            for offset, data in {**_HEADER, 28: pages}.items():
                handle.seek(offset)
                handle.write(data)
        return {table: _readable(copy, table, columns) for table, columns in _TABLES.items()}


def _readable(index: Path, table: str, columns: tuple[str, ...]) -> list[tuple[Any, ...]]:
    """Every row of a table that comes before, or from the other end after, what is damaged."""
    found: dict[tuple[Any, ...], None] = {}
    for order in ("ASC", "DESC"):
        with suppress(WeightloomError):
            for row in _rows(
                index, f"SELECT {','.join(columns)} FROM {table} NOT INDEXED ORDER BY rowid {order}"
            ):
                found[row] = None
    return list(found)


def _rows(index: Path, query: str) -> Iterator[tuple[Any, ...]]:
    with opened(index) as db:
        for row in db.execute(query):
            yield tuple(row)
