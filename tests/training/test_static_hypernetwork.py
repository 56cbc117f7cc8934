"""Episodes: they teach, they can be stopped and gone on with, and what makes no sense is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from weightloom.errors import InputError, SpecError
from weightloom.fitting import accuracy
from weightloom.generators.load import load_generator
from weightloom.generators.static_hypernetwork import StaticHypernetwork
from weightloom.training.run import train_recipe
from weightloom.training.static_hypernetwork import EpisodeObjective
from weightloom.zoo import Zoo

RECIPE = {
    "kind": "generator",
    "generator": "static_hypernetwork",
    "name": "static-test",
    "config": {"embedding_size": 8, "block": 4, "task_size": 4, "image_features": 8, "image_width": 8},
    "tasks": {3: 20, 4: 20},
    "shots": 8,
    "queries": 32,
    "loop": {"steps": 60, "learning_rate": 0.01, "warmup": 5, "log_every": 20, "save_every": 20},
}


def write(folder: Path, **changes) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, **changes}))
    return path


def test_it_learns_to_make_networks_for_tasks_it_has_not_seen(zoo, tmp_path):
    done = []
    model = train_recipe(write(tmp_path), zoo.path, tmp_path / "out", lambda *step: done.append(step))
    assert isinstance(model, StaticHypernetwork) and done[-1] == ("static hypernetwork", 60, 60)
    again = load_generator(tmp_path / "out")
    fresh = StaticHypernetwork(model.config, model.validity).eval()
    task = zoo.records(split="held-out-order", final=True)[0].parsed_task()
    images, labels = task.data("test").all()
    scores = {}
    for text in ("mlp(depth=1,width=4)", "cnn(depth=1,width=4)"):
        for name, made in (("trained", again), ("fresh", fresh)):
            sample = made.generate(text, support=task.support(16))
            scores[name, text] = float(accuracy(sample.architecture, sample.flat[None], images, labels)[0])
        assert scores["trained", text] > 0.6, scores  # chance is 1/3
    assert sum(v for k, v in scores.items() if k[0] == "trained") > sum(
        v for k, v in scores.items() if k[0] == "fresh"
    )


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(zoo, tmp_path):
    whole = train_recipe(write(tmp_path), zoo.path, tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(what, step, steps):
        if step == 45:
            raise Stop

    with pytest.raises(Stop):
        train_recipe(write(tmp_path), zoo.path, tmp_path / "parts", stop)
    parts = train_recipe(write(tmp_path), zoo.path, tmp_path / "parts")
    state = parts.state_dict()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_a_recipe_of_a_zoo_is_enough(zoo, tmp_path):
    (tmp_path / "the-zoo.yaml").write_text(yaml.safe_dump(zoo.about()["recipe"]))
    path = write(tmp_path, zoo="the-zoo")
    alone, told = (train_recipe(path, z, tmp_path / str(z is None)) for z in (None, zoo.path))
    for name, value in told.state_dict().items():
        assert torch.equal(value, alone.state_dict()[name]), name
    with pytest.raises(InputError, match="--zoo"):
        train_recipe(write(tmp_path), None, tmp_path / "out")


def test_what_makes_no_sense_is_refused(zoo, tmp_path):
    with pytest.raises(SpecError, match="nonsense"):
        train_recipe(write(tmp_path, config={"nonsense": 1}), zoo.path, tmp_path / "out")
    with pytest.raises(SpecError, match="tasks"):
        train_recipe(write(tmp_path, tasks={}), zoo.path, tmp_path / "out")
    Zoo(tmp_path / "foreign", create=True)
    with pytest.raises(InputError, match="not built from a recipe"):
        train_recipe(write(tmp_path), tmp_path / "foreign", tmp_path / "out")


def test_parts_of_a_step_add_up_to_it(zoo, tmp_path, adds_up, halves_well):
    made = train_recipe(write(tmp_path, loop={"steps": 1}), zoo.path, tmp_path / "out").train()
    tasks = [record.parsed_task() for record in zoo.records(split="train", final=True)]
    objective = EpisodeObjective(made, tasks, shots=4, queries=16)
    assert objective.items == 2
    adds_up(made, objective, counts=(2,))
    halves_well(made, objective)
