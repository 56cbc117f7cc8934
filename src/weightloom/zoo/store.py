"""A zoo on disk: safetensors shards of stacked networks, and one SQLite index.

A shard is complete before the index names it, and both are one transaction, so a reader only ever sees whole
checkpoints, also while several processes write. Knows nothing of how networks were trained.

Layout of the folder: ``zoo.sqlite3`` and ``shards/NAME.safetensors``; a shard's tensors are those of
the architecture's state dict with one leading dimension, the networks in it. ``zoo.adding`` is there while a
shard is added, and ``dropped-1`` and so on hold what repairs dropped.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.defaults import with_plain_defaults
from weightloom.errors import CheckpointError, InputError, WeightloomError
from weightloom.io import load_rows, require_plain, save_tensors, sweep
from weightloom.weights import checked_flats, layout_of, require_finite
from weightloom.whole import whole_number
from weightloom.zoo.index import (
    COLUMNS,
    INDEX,
    Record,
    drop_shard,
    has_shard,
    put_seal,
    seal_of_key,
    seal_shard,
    to_record,
    to_row,
)
from weightloom.zoo.integrity import find_problems
from weightloom.zoo.opening import adding, opened, shard_file, shards_folder, tidy, transact

_FIELDS: dict[str, type] = {
    "name": str,
    "salt": str,
    "datasets": list,
    "size": int,
    "channels": int,
    "initialisation": str,
}
"""What readers of a zoo's recipe use of it, and the type that each has there."""


