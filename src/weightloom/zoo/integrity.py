"""Whether a zoo is whole: every shard is compared with its checksum, every row of the index with its seal.

Knows nothing of weights, and mends nothing (:mod:`weightloom.zoo.repairing` does).
"""

from __future__ import annotations

import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from weightloom.errors import CheckpointError
from weightloom.io import read_header, require_plain, sha256_of
from weightloom.zoo.admission import DamagedIndex, require_sound, version_of
from weightloom.zoo.index import INDEX, check_shard_name, seal_of_key, seal_of_shard, seals, to_record
from weightloom.zoo.opening import being_added, locked, opened, shard_file, shards_folder


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


def find_problems(folder: Path) -> list[Problem]:
    """Everything that is wrong with the zoo in ``folder``.

    Other processes may write meanwhile: what is found is looked at again while none does.

    Raises:
        CheckpointError: the index cannot be read at all.
    """
    # In this order no writer is between its file and its row: files, whose is not committed, rows.
    files = sorted(shards_folder(folder).glob("*.safetensors"))
    begun = being_added(folder)
    index = folder / INDEX
    try:
        with opened(index, whole=False) as db:
            require_sound(index, db, "integrity_check")
            found, shards = _problems_of_index(folder, db)
            named = _names(db)
    except DamagedIndex as error:  # of which nothing that is read can be trusted
        return [Problem(error.reason, index=True)]
    found += _problems_of_files(folder, shards, [file for file in files if file.stem != begun], named)
    if found:
        with locked(folder), opened(index, whole=False, writing=True) as db:
            found = confirmed(folder, db, found)
    return found


def confirmed(folder: Path, db: sqlite3.Connection, problems: list[Problem]) -> list[Problem]:
    """Those problems that are still there, for a caller who is inside :func:`weightloom.zoo.opening.locked`.

    A shard that another process was replacing, or took back after a third one, is in order afterwards.
    """
    found, shards = _problems_of_index(folder, db)
    names = {problem.shard for problem in problems}
    begun = being_added(folder)
    files = [p.file for p in problems if p.file is not None and p.file.stem != begun]
    shards = [shard for shard in shards if shard[0] in names]
    return found + _problems_of_files(folder, shards, files, _names(db))


def _names(db: sqlite3.Connection) -> set[str]:
    return {row[0] for row in db.execute("SELECT name FROM shards")}


def _problems_of_files(
    folder: Path, shards: list[tuple[str, str, int]], files: list[Path], named: set[str]
) -> list[Problem]:
    """What is wrong with the files of ``shards``, and the ``files`` whose names are not ``named``."""
    problems = (_problem_of_shard(folder, *shard) for shard in shards)
    # The index has lost the others, or they are somebody else's.
    strays = (
        Problem(f"shard {file.stem} is on disk but not in the index", file=file)
        for file in files
        if file.stem not in named and os.path.lexists(file)
    )
    return [problem for problem in problems if problem is not None] + list(strays)


def _problem_of_shard(folder: Path, name: str, sha256: str, networks: int) -> Problem | None:
    file = shard_file(folder, name)
    if not os.path.lexists(file):
        return Problem(f"shard {name} is missing ({networks} networks)", shard=name)
    try:
        require_plain(file)
    except CheckpointError as error:
        return Problem(f"shard {name} cannot be read ({error.reason})", shard=name, file=file)
    changed = f"shard {name} is not what was written: its checksum differs"
    try:
        read_header(file)  # which says how long the file is: one that was made longer is not read to its end
        return None if sha256_of(file) == sha256 else Problem(changed, shard=name, file=file)
    except CheckpointError as error:
        return Problem(f"{changed} ({error.reason})", shard=name, file=file)


def _problems_of_index(
    folder: Path, db: sqlite3.Connection
) -> tuple[list[Problem], list[tuple[str, str, int]]]:
    """What is wrong in the index alone, and the shards that it names."""
    found = []
    sealed, used = seals(db) or {}, set()
    first = version_of(db) == 1  # in which not everything has a seal

    def differs(seal: str, now: str) -> bool:
        return not (first and seal not in sealed) and sealed.get(seal) != now

    for row in db.execute("SELECT key, value FROM about"):
        name = f"about/{row['key']}"
        used.add(name)
        if differs(name, seal_of_key(row["key"], row["value"])):
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
        elif differs(f"shard/{name}", seal_of_shard(db, name)):
            text = f"shard {name}: what the index says of its checkpoints is not what was written"
            found.append(Problem(text, shard=name))
        else:
            shards.append((name, str(row["sha256"]), row["networks"]))
    for name, count in counts.items():
        found.append(
            Problem(f"{count} checkpoints are of a shard {str(name)[:80]!r} that is none", shard=name)
        )
    for name in sorted(set(sealed) - used, key=str):
        found.append(
            Problem(f"the index has a seal of {str(name)[:80]!r}, which it does not hold", seal=name)
        )
    return found, shards
