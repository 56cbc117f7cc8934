"""Fine-tuning within seconds: what is held back, what is chosen, and what comes back."""

from __future__ import annotations

import pytest
import torch

from weightloom.architectures import parse_architecture
from weightloom.errors import InputError
from weightloom.fitting import (
    FitSettings,
    Start,
    TuneSettings,
    accuracy_on,
    fit_population,
    initial_flats,
    run_networks,
    tune,
)
from weightloom.fitting.folds import parts_of
from weightloom.fitting.last_layer import last_layer, with_last_layer
from weightloom.fitting.train import moved, sizes_over_fresh
from weightloom.tasks import parse_task
from weightloom.weights import layout_of

TASK = parse_task("digits[3,1,7]@8c1")
DATA, NAMES = TASK.data("train"), TASK.class_names
SPEC = parse_architecture("cnn(depth=1,width=4)").resolve(classes=3, input=(1, 8, 8))


def part(count):
    """So many training images of each class."""
    return DATA.part(torch.cat([torch.nonzero(DATA.labels == label).flatten()[:count] for label in range(3)]))


def test_a_random_start_is_trained_within_the_seconds():
    told = []
    flat = initial_flats(SPEC, [0])[0]
    settings = TuneSettings(seconds=2, few=0)
    found = tune(SPEC, Start(flat=flat), DATA, NAMES, settings, progress=lambda *how: told.append(how))
    assert found.chosen.what in ("all layers", "last layer") and found.chosen.accuracy > 0.9
    assert found.seconds < 3 and told and all(0 <= done <= total == 2 for _, done, total in told)
    assert float(accuracy_on(SPEC, found.flat[None], TASK.data("test"))[0]) > 0.85
    assert found.folds == 1 and abs(found.judged_on - 0.15 * len(DATA)) < 2
    assert found.calibration is not None and "held back" in found.calibration["on"]
    assert {trial.what for trial in found.trials} == {"start", "last layer", "all layers"}
    held_back = found.to_json()["held_back"]
    assert held_back["after"] >= held_back["before"] and held_back["num_images"] == found.judged_on


def test_few_images_are_left_out_in_turn():
    few = part(12)
    flat = initial_flats(SPEC, [0])[0]
    found = tune(SPEC, Start(flat=flat), few, NAMES, TuneSettings(seconds=1.5))
    assert found.folds == 4 and found.judged_on == len(few) == 36
    assert found.chosen.accuracy >= found.start.accuracy
    assert "without it" in found.calibration["on"]
    assert found.flat.shape == flat.shape


def test_a_start_that_cannot_be_beaten_comes_back():
    flat = initial_flats(SPEC, [0])
    (trained,) = fit_population(SPEC, flat, [DATA], FitSettings(steps=400, learning_rate=2e-2))
    best = trained.flats[0]
    found = tune(SPEC, Start(flat=best), DATA, NAMES, TuneSettings(seconds=1))
    assert found.start.accuracy == 1 and found.chosen.what == "start" and torch.equal(found.flat, best)
    assert "unchanged" in found.sentence
    assert found.calibration is None, "it has seen the images that judge"


def test_what_a_start_was_made_from_does_not_judge():
    unseen = torch.zeros(len(DATA), dtype=torch.bool)
    unseen[::2] = True
    (one,) = parts_of(DATA, NAMES, TuneSettings(few=0), unseen)
    learned = set(one.learning.tolist())
    assert one.unseen and all(unseen[place] for place in range(len(DATA)) if place not in learned)
    (other,) = parts_of(DATA, NAMES, TuneSettings(few=0))
    assert not other.unseen and len(other.held) == len(one.held)
    few = parts_of(part(10), NAMES, TuneSettings(folds=3))
    places = torch.cat([torch.tensor(sorted({*range(30)} - {*own.learning.tolist()})) for own in few])
    assert sorted(places.tolist()) == list(range(30)), "each image judges once"


def test_what_is_known_of_a_start_counts_where_its_examples_judge():
    (trained,) = fit_population(SPEC, initial_flats(SPEC, [0]), [DATA], FitSettings(steps=200))
    found = tune(
        SPEC, Start(flat=trained.flats[0], accuracy=0.5), DATA, NAMES, TuneSettings(seconds=1, few=0)
    )
    assert found.start.accuracy == 0.5 and found.chosen.what != "start" and "left out" in found.remarks[0]


def test_two_images_of_a_class_are_needed():
    with pytest.raises(InputError, match="has one training image"):
        tune(SPEC, Start(flat=initial_flats(SPEC, [0])[0]), part(1), NAMES)


def test_the_last_layer_in_and_out():
    flat = initial_flats(SPEC, [3])[0]
    head = last_layer(SPEC, flat)
    assert torch.equal(with_last_layer(SPEC, flat, head), flat)
    images, _ = DATA.batch([0, 1])
    double = with_last_layer(SPEC, flat, head.scaled(2))
    assert torch.allclose(
        run_networks(SPEC, double[None], images), 2 * run_networks(SPEC, flat[None], images), atol=1e-5
    )


def test_steps_in_units_of_a_layers_size_do_not_depend_on_it():
    """A convolution behind a batch norm: ten times as large it is the same network, and learns the same."""
    flat = initial_flats(SPEC, [0])
    large = flat.clone()
    layout = layout_of(SPEC)
    conv = next(n for n, layer in enumerate(layout.layers) if layer.kind == "conv")
    start = sum(layer.rows * layer.cols for layer in layout.layers[:conv])
    end = start + layout.layers[conv].rows * layout.layers[conv].cols
    large[:, start:end] *= 10
    assert sizes_over_fresh(SPEC, large)[0, start] == pytest.approx(10, rel=1e-4)
    settings = FitSettings(steps=30, learning_rate=1e-2, own_units=True, weight_decay=0.0)
    ends = [next(fit_population(SPEC, one, [DATA], settings)).flats for one in (flat, large)]
    images, _ = TASK.data("test").all()
    logits = [run_networks(SPEC, one, images)[0] for one in ends]
    assert float((logits[0].argmax(1) == logits[1].argmax(1)).float().mean()) > 0.95


def test_moved_pictures():
    images = torch.arange(2 * 3 * 1 * 4 * 5.0).reshape(2, 3, 1, 4, 5)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(moved(images, 0, False, generator), images)
    found = moved(images, 0, True, generator)
    straight = (found == images).flatten(2).all(-1)
    mirrored = (found == images.flip(-1)).flatten(2).all(-1)
    assert bool((straight | mirrored).all()) and bool(straight.any()) and bool(mirrored.any())
    shifted = moved(images, 1, False, generator)
    assert shifted.shape == images.shape
    for one, before in zip(shifted.flatten(0, 2), images.flatten(0, 2), strict=True):
        assert set(one.flatten().tolist()) <= set(before.flatten().tolist()), "edges repeat"
