"""An index from a stranger: what is not a zoo's is never run, followed or replayed, and costs little."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
from tests.zoo.old import KINDS, old_zoo
from tests.zoo.strangers import PLACES, SCHEMAS, hot_journal, shared_pages

from weightloom.architectures import parse_architecture
from weightloom.errors import CheckpointError, WeightloomError
from weightloom.zoo import Record, Zoo, repair
from weightloom.zoo.admission import connect
from weightloom.zoo.opening import opened


@pytest.fixture
def copy(built, tmp_path):
    shutil.copytree(built.path, tmp_path / "copy")
    (tmp_path / "outside").write_bytes(b"mine")
    return tmp_path / "copy"


def state_of(folder):
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("what", SCHEMAS)
def test_a_schema_that_is_no_zoos(copy, built, what):
    SCHEMAS[what](copy)
    before = state_of(copy)
    for attempt in (Zoo, lambda path: Zoo(path, create=True), Zoo.planned):
        with pytest.raises(CheckpointError, match=r"no zoo|lacks"):
            attempt(copy)
    assert state_of(copy) == before, "it was written to"
    made = any(word in what for word in ("view", "trigger", "virtual"))
    if made:  # no damage does that
        with pytest.raises(CheckpointError, match="no zoo has one"):
            repair(copy)
        assert state_of(copy) == before
    else:
        repair(copy)
        assert Zoo(copy).verify() == [] and Zoo(copy).records() == built.records()


@pytest.mark.parametrize("what", PLACES)
def test_a_place_that_is_no_plain_file(copy, tmp_path, what):
    PLACES[what](copy)
    outside = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for attempt in (
        lambda path: Zoo(path).verify(),
        lambda path: Zoo(path).load(Zoo(path).records()[:1]),
        lambda path: Zoo(path, create=True).set_about("note", 1) if what[:6] != "shards" else repair(path),
    ):
        with pytest.raises(CheckpointError, match=r"plain|lies beside"):
            attempt(copy)
    if "beside" in what or "journal" in what or "log" in what:
        assert "kept in" in repair(copy)[0] and Zoo(copy).verify() == []
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == outside


@pytest.mark.parametrize("make", ["link", "pipe", "folder", "link to a pipe"])
def test_a_shard_that_is_no_plain_file(copy, tmp_path, make):
    shard = sorted((copy / "shards").iterdir())[0]
    os.replace(shard, tmp_path / "aside")
    if make == "pipe":
        os.mkfifo(shard)
    elif make == "folder":
        shard.mkdir()
    else:
        if make != "link":
            os.mkfifo(tmp_path / "pipe")
        shard.symlink_to(tmp_path / ("aside" if make == "link" else "pipe"))
    zoo = Zoo(copy)
    record = next(record for record in zoo.records() if record.shard == shard.stem)
    with pytest.raises(CheckpointError, match="must be a plain file of its folder"):
        zoo.load([record])
    (problem,) = zoo.verify()
    assert shard.stem in problem and "plain file" in problem
    data = (tmp_path / "aside").read_bytes()
    assert "kept in" in repair(copy)[0] and zoo.verify() == []
    assert (tmp_path / "aside").read_bytes() == data and os.path.lexists(
        copy / "dropped-1" / "shards" / shard.name
    )


def test_a_note_of_a_shard_cannot_lead_out(copy, tmp_path, built):
    """The next writer removes what it names: nothing outside, and nothing that the index has."""
    named = sorted((copy / "shards").iterdir())[0]
    for text in ("../outside", "..", "", "/etc/passwd", named.stem, "x" * 300, "\x00"):
        (copy / "zoo.adding").write_text(text)
        Zoo(copy).set_about("note", text)
        assert not (copy / "zoo.adding").exists() and Zoo(copy).verify() == []
    (copy / "zoo.adding").symlink_to(tmp_path / "outside")
    Zoo(copy).set_about("note", 0)
    os.mkfifo(copy / "zoo.adding")
    Zoo(copy).set_about("note", 1)
    assert Zoo(copy).verify() == [] and Zoo(copy).records() == built.records()
    assert (tmp_path / "outside").read_bytes() == b"mine"


def test_a_killed_writers_journal_is_taken_back(copy, built):
    journal = hot_journal(copy)
    assert Zoo(copy).records() == built.records() and not journal.exists()
    hot_journal(copy)
    Zoo(copy).set_about("note", 1)
    assert Zoo(copy).verify() == [] and Zoo(copy).records() == built.records()


def test_a_journal_cannot_remove_another_file(copy, tmp_path):
    """SQLite removes the journal that another one names as its parent, once its children are gone."""
    precious = tmp_path / "precious"
    precious.write_bytes(b"/gone/a-journal\0/gone/b-journal\0")
    hot_journal(copy, names=precious)
    before = state_of(copy)
    for attempt in (Zoo, repair, lambda path: Zoo(path, create=True), Zoo.planned):
        with pytest.raises(CheckpointError, match="not what a zoo's writer leaves"):
            attempt(copy)
    assert precious.exists() and state_of(copy) == before


@pytest.mark.parametrize("kind", KINDS)
def test_nor_beside_an_old_index(copy, tmp_path, kind):
    """Which is opened for writing to be read, because of its log."""
    old = old_zoo(copy, tmp_path / "old", kind)
    precious = tmp_path / "precious"
    precious.write_bytes(b"/gone/a-journal\0/gone/b-journal\0")
    os.replace(hot_journal(copy, names=precious), old / "zoo.sqlite3-journal")
    for attempt in (Zoo, repair, lambda path: Zoo(path, create=True), Zoo.planned):
        with pytest.raises(CheckpointError, match="not what a zoo's writer leaves"):
            attempt(old)
    assert precious.exists()


def test_a_journal_cannot_make_the_index_huge(copy):
    hot_journal(copy, pages=1 << 31)
    with pytest.raises(CheckpointError, match="not what a zoo's writer leaves"):
        Zoo(copy)
    assert (copy / "zoo.sqlite3").stat().st_size < 1 << 20


@pytest.mark.parametrize("field", [0, 4])
def test_a_log_cannot_make_the_index_huge(copy, tmp_path, field):
    old = old_zoo(copy, tmp_path / "old", "sealed", log=True)
    log = old / "zoo.sqlite3-wal"
    data = bytearray(log.read_bytes())
    last = len(data) - 4096 - 24 + field
    data[last : last + 4] = (1 << 28).to_bytes(4, "big")
    log.write_bytes(data)
    with pytest.raises(CheckpointError, match="not what a zoo's writer leaves"):
        Zoo(old)
    assert (old / "zoo.sqlite3").stat().st_size < 1 << 20


@pytest.mark.parametrize("table", ["about", "shards", "checkpoints", "seals"])
def test_pages_that_lead_to_each_other_for_ever(copy, table):
    small = Zoo(copy.parent / "small", create=True)
    small.set_about("recipe", {"name": "x"})
    record = Zoo(copy).records()[0]
    small.add("s", record.spec(), Zoo(copy).load([record]), [record])
    shared_pages(small.path, table)
    with (
        closing(connect(small.path / "zoo.sqlite3", "mode=ro")) as db,
        pytest.raises(sqlite3.OperationalError),
    ):
        for _ in db.execute(f"SELECT * FROM {table}"):
            pass  # where nothing is checked before, the limit of steps ends it
    for attempt in (
        lambda: small.records(), lambda: small.about(), lambda: small.summary(), lambda: small.imported(),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match="index is damaged"):
            attempt()
    assert "damaged" in small.verify()[0]
    repair(small.path)
    assert small.verify() == []


def test_reading_writes_nothing_and_leaves_nothing(copy, built):
    before = state_of(copy)
    zoo = Zoo(copy)
    zoo.records(), zoo.about(), zoo.summary(), zoo.verify(), zoo.imported()
    with opened(copy / "zoo.sqlite3") as db, pytest.raises(sqlite3.OperationalError, match="readonly"):
        db.execute("DELETE FROM seals")
    assert state_of(copy) == before


def test_an_index_that_is_locked_for_long(copy, monkeypatch):
    monkeypatch.setattr("weightloom.zoo.admission.SECONDS", 0.01)
    with closing(sqlite3.connect(copy / "zoo.sqlite3", isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        with pytest.raises(WeightloomError, match="cannot be used now") as caught:
            Zoo(copy)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    "held",
    [
        3, "x", [1], {"datasets": 3}, {"datasets": [3]}, {"salt": 1}, {"name": ["x"]}, {"size": "8"},
        {"channels": True},
    ],
)  # fmt: skip
def test_a_recipe_that_is_none(copy, held):
    zoo = Zoo(copy)
    zoo.set_about("recipe", held)
    with pytest.raises(CheckpointError, match="recipe"):
        zoo.recipe()
    with pytest.raises(CheckpointError, match="recipe"):
        zoo.check_recipe({"name": "y"})


def test_a_recipe_that_lacks_something(copy):
    zoo = Zoo(copy)
    zoo.set_about("recipe", {"name": "x", "datasets": ["digits"]})
    assert zoo.recipe("name") == {"name": "x", "datasets": ["digits"]}
    with pytest.raises(CheckpointError, match="has no salt"):
        zoo.recipe("salt", "size")


INTERRUPTED = """
import os, sys
from pathlib import Path
from tests.zoo.test_opening import add_one
from weightloom import unfinished
from weightloom.zoo import opening, store

