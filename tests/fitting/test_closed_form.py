"""A head in closed form: right on real digits, its scale free, its trunk as it was."""

from __future__ import annotations

import pytest
import torch

from weightloom.architectures import parse_architecture
from weightloom.fitting import accuracy, closed_form_network, initial_flats, recalibrate
from weightloom.fitting.population import trunk_features
from weightloom.tasks import parse_task
from weightloom.weights import layout_of

TASK = "digits[3,1,7,0]@8c1"


def resolved(text="cnn(depth=1,width=8)", classes=4):
    return parse_architecture(text).resolve(classes=classes, input=(1, 8, 8))


@pytest.mark.parametrize("text", ["cnn(depth=1,width=8)", "mlp(depth=1,width=32)", "vit(depth=1,width=8)"])
def test_it_tells_digits_apart_on_a_random_trunk(text, rng_untouched):
    spec, task = resolved(text), parse_task(TASK)
    flat = initial_flats(spec, [0])[0]
    made = closed_form_network(spec, flat, task.support(16).images)
    reached = accuracy(spec, torch.stack([flat, made]), *task.data("test").all())
    assert reached[1] > 0.65 > reached[0]


def test_the_trunk_keeps_its_weights_and_has_the_statistics_of_the_examples():
    spec, support = resolved(), parse_task(TASK).support(8)
    flat = initial_flats(spec, [0])[0]
    layout = layout_of(spec)
    made, measured = (
        layout.unflatten(one)
        for one in (
            closed_form_network(spec, flat, support.images),
            recalibrate(spec, flat[None], support.flat()[0])[0],
        )
    )
    for name, value in made.items():
        assert torch.equal(value, measured[name]) != name.startswith("head"), name


def test_its_scale_changes_no_answer():
    spec, task = resolved(), parse_task(TASK)
    flat, support = initial_flats(spec, [0])[0], task.support(8).images
    plain, scaled = (closed_form_network(spec, flat, support, head_rms=rms) for rms in (None, 0.05))
    images, _ = task.data("test").all()
    module = [spec.build().eval() for _ in range(2)]
    for one, weights in zip(module, (plain, scaled), strict=True):
        one.load_state_dict(layout_of(spec).unflatten(weights))
    assert torch.equal(module[0](images).argmax(-1), module[1](images).argmax(-1))
    head = layout_of(spec).unflatten(scaled)["head.weight"]
    assert float(head.square().mean().sqrt()) == pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize("shots", [1, 2])
def test_few_or_equal_examples_are_enough_for_finite_weights(shots):
    spec = resolved()
    flat = initial_flats(spec, [0])[0]
    for images in (parse_task(TASK).support(shots).images, torch.zeros(4, shots, 1, 8, 8)):
        assert bool(torch.isfinite(closed_form_network(spec, flat, images, head_rms=0.1)).all())


def test_with_one_example_a_class_the_nearest_mean_wins():
    spec, support = resolved(), parse_task(TASK).support(1).images
    flat = initial_flats(spec, [0])[0]
    made = closed_form_network(spec, flat, support)
    assert float(accuracy(spec, made[None], support[:, 0], torch.arange(4))[0]) == 1.0


def test_features_are_what_the_head_sees():
    spec = resolved()
    flat = initial_flats(spec, [0])[0]
    module = spec.build().eval()
    module.load_state_dict(layout_of(spec).unflatten(flat))
    images = torch.randn(5, 1, 8, 8)
    assert torch.allclose(trunk_features(spec, flat[None], images)[0], module.features(images), atol=1e-6)
