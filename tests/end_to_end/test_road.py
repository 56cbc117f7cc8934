"""The main road at its smallest: a zoo of trained networks, a generator, networks that work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from weightloom.architectures import parse_architecture
from weightloom.cli.main import app
from weightloom.errors import UnsupportedRequestError
from weightloom.fitting import accuracy
from weightloom.generators import Sampling
from weightloom.generators.load import load_generator
from weightloom.tasks import parse_task
from weightloom.training.encoder import EncoderObjective
from weightloom.training.igpg import PriorObjective
from weightloom.training.run import train_recipe
from weightloom.training.tokenizer import TokenizerObjective

ARCHITECTURES = ("mlp(depth=1,width=4)", "cnn(depth=1,width=4)")


def files_of(out):
    """Every weight that a generator's folder holds."""
    return {p.relative_to(out): p.read_bytes() for p in sorted(out.rglob("*.safetensors"))}


@pytest.fixture(scope="module")
def generator(road):
    return load_generator(road.out)


@pytest.fixture(scope="module")
def task(road):
    """A task that the zoo was trained on."""
    return road.zoo.records(split="train", final=True)[0].parsed_task()


# ------------------------------------------------------------------------------- generated networks


def test_the_folder_is_a_generator(road, generator):
    assert generator.name == "road" and generator.kind == "igpg"
    assert generator.validity == road.model.validity
    assert len(generator.validity.architectures) == 2


@pytest.mark.parametrize("text", ARCHITECTURES)
def test_the_same_seed_gives_the_same_weights(generator, task, text, rng_untouched):
    options = {"instruction": "Tell digits apart", "support": task.support(8), "num_samples": 3}
    options["sampling"] = Sampling(temperature=1.0)
    first = generator.generate_many(text, **options, seed=5)
    again = generator.generate_many(text, **options, seed=5)
    other = generator.generate_many(text, **options, seed=6)
    assert all(torch.equal(a.flat, b.flat) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0].flat, first[1].flat)
    assert not any(torch.equal(a.flat, b.flat) for a, b in zip(first, other, strict=True))
    alone = generator.generate_many(text, **{**options, "num_samples": 1}, seed=5)[0]
    assert torch.allclose(alone.flat, first[0].flat, atol=1e-4), "a batch is its singles"


@pytest.mark.parametrize("text", ARCHITECTURES)
def test_what_is_loaded_is_what_was_trained(road, generator, task, text):
    for options in ({"support": task.support(8)}, {"instruction": "Tell digits apart"}):
        spec = parse_architecture(text).resolve(classes=4)
        before = road.model.generate_many(spec, **options, num_samples=2, seed=1)
        after = generator.generate_many(spec, **options, num_samples=2, seed=1)
        assert all(torch.equal(a.flat, b.flat) for a, b in zip(before, after, strict=True))
        for a, b in zip(before, after, strict=True):
            assert {**a.report, "seconds": 0} == {**b.report, "seconds": 0}


@pytest.mark.parametrize("text", ARCHITECTURES)
def test_a_saved_network_needs_nothing_of_ours(road, generator, task, text, tmp_path):
    """Plain safetensors go into the plain module, which answers as the sample did."""
    sample = generator.generate(text, support=task.support(8), num_samples=2, seed=3)
    path = sample.save(tmp_path / "network.safetensors")
    module = sample.architecture.build()
    module.load_state_dict(load_file(path))
    images, labels = task.data("test").all()
    with torch.no_grad():
        wanted, found = sample.module(images), module.eval()(images)
    assert torch.equal(found, wanted)
    right = float((found.argmax(-1) == labels).float().mean())
    scored = float(accuracy(sample.architecture, sample.flat[None], images, labels)[0])
    assert right == pytest.approx(scored, abs=0.01)


@pytest.mark.parametrize("text", ARCHITECTURES)
def test_generated_networks_work(road, generator, text):
    """Far above chance on tasks of the zoo and on class subsets that were held out."""
    for split in ("train", "held-out-subset"):
        names = sorted({r.task for r in road.zoo.records(split=split, final=True)})[:3]
        scores = []
        for one in map(parse_task, names):
            sample = generator.generate(text, support=one.support(16), num_samples=2)
            data = one.data("test").all()
            scores.append(float(accuracy(sample.architecture, sample.flat[None], *data)[0]))
        assert sum(scores) / len(scores) > 0.5, (split, scores)


