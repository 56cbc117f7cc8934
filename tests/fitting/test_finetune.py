from __future__ import annotations

import torch

from weightloom.architectures import parse_architecture
from weightloom.fitting import Curve, FitSettings, accuracy, finetune, initial_flats
from weightloom.tasks import parse_task

TASK = "digits[3,1,7]@8c1"


def test_the_curve_starts_at_the_networks_as_they_are(rng_untouched):
    spec = parse_architecture("cnn(depth=1,width=4)").resolve(classes=3, input=(1, 8, 8))
    flats = initial_flats(spec, [0, 1])
    task = parse_task(TASK)
    steps = []
    settings = FitSettings(steps=30, batch_size=32, learning_rate=2e-2)
    curve = finetune(spec, flats, task, settings, measure_at=(0, 5, 99), on_step=steps.append)
    assert curve.steps == (0, 5, 30) and len(steps) == 30
    assert curve.accuracy.shape == (3, 2) and curve.flats.shape == flats.shape
    images, labels = task.data("test").all()
    assert torch.equal(curve.accuracy[0], accuracy(spec, flats, images, labels))
    assert torch.equal(curve.accuracy[-1], accuracy(spec, curve.flats, images, labels))
    assert bool((curve.accuracy[-1] > curve.accuracy[0]).all())
    again = finetune(spec, flats, task, settings, measure_at=(5,))
    assert torch.equal(again.accuracy, curve.accuracy) and torch.equal(again.flats, curve.flats)


def test_steps_to_a_target():
    curve = Curve((0, 5, 10), torch.tensor([[0.1, 0.9], [0.5, 0.2], [0.8, 0.3]]), torch.zeros(2, 1))
    assert curve.steps_to(0.5) == [5, 0]
    assert curve.steps_to(0.8) == [10, 0]
    assert curve.steps_to(0.95) == [None, None]
