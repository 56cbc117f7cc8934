"""evaluate and finetune: networks in files."""

from __future__ import annotations

import json

import pytest
import torch

from weightloom.io import load_tensors, save_tensors, write_shards

ARCH = "mlp(depth=1,width=4,classes=10,input=3x8x8)"


@pytest.fixture
def spoilt(network, tmp_path):
    """The network's file with one thing changed."""

    def make(change):
        tensors, metadata = load_tensors(network)
        change(tensors, metadata)
        path = tmp_path / "spoilt.safetensors"
        save_tensors(path, tensors, metadata)
        return path

    return make


def test_evaluate(call, network):
    answer = call("evaluate", network, "--task", "digits", "--json").json
    assert answer["task"] == "digits@8c3" and answer["images"] == 500 and answer["num_parameters"] == 822
    confusion = torch.tensor(answer["confusion"])
    assert confusion.shape == (10, 10) and int(confusion.sum()) == 500
    assert answer["accuracy"] == pytest.approx(int(confusion.diagonal().sum()) / 500)
    assert list(answer["by_class"]) == list("0123456789")
    assert sum(entry["num_images"] for entry in answer["by_class"].values()) == 500
    report = json.loads(load_tensors(network)[1]["report"])
    assert answer["accuracy"] == pytest.approx(report["accuracy"], abs=1e-6), "as the zoo measured it"


def test_evaluate_on_what_it_was_made_for(call, network):
    assert call("evaluate", network, "--json").json["task"] == "digits@8c3"
    answer = call("evaluate", network)
    assert answer.code == 0 and "of 500 test images right" in answer.out


def test_evaluate_a_foreign_state_dict(call, network, tmp_path):
    tensors, _ = load_tensors(network)
    path = tmp_path / "foreign.pt"
    torch.save({"state_dict": {f"module.{k}": v.half() for k, v in tensors.items()}, "epoch": 3}, path)
    own = call("evaluate", network, "--json").json["accuracy"]
    got = call("evaluate", path, "--arch", ARCH, "--task", "digits", "--json").json["accuracy"]
    assert got == pytest.approx(own, abs=0.02)
    assert "give it with --arch" in call("evaluate", path, "--task", "digits").sentence(2)


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_evaluate_several_side_by_side(call, network, spoilt, request, engine):
    if engine == "ray":
        request.getfixturevalue("ray_here")
    other = spoilt(lambda tensors, _: tensors["head.bias"].add_(torch.arange(10.0)))
    own = [call("evaluate", file, "--json").json for file in (other, network)]
    for options in ((), ("--workers", "2", "--engine", engine)):
        both = call("evaluate", other, network, "--json", *options).json["networks"]
        assert [{**answer, "seconds": 0} for answer in own] == [{**answer, "seconds": 0} for answer in both]
    answer = call("evaluate", other, network)
    assert own[0]["accuracy"] < own[1]["accuracy"]
    assert answer.out.index(network.name) < answer.out.index(other.name), "the best first"
    assert call("evaluate", network, "nothing.safetensors").code == 1
    assert "--address belongs to" in call("evaluate", network, "--address", "auto").sentence(2)
    wrong = call("evaluate", network, other, "--task", "digits[1,2]")
    assert wrong.code == 1 and wrong.err.count("10 classes") == 2 and str(network) in wrong.err


def test_evaluate_a_folder_of_images_in_other_processes(call, photos, tmp_path):
    made = tmp_path / "photos.safetensors"
    options = ("--arch", "cnn(depth=3,width=8)", "--out", made, "--shots", "2")
    assert call("generate", "Tell photos apart", "--data", photos, *options).code == 0
    one = call("evaluate", made, "--data", photos, "--json").json
    two = call("evaluate", made, made, "--data", photos, "--workers", "2", "--json").json["networks"]
    assert [answer["confusion"] for answer in two] == [one["confusion"]] * 2


def test_evaluate_a_folder_in_the_hubs_layout(call, network, tmp_path):
    tensors, metadata = load_tensors(network)
    plan = {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}
    own = call("evaluate", network, "--json").json["accuracy"]
    for number, size in enumerate((1 << 20, 1000)):
        folder = tmp_path / f"parts-{number}"
        files = write_shards(folder, plan, tensors.items(), metadata=metadata, shard_bytes=size)
        assert (len(files) > 1) == (number == 1)
        assert call("evaluate", folder, "--json").json["accuracy"] == own


