"""Several processes train what one would have trained, whoever started and whoever goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tests.training.sharding_worker import train
from torch import nn

import weightloom
from weightloom.errors import SpecError, TrainingError
from weightloom.generators.load import load_generator
from weightloom.io import load_tensors
from weightloom.seeding import torch_generator
from weightloom.training import LoopSettings, parallel, run_loop
from weightloom.training.parallel import WHOLE, Part
from weightloom.training.run import train_recipe

WORKER = Path(__file__).with_name("torchrun_worker.py")
SHARDING = Path(__file__).with_name("sharding_worker.py")
RECIPE = {
    "kind": "generator",
    "generator": "ghn",
    "name": "tiny",
    "task": "digits@8c1",
    "config": {"width": 8, "decoder": "coordinate", "rank": 8, "kernel": 5},
    "objective": {"networks": 8, "meta_batch": 4, "images": 16, "flip": False, "clip": 0.05},
    "loop": {
        "steps": 8,
        "learning_rate": 0.0003,
        "warmup": 2,
        "log_every": 1,
        "save_every": 2,
        "average": 0.5,
    },
    "evaluate_every": 8,
    "evaluate_networks": 2,
}


class Toy(nn.Module):
    """A line through points, of which item 0 alone sees the second weight, and only at times."""

    def __init__(self, items=6):
        super().__init__()
        self.items = items
        self.first, self.second = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return x @ self.first

    def objective(self):
        return ToyObjective(self)


class ToyObjective:
    def __init__(self, toy):
        self.toy, self.items = toy, toy.items

    def __call__(self, step, part=WHOLE):
        generator = torch_generator("toy", step)
        x = torch.randn(self.items, 3, generator=generator)
        loss = (self.toy(x[part.rows(self.items)]) - 1).square().sum() / self.items
        if 0 in part.of(self.items) and step % 2:
            loss = loss + (self.toy.second - 1).square().sum()
        return loss, {"drawn": float(x[part.rows(self.items)].sum()), "whole": part.share(self.items)}


def losses(log):
    return [entry["loss"] for entry in log]


def test_parts_are_all_of_a_batch():
    for count in range(1, 8):
        for items in range(count, 20):
            parts = [Part(index, count) for index in range(count)]
            assert [item for part in parts for item in part.of(items)] == list(range(items))
            assert sum(part.share(items) for part in parts) == pytest.approx(1)
            sizes = {len(part.of(items)) for part in parts}
            assert max(sizes) - min(sizes) <= 1


def test_accumulation_takes_the_same_steps(rng_untouched):
    logs, made = [], []
    for accumulate in (1, 2, 3, 6):
        toy = Toy()
        settings = LoopSettings(steps=12, learning_rate=0.05, warmup=1, log_every=1, accumulate=accumulate)
        logs.append(run_loop("toy", toy, toy.objective(), settings))
        made.append(toy)
    for log, toy in zip(logs[1:], made[1:], strict=True):
        assert losses(log) == pytest.approx(losses(logs[0]), rel=1e-5)
        assert [entry["drawn"] for entry in log] == pytest.approx([e["drawn"] for e in logs[0]], abs=1e-5)
        assert all(entry["whole"] == pytest.approx(1) for entry in log)
        assert torch.allclose(toy.first, made[0].first, atol=1e-5)
        assert torch.allclose(toy.second, made[0].second, atol=1e-5)


def test_a_part_that_is_not_finite_costs_the_step():
    toy = Toy()
    plain = toy.objective()

    class Broken(ToyObjective):
        def __call__(self, step, part=WHOLE):
            loss, numbers = plain(step, part)
            return loss * (float("inf") if part.index == 0 and step == 3 else 1.0), numbers

    log = run_loop("toy", toy, Broken(toy), LoopSettings(steps=6, log_every=6, accumulate=3))
    assert log[-1]["skipped"] == 1 and bool(torch.isfinite(toy.first).all())


def test_what_cannot_be_divided_is_one_sentence():
    toy = Toy(items=4)
    settings = LoopSettings(steps=1, accumulate=5)
    with pytest.raises(SpecError, match="toy: a batch of 4 cannot be divided into 5 parts"):
        run_loop("toy", toy, toy.objective(), settings)
    with pytest.raises(SpecError, match="toy: its batches cannot be divided; train it in one process"):
        run_loop("toy", toy, lambda step: toy.objective()(step), LoopSettings(steps=1, accumulate=2))
    for wrong in ({"accumulate": 0}, {"precision": "float8"}):
        with pytest.raises(SpecError, match="accumulate must be at least 1, and precision float32 or bf16"):
            LoopSettings(**wrong)


def test_half_the_bits_learn_too_and_weights_keep_theirs():
    toys = [Toy(), Toy()]
    logs = [
        run_loop("toy", toy, toy.objective(), LoopSettings(steps=40, learning_rate=0.05, precision=precision))
        for toy, precision in zip(toys, ("float32", "bf16"), strict=True)
    ]
    assert losses(logs[0]) != losses(logs[1]) and losses(logs[1]) == pytest.approx(losses(logs[0]), rel=0.05)
    assert toys[1].first.dtype == torch.float32


def test_the_forward_pass_is_compiled_while_it_is_trained(monkeypatch):
    asked = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: asked.append(self))
    toy = Toy()
    run_loop("toy", toy, toy.objective(), LoopSettings(steps=2, compile=True))
    assert asked == [toy] and toy._compiled_call_impl is None


def test_processes_at_different_stages_say_so(monkeypatch):
    monkeypatch.setattr(parallel, "gather", lambda value: [value, ("prior", 3)])
    with pytest.raises(TrainingError, match="process 1 is at prior, this one at toy"):
        run_loop("toy", Toy(), Toy().objective(), LoopSettings(steps=1))


def torchrun(*arguments):
    env = os.environ | {"PYTHONPATH": str(Path(weightloom.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*command, *map(str, arguments)], env=env, capture_output=True, text=True, timeout=240
    )


DISTRIBUTED = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch has no torch.distributed"
)


@DISTRIBUTED
@pytest.mark.parametrize("accumulate", [1, 2])
def test_divided_weights_take_the_same_steps(tmp_path, accumulate):
    """Each of two processes holds half of them in training, and all of them at its end."""
    alone, log, held = train(tmp_path / "alone", 9)
    done = torchrun(SHARDING, tmp_path / "out", 9, accumulate, tmp_path / "got")
    assert done.returncode == 0, done.stderr
    count = sum(p.numel() for p in alone.parameters() if p.requires_grad)
    for rank in range(2):
        tensors, _ = load_tensors(tmp_path / f"got.{rank}.safetensors")
        said = json.loads((tmp_path / f"got.{rank}.json").read_text())
        for name, value in alone.named_parameters():
            assert torch.allclose(tensors[name], value, atol=1e-5), name
        for entry, wanted in zip(said["log"], log, strict=True):
            assert {k: v for k, v in entry.items() if k != "seconds"} == pytest.approx(
                {k: v for k, v in wanted.items() if k != "seconds"}, rel=1e-4
            )
        assert any(entry.get("skipped") for entry in said["log"]), "one loss is infinite"
        assert set(held) == {count} and all(0.3 * count < own < 0.7 * count for own in said["held"])
    mine, _ = load_tensors(tmp_path / "out" / "state-0.safetensors")
    wanted, _ = load_tensors(tmp_path / "alone" / "state-0.safetensors")
    assert mine.keys() == wanted.keys(), "one process can go on from it"
    assert all(torch.allclose(mine[name], wanted[name], atol=1e-5) for name in mine)


def test_what_cannot_be_together_is_said():
    with pytest.raises(SpecError, match="shard and compile"):
        LoopSettings(shard=True, compile=True)


@DISTRIBUTED
@pytest.mark.parametrize("shard", [False, True])
def test_two_processes_and_one_take_turns(tmp_path, shard):
    """Two begin, one goes on in halves of their batches, two end: the curve of one that was left alone."""
    recipe, halves = tmp_path / "recipe.yaml", tmp_path / "halves.yaml"
    recipe.write_text(yaml.safe_dump({**RECIPE, "loop": {**RECIPE["loop"], "shard": shard}}))
    halves.write_text(yaml.safe_dump({**RECIPE, "loop": {**RECIPE["loop"], "accumulate": 2}}))
    alone = train_recipe(recipe, None, tmp_path / "alone")
    out = tmp_path / "out"
    done = torchrun(WORKER, recipe, out, 4, tmp_path / "count")
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"count.{rank}").read_text() for rank in range(2)] == ["2", "2"]
    assert (out / "work" / "ghn" / "state.json").is_file() and not (out / "config.json").exists()

    class Stopped(Exception):
        pass

    def stop(what, step, total):
        if step == 6:
            raise Stopped

    with pytest.raises(Stopped):
        train_recipe(halves, None, out, stop)
    done = torchrun("-m", "weightloom.cli", "train", recipe, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and json.loads(done.stdout)["generator"] == str(out), "one speaks"

    def lines(folder):
        return [json.loads(line) for line in (folder / "work" / "ghn" / "log.jsonl").read_text().splitlines()]

    curve, wanted = lines(out), lines(tmp_path / "alone")
    assert [entry["step"] for entry in curve] == list(range(1, 9))
    assert losses(curve) == pytest.approx(losses(wanted), rel=1e-5)
    assert [entry["accuracy"] for entry in curve] == pytest.approx([e["accuracy"] for e in wanted], abs=0.02)
    assert "val_mean" in curve[-1]
    made = load_generator(out)
    for (name, value), other in zip(made.state_dict().items(), alone.state_dict().values(), strict=True):
        assert torch.allclose(value, other, atol=1e-4), name
    states = sorted(p.name for p in (out / "work" / "ghn").iterdir())
    assert states == sorted(p.name for p in (tmp_path / "alone" / "work" / "ghn").iterdir()), "no litter"
    held, _ = load_tensors(out / "work" / "ghn" / "state-0.safetensors")
    assert any(name.startswith("average.") for name in held)
