"""Zoos of earlier versions are read as they are, and become zoos of today when they are first written."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing

import pytest
import torch
from tests.zoo.old import FIRST, KINDS, old_zoo

from weightloom.errors import CheckpointError, InputError
from weightloom.zoo import Zoo, build_zoo, repair
from weightloom.zoo.admission import APPLICATION, expected

OLD = [(kind, log) for kind in KINDS for log in (False, True)]


def marks(path):
    with closing(sqlite3.connect(path / "zoo.sqlite3")) as db:
        fields = ("application_id", "user_version", "journal_mode")
        return tuple(db.execute(f"PRAGMA {field}").fetchone()[0] for field in fields)


def side_files(path):
    return sorted(file.name for file in path.iterdir() if file.name.startswith("zoo.sqlite3-"))


def assert_same(zoo, built):
    assert zoo.records() == built.records() and zoo.about() == built.about()
    assert zoo.summary() == built.summary() and zoo.verify() == []
    for _, group in built.by_architecture():
        assert torch.equal(zoo.load(group), built.load(group))


@pytest.mark.parametrize(("kind", "log"), OLD)
def test_an_old_zoo_is_read_as_it_is(built, tmp_path, kind, log):
    path = old_zoo(built.path, tmp_path / "old", kind, log=log)
    assert side_files(path) == (["zoo.sqlite3-shm", "zoo.sqlite3-wal"] if log else [])
    assert_same(Zoo(path), built)
    assert side_files(path) == [] and marks(path) == (0, 0, "wal")
    assert repair(path) == [] and marks(path) == (0, 0, "wal")


@pytest.mark.parametrize(("kind", "log"), OLD)
def test_the_first_writing_makes_it_one_of_today(built, tmp_path, kind, log):
    path = old_zoo(built.path, tmp_path / "old", kind, log=log)
    zoo = Zoo(path)
    zoo.set_about("note", 1)
    assert marks(path) == (APPLICATION, 0x20002, "delete") and side_files(path) == []
    assert zoo.about() == {**built.about(), "note": 1}
    assert zoo.records() == built.records() and zoo.verify() == []
    with closing(sqlite3.connect(path / "zoo.sqlite3")) as db:
        names = {row[0] for row in db.execute("SELECT name FROM seals")}
        assert {name for _, name in expected()} == {
            row[0] for row in db.execute("SELECT name FROM sqlite_master")
        }
    shards = {record.shard for record in built.records()}
    assert names == {"about/recipe", "about/note", *(f"shard/{name}" for name in shards)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_build_goes_on_in_an_old_zoo(built, recipe, tmp_path, kind):
    path = old_zoo(built.path, tmp_path / "old", kind)
    with closing(sqlite3.connect(path / "zoo.sqlite3")) as db, db:
        (last,) = db.execute("SELECT max(name) FROM shards").fetchone()
        for table, column in (("checkpoints", "shard"), ("shards", "name")):
            db.execute(f"DELETE FROM {table} WHERE {column} = ?", (last,))
        if kind == "sealed":
            db.execute("DELETE FROM seals WHERE name = ?", (f"shard/{last}",))
    assert len(Zoo(path).records()) < len(built.records())
    with pytest.raises(InputError, match="another recipe"):
        build_zoo(recipe(seed=1), path)
    assert_same(build_zoo(recipe(), path), built)
    assert marks(path)[:2] == (APPLICATION, 0x20002)


def test_what_is_sealed_and_wrong_does_not_become_right(built, tmp_path):
    path = old_zoo(built.path, tmp_path / "old", "sealed")
    with closing(sqlite3.connect(path / "zoo.sqlite3")) as db, db:
        (name,) = db.execute("SELECT shard FROM checkpoints WHERE accuracy IS NOT NULL LIMIT 1").fetchone()
        db.execute("UPDATE checkpoints SET accuracy = accuracy / 2 WHERE shard = ?", (name,))
    before = Zoo(path).verify()
    assert len(before) == 1 and name in before[0]
    Zoo(path).set_about("note", 1)
    assert marks(path)[0] == APPLICATION and Zoo(path).verify() == before
    assert len(repair(path)) == 1 and Zoo(path).verify() == []
    assert {record.shard for record in built.records()} - {r.shard for r in Zoo(path).records()} == {name}


def test_what_is_not_sealed_today_is_no_zoo_of_before_there_were_seals(built, tmp_path):
    """The old finding: without its seals a zoo was taken for one that never had any."""
    path = old_zoo(built.path, tmp_path / "old", "first")
    zoo = Zoo(path)
    zoo.set_about("note", 1)
    with closing(sqlite3.connect(path / "zoo.sqlite3")) as db, db:
        db.execute("DELETE FROM seals WHERE name LIKE 'shard/%'")
    assert len(zoo.verify()) == len({record.shard for record in built.records()})
    with closing(sqlite3.connect(path / "zoo.sqlite3")) as db, db:
        db.execute("DROP TABLE seals")
    with pytest.raises(CheckpointError, match="lacks 'seals'"):
        Zoo(path).verify()
    assert "sealed again" not in "".join(repair(path)), "none had a seal that could be lost alone"
    assert_same(replace_about(Zoo(path)), built)


def replace_about(zoo):
    with closing(sqlite3.connect(zoo.path / "zoo.sqlite3")) as db, db:
        db.execute("DELETE FROM about WHERE key = 'note'")
        db.execute("DELETE FROM seals WHERE name = 'about/note'")
    return zoo


def test_a_damaged_old_zoo_is_not_written(built, tmp_path):
    path = old_zoo(built.path, tmp_path / "old", "sealed")
    index = path / "zoo.sqlite3"
    data = bytearray(index.read_bytes())
    with closing(sqlite3.connect(index)) as db:
        (root,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'by_task'").fetchone()
    data[(root - 1) * 4096 : root * 4096] = bytes(4096)
    index.write_bytes(data)
    for attempt in (lambda zoo: zoo.set_about("note", 1), lambda zoo: zoo.records()):
        with pytest.raises(CheckpointError, match=r"damaged.*repair"):
            attempt(Zoo(path))
    assert index.read_bytes() == bytes(data)
    assert "damaged" in repair(path)[0] and marks(path)[0] == APPLICATION
    assert_same(Zoo(path), built)


@pytest.mark.parametrize(
    "values",
    [(0, 0x20002), (APPLICATION, 0), (APPLICATION, 0x20003), (APPLICATION ^ 4, 0x20002), (0, 1), (8, 0)],
)
def test_no_flipped_bit_makes_another_version(built, tmp_path, values):
    zoo = Zoo(built.path)
    copy = tmp_path / "copy"
    os.mkdir(copy)
    index = copy / "zoo.sqlite3"
    index.write_bytes((zoo.path / "zoo.sqlite3").read_bytes())
    with closing(sqlite3.connect(index)) as db:
        db.execute(f"PRAGMA application_id={values[0]}")
        db.execute(f"PRAGMA user_version={values[1]}")
    with pytest.raises(CheckpointError, match="header is not that of a zoo"):
        Zoo(copy)
    repair(copy)  # it is damage, and mended
    assert marks(copy)[:2] == (APPLICATION, 0x20002)


def test_a_later_version_is_left_alone(built, tmp_path):
    copy = old_zoo(built.path, tmp_path / "copy", "sealed")
    Zoo(copy).set_about("note", 1)
    with closing(sqlite3.connect(copy / "zoo.sqlite3")) as db:
        db.execute(f"PRAGMA user_version={0x30003}")
    data = (copy / "zoo.sqlite3").read_bytes()
    for attempt in (Zoo, repair, lambda path: Zoo(path, create=True), Zoo.planned):
        with pytest.raises(CheckpointError, match="is of format 3"):
            attempt(copy)
    assert (copy / "zoo.sqlite3").read_bytes() == data


@pytest.mark.parametrize("tables", [None, 0, 1, 2, 3])
def test_what_a_killed_making_left_before_is_no_zoo_yet(recipe, tmp_path, tables):
    """An earlier version made the folder, the file and its tables one after another."""
    place = tmp_path / "zoo"
    (place / "shards").mkdir(parents=True)
    (place / "zoo.sqlite3").touch()
    if tables is not None:
        with closing(sqlite3.connect(place / "zoo.sqlite3")) as db:
            db.execute("PRAGMA journal_mode=WAL")
            for statement in FIRST.split(";")[:tables]:
                db.execute(statement)
            left = {name: (place / name).read_bytes() for name in ("zoo.sqlite3-wal",) if tables}
        for name, data in left.items():
            (place / name).write_bytes(data)
    if tables != 3:
        with pytest.raises(CheckpointError, match="index cannot be read"):
            Zoo(place)
    assert Zoo.planned(place).records() == [] and Zoo.planned(place).recipe() is None
    small = recipe(architectures=("mlp(depth=1,width=4)",), groups=({"classes": 3, "tasks": 1},))
    assert build_zoo(small, place).verify() == [] and marks(place)[0] == APPLICATION
    assert len(Zoo(place).records()) == 3


def test_an_index_that_lacks_tables_and_holds_rows_is_broken(tmp_path):
    with closing(sqlite3.connect(tmp_path / "zoo.sqlite3")) as db, db:
        db.execute(FIRST.split(";")[0])
        db.execute("INSERT INTO about VALUES ('recipe', '{}')")
    for attempt in (Zoo, Zoo.planned, lambda path: Zoo(path, create=True)):
        with pytest.raises(CheckpointError, match="lacks 'shards'"):
            attempt(tmp_path)
