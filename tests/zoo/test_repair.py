"""What is broken is named, dropped and nothing else; the same recipe then makes it again."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing

import pytest
import torch

from weightloom.errors import CheckpointError, WeightloomError
from weightloom.zoo import Zoo, build_zoo, repair


@pytest.fixture
def copy(built, tmp_path):
    shutil.copytree(built.path, tmp_path / "copy")
    return Zoo(tmp_path / "copy")


def change(zoo, *statements):
    with closing(sqlite3.connect(zoo.path / "zoo.sqlite3")) as db, db:
        for statement in statements:
            db.execute(statement)


def test_a_whole_zoo_is_left_as_it_is(copy, built):
    assert repair(copy.path) == []
    assert copy.records() == built.records() and copy.verify() == []


def test_broken_and_missing_shards_and_litter_go_and_a_build_brings_them_back(copy, built, recipe):
    shards = sorted((copy.path / "shards").iterdir())
    data = bytearray(shards[0].read_bytes())
    data[-3] ^= 1
    shards[0].write_bytes(data)
    shards[1].unlink()
    (copy.path / "shards" / "x.safetensors.tmp-0123abcd").touch()
    (copy.path / "shards" / "stray.safetensors").write_bytes(shards[2].read_bytes())
    said = repair(copy.path)
    for words in (f"{shards[0].stem} is not what", f"{shards[1].stem} is missing", "tmp-0123abcd", "stray"):
        assert sum(words in line for line in said) == 1, (words, said)
    assert len(said) == 4 and copy.verify() == []
    kept = copy.path / "dropped-1"
    assert sum(str(kept) in line for line in said) == 3
    assert sorted(file.name for file in (kept / "shards").iterdir()) == [shards[0].name, "stray.safetensors"]
    assert (kept / "shards" / shards[0].name).read_bytes() == bytes(data)
    assert (kept / "zoo.sqlite3").read_bytes() == (built.path / "zoo.sqlite3").read_bytes()
    gone = {shards[0].stem, shards[1].stem}
    assert copy.records() == [record for record in built.records() if record.shard not in gone]
    again = build_zoo(recipe(), copy.path)
    assert again.records() == built.records() and again.verify() == []
    for _, group in built.by_architecture():
        assert torch.equal(again.load(group), built.load(group))


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE checkpoints SET accuracy = accuracy / 2 WHERE accuracy IS NOT NULL", "not what was written"),
        ("UPDATE checkpoints SET task = 'digits[1,2,3]@8c1'", "not what was written"),
        ("UPDATE shards SET networks = networks + 1", "where"),
        ("DELETE FROM checkpoints", "has 0 checkpoints"),
        ("UPDATE checkpoints SET provenance = '['", "cannot be read"),
        ("UPDATE checkpoints SET step = 'many'", "step is no count"),
        ("UPDATE checkpoints SET accuracy = 9e999", "accuracy is no number"),
        ("UPDATE checkpoints SET provenance = '{\"a\": NaN}'", "NaN is no number"),
        ("UPDATE about SET value = '{}'", "under 'recipe' is not what was written"),
        ("UPDATE seals SET name = name || 'x'", "has a seal of"),
        ("DELETE FROM shards", "a shard"),
    ],
)
def test_rows_that_were_changed_are_found_and_dropped(copy, statement, problem):
    change(copy, statement)
    assert any(problem in text for text in copy.verify()), copy.verify()
    assert repair(copy.path) and copy.verify() == []
    assert Zoo(copy.path).records() is not None and repair(copy.path) == []


def test_the_shard_of_a_killed_writer_goes_and_is_no_problem_before(copy, built):
    stray = copy.path / "shards" / "stray.safetensors"
    stray.write_bytes(sorted((copy.path / "shards").iterdir())[0].read_bytes())
    (copy.path / "zoo.adding").write_text("stray")
    assert copy.verify() == []
    assert repair(copy.path) == ["removed zoo.adding, left by a killed writer"]
    assert not stray.exists() and copy.verify() == [] and repair(copy.path) == []


def test_a_damaged_index_is_copied_as_far_as_it_can_be_read(copy, built):
    index = copy.path / "zoo.sqlite3"
    data = bytearray(index.read_bytes())
    page = int.from_bytes(data[16:18], "big")
    with closing(sqlite3.connect(index)) as db:
        (root,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'by_task'").fetchone()
    data[(root - 1) * page : root * page] = bytes(page)  # an index of the index: no row is lost with it
    index.write_bytes(data)
    assert any("damaged" in text for text in _problems(copy.path))
    said = repair(copy.path)
    assert any("the index was damaged" in line for line in said)
    held = Zoo(copy.path)
    assert held.records() == built.records() and held.verify() == []
    assert (copy.path / "dropped-1" / "zoo.sqlite3").read_bytes() == bytes(data)


def _problems(path):
    try:
        return Zoo(path).verify()
    except WeightloomError as error:
        return [f"damaged: {error}"]


@pytest.mark.parametrize("offset", [0, 15, 16, 17, 18, 19, 20, 21, 23, 28, 31, 44, 47, 56, 59])
def test_an_index_that_begins_with_other_bytes_is_read_behind_them(copy, built, offset):
    file = copy.path / "zoo.sqlite3"
    data = bytearray(file.read_bytes())
    data[offset] ^= 4
    file.write_bytes(data)
    repair(copy.path)
    assert Zoo(copy.path).records() == built.records() and Zoo(copy.path).verify() == []


@pytest.mark.parametrize("size", [0, 1, 16, 17, 19, 99])
def test_an_index_of_which_a_few_bytes_are_left(copy, size):
    file = copy.path / "zoo.sqlite3"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="nothing of the index can be read"):
        repair(copy.path)


def test_what_cannot_be_repaired(tmp_path, copy):
    with pytest.raises(CheckpointError, match="not a zoo"):
        repair(tmp_path)
    (copy.path / "zoo.sqlite3").write_bytes(b"nothing of a database is left here" * 100)
    with pytest.raises(CheckpointError, match="nothing of the index can be read"):
        repair(copy.path)
    assert list((copy.path / "shards").iterdir()), "the weights are left for whoever has the records"
