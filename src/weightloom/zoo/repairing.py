"""Making a zoo whole again by dropping what is broken; what is dropped is kept in a folder beside it.

Knows nothing of weights.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from weightloom.errors import CheckpointError, InputError, WeightloomError
from weightloom.io import require_plain, sweep, temporary_folder
from weightloom.zoo.admission import (
    SIDE_FILES,
    ForeignIndex,
    UnfinishedIndex,
    check_replayed,
    connect,
    copy_index,
    empty,
    expected,
    explained,
)
from weightloom.zoo.index import COLUMNS, INDEX, drop_seal, drop_shard, seal_the_rest
from weightloom.zoo.integrity import Problem, confirmed, find_problems
from weightloom.zoo.opening import ADDING, begin, locked, shards_folder, transact

DROPPED = "dropped"
"""``dropped-1`` and so on: what each repair dropped, below the names that it had."""

_TABLES = {
    "about": ("key", "value"),
    "shards": ("name", "sha256", "networks"),
    "checkpoints": COLUMNS,
    "seals": ("name", "sha256"),
}
_PAGE = 4096

Rows = dict[str, list[tuple[Any, ...]]]


def repair(folder: str | Path) -> list[str]:
    """Drop every checkpoint that is broken, files that the index does not name, and what killed writers left.

    A build of the same recipe then makes the dropped shards again. An index that is damaged itself is copied
    to a new one as far as it can be read. What is dropped is kept: the index as it was and the files, in the
    first of ``dropped-1``, ``dropped-2`` and so on that is free.

    Returns:
        What was dropped, in words, and where it is kept; nothing where the zoo is whole.

    Raises:
        CheckpointError: the folder is no zoo, or nothing of its index can be read, or somebody has put more
            into it than an index holds.
        WeightloomError: the folder cannot be written.
    """
    folder = Path(folder)
    if not os.path.lexists(folder / INDEX):
        raise CheckpointError(folder, f"this is not a zoo (it has no {INDEX})")
    shards, backup = shards_folder(folder), _Backup(folder)
    with locked(folder):
        litter = sweep(folder) + sweep(shards)
    said = [f"removed {entry.name}, left by a killed writer" for entry in litter]
    try:
        problems = find_problems(folder)
    except (ForeignIndex, UnfinishedIndex):
        raise
    except CheckpointError as error:
        problems = [Problem(error.reason, index=True)]
    if any(problem.index for problem in problems):
        said.append(_salvage(folder, backup))
        problems = find_problems(folder)

    if os.path.lexists(folder / ADDING):
        transact(
            folder, lambda *_: None
        )  # which removes the note, and the shard that it names if no row does
        said.append(f"removed {ADDING}, left by a killed writer")

    def drop_rows(db: sqlite3.Connection, _: Path) -> list[Problem]:
        present = confirmed(folder, db, problems)  # a build may have made some of it again
        for problem in present:
            if problem.shard is not None:
                drop_shard(db, problem.shard)
            if problem.key is not None:
                db.execute("DELETE FROM about WHERE key = ?", (problem.key,))
            if problem.seal is not None:
                drop_seal(db, problem.seal)
        return present

    def drop_files(db: sqlite3.Connection, _: Path) -> None:
        named = {row[0] for row in db.execute("SELECT name FROM shards")}
        for file in sorted(shards.glob("*.safetensors")):
            if file.stem not in named:
                backup.move(file)

    if problems:
        with locked(folder):
            backup.copy(folder / INDEX)
        problems = transact(folder, drop_rows)
        transact(folder, drop_files)
        assert backup.place is not None
        said += [f"dropped: {problem.text}; kept in {backup.place}" for problem in problems]
    return said


class _Backup:
    """The folder for what one repair drops, made when there is something."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.place: Path | None = None

    def copy(self, file: Path) -> None:
        """Keep a copy of an index as it is now, unless one is kept already."""
        place = self._place_of(file)
        if not place.exists():
            copy_index(file, place)
            with place.open("rb") as handle:
                os.fsync(handle.fileno())

    def move(self, file: Path) -> None:
        """Put a file here, or whatever it is."""
        os.rename(file, self._place_of(file))

    def _place_of(self, file: Path) -> Path:
        number = 1
        while self.place is None:
            place = self.folder / f"{DROPPED}-{number}"
            try:
                place.mkdir()
                self.place = place
            except FileExistsError:
                number += 1
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                raise InputError(f"cannot write {place}: {reason}") from error
        place = self.place / file.relative_to(self.folder)
        place.parent.mkdir(exist_ok=True)
        return place