def interrupt(*_):
    unfinished.undo_all()
    os._exit(7)

def adding(place, shard):
    opening.adding(place, shard)
    interrupt()

def take_back(place, db, calls=[], before=opening._take_back):
    calls.append(place)
    interrupt() if len(calls) == 2 else before(place, db)

at, folder = sys.argv[1], Path(sys.argv[2])
if at == "noted":
    store.adding = adding
elif at == "written":
    store.seal_shard = interrupt
else:
    opening._take_back = take_back
add_one(folder)
"""


def add_one(folder):
    spec = parse_architecture("mlp(depth=1,width=4,classes=3,input=1x8x8)")
    facts = {"architecture": spec.full_text(), "task": "", "dataset": "", "classes": 3, "split": "train"}
    more = {"step": 1, "final": True, "accuracy": 0.5, "loss": 1.0, "provenance": {}}
    record = Record(id="a-0", shard="a", row=0, member=0, **facts, **more)
    zoo = Zoo.planned(folder)
    zoo.add("a", spec, torch.full((1, spec.num_parameters()), 0.5), [record])
    return zoo


@pytest.mark.parametrize(
    ("before", "at"),
    [
        ("nothing", "noted"),
        ("a folder", "written"),
        ("a zoo", "noted"),
        ("a zoo", "written"),
        ("a zoo", "committed"),
    ],
)
def test_an_interrupt_takes_back_what_is_not_committed(tmp_path, copy, before, at):
    """Not the next writer alone: what is unfinished is gone when the process has ended."""
    folder = copy if before == "a zoo" else tmp_path / "zoo"
    if before == "a folder":
        folder.mkdir()
    shards = Zoo(folder).shards() if before == "a zoo" else set()
    was = state_of(folder) if folder.exists() else None
    words = [sys.executable, "-c", INTERRUPTED, at, str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    assert not list(tmp_path.rglob("*.tmp-*"))
    now = state_of(folder) if folder.exists() else None
    if at == "committed":
        assert not (folder / "zoo.adding").exists() and Zoo(folder).shards() == shards | {"a"}
    else:
        if now is not None:
            now.pop(Path("zoo.sqlite3-journal"), None)  # whoever opens the index next takes it back
        assert now == was
    assert add_one(folder).verify() == [] and Zoo(folder).shards() == shards | {"a"}
