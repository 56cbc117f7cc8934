"""``weightloom train --objective reward`` and ``generate --explain``, as a user calls them."""

from __future__ import annotations

import json

import pytest
import yaml
from typer.testing import CliRunner

from weightloom.cli.main import app
from weightloom.generators.layerwise import Layerwise, LayerwiseConfig, validity_of

TASK = "digits[3,1,7]@8c1"


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    config = LayerwiseConfig(
        largest=("cnn(depth=3,width=8)",), channels=1, codes=3, width=16, depth=1, heads=2,
        image_features=8, image_width=8,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("generator") / "tiny"
    limits = validity_of(config, (1, 8, 8), (2, 10), ("digits",))
    Layerwise(config, limits, name="tiny").save_pretrained(folder)
    return folder


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """The published settings of steering, with next to no rounds."""
    from weightloom.cli import train as module

    published = module.find_recipe("reward-tiny")
    raw = yaml.safe_load(published.read_text()) | {
        "one_task": {"rounds": 3, "trunks": 2, "heads": 4, "images": 50},
        "salt": "cli-tests", "datasets": ["digits"], "architectures": ["cnn(depth=2,width=6)"], "samples": 2,
        "tasks": 1, "shots": 4, "queries": 2, "loop": {"steps": 2, "log_every": 1, "save_every": 2},
    }  # fmt: skip
    path = tmp_path / "reward.yaml"
    path.write_text(yaml.safe_dump(raw))
    monkeypatch.setattr(module, "find_recipe", lambda name: path)


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_steering_is_the_work_of_one_process(call, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    answer = call("train", "layerwise-tiny", "--objective", "reward", "--out", tmp_path / "out")
    assert "start it without torchrun" in answer.sentence(2)


def test_one_task_is_steered_and_its_network_can_be_used(generator, quick, tmp_path):
    out = tmp_path / "better"
    done = call("train", generator, "--objective", "reward", "--task", TASK, "--arch", "cnn(depth=2,width=6)",
                "--shots", 4, "--out", out, "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["networks_scored"] == 3 * 2 * 4 and len(said["rewards"]) == 3
    measured = json.loads(call("evaluate", out / "network.safetensors", "--task", TASK, "--json").stdout)
    assert measured["accuracy"] == pytest.approx(said["accuracy"], abs=1e-6)


def test_a_generator_is_steered_across_tasks(generator, quick, tmp_path):
    out = tmp_path / "steered"
    done = call("train", generator, "--objective", "reward", "--out", out, "--json")
    assert done.exit_code == 0, done.output
    made = call("generate", "--generator", out, "--task", TASK, "--arch", "cnn(depth=3,width=5)", "--json")
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["initial_codes"] is None


def test_a_task_without_reward_is_refused(tmp_path):
    done = call("train", "layerwise-tiny", "--task", "digits", "--out", tmp_path / "x")
    assert done.exit_code == 2 and not (tmp_path / "x").exists()


def test_an_architecture_that_has_no_such_part_is_refused(generator, quick, tmp_path):
    done = call("train", generator, "--objective", "reward", "--task", TASK, "--arch", "vit(depth=1,width=8)",
                "--out", tmp_path / "x")  # fmt: skip
    assert done.exit_code == 2


def test_what_drove_a_result_is_said(generator):
    asked = ("--generator", generator, "--task", TASK, "--arch", "cnn(depth=2,width=6)", "--explain")
    plain = call("generate", *asked)
    assert plain.exit_code == 0, plain.output
    assert "without the examples" in plain.stdout and "attention goes to" in plain.stdout
    found = json.loads(call("generate", *asked, "--json").stdout)["explanation"]
    parts = {"removed", "intervals", "num_images", "nearest", "attention", "starts_from", "knows_checkpoints"}
    assert set(found) == parts
    assert set(found["intervals"]) == set(found["removed"]) and found["num_images"] > 0
    assert call("generate", "--generator", generator, "--explain").exit_code == 2