class Zoo:
    """A directory of checkpoints with an index.

    Raises:
        CheckpointError: the folder is no zoo, or its index cannot be read.
    """

    def __init__(self, path: str | Path, *, create: bool = False) -> None:
        self.path = Path(path)
        self._index = self.path / INDEX
        self._planned = False
        self._sound: tuple[int, ...] | None = None
        if create:
            transact(self.path, lambda *_: None, create=True)
            sweep(shards_folder(self.path))
        elif not os.path.lexists(self._index):
            raise CheckpointError(self.path, f"this is not a zoo (it has no {INDEX})")
        with self._opened(whole=False):
            pass

    @classmethod
    def planned(cls, path: str | Path) -> Self:
        """The zoo in a folder that need not be there: empty, and not made, until something is added.

        Raises:
            CheckpointError: there is something else, or an index that cannot be read.

        Example:
            >>> import tempfile
            >>> zoo = Zoo.planned(Path(tempfile.mkdtemp()) / "zoo")
            >>> zoo.records(), zoo.path.exists()
            ([], False)
            >>> zoo.set_about("name", "mine")
            >>> zoo.about(), zoo.path.exists()
            ({'name': 'mine'}, True)
        """
        zoo = cls.__new__(cls)
        zoo.path = Path(path)
        zoo._index = zoo.path / INDEX
        zoo._planned = True
        zoo._sound = None
        with suppress(OSError):
            if not stat.S_ISDIR(os.lstat(zoo.path).st_mode) and not zoo.path.is_dir():
                raise CheckpointError(zoo.path, "no zoo can be made here (it is no folder)")
        with zoo._opened(whole=False):
            pass
        return zoo

    def tidy(self) -> None:
        """Remove what killed writers left, if this is a zoo and anything is there."""
        tidy(self.path)

    @contextmanager
    def _opened(self, *, whole: bool = True) -> Iterator[sqlite3.Connection]:
        """The index for reading; for more than a row its pages are checked, once for a state of the file."""
        state = _state_of(self._index)
        with opened(self._index, planned=self._planned, whole=whole and state != self._sound) as db:
            if whole:
                self._sound = state
            yield db

    def about(self) -> dict[str, Any]:
        """What the zoo says of itself: its recipe and format."""
        with self._opened() as db:
            rows = db.execute("SELECT key, value FROM about").fetchall()
        return {row["key"]: self._value(row["value"]) for row in rows}

    def _value(self, text: Any) -> Any:
        try:
            return json.loads(text)
        except (RecursionError, TypeError, ValueError) as error:
            raise CheckpointError(self._index, f"what it says of the zoo is not JSON ({error})") from None

    def recipe(self, *needed: str) -> dict[str, Any] | None:
        """The recipe that the zoo was built from, as plain values; None without one.

        Raises:
            CheckpointError: what stands there is no recipe, or lacks one of the ``needed`` fields.
        """
        return self._recipe(self.about().get("recipe"), *needed)

    def _recipe(self, recipe: Any, *needed: str) -> dict[str, Any] | None:
        if recipe is None:
            return None
        if not isinstance(recipe, dict):
            raise CheckpointError(self._index, "what it calls the zoo's recipe is none")
        for name, kind in _FIELDS.items():
            value = recipe.get(name, None if name in needed else kind())
            if not isinstance(value, list) and type(value) is kind:
                continue
            if not (
                kind is list and isinstance(value, list) and all(isinstance(part, str) for part in value)
            ):
                raise CheckpointError(self._index, f"the zoo's recipe has no {name} that can be used")
        return recipe

    def set_about(self, key: str, value: Any) -> None:
        """Keep one JSON value under ``key``."""
        transact(self.path, lambda db, _: _put_about(db, key, value), create=self._planned)

    def shards(self) -> set[str]:
        """The names of the shards that are committed."""
        with self._opened() as db:
            return {row[0] for row in db.execute("SELECT name FROM shards")}

    def has_shard(self, name: str) -> bool:
        """Whether the shard is committed."""
        with self._opened(whole=False) as db:
            return has_shard(db, name)

    @with_plain_defaults
    def add(
        self,
        shard: str,
        spec: ArchitectureSpec,
        flats: Tensor,
        records: Sequence[Record],
        *,
        recipe: dict[str, Any] | None = None,
    ) -> None:
        """Write N networks (N, P) as one shard and commit their records.

        A shard of this name that holds something else is dropped first, so that the index at no moment
        speaks of another file than the one on disk; one that holds just this is left as it is.

        With a ``recipe`` the zoo must be of that recipe, of none, or still without shards; it is of that one
        afterwards.

        Raises:
            InputError: a weight is not finite, these are no networks of ``spec``, or the zoo is of another
                recipe; nothing is written then.
            WeightloomError: the disk is full, or the index is locked for long.
        """
        flats = checked_flats(spec, flats).detach()
        assert len(flats) == len(records)
        stacked = _stacked(shard, spec, flats)
        rows = [to_row(record, shard, number) for number, record in enumerate(records)]

        def drop(db: sqlite3.Connection, place: Path) -> None:
            adding(place, shard)
            drop_shard(db, shard)

        def put(db: sqlite3.Connection, place: Path) -> bool:
            if has_shard(db, shard):
                return False
            if recipe is not None and not self._of_recipe(db, recipe):
                _put_about(db, "recipe", recipe)
            _put_shard(db, place, shard, spec, stacked, rows)
            return True

        while True:
            if self.has_shard(shard):
                if self._holds(shard, spec, flats, rows):
                    return
                transact(self.path, drop)
            if transact(self.path, put, create=self._planned):
                return  # otherwise another process has added one of this name meanwhile

    @with_plain_defaults
    def add_new(self, spec: ArchitectureSpec, flats: Tensor, records: Sequence[Record]) -> list[Record]:
        """Add those of N imported networks (N, P) that the zoo does not hold yet, as one shard.

        Two networks are one if their architectures, the SHA-256 of their files (``sha256`` in a record's
        provenance) and their places in them (``read_from``) are the same. The zoo is asked in the transaction
        that adds them, so of two imports at once one adds each network.

        Returns:
            The records that were added, with the shard, the rows and the ids that they got.

        Raises:
            InputError: a weight is not finite, or these are no networks of ``spec``; nothing is written then.
            WeightloomError: the disk is full, or the index is locked for long.
        """
        flats = checked_flats(spec, flats).detach()
        assert len(flats) == len(records)
        _stacked("import", spec, flats)

        def put(db: sqlite3.Connection, place: Path) -> list[Record]:
            present = self._imported(db, spec.full_text())
            sources = [_source(record.provenance) for record in records]
            rows = [n for n, source in enumerate(sources) if source not in present]
            if not rows:
                return []
            text = spec.full_text() + "".join(_source_text(*sources[n]) for n in rows)
            while has_shard(db, shard := f"import-{hashlib.sha256(text.encode()).hexdigest()[:12]}"):
                text += "+"  # of a zoo that somebody else made
            kept = [
                replace(records[n], id=f"{shard}-{row:03d}", shard=shard, row=row, member=row)
                for row, n in enumerate(rows)
            ]
            values = [to_row(record, shard, row) for row, record in enumerate(kept)]
            _put_shard(db, place, shard, spec, _stacked(shard, spec, flats[rows]), values)
            return kept

        return transact(self.path, put, create=self._planned)

    def imported(self) -> dict[tuple[str, str], set[str]]:
        """By architecture and SHA-256 of every file that was imported: where in it the networks stood."""
        places: dict[tuple[str, str], set[str]] = {}
        with self._opened() as db:
            texts = [row[0] for row in db.execute("SELECT DISTINCT architecture FROM checkpoints")]
            for text in texts:
                for digest, place in self._imported(db, text):
                    places.setdefault((text, digest), set()).add(place)
        return places

    def _imported(self, db: sqlite3.Connection, architecture: str) -> set[tuple[str, str]]:
        query = "SELECT provenance FROM checkpoints WHERE architecture = ?"
        sources = set()
        for (text,) in db.execute(query, (architecture,)):
            try:
                digest, place = _source(json.loads(text))
            except (AttributeError, RecursionError, TypeError, ValueError):
                raise CheckpointError(
                    self._index, "holds a checkpoint whose provenance is no object"
                ) from None
            if isinstance(digest, str):
                sources.add((digest, place))
        return sources

    def check_recipe(self, recipe: dict[str, Any]) -> None:
        """Raise :class:`InputError` unless the zoo is of ``recipe``, of none, or still without shards."""
        with self._opened(whole=False) as db:
            self._of_recipe(db, recipe)

    def claim(self, recipe: dict[str, Any]) -> None:
        """The zoo is of ``recipe`` from now on. Raises as :meth:`check_recipe`."""

        def put(db: sqlite3.Connection, _: Path) -> None:
            if not self._of_recipe(db, recipe):
                _put_about(db, "recipe", recipe)

        if self.recipe() != recipe:
            transact(self.path, put, create=self._planned)

    def _of_recipe(self, db: sqlite3.Connection, recipe: dict[str, Any]) -> bool:
        """Whether the zoo is of ``recipe`` already. Raises :class:`InputError` if it is of another one."""
        row = db.execute("SELECT value FROM about WHERE key = 'recipe'").fetchone()
        own = self._recipe(None if row is None else self._value(row["value"]))
        if own is None or own == recipe:
            return own == recipe
        if db.execute("SELECT 1 FROM shards LIMIT 1").fetchone() is not None:
            raise InputError(
                f"{self.path} holds a zoo of another recipe ({own.get('name')!r}); choose another folder"
            )
        return False

    def _holds(self, shard: str, spec: ArchitectureSpec, flats: Tensor, rows: list[tuple[Any, ...]]) -> bool:
        """Whether the zoo has exactly these networks under this name."""
        query = f"SELECT {', '.join(COLUMNS)} FROM checkpoints WHERE shard = ? ORDER BY row"
        try:
            with self._opened() as db:
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
        if classes is not None:
            classes = whole_number(classes, "the number of classes", 0, 10**9)
        for column, value in (("task", task), ("dataset", dataset), ("split", split), ("classes", classes)):
            if value is not None:
                where.append(f"{column} = ?")
                values.append(value)
        if final is not None:
            where.append("final = ?")
            values.append(int(final))
        if min_accuracy is not None:
            if isinstance(min_accuracy, str):
                raise InputError(f"an accuracy is a number, not {min_accuracy!r}")
            where.append("accuracy >= ?")
            values.append(float(min_accuracy))
        with self._opened() as db:
            if architecture is not None:
                # Few texts stand for many checkpoints: each is looked at once.
                wanted = parse_architecture(architecture)
                texts = [row[0] for row in db.execute("SELECT DISTINCT architecture FROM checkpoints")]
                where.append("architecture IN (SELECT value FROM json_each(?))")
                values.append(json.dumps([text for text in texts if _matches(self._spec(text), wanted)]))
            query = f"SELECT {', '.join(COLUMNS)} FROM checkpoints"
            query += (" WHERE " + " AND ".join(where) if where else "") + " ORDER BY id"
            rows = db.execute(query, values).fetchall()
        return [to_record(self._index, row) for row in rows]

    def record(self, checkpoint: str) -> Record:
        """The checkpoint with this id. Raises :class:`InputError` when there is none."""
        query = f"SELECT {', '.join(COLUMNS)} FROM checkpoints WHERE id = ?"
        with self._opened(whole=False) as db:
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
        file = shard_file(self.path, shard)
        require_plain(file)
        return layout.flatten(load_rows(file, rows, entries))

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
        with self._opened() as db:
            return [dict(row) for row in db.execute(query)]


