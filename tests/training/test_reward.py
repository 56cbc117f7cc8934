"""Steering by reward: it finds better networks than luck does, keeps what it had, and refuses nonsense."""

from __future__ import annotations

import pytest
import torch
import yaml

from weightloom.architectures import parse_architecture
from weightloom.errors import InputError, SpecError, TrainingError
from weightloom.fitting import accuracy, discriminant
from weightloom.generators import Sampling
from weightloom.generators.layerwise import Layerwise, LayerwiseConfig, validity_of
from weightloom.generators.load import load_generator
from weightloom.generators.random_init import RandomInit
from weightloom.generators.streaming import layerwise_of
from weightloom.tasks import parse_task
from weightloom.training.recipe import RewardRecipe
from weightloom.training.reward import (
    RewardSettings,
    accuracy_reward,
    best_of_prior,
    settings_of,
    steer,
    steered_network,
    train_across,
)

TASK = "digits[3,1,7,8,5]+rot90@8c1"
SETTINGS = RewardSettings(rounds=12, trunks=3, heads=8, images=200)


@pytest.fixture(scope="module")
def model():
    config = LayerwiseConfig(
        largest=("cnn(depth=3,width=4)",), channels=1, codes=4, width=16, depth=1, heads=2,
        image_features=8, image_width=8,
    )  # fmt: skip
    return Layerwise(config, validity_of(config, (1, 8, 8), (2, 10), ("digits",)), name="tiny").eval()


@pytest.fixture(scope="module")
def task():
    return parse_task(TASK)


def request(model, task, shots=4):
    return model.check("cnn(depth=3,width=4)", None, task.support(shots), 1, 0, Sampling(temperature=0.0))


def test_one_task_gets_better_on_images_that_the_reward_never_sees(model, task):
    asked = request(model, task)
    steered = steer(model, asked, task.data("train"), SETTINGS)
    assert len(steered.rewards) == 12 and steered.scored == 12 * 3 * 8
    latents, moves = best_of_prior(model, asked, task.data("train"), SETTINGS)
    assert latents.shape == steered.latents.shape and moves.shape == steered.moves.shape
    before = model.generate(asked.architecture, support=asked.support, sampling=asked.sampling).flat
    flats = torch.stack([before, steered_network(model, asked, steered)])
    first, last = accuracy(asked.architecture, flats, *task.data("test").all()).tolist()
    assert last > first and steered.rewards[-1] > steered.rewards[0]


def test_without_a_single_round_s_effect_the_network_is_the_one_that_was_there(model, task):
    asked = request(model, task)
    still = RewardSettings(rounds=1, trunks=2, heads=2, images=20, code_rate=0.0, head_rate=0.0)
    flat = steered_network(model, asked, steer(model, asked, task.data("train"), still))
    before = model.generate(asked.architecture, support=asked.support, sampling=asked.sampling).flat
    assert torch.allclose(flat, before, atol=1e-5)


def test_the_leash_holds_back(model, task):
    asked = request(model, task)
    loose = steer(model, asked, task.data("train"), RewardSettings(rounds=6, trunks=2, heads=4, images=50))
    tight = RewardSettings(rounds=6, trunks=2, heads=4, images=50, leash=0.5)
    held = steer(model, asked, task.data("train"), tight)
    assert held.moves.norm() < loose.moves.norm() and held.shift.norm() < loose.shift.norm()


def test_a_reward_that_is_not_finite_loses_nothing(model, task, tmp_path):
    asked, calls = request(model, task), []

    def breaks(answers, labels):
        calls.append(1)
        score = accuracy_reward(answers, labels)
        return score / 0 if len(calls) > 7 * SETTINGS.trunks + 1 else score

    with pytest.raises(TrainingError, match="round 8 is not finite"):
        steer(model, asked, task.data("train"), SETTINGS, reward=breaks, folder=tmp_path)
    assert (tmp_path / "steering.safetensors").is_file()
    gone_on = steer(model, asked, task.data("train"), SETTINGS, folder=tmp_path)
    whole = steer(model, asked, task.data("train"), SETTINGS)
    assert torch.equal(gone_on.moves, whole.moves) and torch.equal(gone_on.shift, whole.shift)


def test_a_folder_of_another_task_is_refused(model, task, tmp_path):
    few = RewardSettings(rounds=1, trunks=2, heads=2, images=20)
    steer(model, request(model, task), task.data("train"), few, folder=tmp_path)
    other = parse_task("digits[0,1,2]@8c1")
    with pytest.raises(InputError, match="another"):
        steer(model, request(model, other), other.data("train"), few, folder=tmp_path)


def test_it_starts_from_examples(model, task):
    bare = model.check("cnn(depth=3,width=4,classes=5)", None, None, 1, 0, Sampling())
    for asked in (bare, request(model, task, shots=1)):
        with pytest.raises(InputError, match="at least 2 of each class"):
            steer(model, asked, task.data("train"), SETTINGS)


def test_moves_are_in_units_of_what_the_examples_leave_open():
    features = torch.randn(3, 16, 5, generator=torch.Generator().manual_seed(0))
    plain, moved = discriminant(features), discriminant(features, moves=torch.zeros(3, 5))
    assert all(torch.allclose(a, b) for a, b in zip(plain, moved, strict=True))
    few = discriminant(features[:, :4], moves=torch.ones(3, 5))[0] - discriminant(features[:, :4])[0]
    assert bool(few.abs().sum() > 0)


@pytest.mark.parametrize(
    "changes", [{"rounds": 0}, {"trunks": 1}, {"heads": 1}, {"images": 1}, {"spread": 0}, {"leash": -1}]
)
def test_settings_that_make_no_sense(changes):
    with pytest.raises(SpecError):
        RewardSettings(**changes)


RECIPE = {
    "kind": "reward",
    "name": "reward-test",
    "salt": "training-tests",
    "datasets": ["digits"],
    "classes": [3, 4],
    "architectures": ["cnn(depth=3,width=4)"],
    "tasks": 2,
    "samples": 3,
    "shots": 4,
    "queries": 4,
    "loop": {"steps": 3, "learning_rate": 0.001, "log_every": 1, "save_every": 3},
}


def test_a_prior_is_steered_across_tasks_and_nothing_but_the_prior(model, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    model.save_pretrained(tmp_path / "start")
    start = load_generator(tmp_path / "start")
    made = train_across(path, start, tmp_path / "out", lambda *_: None)
    again = load_generator(tmp_path / "out").state_dict()
    before = {name: value.half().float() for name, value in model.state_dict().items()}
    changed = {name for name, value in made.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("out.") for name in changed)
    kept = ("dictionary.", "images.", "shrinkage.", "sharpness.")
    assert not any(name.startswith(kept) for name in changed)
    assert all(torch.equal(again[name], value) for name, value in made.state_dict().items())


def test_only_what_has_a_layerwise_part_is_steered(model):
    spec = parse_architecture("cnn(depth=3,width=4)").resolve(classes=3, input=(1, 8, 8))
    assert layerwise_of(model, spec) is model
    with pytest.raises(InputError, match="no layer-wise part"):
        layerwise_of(RandomInit(model.validity), spec)


def test_a_recipe_s_settings_are_checked():
    recipe = RewardRecipe(**RECIPE)
    assert settings_of(recipe, rounds=3).rounds == 3
    with pytest.raises(SpecError, match="one_task"):
        settings_of(RewardRecipe(**{**RECIPE, "one_task": {"nonsense": 1}}))
