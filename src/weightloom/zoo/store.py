"""A zoo on disk: safetensors shards of stacked networks, and one SQLite index in WAL mode.

A shard is complete before the index names it, and the index is written in one transaction, so a
reader only ever sees whole checkpoints, also while several processes write. Knows nothing of how
networks were trained.

Layout of the folder: ``zoo.sqlite3`` and ``shards/NAME.safetensors``; a shard's tensors are those of
the architecture's state dict with one leading dimension, the networks in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.defaults import with_plain_defaults
from weightloom.errors import CheckpointError, InputError, WeightloomError
from weightloom.io import load_rows, save_tensors, sweep
from weightloom.weights import checked_flats, layout_of, require_finite
from weightloom.zoo.index import (
    COLUMNS,
    INDEX,
    SCHEMA,
    Record,
    drop_seal,
    opened,
    put_seal,
    seal_of_key,
    seal_of_shard,
    to_record,
    to_row,
    writing,
)
from weightloom.zoo.integrity import find_problems, shard_file


class Zoo:
    """A directory of checkpoints with an index.

    Raises:
        CheckpointError: the folder is no zoo, or its index cannot be read.
    """

    def __init__(self, path: str | Path, *, create: bool = False) -> None:
        self.path = Path(path)
        self._index = self.path / INDEX
        if create:
            try:
                (self.path / "shards").mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise CheckpointError(self.path, f"no zoo can be made here ({error.strerror})") from None
            sweep(self.path / "shards")
        elif not self._index.is_file():
            raise CheckpointError(self.path, f"this is not a zoo (it has no {INDEX})")
        with opened(self._index) as db:
            if create:
                db.execute("PRAGMA journal_mode=WAL")
                db.executescript(SCHEMA)
            db.execute(f"SELECT {', '.join(COLUMNS)} FROM checkpoints LIMIT 1").fetchone()

    def about(self) -> dict[str, Any]:
        """What the zoo says of itself: its recipe and format."""
        with opened(self._index) as db:
            rows = db.execute("SELECT key, value FROM about").fetchall()
        try:
            return {row["key"]: json.loads(row["value"]) for row in rows}
        except (RecursionError, TypeError, ValueError) as error:
            raise CheckpointError(self._index, f"what it says of the zoo is not JSON ({error})") from None

    def set_about(self, key: str, value: Any) -> None:
        """Keep one JSON value under ``key``."""
        text = json.dumps(value, sort_keys=True)
        with writing(self._index) as db:
            db.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (key, text))
            put_seal(db, f"about/{key}", seal_of_key(key, text))

    def has_shard(self, name: str) -> bool:
        """Whether the shard is committed."""
        with opened(self._index) as db:
            return db.execute("SELECT 1 FROM shards WHERE name = ?", (name,)).fetchone() is not None

    @with_plain_defaults
    def add(self, shard: str, spec: ArchitectureSpec, flats: Tensor, records: Sequence[Record]) -> None:
        """Write N networks (N, P) as one shard and commit their records.

        A shard of this name that holds something else is dropped first, so that the index at no moment
        speaks of another file than the one on disk; one that holds just this is left as it is.

        Raises:
            InputError: a weight is not finite, or these are no networks of ``spec``; nothing is written then.
            WeightloomError: the disk is full, or the index is locked for long.
        """
        flats = checked_flats(spec, flats).detach()
        assert len(flats) == len(records)
        stacked = {k: v.contiguous() for k, v in layout_of(spec).unflatten(flats).items()}
        require_finite(stacked, f"shard {shard}")
        rows = [to_row(record, shard, number) for number, record in enumerate(records)]
        if self.has_shard(shard):
            if self._holds(shard, spec, flats, rows):
                return
            with writing(self._index) as db:
                db.execute("DELETE FROM checkpoints WHERE shard = ?", (shard,))
                db.execute("DELETE FROM shards WHERE name = ?", (shard,))
                drop_seal(db, f"shard/{shard}")
        with writing(self._index) as db:  # the file too: of two writers of one shard, the second waits here
            digest = save_tensors(shard_file(self.path, shard), stacked, {"architecture": spec.full_text()})
            db.execute("DELETE FROM checkpoints WHERE shard = ?", (shard,))
            db.execute("INSERT OR REPLACE INTO shards VALUES (?, ?, ?)", (shard, digest, len(rows)))
            marks = ",".join("?" * len(COLUMNS))
            db.executemany(f"INSERT INTO checkpoints ({','.join(COLUMNS)}) VALUES ({marks})", rows)
            put_seal(db, f"shard/{shard}", seal_of_shard(db, shard))

    def _holds(self, shard: str, spec: ArchitectureSpec, flats: Tensor, rows: list[tuple[Any, ...]]) -> bool:
        """Whether the zoo has exactly these networks under this name."""
        query = f"SELECT {', '.join(COLUMNS)} FROM checkpoints WHERE shard = ? ORDER BY row"
        try:
            with opened(self._index) as db:
                if [tuple(row) for row in db.execute(query, (shard,))] != rows:
                    return False
            return torch.equal(self._rows(shard, spec, range(len(rows))), flats.detach().cpu().float())
        except WeightloomError:  # what cannot be read is written anew
            return False

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
        with opened(self._index) as db:
            if architecture is not None:
                # Few texts stand for many checkpoints: each is looked at once.
                wanted = parse_architecture(architecture)
                texts = [row[0] for row in db.execute("SELECT DISTINCT architecture FROM checkpoints")]
                where.append("architecture IN (SELECT value FROM json_each(?))")
                values.append(json.dumps([text for text in texts if _matches(self._spec(text), wanted)]))
            query = f"SELECT {', '.join(COLUMNS)} FROM checkpoints"
            query += (" WHERE " + " AND ".join(where) if where else "") + " ORDER BY id"
            return [to_record(self._index, row) for row in db.execute(query, values)]

    def record(self, checkpoint: str) -> Record:
        """The checkpoint with this id. Raises :class:`InputError` when there is none."""
        query = f"SELECT {', '.join(COLUMNS)} FROM checkpoints WHERE id = ?"
        with opened(self._index) as db:
            row = db.execute(query, (checkpoint,)).fetchone()
        if row is None:
            raise InputError(
                f"{self.path} holds no checkpoint {checkpoint!r}; `weightloom zoo list` shows them"
            )
        return to_record(self._index, row)

    @with_plain_defaults
    def load(self, records: Iterable[Record]) -> Tensor:
        """(N, P) raw weights of records that share one architecture, in the order given.

        Only what is asked for is read: time and memory do not depend on the size of the shards.

        Raises:
            CheckpointError: a shard is missing, broken, or not of its architecture.
        """
        records = list(records)
        specs = {r.architecture for r in records}
        if len(specs) != 1:
            raise InputError(f"checkpoints of one architecture are needed, not of {len(specs)}")
        spec = records[0].spec()
        places: dict[str, list[int]] = {}
        for place, record in enumerate(records):
            places.setdefault(record.shard, []).append(place)
        flats = torch.empty(len(records), layout_of(spec).size)
        for shard, wanted in places.items():
            rows = sorted({records[place].row for place in wanted})
            at = {row: number for number, row in enumerate(rows)}
            flats[wanted] = self._rows(shard, spec, rows)[[at[records[place].row] for place in wanted]]
        return flats

    def by_architecture(self, **filters: Any) -> Iterator[tuple[ArchitectureSpec, list[Record]]]:
        """Groups of records that share one resolved architecture (their class count included)."""
        groups: dict[str, list[Record]] = {}
        for record in self.records(**filters):
            groups.setdefault(record.architecture, []).append(record)
        for text, group in groups.items():
            yield parse_architecture(text), group

    def _spec(self, text: Any) -> ArchitectureSpec:
        try:
            return parse_architecture(text)
        except (InputError, TypeError) as error:
            raise CheckpointError(self._index, f"names an architecture that is none ({error})") from None

    @with_plain_defaults
    def _rows(self, shard: str, spec: ArchitectureSpec, rows: Sequence[int]) -> Tensor:
        """(R, P) networks of one shard."""
        layout = layout_of(spec)
        entries = {slot.name: (slot.shape, torch.float32) for slot in layout.slots}
        return layout.flatten(load_rows(shard_file(self.path, shard), rows, entries))

    def verify(self) -> list[str]:
        """Every problem found, in words: shards that are missing or changed; rows of the index that are
        not what was written; files that the index does not know. :func:`weightloom.zoo.repair` drops them.
        """
        return [problem.text for problem in find_problems(self.path)]

    def summary(self) -> list[dict[str, Any]]:
        """Counts and mean accuracies by architecture, dataset and split, of final checkpoints."""
        query = (
            "SELECT architecture, dataset, split, classes, count(*) AS networks, avg(accuracy) AS accuracy "
            "FROM checkpoints WHERE final = 1 GROUP BY architecture, dataset, split, classes"
        )
        with opened(self._index) as db:
            return [dict(row) for row in db.execute(query)]


def _matches(spec: ArchitectureSpec, wanted: ArchitectureSpec) -> bool:
    if spec.family != wanted.family:
        return False
    open_spec = spec
    if wanted.classes is None:
        open_spec = replace(open_spec, classes=None)
    if wanted.input is None:
        open_spec = replace(open_spec, input=None)
    return open_spec == wanted
