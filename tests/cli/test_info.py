from __future__ import annotations

import pytest
import torch


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
