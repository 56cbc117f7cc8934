"""weightloom finetune within a budget."""

from __future__ import annotations

import json

import pytest
import torch

from weightloom.architectures import parse_architecture
from weightloom.cli.inputs import load_network
from weightloom.cli.tuning import start_of
from weightloom.fitting import initial_flats
from weightloom.generators import Sample
from weightloom.io import load_tensors
from weightloom.tasks import NetworkCard, parse_task


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A random network for three digits, as if made from four examples of each."""
    spec = parse_architecture("cnn(depth=1,width=4)").resolve(classes=3, input=(1, 8, 8))
    report = {"seed": 5, "support_images": 12, "class_names": ["3", "1", "7"]}
    card = NetworkCard(class_names=("3", "1", "7"), input=(1, 8, 8), made_by="a test")
    path = tmp_path_factory.mktemp("fresh") / "fresh.safetensors"
    return Sample(spec, initial_flats(spec, [0])[0], report, card).save(path)


def test_better_and_measured(call, fresh, tmp_path):
    out = tmp_path / "better.safetensors"
    asked = (
        "finetune",
        fresh,
        "--task",
        "digits[3,1,7]@8c1",
        "--budget",
        "2s",
        "--out",
        out,
        "--from-random",
    )
    found = call(*asked, "--json").json
    assert found["accuracy"] > 0.85 > found["start_accuracy"] and found["interval"][0] < found["accuracy"]
    assert found["start_interval"] and found["random_init_accuracy"] > 0.8
    assert found["held_back"]["after"] >= found["held_back"]["before"]
    assert found["chosen"]["what"] in ("all layers", "last layer") and found["tuning_seconds"] < 4
    card = call("info", out, "--json").json["card"]
    assert card["temperature"] == pytest.approx(found["calibration"]["temperature"], rel=1e-5)
    assert "fine-tuned in the same way without it" in card["calibration"] and card["made_by"].startswith(
        "finetune, "
    )
    report = json.loads(load_tensors(out)[1]["report"])
    assert report["tuned"]["sentence"] == found["sentence"] and report["from"]["seed"] == 5
    again = call("evaluate", out, "--task", "digits[3,1,7]@8c1", "--json").json
    assert again["accuracy"] == pytest.approx(found["accuracy"], abs=1e-6)


def test_for_people_and_a_folder_of_few(call, generator, photos, tmp_path):
    made = tmp_path / "made.safetensors"
    asked = ("generate", "--generator", generator, "--data", photos, "--arch", "mlp(depth=1,width=4)")
    assert call(*asked, "--shots", "2", "--out", made).code == 0
    answer = call("finetune", made, "--data", photos, "--budget", "1s")
    assert answer.code == 0, answer.err
    assert "before" in answer.out and "left out once in 4 parts" in answer.out
    assert "temperature" in answer.out and "what moves" in answer.out


def test_the_examples_of_a_start_are_known(fresh):
    task = parse_task("digits[3,1,7]@8c1")
    start = start_of(load_network(fresh), task)
    shown = {image.numpy().tobytes() for image in task.support(4, 5).images.flatten(0, 1)}
    images, _ = task.data("train").all()
    seen = torch.tensor([image.numpy().tobytes() in shown for image in images])
    assert torch.equal(start.unseen, ~seen) and int(seen.sum()) >= 12 and start.features is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--budget", "soon"), "a budget is a time"),
        (("--budget", "0s"), "from 1 second"),
        (("--budget", "2s", "--steps", "3"), "give one of them"),
        (("--budget", "2s", "--lr", "0.1"), "--lr goes with --steps"),
        (("--plot", "a.png"), "--plot goes with --steps"),
    ],
)
def test_refusals(call, network, options, said):
    assert said in call("finetune", network, "--task", "digits", *options).sentence(2)


def test_one_image_of_a_class(call, network, tmp_path):
    from PIL import Image

    for name in "0123456789":
        (tmp_path / "one" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (20 * int(name), 0, 0)).save(tmp_path / "one" / name / "a.png")
    answer = call("finetune", network, "--data", tmp_path / "one", "--budget", "1s")
    assert "image" in answer.sentence(2)
