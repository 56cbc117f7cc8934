"""A zoo on disk: safetensors shards of stacked networks, and one SQLite index in WAL mode.

A shard is complete before the index names it, and the index is written in one transaction, so a
reader only ever sees whole checkpoints. Knows nothing of how networks were trained.

Layout of the folder: ``zoo.sqlite3`` and ``shards/NAME.safetensors``; a shard's tensors are those of
the architecture's state dict with one leading dimension, the networks in it.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.errors import CheckpointError, InputError
from weightloom.io import load_tensors, save_tensors
from weightloom.tasks import Task, parse_task
from weightloom.weights import layout_of, require_finite

_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS shards (name TEXT PRIMARY KEY, sha256 TEXT NOT NULL, networks INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS checkpoints (
    id TEXT PRIMARY KEY, shard TEXT NOT NULL REFERENCES shards(name), row INTEGER NOT NULL,
    architecture TEXT NOT NULL, task TEXT NOT NULL, dataset TEXT NOT NULL, classes INTEGER NOT NULL,
    split TEXT NOT NULL, member INTEGER NOT NULL, step INTEGER NOT NULL, final INTEGER NOT NULL,
    accuracy REAL, loss REAL, provenance TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS by_task ON checkpoints (architecture, dataset, split, final);
"""


@dataclass(frozen=True, kw_only=True)
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


