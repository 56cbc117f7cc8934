"""Folders of networks from elsewhere, and what hostile ones try."""

from __future__ import annotations

import json
import os
import pickle
import zipfile

import pytest
import torch
from tests.zoo.foreign import SMALL, SPEC, Ran, reasons, tensors_of, write

from weightloom.architectures import parse_architecture
from weightloom.errors import CheckpointError, InputError
from weightloom.io import write_shards
from weightloom.zoo import Zoo
from weightloom.zoo.importing import carry_out, import_checkpoints, plan_import
from weightloom.zoo.sources import find_networks


def test_a_folder(tmp_path, zoo):
    """Files of every kind, in sub-folders, two of one name, beside others."""
    flats = [write(tmp_path / "in" / "a.safetensors", 0), write(tmp_path / "in" / "b" / "a.safetensors", 1)]
    flat, tensors = tensors_of(SPEC, 2)
    extra = {"epoch": 7, "acc": 91.5, "seed": torch.tensor(3), "train_loss": float("nan"), "best_acc": 99.0}
    torch.save({"net": tensors, **extra}, tmp_path / "in" / "c.pth")
    (tmp_path / "in" / "notes.txt").write_text("x")
    (tmp_path / "in" / ".hidden.safetensors").write_text("x")
    found = find_networks(tmp_path / "in")
    assert found.format == "folder"
    assert [(entry.name, entry.reason, entry.weights) for entry in found.skipped] == [
        (".hidden.safetensors", "is hidden", False),
        ("notes.txt", "is a text, not a file of weights", False),
    ]
    plan = plan_import([found], zoo=zoo, architecture=SPEC)
    records = carry_out(zoo, plan)
    assert [r.provenance["file"] for r in records] == ["a.safetensors", "c.pth", "b/a.safetensors"]
    assert torch.equal(zoo.load(records), torch.stack([flats[0], flat, flats[1]]))
    assert len({record.id for record in records}) == 3 and zoo.verify() == []
    third = records[1]
    assert (third.step, third.accuracy, third.loss) == (7, 0.915, None)
    assert third.provenance["seed"] == 3 and third.provenance["accuracy"] == "reported"
    again = plan_import([found], zoo=zoo, architecture=SPEC)
    assert again.networks == () and len(again.held) == 3
    assert carry_out(zoo, again) == []


def test_headers_tell_facts(tmp_path, zoo):
    report = json.dumps({"accuracy": 0.75, "seed": 5, "step": 400})
    write(tmp_path / "in" / "a.safetensors", 0, report=report)
    write(tmp_path / "in" / "b.safetensors", 1, epoch="3", test_accuracy="0.5", seed="nan", loss="x")
    write(tmp_path / "in" / "c.safetensors", 2, report="{", accuracy="1e999", epoch="-1")
    a, b, c = carry_out(zoo, plan_import([find_networks(tmp_path / "in")]))
    assert (a.accuracy, a.step, a.provenance["seed"]) == (0.75, 400, 5)
    assert (b.accuracy, b.step, b.provenance.get("seed")) == (0.5, 3, None)
    assert (c.accuracy, c.step, c.provenance.get("accuracy")) == (None, 0, None)


def test_one_network_in_several_files(tmp_path, zoo):
    flat, tensors = tensors_of(SPEC, 0)
    plan = {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}
    write_shards(
        tmp_path / "in" / "big", plan, tensors.items(),
        metadata={"architecture": SPEC.full_text()}, shard_bytes=1000,
    )  # fmt: skip
    write(tmp_path / "in" / "small.safetensors", 1)
    found = find_networks(tmp_path / "in")
    assert [c.name for c in found.candidates] == ["small.safetensors", "big"]
    records = carry_out(zoo, plan_import([found]))
    assert torch.equal(zoo.load(records)[1], flat)
    assert plan_import([found], zoo=zoo).networks == ()
    index = tmp_path / "in" / "big" / "model.safetensors.index.json"
    held = json.loads(index.read_text())
    held["weight_map"]["head.bias"] = "../../elsewhere.safetensors"
    index.write_text(json.dumps(held))
    plan = plan_import([find_networks(tmp_path / "in")])
    assert "which is no shard" in reasons(plan)["big"]


