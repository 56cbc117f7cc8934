"""Episodes teach a layer-wise generator; a stopped run goes on; what makes no sense is refused."""

from __future__ import annotations

import pytest
import torch
import yaml

from weightloom.architectures import parse_architecture
from weightloom.errors import InputError, SpecError
from weightloom.fitting import accuracy
from weightloom.generators.layerwise import Layerwise, LayerwiseConfig, validity_of
from weightloom.generators.load import load_generator
from weightloom.seeding import torch_generator
from weightloom.tasks import TaskSampler, parse_task
from weightloom.training.layerwise import FIRST_TASK, EpisodeObjective, EpisodeSettings, draw_episode
from weightloom.training.run import train_recipe

RECIPE = {
    "kind": "generator",
    "generator": "layerwise",
    "name": "layerwise-test",
    "salt": "training-tests",
    "datasets": ["digits"],
    "size": 8,
    "channels": 1,
    "classes": [3, 5],
    "architectures": ["cnn(depth=2,width=8)", "cnn(depth=3,width=4)", "mlp(depth=2,width=16)"],
    "encoder": {
        "tasks": {3: 4}, "tasks_at_once": 1, "shots": 2, "queries": 8,
        "loop": {"steps": 3, "log_every": 1, "save_every": 3},
    },
    "config": {
        "largest": ["cnn(depth=3,width=8)", "mlp(depth=2,width=16)"], "channels": 1,
        "codes": 4, "experts": 1, "width": 16, "depth": 1, "heads": 2, "image_features": 8, "image_width": 8,
    },
    "objective": {"tasks": 2, "shots": [8], "queries": 8, "told_instruction": 0.2},
    "loop": {"steps": 80, "learning_rate": 0.01, "weight_decay": 0.0, "warmup": 5, "log_every": 20,
             "save_every": 20},
}  # fmt: skip


def write(folder, **changes):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, **changes}))
    return path


pytestmark = pytest.mark.usefixtures("text_encoder")


def test_it_learns_and_other_sizes_learn_with_it(tmp_path):
    made = train_recipe(write(tmp_path), None, tmp_path / "out")
    assert isinstance(made, Layerwise)
    again = load_generator(tmp_path / "out")
    fresh = Layerwise(made.config, validity_of(made.config, (1, 8, 8), (2, 5), ("digits",))).eval()
    scores = {}
    for text in ("cnn(depth=3,width=8)", "cnn(depth=3,width=6)", "mlp(depth=2,width=16)"):
        for index in range(6):
            task = TaskSampler(["digits"], "training-tests", "held-out-transform", (5, 5), size=8, channels=1)
            chosen = task.task(index)
            images, labels = chosen.data("test").all()
            for name, model in (("trained", again), ("fresh", fresh)):
                sample = model.generate(text, support=chosen.support(8))
                right = float(accuracy(sample.architecture, sample.flat[None], images, labels))
                scores[name, text] = scores.get((name, text), 0.0) + right / 6
    assert sum(v for k, v in scores.items() if k[0] == "trained") > sum(
        v for k, v in scores.items() if k[0] == "fresh"
    ), scores


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(tmp_path):
    whole = train_recipe(write(tmp_path), None, tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(what, done, total):
        if what == "layer-wise generator" and done == 50:
            raise Stop

    with pytest.raises(Stop):
        train_recipe(write(tmp_path), None, tmp_path / "parts", stop)
    parts = train_recipe(write(tmp_path), None, tmp_path / "parts")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name


def test_a_folder_of_another_recipe_is_refused(tmp_path):
    train_recipe(write(tmp_path, loop={**RECIPE["loop"], "steps": 2}), None, tmp_path / "out")
    with pytest.raises(InputError, match="another recipe"):
        train_recipe(write(tmp_path, seed=1, loop={**RECIPE["loop"], "steps": 2}), None, tmp_path / "out")


def test_examples_and_other_images_are_of_the_same_classes_and_not_the_same_images():
    task = parse_task("digits[3,1,7]@8c1")
    support, queries = draw_episode(task, 6, 4, torch_generator("episode"))
    assert support.shape == (3, 6, 1, 8, 8) and queries.shape == (3, 4, 1, 8, 8)
    both = torch.cat([support, queries], dim=1).flatten(2)
    for images in both:
        assert len(torch.unique(images, dim=0)) == 10


def test_held_out_tasks_are_never_drawn():
    sampler = TaskSampler(["digits"], "training-tests", "train", (3, 5), size=8, channels=1)
    assert {sampler.split_of(sampler.task(FIRST_TASK + i)) for i in range(50)} == {"train"}


@pytest.mark.parametrize(
    "changes",
    [{"tasks": 0}, {"shots": []}, {"shots": [1]}, {"shots": [True]}, {"queries": 0}, {"described": 0},
     {"drop_dataset": 1.5}, {"told_instruction": -1}],
)  # fmt: skip
def test_settings_that_make_no_sense(changes):
    with pytest.raises(SpecError):
        EpisodeSettings(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": {"nonsense": 1}},
        {"config": {"nonsense": 1}},
        {"config": {**RECIPE["config"], "experts": 3}},
        {"architectures": ["vit(depth=1,width=8)"]},
        {"architectures": ["cnn(depth=3,width=8,norm=none)"]},
    ],
)
def test_recipes_that_make_no_sense(tmp_path, changes):
    with pytest.raises(InputError):
        train_recipe(write(tmp_path, **changes), None, tmp_path / "out")


def test_parts_of_a_step_add_up_to_it(adds_up, halves_well):
    config = LayerwiseConfig(**RECIPE["config"])
    model = Layerwise(config, validity_of(config, (1, 8, 8), (2, 5), ("digits",))).train()
    model.images.eval()
    sampler = TaskSampler(["digits"], "training-tests", "train", (3, 5), size=8, channels=1)
    specs = [parse_architecture(text).resolve(input=(1, 8, 8)) for text in RECIPE["architectures"]]
    settings = EpisodeSettings(tasks=3, shots=(8,), queries=8, told_instruction=0.5)
    objective = EpisodeObjective(model, sampler, specs, settings)
    assert objective.items == 3
    adds_up(model, objective)
    halves_well(model, objective)