def test_evaluate_refuses(call, network, spoilt, photos, tmp_path):
    assert "10 classes" in call("evaluate", network, "--task", "digits[1,2]").sentence(2)
    assert "10 classes" in call("evaluate", network, "--data", photos).sentence(2)
    assert "3x8x8" in call("evaluate", network, "--task", "digits@16c3").sentence(2)
    assert "does not exist" in call("evaluate", "nothing.safetensors", "--task", "digits").sentence(2)
    assert "is a folder" in call("evaluate", tmp_path, "--task", "digits").sentence(2)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(network.read_bytes()[:-7])
    assert "announces" in call("evaluate", cut, "--task", "digits").sentence(2)
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"\xff" * 100)
    call("evaluate", junk, "--task", "digits").sentence(2)
    other = spoilt(lambda tensors, _: tensors.pop("head.bias"))
    assert "'head.bias' is missing" in call("evaluate", other, "--task", "digits").sentence(2)
    other = spoilt(lambda tensors, _: tensors.update(extra=torch.ones(2)))
    assert "'extra' does not belong" in call("evaluate", other, "--task", "digits").sentence(2)
    other = spoilt(lambda tensors, _: tensors.update({"head.bias": torch.ones(3)}))
    assert "has shape (3,)" in call("evaluate", other, "--task", "digits").sentence(2)
    other = spoilt(lambda tensors, metadata: metadata.update(architecture="spaghetti(3)"))
    assert "architecture that is none" in call("evaluate", other, "--task", "digits").sentence(2)
    other = spoilt(lambda tensors, metadata: metadata.clear())
    assert "does not say its architecture" in call("evaluate", other, "--task", "digits").sentence(2)
    assert call("evaluate", other, "--task", "digits", "--arch", ARCH, "--json").code == 0
    assert "not mlp(depth=3" in call("evaluate", network, "--arch", "mlp(depth=3,width=4)").sentence(2)


def test_weights_that_are_not_finite(call, network, tmp_path):
    data = bytearray(network.read_bytes())
    data[-4:] = b"\x00\x00\xc0\x7f"
    path = tmp_path / "nan.safetensors"
    path.write_bytes(bytes(data))
    assert "not finite" in call("evaluate", path, "--task", "digits").sentence(2)
    assert "not finite" in call("info", path, "--json").json["problem"]


def test_finetune(call, network, tmp_path):
    out, plot = tmp_path / "better.safetensors", tmp_path / "curves.svg"
    options = ("--steps", "12", "--lr", "0.01", "--batch-size", "32", "--from-random", "--json")
    answer = call("finetune", network, "--task", "digits", *options, "--out", out, "--plot", plot).json
    assert answer["curves"]["steps"] == [0, 1, 2, 5, 10, 12]
    assert answer["start_accuracy"] == answer["curves"]["start"][0]
    assert answer["accuracy"] == answer["curves"]["start"][-1]
    assert answer["random_init_accuracy"] == answer["curves"]["random_init"][-1]
    assert call("evaluate", out, "--json").json["accuracy"] == pytest.approx(answer["accuracy"], abs=1e-6)
    assert "<svg" in plot.read_text()
    described = call("info", out, "--json").json
    assert described["report"]["generator"] == "finetune"
    assert described["report"]["from"]["generator"] == "zoo"


def test_finetune_for_people(call, network):
    answer = call("finetune", network, "--task", "digits", "--steps", "1")
    assert answer.code == 0 and "after 1 steps" in answer.out


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--steps", "0"),
        ("--lr", "0"),
        ("--lr", "nan"),
        ("--lr", "inf"),
        ("--batch-size", "1"),
        ("--out", "a.pt"),
    ],
)
def test_finetune_refuses(call, network, option, value):
    assert option in call("finetune", network, "--task", "digits", option, value).sentence(2)


def test_finetune_needs_a_task(call, network):
    assert "--task NAME" in call("finetune", network).sentence(2)