# -- a damaged index ---------------------------------------------------------------------------


def _salvage(folder: Path, backup: _Backup) -> str:
    """Copy what can be read of a damaged index to a new one, which takes its place."""
    index = folder / INDEX
    require_plain(index)
    with locked(folder):
        rows = _rescue(folder)
        backup.copy(index)
        for side in (Path(f"{index}{suffix}") for suffix in SIDE_FILES):
            if os.path.lexists(side):
                backup.move(side)
        (folder / ADDING).unlink(missing_ok=True)  # what it names is a stray file now, if no row names it

        def insert(db: sqlite3.Connection, _: Path) -> int:
            for table, columns in _TABLES.items():
                marks = ",".join("?" * len(columns))
                query = f"INSERT OR IGNORE INTO {table} ({','.join(columns)}) VALUES ({marks})"
                db.executemany(query, rows[table])
            return seal_the_rest(db)

        resealed = begin(folder, insert)
    text = f"the index was damaged: {len(rows['checkpoints'])} checkpoints were read from it"
    if resealed and rows["seals"]:
        text += f", {resealed} shards had lost their seal and were sealed again as they are"
    return f"{text}; the old one is kept in {backup.place}"


def _rescue(folder: Path) -> Rows:
    """What a copy of the index holds, as it is or behind a first page as every index of ours has it.

    Raises:
        CheckpointError: nothing.
    """
    index = folder / INDEX
    with temporary_folder(folder) as place:
        copy = place / INDEX
        copy_index(index, copy)
        with copy.open("rb") as handle:
            has_log = tuple(handle.read(20)[18:]) != (1, 1)
        for suffix in ("-journal", "-wal") if has_log else ("-journal",):
            with suppress(WeightloomError):
                require_plain(f"{index}{suffix}")
                check_replayed(index)
                shutil.copyfile(f"{index}{suffix}", f"{copy}{suffix}")
        attempts = [_readable(copy)]
        with copy.open("r+b") as handle:
            handle.write(_first_page(place, copy.stat().st_size))
        attempts.append(_readable(copy))
    rows = max(attempts, key=lambda attempt: sum(map(len, attempt.values())))
    if not rows["shards"] and not rows["about"]:
        raise CheckpointError(
            index, "nothing of the index can be read; build the zoo again in another folder"
        )
    return rows


def _first_page(place: Path, size: int) -> bytes:
    """The first page of an index of so many bytes: its header, and where its tables begin, never change."""
    with closing(empty(str(place / "empty"))):
        page = (place / "empty").read_bytes()[:_PAGE]
    return page[:28] + (size // _PAGE).to_bytes(4, "big") + page[32:]


def _readable(index: Path) -> Rows:
    """Every row of the tables that are ours, before, and from the other end after, what is damaged."""
    rows: dict[str, dict[tuple[Any, ...], None]] = {table: {} for table in _TABLES}
    for table in _TABLES:
        for order in ("ASC", "DESC"):
            with suppress(WeightloomError):
                for row in _rows(index, table, order):
                    rows[table][row] = None
    return {table: list(readable) for table, readable in rows.items()}


def _rows(index: Path, table: str, order: str) -> Iterator[tuple[Any, ...]]:
    with explained(index), closing(connect(index, "mode=rw")) as db:
        query = "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name = ?"
        made = [tuple(row) for row in db.execute(query, (table,))]
        if made == [("table", table, *expected()["table", table])]:
            columns = ", ".join(_TABLES[table])
            for row in db.execute(f"SELECT {columns} FROM {table} NOT INDEXED ORDER BY rowid {order}"):
                yield tuple(row)