def test_what_it_was_not_trained_for_is_refused(generator, task):
    with pytest.raises(UnsupportedRequestError, match="it makes: "):
        generator.generate("cnn(depth=2,width=4)", support=task.support(4))
    with pytest.raises(UnsupportedRequestError, match="3 to 4 classes, not 5"):
        generator.generate("cnn(depth=1,width=4,classes=5)", instruction="digits")


# ---------------------------------------------------------------------------------------- resumed


def test_a_finished_training_is_not_done_again(road, monkeypatch):
    def never(*_):
        raise AssertionError("a finished stage was trained")

    for objective in (EncoderObjective, TokenizerObjective, PriorObjective):
        monkeypatch.setattr(objective, "__call__", never)
    before = files_of(road.out)
    assert len(before) >= 10, "three stages with two states each, the tokenizer, the model, its zoo_index"
    model = train_recipe(road.recipe, road.zoo.path, road.out)
    assert files_of(road.out) == before
    for (name, a), (_, b) in zip(model.state_dict().items(), road.model.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_process_loses_nothing(road, tmp_path):
    """A real process, killed while it trains the prior; the same command goes on from there."""
    out = tmp_path / "generator"
    command = [sys.executable, "-m", "weightloom.cli", "train", str(road.recipe)]
    command += ["--zoo", str(road.zoo.path), "--out", str(out), "--json"]
    source = Path(__import__("weightloom").__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while not (out / "work" / "prior" / "state.json").is_file() and process.poll() is None:
            assert time.monotonic() < until, "the training never reached the prior"
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    train_recipe(road.recipe, road.zoo.path, out)
    assert files_of(out) == files_of(road.out)


# ------------------------------------------------------------------------------------ by command


@pytest.fixture(scope="module")
def call():
    """Run one command; its one JSON object."""
    runner = CliRunner()

    def run(*arguments):
        result = runner.invoke(app, [str(a) for a in arguments] + ["--json"], prog_name="weightloom")
        assert result.exit_code == 0, result.stderr
        assert result.stdout.count("\n") == 1 and result.stdout.startswith("{"), result.stdout
        return json.loads(result.stdout)

    return run


@pytest.fixture(scope="module")
def by_command(road, call, tmp_path_factory):
    """The folders of the zoo and the generator that the commands made."""
    folder = tmp_path_factory.mktemp("by-command")
    built = call("zoo", "build", road.zoo_recipe, "--out", folder / "zoo")
    assert (built["networks"], built["checkpoints"]) == (18, 34)
    made = call("train", road.recipe, "--zoo", folder / "zoo", "--out", folder / "generator")
    assert made["generator"] == str(folder / "generator")
    return folder


def test_commands_make_what_the_library_makes(road, by_command):
    assert files_of(by_command / "zoo") == files_of(road.zoo.path)
    assert files_of(by_command / "generator") == files_of(road.out)


@pytest.mark.parametrize("text", ARCHITECTURES)
def test_a_command_generates_what_the_library_generates(by_command, call, generator, task, text, tmp_path):
    out = tmp_path / "network.safetensors"
    options = ("--samples", "2", "--seed", "7", "--out", out)
    made = call(
        "generate", "Tell digits apart", "--task", task, "--arch", text,
        "--generator", by_command / "generator", *options,
    )  # fmt: skip
    wanted = generator.generate(
        text, instruction="Tell digits apart", support=task.support(16, seed=7), num_samples=2, seed=7
    )
    held = load_file(made["best"]["file"])
    assert held.keys() == wanted.state_dict.keys()
    assert all(torch.equal(value, wanted.state_dict[name]) for name, value in held.items())
    data = task.data("test").all()
    scored = float(accuracy(wanted.architecture, wanted.flat[None], *data)[0])
    assert made["best"]["accuracy"] == pytest.approx(scored, abs=1e-6)
    assert made["baselines"]["trained"] is not None and made["baselines"]["nearest_checkpoint"] is not None
    assert made["best"]["accuracy"] > made["baselines"]["random_init"]
    assert set(made) >= {
        "generator", "instruction", "architecture", "task", "num_parameters", "seconds",
        "params_per_second", "samples", "best", "baselines",
    }  # fmt: skip


def test_commands_look_into_what_was_made(by_command, call, task):
    listed = call("zoo", "list", by_command / "zoo", "--final", "--split", "held-out-subset")
    assert len(listed["checkpoints"]) == 4
    assert call("zoo", "verify", by_command / "zoo")
    described = call("info", by_command / "generator")
    assert described["name"] == "road" and described["checkpoints"] == 12
