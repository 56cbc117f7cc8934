"""``weightloom zoo import`` of folders: the dry run, the report, and going on."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from weightloom.architectures import parse_architecture
from weightloom.io import load_tensors
from weightloom.weights import layout_of
from weightloom.zoo import Zoo


@pytest.fixture
def folder(network, tmp_path):
    """One network that fits and three files that do not."""
    place = tmp_path / "in"
    place.mkdir()
    shutil.copy(network, place / "good.safetensors")
    for name in ("cut", "short"):
        (place / f"{name}.safetensors").write_bytes(network.read_bytes()[:-8])
    torch.save(load_tensors(network)[0], place / "foreign.pt")
    return place


@pytest.fixture
def published(tmp_path):
    """Two trials in the layout of the published model zoos."""
    spec = parse_architecture("tinycnn(variant=small,classes=10,input=1x28x28)")
    for number in range(2):
        trial = tmp_path / "tune_zoo" / f"NN_tune_trainable_{number:05d}"
        (trial / "checkpoint_000004").mkdir(parents=True)
        params = {"model::type": "CNN", "model::channels_in": 1, "model::nlin": "tanh", "seed": number}
        (trial / "params.json").write_text(json.dumps(params))
        (trial / "result.json").write_text('{"training_iteration": 4, "test_acc": 0.5}\n')
        with torch.device("meta"):
            names = list(spec.build().state_dict())
        tensors = layout_of(spec).unflatten(torch.full((spec.num_parameters(),), number + 0.5))
        state = {f"module_list.{i}": tensors[name] for i, name in enumerate(names)}
        torch.save(state, trial / "checkpoint_000004" / "checkpoints")
    return tmp_path / "tune_zoo"


def test_a_dry_run_writes_nothing(call, folder, tmp_path):
    new = tmp_path / "new"
    answer = call("zoo", "import", new, folder, "--task", "digits", "--dry-run", "--json").json
    assert [network["file"] for network in answer["planned"]] == ["good.safetensors"]
    assert answer["formats"] == ["folder"] and answer["passed_over"] == 0
    assert [entry["name"] for entry in answer["skipped"]] == [
        "cut.safetensors",
        "foreign.pt",
        "short.safetensors",
    ]
    assert "--arch" in answer["skipped"][1]["reason"]
    shown = call("zoo", "import", new, folder, "--dry-run")
    assert shown.code == 0 and "good.safetensors" in shown.out and "nothing was written" in shown.err
    assert "skipped cut.safetensors, short.safetensors: " in shown.err and "skipped foreign.pt: " in shown.err
    assert not new.exists()


def test_skipped_or_strict(call, folder, tmp_path):
    new = tmp_path / "new"
    assert "cut.safetensors" in call("zoo", "import", new, folder, "--strict").sentence(2)
    assert not new.exists()
    answer = call("zoo", "import", new, folder, "--task", "digits", "--json").json
    assert [record["task"] for record in answer["imported"]] == ["digits@8c3"] and len(answer["skipped"]) == 3
    again = call("zoo", "import", new, folder)
    assert again.code == 0 and "1 files were in the zoo already" in again.err
    assert Zoo(new).verify() == [] and len(Zoo(new).records()) == 1
    assert "nothing can be imported" in call(
        "zoo", "import", tmp_path / "other", folder, "--arch", "mlp(depth=3,width=4,classes=2,input=3x8x8)"
    ).sentence(2)
    assert not (tmp_path / "other").exists()


def test_a_published_model_zoo(call, published, tmp_path):
    new = tmp_path / "new"
    answer = call("zoo", "import", new, published, "--json").json
    assert answer["formats"] == ["modelzoos"]
    assert [record["accuracy"] for record in answer["imported"]] == [0.5, 0.5]
    assert [record["step"] for record in answer["imported"]] == [4, 4]
    measured = call(
        "zoo", "import", tmp_path / "m", published, "--task", "digits", "--accuracy", "measured", "--json"
    ).json
    assert measured["imported"][0]["task"] == "digits@28c1" and measured["imported"][0]["accuracy"] < 0.5
    assert "--accuracy measured needs --task" in call(
        "zoo", "import", new, published, "--accuracy", "measured"
    ).sentence(2)
    assert "epochs are" in call("zoo", "import", new, published, "--epochs", "soon").sentence(2)
    assert "no weights of epoch 3" in call("zoo", "import", new, published, "--epochs", "3").sentence(2)
    assert "give it with --arch" in call("zoo", "import", new, published, "--format", "folder").sentence(2)
    assert "no address" in call("zoo", "import", new, "hf://../x").sentence(2)


def test_an_interrupt_keeps_what_is_there(call, published, tmp_path, monkeypatch):
    import weightloom.zoo.importing as room

    monkeypatch.setattr(room, "SHARD_NETWORKS", 1)
    add, calls = Zoo.add_new, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return add(self, *arguments)

    new = tmp_path / "new"
    with monkeypatch.context() as patch:
        patch.setattr(Zoo, "add_new", interrupted)
        sentence = call("zoo", "import", new, published).sentence(1)
    assert sentence.startswith("interrupted; ") and str(new) in sentence
    assert len(Zoo(new).records()) == 1 and Zoo(new).verify() == []
    answer = call("zoo", "import", new, published, "--json").json
    assert len(answer["imported"]) == 1 and answer["passed_over"] == 1


def test_whatever_wraps_and_lies_beside(call, network, tmp_path):
    """Of a folder every file that is passed over is named; of a file, what is left out."""
    tensors, metadata = load_tensors(network)
    place = tmp_path / "in"
    place.mkdir()
    two = {"model": tensors, "ema": {name: value * 2 for name, value in tensors.items()}}
    torch.save({"epoch": 4, **two}, place / "model_best.pth.tar")
    averaged = {"n_averaged": torch.tensor(1), **{f"module.{k}": v for k, v in tensors.items()}}
    torch.save({"state_dict": averaged}, place / "swa.ckpt")
    (place / "README.md").write_text("weights")
    (place / "arrays.npz").write_bytes(b"PK\x05\x06" + bytes(18))
    arguments = ("--arch", metadata["architecture"], "--task", "digits")
    shown = call("zoo", "import", tmp_path / "new", place, *arguments, "--dry-run")
    assert "swa.ckpt: left out state_dict.n_averaged, and read from state_dict.module" in shown.err
    assert "skipped README.md: is a text" in shown.err and "skipped model_best.pth.tar: holds 2" in shown.err
    planned = call("zoo", "import", tmp_path / "new", place, *arguments, "--dry-run", "--json").json[
        "planned"
    ]
    assert [(p["file"], p["read_from"], p["left_out"]) for p in planned] == [
        ("swa.ckpt", "state_dict.module", ["state_dict.n_averaged"])
    ]
    assert "arrays.npz" in call("zoo", "import", tmp_path / "new", place, *arguments, "--strict").sentence(2)
    (place / "arrays.npz").unlink()
    file = place / "model_best.pth.tar"
    record = call("zoo", "import", tmp_path / "new", file, *arguments, "--key", "ema", "--json").json[
        "imported"
    ][0]
    assert record["provenance"]["read_from"] == "ema" and len(record["provenance"]["left_out"]) == 4
    assert record["step"] == 4
    again = ("zoo", "import", tmp_path / "new", file, *arguments, "--key")
    assert call(*again, "ema", "--json").json["passed_over"] == 1
    assert [r["provenance"]["read_from"] for r in call(*again, "model", "--json").json["imported"]] == [
        "model"
    ]
    assert call(*again, "model", "--json").json["passed_over"] == 1
    zoo = Zoo(tmp_path / "new")
    assert zoo.verify() == [] and len(zoo.records()) == 2, "two networks of one file are two"
    (place / "model_best.pth.tar").unlink()
    answer = call("zoo", "import", tmp_path / "strict", place, *arguments, "--strict", "--json").json
    assert len(answer["imported"]) == 1, "a text beside the networks is no reason to refuse them"
