"""The dataset encoder learns to tell classes apart that it is shown examples of."""

from __future__ import annotations

import pytest
import torch

from weightloom.conditioning import SupportEncoder
from weightloom.conditioning.images import prototype_loss
from weightloom.tasks import TaskSampler
from weightloom.training import LoopSettings, run_loop
from weightloom.training.encoder import EncoderObjective


@pytest.fixture
def encoder():
    return SupportEncoder(channels=1, features=16, width=16).eval()


@pytest.fixture(scope="module")
def tasks():
    sampler = TaskSampler(["digits"], "encoder", classes=(4, 4), size=16, channels=1)
    return [sampler.task(index) for index in range(60)]


def loss_on_new_tasks(encoder):
    """Mean loss on tasks that it was not trained on."""
    sampler = TaskSampler(["digits"], "encoder", classes=(4, 4), size=16, channels=1)
    total = 0.0
    for index in range(1000, 1006):
        task = sampler.task(index)
        with torch.no_grad():
            total += float(prototype_loss(encoder, task.support(8).images, *task.data("test").all())[0])
    return total / 6


def test_it_learns_to_tell_new_tasks_apart(encoder, tasks):
    before = loss_on_new_tasks(encoder)
    objective = EncoderObjective(encoder, tasks, tasks_at_once=2, shots=4, queries=32)
    settings = LoopSettings(steps=80, learning_rate=0.003, warmup=5, log_every=20)
    log = run_loop("dataset encoder", encoder, objective, settings)
    assert log[-1]["loss"] < 0.8 * log[0]["loss"] and log[-1]["accuracy"] > log[0]["accuracy"]
    assert loss_on_new_tasks(encoder) < 0.75 * before


def test_a_step_depends_on_its_address_alone(encoder, tasks, rng_untouched):
    objective = EncoderObjective(encoder, tasks, shots=2, queries=8, seed=3)
    first = [float(objective(step)[0].detach()) for step in range(3)]
    assert [float(objective(step)[0].detach()) for step in (2, 1, 0)][::-1] == first
    assert len(set(first)) == 3
    other = EncoderObjective(encoder, tasks, shots=2, queries=8, seed=4)
    assert [float(other(step)[0].detach()) for step in range(3)] != first


def test_every_parameter_takes_part(encoder, tasks):
    loss, numbers = EncoderObjective(encoder, tasks, tasks_at_once=3, shots=2, queries=8)(0)
    loss.backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in encoder.parameters())
    assert 0 <= numbers["accuracy"] <= 1


def test_tasks_of_different_class_counts_train_together(encoder, tasks):
    sampler = TaskSampler(["digits"], "encoder", classes=(2, 2), size=16, channels=1)
    mixed = EncoderObjective(encoder, [*tasks, sampler.task(0)], tasks_at_once=6, shots=2, queries=8)
    assert bool(torch.isfinite(mixed(0)[0]))


def test_parts_of_a_step_add_up_to_it(encoder, tasks, adds_up, halves_well):
    objective = EncoderObjective(encoder, tasks, tasks_at_once=4, shots=2, queries=8)
    assert objective.items == 4
    adds_up(encoder, objective)
    halves_well(encoder, objective)
