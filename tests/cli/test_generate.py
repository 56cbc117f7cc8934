from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from weightloom.io import load_tensors

ARCH = "mlp(depth=1,width=4)"


@pytest.fixture
def made(call, generator):
    """Generate with the tiny generator."""

    def run(*arguments, arch=ARCH):
        return call("generate", *arguments, "--generator", generator, "--arch", arch)

    return run


def test_the_main_job(made, tmp_path):
    out, plot = tmp_path / "new" / "digits.safetensors", tmp_path / "curves.png"
    options = ("--samples", "3", "--seed", "0", "--out", out, "--plot", plot, "--steps", "4", "--json")
    answer = made("Read handwritten digits", "--task", "digits", *options).json

    assert answer["generator"] == "tiny-test" and answer["instruction"] == "Read handwritten digits"
    assert answer["architecture"].startswith("mlp(depth=1,width=4,")
    assert answer["architecture"].endswith("classes=10,input=3x8x8)")
    assert answer["task"] == "digits@8c3", "the task takes the size that the generator sees"
    assert answer["num_parameters"] == 822 and answer["test_images"] == 500
    assert answer["seconds"] > 0 and answer["params_per_second"] > 0
    assert len(answer["samples"]) == 3
    for sample in answer["samples"]:
        assert 0 <= sample["accuracy"] <= 1 and 0 <= sample["support_accuracy"] <= 1
        assert sample["novelty"]["distance"] >= 0 and sample["novelty"]["nearest"]
    best = min(range(3), key=lambda i: answer["samples"][i]["support_loss"])
    assert answer["best"]["sample"] == best, "chosen on the examples, never on test images"
    assert answer["best"]["accuracy"] == answer["samples"][best]["accuracy"]
    assert set(answer["baselines"]) == {"random_init", "nearest_checkpoint", "trained"}
    assert all(0 <= value <= 1 for value in answer["baselines"].values())
    assert answer["nearest"]["task"] == "digits@8c3"
    assert answer["curves"]["steps"] == [0, 1, 2, 4]
    assert answer["curves"]["generated"][0] == pytest.approx(answer["best"]["accuracy"], abs=1e-6)
    assert len(answer["curves"]["random_init"]) == len(answer["curves"]["nearest_checkpoint"]) == 4

    tensors, metadata = load_tensors(answer["best"]["file"])
    assert sum(tensor.numel() for tensor in tensors.values()) == 822
    report = json.loads(metadata["report"])
    assert report["task"] == "digits@8c3" and report["generator"] == "tiny-test" and report["seed"] == 0
    with Image.open(plot) as picture:
        assert picture.size[0] > 500


def test_what_people_read(made):
    answer = made("Read digits", "--task", "digits", "--samples", "2")
    assert answer.code == 0
    for words in ("tiny-test generated 2 networks of 822 parameters", "random initialisation", "trained"):
        assert words in answer.out
    assert answer.out.count(" *") == 1, "the best one is marked"


def test_the_same_seed_gives_the_same_bytes(made, tmp_path):
    files = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for file, seed in zip(files, ("5", "5", "6"), strict=True):
        made(
            "--task",
            "digits",
            "--samples",
            "1",
            "--seed",
            seed,
            "--temperature",
            "1",
            "--no-compare",
            "--out",
            file,
            "--json",
        ).json
    weights = [load_tensors(file)[0] for file in files]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert not all(torch.equal(value, weights[2][name]) for name, value in weights[0].items())


def test_a_folder_of_images(made, photos):
    answer = made("--data", photos, "--samples", "2", "--shots", "3", "--json").json
    assert answer["task"].startswith("folder:") and answer["instruction"] is None
    assert answer["best"]["accuracy"] is not None and answer["baselines"]["random_init"] is not None
    assert answer["baselines"]["trained"] is None


def test_no_task_at_all(made):
    answer = made("digits", "--samples", "1", "--json", arch="mlp(depth=1,width=4,classes=5)").json
    assert answer["task"] is None and answer["best"] == {
        "accuracy": None,
        "interval": None,
        "num_images": None,
        "file": None,
        "sample": 0,
    }
    assert answer["baselines"] == {"nearest_checkpoint": None, "random_init": None, "trained": None}
    assert answer["samples"][0]["support_accuracy"] is None