def test_what_does_not_fit_is_skipped_and_said(tmp_path, zoo):
    root = tmp_path / "in"
    write(root / "good.safetensors", 0)
    (root / "copy.safetensors").write_bytes((root / "good.safetensors").read_bytes())
    write(root / "other.safetensors", 0, parse_architecture("mlp(depth=2,width=4,classes=10,input=3x8x8)"))
    (root / "cut.safetensors").write_bytes((root / "good.safetensors").read_bytes()[:-8])
    _, tensors = tensors_of(SPEC, 1)
    torch.save({**tensors, "head.bias": torch.full((10,), torch.inf)}, root / "infinite.pt")
    torch.save({**tensors, "extra": torch.zeros(1)}, root / "more.pt")
    torch.save({1: tensors["head.bias"], "1": tensors["head.bias"]}, root / "twice.pt")
    torch.save({**tensors, "x": Ran(tmp_path / "ran")}, root / "code.pt")
    (root / "old.pt").write_bytes(pickle.dumps(Ran(tmp_path / "ran")))
    with zipfile.ZipFile(root / "names.pt", "w") as archive:
        archive.writestr("../../up", b"x")
    os.mkfifo(root / "pipe.pt")
    plan = plan_import([find_networks(root)], zoo=zoo, architecture=SPEC)
    assert [n.candidate.name for n in plan.networks] == ["copy.safetensors"]
    said = reasons(plan)
    for name, words in {
        "good.safetensors": "same bytes as copy.safetensors",
        "other.safetensors": "not mlp(depth=1",
        "cut.safetensors": "",
        "infinite.pt": "not finite",
        "more.pt": "extra",
        "twice.pt": "two tensors of one name",
        "code.pt": "names",
        "old.pt": "is a pickle of the class posix.mkdir",
        "names.pt": "",
        "pipe.pt": "not a regular file",
    }.items():
        assert words in said.pop(name), name
    assert said == {}
    assert not (tmp_path / "ran").exists(), "a file's code was run"
    with pytest.raises(CheckpointError):
        plan_import([find_networks(root)], zoo=zoo, architecture=SPEC, strict=True)
    assert zoo.records() == []
    assert len(carry_out(zoo, plan)) == 1 and zoo.verify() == []


def test_nothing_outside_the_folder_is_read(tmp_path):
    write(tmp_path / "outside" / "secret.safetensors", 0)
    root = tmp_path / "in"
    write(root / "mine.safetensors", 1)
    (root / "link.safetensors").symlink_to(tmp_path / "outside" / "secret.safetensors")
    (root / "folder").symlink_to(tmp_path / "outside")
    (root / "up").symlink_to(tmp_path)
    (root / "ring.safetensors").symlink_to(root / "ring.safetensors")
    (root / "again.safetensors").symlink_to("mine.safetensors")
    (root / "zoo").mkdir()
    (root / "zoo" / "zoo.sqlite3").write_bytes(b"")
    plan = plan_import([find_networks(root)])
    assert [n.candidate.name for n in plan.networks] == ["again.safetensors"]
    said = reasons(plan)
    assert said.pop("mine.safetensors") == "has the same bytes as again.safetensors"
    assert said.pop("link.safetensors") == "is a link that leads out of the folder"
    assert said.pop("folder") == said.pop("up") == "is a link to a folder"
    assert said.pop("zoo") == "is a zoo already"
    assert list(said) == ["ring.safetensors"]


def test_names_cannot_talk_to_the_terminal(tmp_path):
    write(tmp_path / "in" / "a\x1b[2J\n.safetensors", 0)
    (candidate,) = find_networks(tmp_path / "in").candidates
    assert candidate.name == "a\\x1b[2J\\n.safetensors"


