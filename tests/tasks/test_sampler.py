from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightloom.errors import InputError, UnknownNameError
from weightloom.tasks import TASK_SPLITS, TaskSampler, dataset_names, parse_task

NAMES = ("digits", "mnist", "fashion-mnist", "cifar10", "quickdraw")

samplers = st.builds(
    lambda names, salt, split, low, more: TaskSampler(names, salt, split, (low, min(low + more, 10))),
    st.lists(st.sampled_from(NAMES), min_size=1, unique=True),
    st.text(max_size=8),
    st.sampled_from(TASK_SPLITS),
    st.integers(2, 6),
    st.integers(0, 5),
)


@given(samplers, st.integers(0, 10_000))
def test_a_task_is_drawn_by_address_and_lands_in_its_split(sampler, index):
    task = sampler.task(index)
    again = TaskSampler(sampler.datasets, sampler.salt, sampler.split, sampler.classes)
    assert again.task(index) == task
    assert sampler.split_of(task) == sampler.split
    assert sampler.classes[0] <= task.num_classes <= sampler.classes[1]
    assert task.dataset in sampler.datasets


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=8), st.lists(st.sampled_from(NAMES), min_size=1, unique=True), st.integers(2, 5))
def test_splits_never_overlap(salt, names, low):
    """No held-out subset, order or transform is ever part of a train task."""
    drawn = {
        split: [TaskSampler(names, salt, split, (low, 10)).task(i) for i in range(60)]
        for split in TASK_SPLITS
    }
    subsets = {(task.dataset, frozenset(task.classes)) for task in drawn["train"]}
    orders = {(task.dataset, task.classes) for task in drawn["train"]}
    transforms = {task.transform for task in drawn["train"]}
    for task in drawn["held-out-subset"]:
        assert (task.dataset, frozenset(task.classes)) not in subsets and not task.whole
    for task in drawn["held-out-order"]:
        assert (task.dataset, task.classes) not in orders
    held = {task.transform for task in drawn["held-out-transform"]}
    assert not held & transforms and "id" not in held
    everything = [set(map(str, tasks)) for tasks in drawn.values()]
    assert sum(map(len, everything)) == len(set().union(*everything))


@given(st.text(max_size=8), st.sampled_from(dataset_names()))
def test_whole_datasets_are_always_train_tasks(salt, name):
    sampler = TaskSampler([name], salt, "train", (4, 10))
    assert sampler.split_of(parse_task(name)) == "train"
    assert not sampler.holds_out_subset(name, parse_task(name).classes[::-1])


def test_about_a_fifth_and_three_transforms_are_held_out():
    sampler = TaskSampler(["quickdraw"], "s")
    subsets = [(i, j, i + j + 1) for i in range(40) for j in range(i + 1, 40)]
    share = sum(sampler.holds_out_subset("quickdraw", subset) for subset in subsets) / len(subsets)
    assert 0.15 < share < 0.25
    share = sum(sampler.holds_out_order("quickdraw", subset) for subset in subsets) / len(subsets)
    assert 0.15 < share < 0.25
    assert len(sampler.held_out_transforms) == 3
    assert sampler.holds_out_subset("quickdraw", (5, 3, 9)) == sampler.holds_out_subset(
        "quickdraw", (9, 5, 3)
    )


def test_canonical_tasks_come_first():
    names = ["mnist", "quickdraw", "glyphs"]
    sampler = TaskSampler(names, "igpg-tiny", train_canonical=True, size=28, channels=1)
    first = [sampler.task(i) for i in range(3)]
    assert str(first[0]) == "mnist@28c1"
    for task in first[1:]:
        assert (
            task.num_classes == 10 and list(task.classes) == sorted(task.classes) and task.transform == "id"
        )
    assert [sampler.split_of(task) for task in first] == ["train"] * 3
    assert sampler.task(3) == TaskSampler(names, "igpg-tiny", size=28, channels=1).task(3)


def test_other_splits():
    sampler = TaskSampler(["mnist"], "s")
    assert sampler.split_of(parse_task("cifar10")) == "held-out-dataset"
    transform = sorted(sampler.held_out_transforms)[0]
    held = TaskSampler(["mnist"], "s", "held-out-subset").task(0)
    mixed = parse_task(f"mnist[{','.join(map(str, held.classes))}]+{transform}")
    assert sampler.split_of(mixed) == "mixed"


def test_full_tasks_have_held_out_orders_but_no_held_out_subsets():
    task = TaskSampler(["mnist"], "s", "held-out-order", (10, 10)).task(0)
    assert task.whole and not task.canonical
    with pytest.raises(InputError, match="no dataset"):
        TaskSampler(["mnist"], "s", "held-out-subset", (10, 10))


def test_bad_arguments():
    for arguments in (
        {"datasets": []},
        {"datasets": ["mnist", "mnist"]},
        {"classes": (1, 4)},
        {"classes": (5, 4)},
    ):
        with pytest.raises(InputError):
            TaskSampler(**({"datasets": ["mnist"], "salt": "s"} | arguments))
    with pytest.raises(UnknownNameError):
        TaskSampler(["mnits"], "s")
    with pytest.raises(UnknownNameError, match="held-out-order"):
        TaskSampler(["mnist"], "s", "held-out-orders")
    with pytest.raises(InputError, match="fewer than"):
        TaskSampler(["mnist"], "s", classes=(12, 14))
    with pytest.raises(InputError):
        TaskSampler(["mnist"], "s").task(-1)
