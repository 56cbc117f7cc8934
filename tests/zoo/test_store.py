"""The index and the shards: filters, truth, and every kind of damage told in words."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest
import torch

from weightloom.architectures import parse_architecture
from weightloom.errors import CheckpointError, InputError, WeightloomError
from weightloom.fitting import initial_flats
from weightloom.io import load_tensors, save_tensors
from weightloom.zoo import Record, Zoo


@pytest.fixture
def copy(built, tmp_path):
    shutil.copytree(built.path, tmp_path / "copy")
    return Zoo(tmp_path / "copy")


def spec_of(text="mlp(depth=1,width=4,classes=3,input=1x8x8)"):
    return parse_architecture(text)


def record_of(spec, shard, number=0, **changes):
    values = {
        "id": f"{shard}-{number}", "shard": shard, "row": 0, "architecture": spec.full_text(),
        "task": "digits[3,1,7]@8c1", "dataset": "digits", "classes": 3, "split": "train", "member": number,
        "step": 1, "final": True, "accuracy": 0.5, "loss": 1.0, "provenance": {"from": "a test"},
    }  # fmt: skip
    return Record(**{**values, **changes})


class TestFilters:
    def test_each_filter_alone_and_all_together(self, built):
        everything = built.records()
        for name in ("task", "dataset", "split", "classes", "final"):
            for value in {getattr(r, name) for r in everything}:
                assert built.records(**{name: value}) == [r for r in everything if getattr(r, name) == value]
        limit = sorted(r.accuracy for r in everything if r.accuracy is not None)[5]
        good = built.records(min_accuracy=limit)
        assert good == [r for r in everything if r.accuracy is not None and r.accuracy >= limit]
        one = good[0]
        assert one in built.records(
            architecture=one.architecture, task=one.task, dataset=one.dataset, split=one.split,
            classes=one.classes, final=one.final, min_accuracy=limit,
        )  # fmt: skip
        assert built.records(dataset="mnist") == []

    def test_architectures_match_what_their_text_leaves_open(self, built):
        open_text = built.records(architecture="mlp(depth=1,width=4)")
        assert {r.classes for r in open_text} == {3, 4}
        assert {r.spec().family for r in open_text} == {"mlp"}
        assert {r.classes for r in built.records(architecture="mlp(depth=1,width=4,classes=4)")} == {4}
        assert built.records(architecture="mlp(depth=1,width=5)") == []
        assert built.records(architecture="mlp(depth=1,width=4,input=3x16x16)") == []
        with pytest.raises(InputError):
            built.records(architecture="mlpp(depth=1)")

    def test_text_from_outside_is_no_sql(self, built):
        assert built.records(task="' OR 1=1 --") == []

    def test_groups_and_summary_add_up(self, built):
        groups = dict(built.by_architecture(final=True))
        assert sum(map(len, groups.values())) == len(built.records(final=True))
        for spec, records in groups.items():
            assert {r.spec() for r in records} == {spec}
            assert built.load(records).shape[0] == len(records)
        summary = built.summary()
        assert sum(row["networks"] for row in summary) == len(built.records(final=True))

    def test_one_record_by_id(self, built):
        record = built.records()[3]
        assert built.record(record.id) == record
        with pytest.raises(InputError, match="holds no checkpoint 'nobody'"):
            built.record("nobody")


class TestAddAndLoad:
    def test_weights_come_back_bit_for_bit_in_the_order_asked(self, tmp_path):
        zoo, spec = Zoo(tmp_path, create=True), spec_of("cnn(depth=1,width=4,classes=3,input=1x8x8)")
        flats = initial_flats(spec, [0, 1, 2])
        zoo.add("a", spec, flats[:2], [record_of(spec, "a", n) for n in range(2)])
        zoo.add("b", spec, flats[2:], [record_of(spec, "b")])
        records = zoo.records()
        assert torch.equal(zoo.load(records), flats)
        assert torch.equal(zoo.load(reversed(records)), flats.flip(0))
        assert torch.equal(zoo.load([records[1], records[1]]), flats[[1, 1]])
        assert [r.row for r in records] == [0, 1, 0] and records[0].provenance == {"from": "a test"}
        assert Zoo(tmp_path).records() == records

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_weights_that_are_not_finite_are_refused_and_nothing_is_written(self, tmp_path, bad):
        zoo, spec = Zoo(tmp_path, create=True), spec_of()
        flats = initial_flats(spec, [0, 1])
        flats[1, 7] = bad
        with pytest.raises(InputError, match=r"shard a: tensor .* not finite"):
            zoo.add("a", spec, flats, [record_of(spec, "a", n) for n in range(2)])
        assert zoo.records() == [] and list((tmp_path / "shards").iterdir()) == []

    def test_a_shard_added_twice_replaces_itself(self, tmp_path):
        zoo, spec = Zoo(tmp_path, create=True), spec_of()
        flats = initial_flats(spec, [0, 1])
        zoo.add("a", spec, flats, [record_of(spec, "a", n) for n in range(2)])
        zoo.add("a", spec, flats[1:], [record_of(spec, "a", 7)])
        assert [r.member for r in zoo.records()] == [7] and zoo.verify() == []
        assert torch.equal(zoo.load(zoo.records()), flats[1:])

    def test_mixed_architectures_are_refused(self, built):
        with pytest.raises(InputError, match="of one architecture are needed, not of"):
            built.load(built.records())
        with pytest.raises(InputError, match="not of 0"):
            built.load([])


class TestDamage:
    def test_a_flipped_byte_is_found(self, copy):
        file = sorted((copy.path / "shards").iterdir())[1]
        data = bytearray(file.read_bytes())
        data[-3] ^= 1
        file.write_bytes(data)
        (problem,) = copy.verify()
        assert file.stem in problem and "checksum" in problem

    def test_a_missing_shard_is_found(self, copy):
        file = sorted((copy.path / "shards").iterdir())[0]
        file.unlink()
        (problem,) = copy.verify()
        assert file.stem in problem and "missing" in problem
        record = next(r for r in copy.records() if r.shard == file.stem)
        with pytest.raises(CheckpointError):
            copy.load([record])

    @pytest.mark.parametrize("keep", [0, 5, 100, -7])
    def test_a_truncated_shard_is_a_checkpoint_error(self, copy, keep):
        record = copy.records(final=True)[0]
        file = copy.path / "shards" / f"{record.shard}.safetensors"
        file.write_bytes(file.read_bytes()[:keep])
        with pytest.raises(CheckpointError):
            copy.load([record])

    def test_a_shard_of_another_architecture_is_a_checkpoint_error(self, copy):
        record = copy.records(architecture="mlp(depth=1,width=4)", final=True)[0]
        other = copy.records(architecture="cnn(depth=1,width=4)", final=True)[0]
        shards = copy.path / "shards"
        shutil.copy(shards / f"{other.shard}.safetensors", shards / f"{record.shard}.safetensors")
        with pytest.raises(CheckpointError, match="does not fit"):
            copy.load([record])

    def test_a_shard_with_fewer_networks_is_a_checkpoint_error(self, copy):
        record = copy.records(final=True)[-1]
        file = copy.path / "shards" / f"{record.shard}.safetensors"
        tensors, metadata = load_tensors(file)
        save_tensors(file, {k: v[:1].clone() for k, v in tensors.items()}, metadata)
        with pytest.raises(CheckpointError):
            copy.load([replace(record, row=1)])

    def test_a_folder_that_is_no_zoo(self, tmp_path):
        with pytest.raises(CheckpointError, match="not a zoo"):
            Zoo(tmp_path)
        with pytest.raises(CheckpointError, match="not a zoo"):
            Zoo(tmp_path / "nowhere")

    @pytest.mark.parametrize("text", [b"", b"not a database at all, but long enough to be looked at" * 40])
    def test_an_index_that_is_no_database(self, tmp_path, text):
        (tmp_path / "zoo.sqlite3").write_bytes(text)
        with pytest.raises(CheckpointError, match="index cannot be read"):
            Zoo(tmp_path)

    def test_a_database_of_something_else(self, tmp_path):
        with closing(sqlite3.connect(tmp_path / "zoo.sqlite3")) as db, db:
            db.execute("CREATE TABLE cats (name TEXT)")
        with pytest.raises(CheckpointError, match="index cannot be read"):
            Zoo(tmp_path)

    def test_an_index_whose_own_words_are_no_text(self, copy):
        """SQLite quotes what a file holds in its messages, and Python decodes these."""
        index = copy.path / "zoo.sqlite3"
        with closing(sqlite3.connect(index)) as db:
            db.execute("PRAGMA journal_mode=DELETE")
        changed = index.read_bytes().replace(b"ON checkpoints", b"ON check\x81oints")
        assert changed != index.read_bytes()
        index.write_bytes(changed)
        with pytest.raises(CheckpointError, match="cannot be read"):
            Zoo(copy.path).records()

    def test_a_zoo_cannot_be_made_where_a_file_stands(self, tmp_path):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(WeightloomError):
            Zoo(tmp_path / "file", create=True)
        assert (tmp_path / "file").read_text() == "mine"
