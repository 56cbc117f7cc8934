from __future__ import annotations

import pytest
import yaml

RECIPE = {
    "kind": "generator",
    "generator": "igpg",
    "name": "tiny-trained",
    "encoder": {"tasks": {4: 2}, "tasks_at_once": 1, "shots": 2, "queries": 8, "loop": {"steps": 2}},
    "tokenizer": {
        "config": {"chunk": 128, "codes": 4, "vocabulary": 5, "width": 16, "depth": 1},
        "networks": 2,
        "images": 8,
        "loop": {"steps": 2},
    },
    "prior": {
        "config": {"width": 16, "depth": 1, "heads": 2, "image_features": 8, "image_width": 8},
        "objective": {"networks": 2, "queries": 8},
        "fresh": {4: 2},
        "wordings": 1,
        "supports": 1,
        "loop": {"steps": 2},
    },
}


def test_from_a_zoo_to_a_network(call, zoo, tmp_path):
    """The whole road at its smallest: train on the tiny zoo, then generate."""
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    out = tmp_path / "generator"
    answer = call("train", recipe, "--zoo", zoo, "--out", out, "--json").json
    assert answer["generator"] == str(out)
    described = call("info", out, "--json").json
    assert described["name"] == "tiny-trained" and described["checkpoints"] == 5
    options = ("--generator", out, "--arch", "mlp(depth=1,width=4)", "--samples", "1", "--json")
    made = call("generate", "digits", "--task", "digits", *options).json
    assert made["best"]["accuracy"] is not None and made["baselines"]["trained"] is not None


def test_an_interrupt_says_how_to_go_on(call, zoo, tmp_path, monkeypatch):
    import weightloom.training.run as room

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(room, "train_recipe", interrupted)
    said = call("train", "layerwise-tiny", "--zoo", zoo, "--out", tmp_path / "out").sentence(1)
    assert said.startswith("interrupted; ") and "same command" in said


@pytest.mark.parametrize(
    ("change", "words"),
    [({"kind": "zoo"}, "kind"), ({"generator": "gan"}, "generator"), ({"name": "../x"}, "name")],
)
def test_bad_recipes(call, zoo, tmp_path, change, words):
    recipe = tmp_path / "bad.yaml"
    recipe.write_text(yaml.safe_dump({**RECIPE, **change}))
    assert words in call("train", recipe, "--zoo", zoo, "--out", tmp_path / "out").sentence(2)
    assert not (tmp_path / "out").exists()


def test_refuses(call, tmp_path):
    assert "not a zoo" in call(
        "train", "layerwise-tiny", "--zoo", tmp_path, "--out", tmp_path / "o"
    ).sentence(2)
    said = call("train", "layerwise-tyni", "--zoo", tmp_path, "--out", tmp_path / "o").sentence(2)
    assert "did you mean 'layerwise-tiny'" in said