def test_what_a_generator_does_not_heed_is_said(call):
    request = ("generate", "two photos", "--arch", "cnn(depth=1,width=4,classes=10)", "--samples", "2")
    answer = call(*request, "--generator", "ghn-cifar10-tiny")
    assert answer.code == 0 and "reads no words" in answer.err and "all alike" in answer.err


def test_without_comparing(made):
    answer = made("--task", "digits", "--samples", "1", "--no-compare", "--json").json
    assert answer["best"]["accuracy"] is not None
    assert answer["baselines"] == {"nearest_checkpoint": None, "random_init": None, "trained": None}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("", "--task", "digits"), "the instruction is empty"),
        (("word " * 20_000, "--task", "digits"), "at most 2000"),
        (("\x01\x02", "--task", "digits"), "control characters"),
        (("--task", "digitz"), "did you mean 'digits'"),
        (("--task", "digits[1,2,3]"), "4 to 10 classes, not 3"),
        (("--task", "digits@28c1"), "3x8x8"),
        (("--task", "digits", "--data", "x"), "not both"),
        (("--data", "no-such-folder"), "no such folder"),
        (("--task", "digits", "--samples", "0"), "from 1 to 4,096"),
        (("--task", "digits", "--shots", "0"), "--shots must be from 1"),
        (("--task", "digits", "--shots", "9999999999"), "--shots must be from 1"),
        (("--task", "digits", "--temperature", "nan"), "temperature must be from 0"),
        (("--task", "digits", "--top-p", "0"), "top_p"),
        (("--task", "digits", "--out", "weights.bin"), "must end in .safetensors"),
        (("--task", "digits", "--out", __file__ + "/a.safetensors"), "is not a folder"),
        (("--task", "digits", "--plot", "curves.txt"), "must end in .png"),
        (("a", "--plot", "curves.png"), "needs --task or --data"),
        (("Tell digits apart",), "number of classes is not known"),
        (("--samples", "many"), "'--samples'"),
    ],
)
def test_bad_input(made, arguments, words):
    assert words in made(*arguments).sentence(2)


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("mpl(depth=1)", "did you mean 'mlp'"),
        ("mlp(dept=1)", "did you mean 'depth'"),
        ("mlp(depth=1", "mlp(depth=1"),
        ("cnn(depth=2,width=8)", "it makes: mlp(depth=1,width=4)"),
        ("mlp(depth=1,width=4,classes=7)", "7 classes"),
        ("x" * 5000, "at most 1,000 characters"),
    ],
)
def test_bad_architectures(made, arch, words):
    assert words in made("--task", "digits", arch=arch).sentence(2)


def test_unknown_generators(call, tmp_path):
    assert "unknown generator" in call("generate", "--task", "digits", "--generator", "igpg-tiyn").sentence(2)
    (tmp_path / "config.json").write_text('{"kind": "igpg"')
    assert "is not JSON" in call("generate", "--task", "digits", "--generator", tmp_path).sentence(2)
    (tmp_path / "config.json").write_text("[]")
    assert "is no generator" in call("generate", "--task", "digits", "--generator", tmp_path).sentence(2)
    assert "unknown generator" in call("generate", "--generator", "x" * 5000).sentence(2)
    (tmp_path / "config.json").write_text('{"kind": "igpg"}')
    call("generate", "--task", "digits", "--generator", tmp_path).sentence(2)


def test_bad_folders(made, tmp_path):
    assert "at least two classes" in made("--data", tmp_path).sentence(2)
    for name in "abcd":
        (tmp_path / name).mkdir()
    assert "no images" in made("--data", tmp_path).sentence(2)
    for name in "abcd":
        (tmp_path / name / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    assert "cannot be read" in made("--data", tmp_path).sentence(2)


def test_nothing_is_written_when_it_fails(made, tmp_path):
    out = tmp_path / "a.safetensors"
    made("--task", "digits[1,2]", "--out", out).sentence(2)
    assert list(tmp_path.iterdir()) == []