class Zoo:
    """A directory of checkpoints with an index.

    Raises:
        CheckpointError: the folder is no zoo, or its index cannot be read.
    """

    def __init__(self, path: str | Path, *, create: bool = False) -> None:
        self.path = Path(path)
        index = self.path / "zoo.sqlite3"
        if create:
            try:
                (self.path / "shards").mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise CheckpointError(self.path, f"no zoo can be made here ({error.strerror})") from None
        elif not index.is_file():
            raise CheckpointError(self.path, "this is not a zoo (it has no zoo.sqlite3)")
        try:
            with closing(self._connect()) as db, db:
                if create:
                    db.execute("PRAGMA journal_mode=WAL")
                    db.executescript(_SCHEMA)
                db.execute("SELECT count(*) FROM checkpoints").fetchone()
        except sqlite3.DatabaseError as error:
            raise CheckpointError(index, f"the index cannot be read ({error})") from None

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path / "zoo.sqlite3", timeout=30)
        db.row_factory = sqlite3.Row
        return db

    def about(self) -> dict[str, Any]:
        """What the zoo says of itself: its recipe and format."""
        with closing(self._connect()) as db:
            return {row["key"]: json.loads(row["value"]) for row in db.execute("SELECT * FROM about")}

    def set_about(self, key: str, value: Any) -> None:
        """Keep one JSON value under ``key``."""
        with closing(self._connect()) as db, db:
            db.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (key, json.dumps(value, sort_keys=True)))

    def has_shard(self, name: str) -> bool:
        """Whether the shard is committed."""
        with closing(self._connect()) as db:
            return db.execute("SELECT 1 FROM shards WHERE name = ?", (name,)).fetchone() is not None

    def add(self, shard: str, spec: ArchitectureSpec, flats: Tensor, records: Sequence[Record]) -> None:
        """Write N networks (N, P) as one shard and commit their records.

        Raises:
            InputError: a weight is not finite; nothing is written then.
        """
        assert len(flats) == len(records)
        stacked = {k: v.contiguous() for k, v in layout_of(spec).unflatten(flats).items()}
        require_finite(stacked, f"shard {shard}")
        file = self.path / "shards" / f"{shard}.safetensors"
        save_tensors(file, stacked, {"architecture": spec.full_text()})
        digest = _sha256(file)
        with closing(self._connect()) as db, db:
            db.execute("INSERT OR REPLACE INTO shards VALUES (?, ?, ?)", (shard, digest, len(records)))
            db.execute("DELETE FROM checkpoints WHERE shard = ?", (shard,))
            db.executemany(
                "INSERT INTO checkpoints VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                [
                    (
                        r.id,
                        shard,
                        i,
                        r.architecture,
                        r.task,
                        r.dataset,
                        r.classes,
                        r.split,
                        r.member,
                        r.step,
                        int(r.final),
                        r.accuracy,
                        r.loss,
                        json.dumps(r.provenance, sort_keys=True),
                    )
                    for i, r in enumerate(records)
                ],
            )

    def records(
        self,
        *,
        architecture: str | None = None,
        task: str | None = None,
        dataset: str | None = None,
        split: str | None = None,
        classes: int | None = None,
        final: bool | None = None,
        min_accuracy: float | None = None,
    ) -> list[Record]:
        """The checkpoints that pass every given filter, by id.

        ``architecture`` is a spec text; what it leaves open (classes, input) matches any.
        """
        where: list[str] = []
        values: list[Any] = []
        for column, value in (("task", task), ("dataset", dataset), ("split", split), ("classes", classes)):
            if value is not None:
                where.append(f"{column} = ?")
                values.append(value)
        if final is not None:
            where.append("final = ?")
            values.append(int(final))
        if min_accuracy is not None:
            where.append("accuracy >= ?")
            values.append(min_accuracy)
        query = (
            "SELECT * FROM checkpoints" + (" WHERE " + " AND ".join(where) if where else "") + " ORDER BY id"
        )
        with closing(self._connect()) as db:
            found = [_record(row) for row in db.execute(query, values)]
        if architecture is not None:
            wanted = parse_architecture(architecture)
            found = [r for r in found if _matches(r.spec(), wanted)]
        return found

    def record(self, checkpoint: str) -> Record:
        """The checkpoint with this id. Raises :class:`InputError` when there is none."""
        with closing(self._connect()) as db:
            row = db.execute("SELECT * FROM checkpoints WHERE id = ?", (checkpoint,)).fetchone()
        if row is None:
            raise InputError(
                f"{self.path} holds no checkpoint {checkpoint!r}; `weightloom zoo list` shows them"
            )
        return _record(row)

    def load(self, records: Iterable[Record]) -> Tensor:
        """(N, P) raw weights of records that share one architecture, in the order given.

        Raises:
            CheckpointError: a shard is missing, broken, or not of its architecture.
        """
        records = list(records)
        specs = {r.architecture for r in records}
        if len(specs) != 1:
            raise InputError(f"checkpoints of one architecture are needed, not of {len(specs)}")
        layout = layout_of(records[0].spec())
        shards = {name: self._shard(name, records[0].spec()) for name in {r.shard for r in records}}
        flats = {name: layout.flatten(tensors) for name, tensors in shards.items()}
        for r in records:
            if r.row >= len(flats[r.shard]):
                raise CheckpointError(self.path / "shards" / r.shard, f"holds no row {r.row} ({r.id})")
        return torch.stack([flats[r.shard][r.row] for r in records])

    def by_architecture(self, **filters: Any) -> Iterator[tuple[ArchitectureSpec, list[Record]]]:
        """Groups of records that share one resolved architecture (their class count included)."""
        groups: dict[str, list[Record]] = {}
        for record in self.records(**filters):
            groups.setdefault(record.architecture, []).append(record)
        for text, group in groups.items():
            yield parse_architecture(text), group

    def _shard(self, name: str, spec: ArchitectureSpec) -> dict[str, Tensor]:
        tensors, _ = load_tensors(self.path / "shards" / f"{name}.safetensors")
        layout = layout_of(spec)
        for slot in layout.slots:
            held = tensors.get(slot.name)
            if held is None or tuple(held.shape[1:]) != slot.shape:
                raise CheckpointError(
                    self.path / "shards" / name, f"tensor {slot.name!r} does not fit {spec}"
                )
        return tensors

    def verify(self) -> list[str]:
        """Every problem found, in words: shards that are missing, changed or broken."""
        problems = []
        with closing(self._connect()) as db:
            shards = list(db.execute("SELECT * FROM shards ORDER BY name"))
        for row in shards:
            file = self.path / "shards" / f"{row['name']}.safetensors"
            if not file.is_file():
                problems.append(f"shard {row['name']} is missing ({row['networks']} networks)")
            elif _sha256(file) != row["sha256"]:
                problems.append(f"shard {row['name']} is not what was written: its checksum differs")
        return problems

    def summary(self) -> list[dict[str, Any]]:
        """Counts and mean accuracies by architecture, dataset and split, of final checkpoints."""
        query = (
            "SELECT architecture, dataset, split, classes, count(*) AS networks, avg(accuracy) AS accuracy "
            "FROM checkpoints WHERE final = 1 GROUP BY architecture, dataset, split, classes"
        )
        with closing(self._connect()) as db:
            return [dict(row) for row in db.execute(query)]


def _record(row: sqlite3.Row) -> Record:
    values = dict(row)
    values["final"] = bool(values["final"])
    values["provenance"] = json.loads(values["provenance"])
    return Record(**values)


def _matches(spec: ArchitectureSpec, wanted: ArchitectureSpec) -> bool:
    if spec.family != wanted.family:
        return False
    open_spec = spec
    if wanted.classes is None:
        open_spec = replace(open_spec, classes=None)
    if wanted.input is None:
        open_spec = replace(open_spec, input=None)
    return open_spec == wanted


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
