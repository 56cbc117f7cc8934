"""select: a folder and a time in, a trained network and a ranking out."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from weightloom.cli.main import ORDER
from weightloom.evaluation import halving
from weightloom.io import load_tensors

ARCH = "mlp(depth=1,width=4)"


@pytest.fixture
def chosen(call, generator):
    """Select with the tiny generator."""

    def run(*arguments):
        return call("select", *arguments, "--generator", generator)

    return run


def test_the_main_job(chosen, call, photos, tmp_path):
    out, plot, state = tmp_path / "w.safetensors", tmp_path / "curves.png", tmp_path / "state.safetensors"
    options = ("--budget", "2s", "--shots", "3", "--out", out, "--plot", plot, "--state", state, "--json")
    answer = chosen("--data", photos, *options).json
    assert answer["task"].startswith("folder:") and answer["generator"] == "tiny-test"
    assert answer["winner"].startswith("mlp(depth=1,width=4,") and len(answer["ranking"]) == 1
    assert 0 <= answer["accuracy"] <= 1 and 0 <= answer["validation_accuracy"] <= 1
    assert answer["ranking"][0]["rungs"] and answer["ranking"][0]["steps"] > 0
    assert answer["images"]["held_back"] >= 4 and answer["test_images"] >= 4
    assert sum(answer["spent"].values()) == pytest.approx(answer["seconds"], abs=0.1)
    tensors, metadata = load_tensors(out)
    report = json.loads(metadata["report"])
    assert tensors and report["accuracy"] == pytest.approx(answer["accuracy"], abs=1e-6)
    assert report["selected"]["budget"] == 2.0
    assert call("evaluate", out, "--data", photos, "--json").json["accuracy"] == pytest.approx(
        answer["accuracy"], abs=1e-6
    )
    with Image.open(plot) as picture:
        assert picture.size[0] > 500
    again = chosen("--data", photos, *options).json
    assert again["ranking"][0]["steps"] >= answer["ranking"][0]["steps"], "it goes on from there"
    assert again["ranking"][0]["zero_shot"] == answer["ranking"][0]["zero_shot"]


def test_what_people_read(chosen):
    answer = chosen("--task", "digits[1,2,3,4]", "--budget", "1s", "--arch", ARCH, "--arch", ARCH)
    assert answer.code == 0 and answer.err == ""
    for words in ("mlp(depth=1,width=4): ", "test images right", "rung 1", "held back from", "generating"):
        assert words in answer.out
    assert answer.out.count("mlp(depth=1,width=4)") == 2, "the same candidate twice is one"


def test_an_interrupt_gives_the_best_so_far(chosen, monkeypatch, tmp_path):
    def pressed(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(halving, "fit_population", pressed)
    out = tmp_path / "w.safetensors"
    answer = chosen("--task", "digits", "--budget", "30s", "--out", out)
    assert answer.code == 0 and "interrupted: this is the best so far" in answer.err and out.is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--task NAME"),
        (("--task", "digits", "--data", "x"), "not both"),
        (("--task", "digits", "--budget", "soon"), "a budget is a time such as 60s"),
        (("--task", "digits", "--budget", "0s"), "from 1 second to 7 days"),
        (("--task", "digits", "--arch", "mpl"), "did you mean 'mlp'"),
        (("--task", "digits", "--arch", "cnn(depth=9)"), "it makes: mlp(depth=1,width=4)"),
        (("--task", "digits", "--shots", "0"), "--shots must be from 1"),
        (("--task", "digits", "--samples", "0"), "samples must be a whole number"),
        (("--task", "digits", "--out", "w.bin"), "must end in .safetensors"),
        (("--task", "digits", "--out", "w.safetensors", "--state", "w.safetensors"), "two different files"),
        (("--task", "digits", "--plot", "w.txt"), "must end in .png"),
        (("--task", "digits", "--instruction", ""), "the instruction is empty"),
        (("--data", "no-such-folder"), "no such folder"),
    ],
)
def test_bad_input(chosen, arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in chosen(*arguments).sentence(2)
    assert list(tmp_path.iterdir()) == []


def test_folders_that_are_too_small(chosen, tmp_path):
    for name, count in (("ants", 1), ("bees", 4), ("cats", 4), ("dogs", 4)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.new("RGB", (9, 9), (40 * number, 9, 9)).save(tmp_path / name / f"{number}.png")
    assert "class 'ants' has one training image" in chosen("--data", tmp_path).sentence(2)
    for file in (tmp_path / "ants").iterdir():
        file.unlink()
    assert "ants: this class has no images" in chosen("--data", tmp_path).sentence(2)


def test_it_stands_beside_generate():
    assert ORDER[:2] == ("generate", "select")