def test_what_a_source_is(tmp_path, built):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "a.safetensors", 0)
    with pytest.raises(InputError, match="holds no file of weights"):
        find_networks(tmp_path / "empty")
    (tmp_path / "empty" / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"holds no file of weights \(but 1 of other kinds"):
        find_networks(tmp_path / "empty")
    with pytest.raises(InputError, match="holds no trial"):
        find_networks(tmp_path, format="modelzoos")
    with pytest.raises(InputError, match="is a folder, not a file"):
        find_networks(tmp_path, format="file")
    with pytest.raises(InputError, match="is no folder"):
        find_networks(tmp_path / "a.safetensors", format="folder")
    with pytest.raises(InputError, match="is on a hub"):
        find_networks("hf://a/b", format="folder")
    with pytest.raises(InputError, match="a format is one of"):
        find_networks(tmp_path, format="onnx")
    with pytest.raises(InputError, match="is a zoo already"):
        find_networks(built.path)
    with pytest.raises(CheckpointError, match="does not exist"):
        plan_import([find_networks(tmp_path / "nothing.pt")], architecture=SPEC)


def test_nothing_that_fits(tmp_path, zoo):
    root = tmp_path / "in"
    root.mkdir()
    for number in range(3):
        torch.save(tensors_of(SPEC, number)[1], root / f"{number}.pt")
    with pytest.raises(CheckpointError, match=r"give it with --arch \(and 2 more\)"):
        plan_import([find_networks(root)])
    with pytest.raises(CheckpointError, match="nothing can be imported"):
        plan_import([find_networks(root)], architecture=SMALL)


def test_a_named_file_must_fit(tmp_path, zoo):
    """Beside a folder whose files may be skipped."""
    write(tmp_path / "in" / "a.safetensors", 0)
    (tmp_path / "cut.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError):
        import_checkpoints(zoo, [tmp_path / "in", tmp_path / "cut.safetensors"])
    assert zoo.records() == []


def test_an_interrupted_import_goes_on(tmp_path, monkeypatch):
    import weightloom.zoo.importing as room

    monkeypatch.setattr(room, "SHARD_NETWORKS", 2)
    for number in range(5):
        write(tmp_path / "in" / f"{number}.safetensors", number)
    found = [find_networks(tmp_path / "in")]
    whole = Zoo(tmp_path / "whole", create=True)
    carry_out(whole, plan_import(found, zoo=whole))
    assert len(list((tmp_path / "whole" / "shards").iterdir())) == 3
    zoo = Zoo(tmp_path / "zoo", create=True)

    def stop(what, done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry_out(zoo, plan_import(found, zoo=zoo), progress=stop)
    assert len(zoo.records()) == 2 and zoo.verify() == []
    rest = plan_import(found, zoo=zoo)
    assert len(rest.networks) == 3 and len(rest.held) == 2
    carry_out(zoo, rest)
    assert zoo.records() == whole.records() and zoo.verify() == []
    assert torch.equal(zoo.load(zoo.records()), whole.load(whole.records()))


def test_a_file_that_changes_meanwhile(tmp_path, zoo):
    write(tmp_path / "in" / "a.safetensors", 0)
    plan = plan_import([find_networks(tmp_path / "in")], zoo=zoo)
    write(tmp_path / "in" / "a.safetensors", 1)
    with pytest.raises(CheckpointError, match="was changed while it was imported"):
        carry_out(zoo, plan)
    assert zoo.records() == [] and zoo.verify() == []


def test_one_file_as_two_architectures(tmp_path, zoo):
    """The same numbers with another activation are another network."""
    tensors = tensors_of(SPEC, 0)[1]
    torch.save(tensors, tmp_path / "a.pt")
    other = parse_architecture("mlp(depth=1,width=4,activation=gelu,classes=10,input=3x8x8)")
    for spec in (SPEC, other, SPEC):
        import_checkpoints(zoo, [tmp_path / "a.pt"], architecture=spec)
    assert sorted(r.architecture for r in zoo.records()) == sorted([SPEC.full_text(), other.full_text()])
    assert zoo.verify() == []
