from __future__ import annotations

import shutil

import pytest
import torch
import yaml

from weightloom.io import load_tensors
from weightloom.zoo import Zoo

ARCH = "mlp(depth=1,width=4)"


@pytest.fixture
def copy(zoo, tmp_path):
    """A zoo that a test may spoil."""
    return shutil.copytree(zoo, tmp_path / "copy")


def test_list_filters(call, zoo):
    def count(*filters):
        answer = call("zoo", "list", zoo, *filters, "--json").json
        assert answer["count"] == len(answer["checkpoints"])
        return answer["count"]

    assert count() == 10
    assert count("--final") == 5 and count("--not-final") == 5
    assert count("--classes", "4", "--final") == 2
    assert count("--task", "digits@8c3") == 6 and count("--task", "digits") == 0
    assert count("--dataset", "digits") == 10 and count("--dataset", "mnist") == 0
    assert count("--arch", ARCH) == 10 and count("--arch", "mlp(depth=2,width=4)") == 0
    assert count("--split", "held-out-order") == 0
    assert count("--min-accuracy", "1.1") == 0


def test_list_for_people(call, zoo):
    answer = call("zoo", "list", zoo, "--limit", "3")
    assert answer.code == 0 and "3 of 10 checkpoints" in answer.err
    assert "mlp(depth=1,width=4)" in answer.out
    assert call("zoo", "list", zoo, "--limit", "3", "--json").json["count"] == 10


def test_show(call, zoo):
    described = call("zoo", "show", zoo, "--json").json
    assert described["networks"] == 5 and described["recipe"]["name"] == "test-zoo"
    assert [group["networks"] for group in described["groups"]] == [3, 2]
    assert "5 networks" in call("zoo", "show", zoo).out
    name = Zoo(zoo).records()[0].id
    one = call("zoo", "show", zoo, name, "--json").json
    assert one["checkpoint"]["id"] == name and one["num_parameters"] == 822
    assert name in call("zoo", "show", zoo, name).out
    assert "no checkpoint 'nobody'" in call("zoo", "show", zoo, "nobody").sentence(2)


def test_building_again_trains_nothing(call, zoo, recipe, tmp_path):
    before = {file.name: file.stat().st_mtime_ns for file in (zoo / "shards").iterdir()}
    answer = call("zoo", "build", recipe, "--out", zoo)
    assert answer.code == 0 and "5 networks" in answer.out
    assert before == {file.name: file.stat().st_mtime_ns for file in (zoo / "shards").iterdir()}
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({**yaml.safe_load(recipe.read_text()), "name": "another"}))
    assert "another recipe" in call("zoo", "build", other, "--out", zoo).sentence(2)


def test_an_interrupt_keeps_what_is_there(call, recipe, tmp_path, monkeypatch):
    import weightloom.zoo.build as room

    train, calls = room._train_shard, []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(*arguments, **options)

    out = tmp_path / "zoo"
    with monkeypatch.context() as patch:
        patch.setattr(room, "_train_shard", interrupted)
        sentence = call("zoo", "build", recipe, "--out", out).sentence(1)
    assert sentence.startswith("interrupted; ") and str(out) in sentence
    assert len(Zoo(out).records()) == 6 and Zoo(out).verify() == []
    assert call("zoo", "build", recipe, "--out", out, "--json").json["networks"] == 5


@pytest.mark.parametrize("room", ["find_data", "_train_shard"])
def test_an_interrupt_before_the_first_shard_leaves_none_or_a_whole_one(
    call, recipe, tmp_path, monkeypatch, room
):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    out = tmp_path / "zoo"
    with monkeypatch.context() as patch:
        patch.setattr(f"weightloom.zoo.build.{room}", interrupted)
        sentence = call("zoo", "build", recipe, "--out", out).sentence(1)
    if room == "find_data":
        assert sentence == "interrupted; nothing was written" and list(tmp_path.iterdir()) == []
    else:
        assert "same command goes on" in sentence and Zoo(out).verify() == Zoo(out).records() == []
    assert call("zoo", "build", recipe, "--out", out, "--json").json["networks"] == 5


def test_build_refuses(call, recipe, tmp_path):
    assert "unknown recipe 'zoo-tyni'; did you mean 'zoo-tiny'" in call(
        "zoo", "build", "zoo-tyni", "--out", tmp_path / "z"
    ).sentence(2)
    bad = tmp_path / "bad.yaml"
    for change, words in (
        ({"datasets": ["digitz"]}, "did you mean 'digits'"),
        ({"architectures": ["mlp(depth=-1)"]}, "depth must be"),
        ({"colour": "red"}, "'colour' is not known"),
        ({"kind": "igpg"}, "kind"),
    ):
        bad.write_text(yaml.safe_dump({**yaml.safe_load(recipe.read_text()), **change}))
        assert words in call("zoo", "build", bad, "--out", tmp_path / "z").sentence(2)
    bad.write_text("a: [1")
    call("zoo", "build", bad, "--out", tmp_path / "z").sentence(2)
    assert not (tmp_path / "z").exists(), "nothing is made for a recipe that cannot be read"
    assert "not a folder" in call("zoo", "build", recipe, "--out", bad).sentence(2)
    assert "--workers" in call("zoo", "build", recipe, "--out", tmp_path / "z", "--workers", "0").sentence(2)
    there = ("zoo", "build", recipe, "--out", tmp_path / "z", "--address", "auto")
    assert "belongs to --engine ray" in call(*there).sentence(2)
    assert "has its own" in call(*there, "--engine", "ray", "--workers", "2").sentence(2)
    assert not (tmp_path / "z").exists()


