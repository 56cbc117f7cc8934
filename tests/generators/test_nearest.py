from __future__ import annotations

import pytest
import torch

from weightloom.errors import InputError, UnsupportedRequestError
from weightloom.generators.nearest import NearestCheckpoint
from weightloom.tasks import SupportSet, parse_task


@pytest.fixture(scope="module")
def nearest(igpg):
    return NearestCheckpoint.from_generator(igpg)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_task_that_looks_alike_is_found(nearest, igpg, resolved, supports, number):
    task = list(supports)[number]
    sample = nearest.generate_many(resolved(), support=supports[task], batch_norm="generated")[0]
    assert sample.report["checkpoint_task"] == task
    row = next(r for r in igpg.zoo_index.groups[resolved()].rows if r["task"] == task)
    assert (
        sample.report["checkpoint"] == row["id"] and sample.report["checkpoint_accuracy"] == row["accuracy"]
    )
    assert sample.report["task_distance"] > 0


def test_it_agrees_with_the_zoo_index(nearest, igpg, resolved, supports):
    for support in supports.values():
        facts, flat = igpg.zoo_index.nearest(resolved(), igpg.images.describe(support.images).detach())
        sample = nearest.generate_many(resolved(), support=support, batch_norm="generated")[0]
        assert sample.report["checkpoint"] == facts["id"] and torch.equal(sample.flat, flat)


def test_label_order_counts(nearest, resolved, supports):
    """The same pictures under other labels are another task."""
    support = next(iter(supports.values()))
    swapped = SupportSet(images=support.images[[1, 2, 0]], class_names=support.class_names)
    a, b = (
        nearest.generate_many(resolved(), support=one)[0].report["task_distance"]
        for one in (support, swapped)
    )
    assert b > a


def test_more_samples_are_the_checkpoints_of_the_task_and_of_no_other(nearest, igpg, resolved, support):
    samples = nearest.generate_many(resolved(), support=support, num_samples=8, batch_norm="generated")
    rows = igpg.zoo_index.groups[resolved()].rows
    task = samples[0].report["checkpoint_task"]
    own = [row["id"] for row in rows if row["task"] == task]
    assert 1 < len(own) < len(rows)
    assert [s.report["checkpoint"] for s in samples] == [own[index % len(own)] for index in range(8)]
    assert {s.report["checkpoint_task"] for s in samples} == {task}
    for sample in samples:
        row = int(sample.report["checkpoint"].split("-")[1])
        assert torch.equal(sample.flat, igpg.zoo_index.groups[resolved()].flats[row])


def test_without_examples_one_clear_sentence(nearest, resolved):
    with pytest.raises(
        InputError, match="finds its checkpoints by their pictures; give examples of the task"
    ):
        nearest.generate(resolved(), instruction="digits")


def test_what_the_zoo_does_not_hold_is_refused(nearest, resolved, support):
    with pytest.raises(UnsupportedRequestError, match=r"no checkpoint of mlp.*; it has: cnn"):
        nearest.generate(resolved("mlp(depth=1,width=4)"), support=support)
    four = parse_task("digits[1,2,3,4]@8c1").support(2)
    with pytest.raises(UnsupportedRequestError, match=r"no checkpoint of cnn.*classes=4"):
        nearest.generate(resolved(classes=4), support=four)


def test_a_generator_without_a_zoo_index_has_nothing_to_look_among(build):
    with pytest.raises(InputError, match="generator tiny carries no checkpoints of its zoo"):
        NearestCheckpoint.from_generator(build())


def test_the_zoo_index_is_not_changed(nearest, igpg, resolved, support):
    before = igpg.zoo_index.groups[resolved()].flats.clone()
    sample = nearest.generate(resolved(), support=support, batch_norm="generated")
    sample.flat.zero_()
    assert torch.equal(igpg.zoo_index.groups[resolved()].flats, before)