def _state_of(file: Path) -> tuple[int, ...] | None:
    """What changes when a file is written."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _stacked(shard: str, spec: ArchitectureSpec, flats: Tensor) -> dict[str, Tensor]:
    """The tensors of a shard of the networks (N, P), each (N, ...), all finite."""
    stacked = {k: v.contiguous() for k, v in layout_of(spec).unflatten(flats).items()}
    require_finite(stacked, f"shard {shard}")
    return stacked


def _put_shard(
    db: sqlite3.Connection,
    place: Path,
    shard: str,
    spec: ArchitectureSpec,
    stacked: dict[str, Tensor],
    rows: list[tuple[Any, ...]],
) -> None:
    """A shard's file, its rows and its seal; ``db`` is inside a transaction.

    It has no shard of this name: whoever is killed here would leave its rows beside another file.
    """
    assert not has_shard(db, shard)
    adding(place, shard)
    digest = save_tensors(shard_file(place, shard), stacked, {"architecture": spec.full_text()})
    drop_shard(db, shard)
    db.execute("INSERT INTO shards VALUES (?, ?, ?)", (shard, digest, len(rows)))
    marks = ",".join("?" * len(COLUMNS))
    db.executemany(f"INSERT INTO checkpoints ({','.join(COLUMNS)}) VALUES ({marks})", rows)
    seal_shard(db, shard)


def _source(provenance: dict[str, Any]) -> tuple[Any, str]:
    """The SHA-256 of an imported network's file and its place in that file, ``.`` where it is all of it."""
    return provenance.get("sha256"), str(provenance.get("read_from", "."))


def _source_text(digest: str, place: str) -> str:
    return digest if place == "." else f"{digest} {place} "


def _put_about(db: sqlite3.Connection, key: str, value: Any) -> None:
    text = json.dumps(value, sort_keys=True)
    db.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (key, text))
    put_seal(db, f"about/{key}", seal_of_key(key, text))


def _matches(spec: ArchitectureSpec, wanted: ArchitectureSpec) -> bool:
    if spec.family != wanted.family:
        return False
    open_spec = spec
    if wanted.classes is None:
        open_spec = replace(open_spec, classes=None)
    if wanted.input is None:
        open_spec = replace(open_spec, input=None)
    return open_spec == wanted
