"""Networks from words learn through what they make; a stopped run goes on; held-out names stay so."""

from __future__ import annotations

import pytest
import torch
import yaml

from weightloom.errors import InputError, SpecError
from weightloom.fitting import accuracy
from weightloom.generators.load import load_generator
from weightloom.generators.words import Words
from weightloom.seeding import torch_generator
from weightloom.tasks import parse_task
from weightloom.tasks.transforms import transform_names
from weightloom.training.run import train_recipe
from weightloom.training.words_tasks import (
    PictureSource,
    holds_out_pair,
    known_stems,
    names_of_split,
    open_sources,
)

LOOP = {"learning_rate": 0.003, "warmup": 5, "log_every": 20, "save_every": 20}
RECIPE = {
    "kind": "generator",
    "generator": "words",
    "name": "words-test",
    "salt": "training-tests",
    "channels": 1,
    "sources": [{"dataset": "digits", "shift": 0.2}],
    "config": {"hidden": 32, "codes": 4},
    "objective": {
        "batch": 64,
        "most_examples": 40,
        "sentences": 8,
        "turned_sentences": 4,
        "expected_tasks": 20,
    },
    "parts": [
        {
            "architecture": "cnn(depth=2,width=8)",
            "size": 8,
            "loop": {**LOOP, "steps": 240},
            "examples": {**LOOP, "steps": 60},
        }
    ],
    "turns": {**LOOP, "steps": 40},
}

pytestmark = pytest.mark.usefixtures("text_encoder")


def write(folder, **changes):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, **changes}))
    return path


def test_it_learns_from_words_alone_and_comes_back(tmp_path):
    made = train_recipe(write(tmp_path), None, tmp_path / "out")
    assert isinstance(made, Words)
    again = load_generator(tmp_path / "out")
    task = parse_task("digits@8c1")
    images, labels = task.data("test").all()
    fresh = Words(made.config, made.validity).eval()
    reached = {}
    for name, model in (("trained", again), ("fresh", fresh)):
        sample = model.generate("cnn(depth=2,width=8)", instruction="digits", classes=task.class_names)
        reached[name] = float(accuracy(sample.architecture, sample.flat[None], images, labels))
    told = again.generate("cnn(depth=2,width=8)", instruction="digits", classes=task.class_names).report
    assert abs(told["expected_accuracy"] - reached["trained"]) < 0.2 and told["unknown_names"] == []
    odd = again.generate("cnn(depth=2,width=8)", classes=["3", "qwrtp"]).report
    assert odd["unknown_names"] == ["qwrtp"]
    assert reached["trained"] > max(0.4, reached["fresh"] + 0.2), reached
    shown = again.generate("cnn(depth=2,width=8)", support=task.support(16))
    assert float(accuracy(shown.architecture, shown.flat[None], images, labels)) > reached["trained"] - 0.05


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(tmp_path):
    loops = {"loop": {**LOOP, "steps": 50}, "examples": {**LOOP, "steps": 10}}
    short = {"parts": [{**RECIPE["parts"][0], **loops}]}
    whole = train_recipe(write(tmp_path, **short), None, tmp_path / "whole")

    class Stop(Exception):
        pass

    for where, at in (("cnn 1 from words", 30), ("cnn 1 from examples", 7), ("turns in words", 30)):

        def stop(what, done, total, where=where, at=at):
            if what == where and done == at:
                raise Stop

        with pytest.raises(Stop):
            train_recipe(write(tmp_path, **short), None, tmp_path / "parts", stop)
    again = train_recipe(write(tmp_path, **short), None, tmp_path / "parts")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    with pytest.raises(InputError, match="another recipe"):
        train_recipe(write(tmp_path, **short, seed=1), None, tmp_path / "parts")


@pytest.mark.parametrize(
    "changes",
    [
        {"parts": []},
        {"sources": []},
        {"sources": [{"dataset": "digits"}, {"dataset": "digits"}]},
        {"sources": [{"dataset": "digitz"}]},
        {"config": {"order": "backwards"}},
        {"config": {"view": "everything"}},
        {"config": {"looked": 0}},
        {"objective": {"shots": [-1]}},
        {"config": {"nonsense": 1}},
        {"objective": {"nonsense": 1}},
        {
            "parts": [
                {"architecture": "cnn(depth=0)", "size": 8, "loop": {"steps": 1}, "examples": {"steps": 1}}
            ]
        },
        {
            "parts": [
                {"architecture": "mlp(depth=0)", "size": 8, "loop": {"steps": 1}, "examples": {"steps": 1}}
            ]
        },
    ],
)
def test_recipes_that_make_no_sense(tmp_path, changes):
    with pytest.raises((SpecError, InputError)):
        train_recipe(write(tmp_path, **changes), None, tmp_path / "out")


def test_what_is_held_out_is_never_drawn():
    sources = (PictureSource(dataset="digits"),)
    (pictures,) = open_sources(sources, "training-tests", 8, 1, sentences=4)
    generator = torch_generator("test")
    for _ in range(300):
        classes = pictures.draw_classes(generator, 40)
        assert 2 <= len(classes) == len(set(classes)) <= 10
        for sampler in pictures._samplers:
            assert not sampler.holds_out_subset("digits", classes) or len(classes) == 10
    images = pictures.draw([3, 1], 5, generator)
    assert images.shape == (2, 5, 1, 8, 8) and float(images.abs().max()) <= 1


def test_names_for_results_and_for_choices_are_apart():
    known = known_stems((PictureSource(dataset="cifar10"),))
    split = {s: set(names_of_split("quickdraw", s, "words-1", known)) for s in ("train", "choices", "unseen")}
    assert all(len(own) > 15 for own in split.values())
    assert not split["train"] & split["unseen"] and not split["choices"] & split["unseen"]
    held = [holds_out_pair("words-1", "mnist", transform) for transform in transform_names()]
    assert 0 < sum(held) < 9 and not held[0]