def test_a_full_disk(call, recipe, tmp_path, monkeypatch):
    import errno
    import os

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    sentence = call("zoo", "build", recipe, "--out", tmp_path / "zoo").sentence(1)
    assert "space" in sentence.lower()
    assert list(tmp_path.iterdir()) == [], "a zoo of which nothing could be kept is none"


def test_verify(call, zoo, copy):
    assert call("zoo", "verify", zoo, "--json").json == {
        "checkpoints": 10,
        "ok": True,
        "problems": [],
        "zoo": str(zoo),
    }
    assert "nothing missing" in call("zoo", "verify", zoo).out
    shards = sorted((copy / "shards").iterdir())
    shards[0].write_bytes(shards[0].read_bytes()[:-8])
    shards[1].unlink()
    answer = call("zoo", "verify", copy, "--json")
    assert answer.code == 1 and '"ok": false' in answer.out and "2 broken shards" in answer.err
    assert "missing" in answer.out and "checksum" in answer.out


def test_broken_zoos(call, copy, tmp_path):
    assert "not a zoo" in call("zoo", "list", tmp_path).sentence(2)
    assert "not a zoo" in call("zoo", "verify", tmp_path / "nothing").sentence(2)
    record = Zoo(copy).records()[0]
    shard = copy / "shards" / f"{record.shard}.safetensors"
    shard.write_bytes(shard.read_bytes()[:-8])
    call("zoo", "export", copy, record.id, "--out", tmp_path / "a.safetensors").sentence(2)
    assert not (tmp_path / "a.safetensors").exists()
    for file in copy.glob("zoo.sqlite3*"):
        file.unlink()
    (copy / "zoo.sqlite3").write_bytes(b"this is no database" * 100)
    assert "index cannot be read" in call("zoo", "list", copy).sentence(2)


def test_export_and_import(call, zoo, tmp_path):
    ids = [r.id for r in Zoo(zoo).records(classes=10, final=True)]
    files = [tmp_path / f"{number}.safetensors" for number in range(len(ids))]
    for name, file in zip(ids, files, strict=True):
        call("zoo", "export", zoo, name, "--out", file, "--json").json
    new = tmp_path / "new"
    answer = call("zoo", "import", new, *files, "--task", "digits", "--json").json
    assert len(answer["imported"]) == 3 and answer["passed_over"] == 0
    held = Zoo(new)
    assert torch.equal(held.load(held.records()), Zoo(zoo).load(Zoo(zoo).record(name) for name in ids))
    for record, name in zip(held.records(), ids, strict=True):
        assert record.accuracy == pytest.approx(Zoo(zoo).record(name).accuracy)
        assert record.task == "digits@8c3" and record.split == "train" and record.final
    again = call("zoo", "import", new, *files, "--task", "digits", "--json").json
    assert again["imported"] == [] and again["passed_over"] == 3 and again["skipped"] == []
    assert "were in the zoo already" in call("zoo", "import", new, files[0]).err
    assert held.verify() == []


def test_import_foreign_files(call, network, tmp_path):
    tensors, _ = load_tensors(network)
    foreign = tmp_path / "foreign.pt"
    names = ("0.weight", "0.bias", "1.weight", "1.bias")
    own = ("body.1.weight", "body.1.bias", "head.weight", "head.bias")
    torch.save({"model": {a: tensors[b] for a, b in zip(names, own, strict=True)}}, foreign)
    options = ("--arch", ARCH + "", "--task", "digits@8c3")
    new = tmp_path / "new"
    assert "missing" in call("zoo", "import", new, foreign, *options).sentence(2)
    assert not new.exists()
    answer = call("zoo", "import", new, foreign, *options, "--match", "order", "--json").json
    assert answer["imported"][0]["accuracy"] == call("evaluate", network, "--json").json["accuracy"]
    assert "by order in PyTorch files only" in call(
        "zoo", "import", new, network, *options, "--match", "order"
    ).sentence(2)


def test_import_all_or_nothing(call, network, copy, tmp_path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(network.read_bytes()[:-8])
    before = len(Zoo(copy).records())
    call("zoo", "import", copy, network, cut, "--task", "digits", "--strict").sentence(2)
    assert "3x8x8" in call("zoo", "import", copy, network, "--task", "digits@16c3").sentence(2)
    assert "does not fit" in call("zoo", "import", copy, network, "--task", "digits[1,2]").sentence(2)
    assert len(Zoo(copy).records()) == before
    call("zoo", "import", tmp_path / "new", cut).sentence(2)
    assert not (tmp_path / "new").exists()
    call("zoo", "import", copy, "--task", "digits").sentence(2)


def test_repair(call, copy):
    assert "nothing missing" in call("zoo", "repair", copy).out
    next((copy / "shards").iterdir()).unlink()
    answer = call("zoo", "repair", copy, "--json").json
    assert len(answer["done"]) == 1 and "is missing" in answer["done"][0] and answer["checkpoints"] < 10
    assert call("zoo", "verify", copy, "--json").json["ok"]
