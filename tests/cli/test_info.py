from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from weightloom.io import load_tensors

ARCH = "mlp(depth=1,width=4,classes=10,input=3x8x8)"


def test_everything(call):
    answer = call("info", "--json").json
    assert (
        answer["kind"] == "installation" and "mlp" in answer["architectures"] and "igpg" in answer["methods"]
    )
    assert "Weightloom" in call("info").out


def test_each_kind(call, zoo, generator, network, recipe, photos, tmp_path):
    torch.save({"net": {"a": torch.ones(2, 3)}}, tmp_path / "some.pt")
    things = {
        "zoo": zoo,
        "generator": generator,
        "tokenizer": generator / "tokenizer",
        "network": network,
        "recipe": recipe,
        "pytorch checkpoint": tmp_path / "some.pt",
        "tensors": generator / "model.safetensors",
        "architecture": "cnn(depth=2,width=8,classes=10,input=3x16x16)",
    }
    for kind, thing in things.items():
        assert call("info", thing, "--json").json["kind"] == kind, kind
        shown = call("info", thing)
        assert shown.code == 0 and len(shown.out.splitlines()) > 1, (kind, shown.err)
    assert call("info", "digits[3,1]", "--json").json["task"] == "digits[3,1]"
    assert call("info", photos, "--json").json["classes"] == ["ants", "bees", "cats", "dogs"]
    assert call("info", "zoo-tiny", "--json").json["kind"] == "recipe"


def test_a_network(call, network):
    answer = call("info", network, "--json").json
    assert answer["num_parameters"] == 822 and answer["problem"] is None
    assert answer["report"]["generator"] == "zoo"


def test_an_architecture(call):
    answer = call("info", "cnn", "--json").json
    assert answer["num_parameters"] is None and answer["layers"] is None
    assert {"depth", "width", "classes", "input"} <= {option["name"] for option in answer["options"]}


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        ("fashion-mnits", "did you mean 'fashion-mnist'"),
        ("cnm", "did you mean 'cnn'"),
        ("cnn(dept=3)", "did you mean 'depth'"),
        ("rsnet(depth=8)", "did you mean 'resnet'"),
        ("digits[99]", "digits has classes"),
        ("nothing.safetensors", "no such file"),
        ("./nothing", "no such file"),
        ("x" * 10_000, "unknown"),
        ("", "say what"),
    ],
)
def test_what_is_nothing(call, thing, words):
    assert words in call("info", thing).sentence(2)


def test_a_folder_of_something_else(call, tmp_path):
    (tmp_path / "a").mkdir()
    assert "neither a zoo, a generator nor images" in call("info", tmp_path).sentence(2)


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "a", "folder"])
def test_values_that_are_not_finite_are_named(call, tmp_path, name):
    """Without an architecture, in every format."""
    tensors = {"w": torch.tensor([1.0, torch.inf]), "v": torch.ones(2), "n": torch.ones(1, dtype=torch.long)}
    for path, broken in ((tmp_path / name, ["w"]), (tmp_path / f"good-{name}", [])):
        if not broken:
            tensors["w"] = torch.ones(2)
        if name == "folder":
            path.mkdir()
            save_file(tensors, path / "model.safetensors")
        elif name.endswith("safetensors"):
            save_file(tensors, path)
        else:
            torch.save(tensors, path)
        answer = call("info", path, "--json").json
        assert answer["not_finite"] == broken and answer["finite"] == (not broken) and answer["values"] == 5
        shown = call("info", path).out
        assert ("not finite" in shown) == bool(broken) and ("all finite" in shown) != bool(broken)


def test_a_checkpoint_from_elsewhere(call, network, tmp_path):
    tensors, _ = load_tensors(network)
    path = tmp_path / "model_best.pth.tar"
    state = {
        "criterion.pos_weight": torch.ones(4),
        **{f"module.{name}": value for name, value in tensors.items()},
    }
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {"state": {0: {"m": torch.ones(2)}}}}, path)
    plain = call("info", path, "--json").json
    assert plain["kind"] == "pytorch checkpoint" and plain["keys"] == ["epoch", "state_dict", "optimizer"]
    assert plain["dictionaries"] == {"state_dict": 5, "optimizer.state.0": 1} and plain["finite"]
    answer = call("info", path, "--arch", ARCH, "--json").json
    assert answer["kind"] == "network" and answer["problem"] is None
    assert answer["read_from"] == "state_dict.module"
    assert answer["left_out"] == ["state_dict.criterion.pos_weight", "optimizer.state.0.m"]
    shown = call("info", path, "--arch", ARCH).out
    assert "read from" in shown and "left out" in shown and "optimizer.state.0 (1)" in shown
    wrong = call("info", path, "--arch", ARCH.replace("width=4", "width=5"), "--json").json
    assert "has shape" in wrong["problem"] and wrong["read_from"] is None


def test_one_of_several_networks(call, network, tmp_path):
    tensors, _ = load_tensors(network)
    path = tmp_path / "x.ckpt"
    torch.save({"model": {k: v * 2 for k, v in tensors.items()}, "model_ema": tensors}, path)
    assert "differ: 'model', 'model_ema'" in call("info", path, "--arch", ARCH, "--json").json["problem"]
    assert call("info", path, "--arch", ARCH, "--key", "model_ema", "--json").json["read_from"] == "model_ema"
    assert "--key" in call("evaluate", path, "--arch", ARCH, "--task", "digits").sentence(2)
    own = call("evaluate", network, "--json").json["accuracy"]
    answer = call("evaluate", path, "--arch", ARCH, "--task", "digits", "--key", "model_ema", "--json").json
    assert answer["accuracy"] == own and answer["read_from"] == "model_ema"
    assert answer["left_out"] == [f"model.{name}" for name in tensors]
    shown = call("evaluate", path, "--arch", ARCH, "--task", "digits", "--key", "model_ema").out
    assert "read from" in shown and "model.body.1.weight" in shown
    tuned = call(
        "finetune", path, "--arch", ARCH, "--task", "digits", "--key", "model_ema", "--steps", "1", "--json"
    )
    assert (
        tuned.json["start_accuracy"] == pytest.approx(own, abs=1e-6)
        and tuned.json["read_from"] == "model_ema"
    )
    assert "below 'nothing'" in call("evaluate", path, "--arch", ARCH, "--key", "nothing").sentence(2)


def test_what_is_no_file_of_weights(call, tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "x.safetensors", metadata={"architecture": "ResNet-18"})
    assert call("info", tmp_path / "x.safetensors", "--json").json["metadata"] == {
        "architecture": "ResNet-18"
    }
    (tmp_path / "x.pt").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "is a Git LFS pointer" in call("info", tmp_path / "x.pt").sentence(2)
    (tmp_path / "hub").mkdir()
    torch.save({"w": torch.ones(2)}, tmp_path / "hub" / "pytorch_model.bin")
    (tmp_path / "hub" / "config.json").write_text('{"model_type": "resnet"}')
    assert call("info", tmp_path / "hub", "--json").json["tensors"][0]["name"] == "w"
