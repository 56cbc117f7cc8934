"""Tasks drawn by ``(salt, split, index)``, with train and held-out tasks that can never overlap.

Whether a task is held out follows from keys hashed from the task itself, never from a list:

* class subset: ``(salt, dataset, sorted classes)``; one in five is held out. All classes of one never are.
* class order: ``(salt, dataset, ordered classes)``; one in five. The natural order of all classes never is.
* transform: ``(salt, transform)``; the three of the sixteen with the lowest hashes. ``id`` never is.

A task with no held-out part is a train task; one with exactly one such part belongs to the split of that
part; one with several belongs to none. Knows names and numbers of classes, no images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weightloom.errors import InputError, SpecError, UnknownNameError
from weightloom.seeding import numpy_generator, seed_for
from weightloom.tasks.store import datasets as _datasets
from weightloom.tasks.task import DEFAULT_CHANNELS, DEFAULT_SIZE, DatasetTask, check_shape
from weightloom.tasks.transforms import transform_names
from weightloom.whole import whole_number

TASK_SPLITS = ("train", "held-out-subset", "held-out-order", "held-out-transform")
HELD_OUT_TRANSFORMS = 3
_ONE_IN = 5
_TRIES = 20_000


class TaskSampler:
    """Draws tasks of one split.

    Args:
        datasets: names of the datasets that tasks are made of.
        salt: decides what is held out; two samplers with one salt agree.
        split: one of :data:`TASK_SPLITS`.
        classes: fewest and most classes of a task.
        train_canonical: in the train split, tasks ``0 .. len(datasets) - 1`` are the canonical ones: all
            classes of each dataset in natural order, as they are (of a dataset with more classes than a task
            may have, a fixed choice of them).
        size: height and width of the images.
        channels: 1 or 3.

    Raises:
        UnknownNameError: no such dataset or split.
        InputError: numbers of classes that no dataset has, or a split that must stay empty.

    Example:
        >>> sampler = TaskSampler(["mnist", "cifar10"], salt="docs", split="train")
        >>> str(sampler.task(7)) == str(sampler.task(7)), sampler.split_of(sampler.task(7))
        (True, 'train')
    """

    def __init__(
        self,
        datasets: Sequence[str],
        salt: str,
        split: str = "train",
        classes: tuple[int, int] = (4, 10),
        *,
        train_canonical: bool = False,
        size: int = DEFAULT_SIZE,
        channels: int = DEFAULT_CHANNELS,
    ) -> None:
        if not datasets or len(set(datasets)) != len(datasets):
            raise InputError("a task sampler needs at least one dataset and each of them once")
        if split not in TASK_SPLITS:
            raise UnknownNameError("task split", split, TASK_SPLITS)
        size, channels = check_shape(size, channels)
        low, high = (whole_number(count, "a number of classes") for count in classes)
        if not 2 <= low <= high:
            raise InputError(f"tasks need at least 2 classes and a range in order, not {low} to {high}")
        counts = {name: _datasets.get(name).num_classes for name in datasets}
        for name, count in counts.items():
            if count < low:
                raise InputError(
                    f"dataset {name!r} has {count} classes, fewer than the {low} a task should have"
                )
        # Datasets that can have a held-out subset at all: whole datasets are never held out.
        usable = [name for name in datasets if split != "held-out-subset" or counts[name] > low]
        if not usable:
            raise InputError(
                f"no dataset of {', '.join(datasets)} has class subsets of {low} to {high} classes"
            )
        self.datasets, self.salt, self.split, self.classes = tuple(datasets), salt, split, (low, high)
        self.train_canonical, self.size, self.channels = train_canonical, size, channels
        self._usable, self._counts = tuple(usable), counts
        ranked = sorted(transform_names()[1:], key=lambda name: seed_for("held-out-transform", salt, name))
        self.held_out_transforms = frozenset(ranked[:HELD_OUT_TRANSFORMS])
        self._transforms = tuple(
            name
            for name in transform_names()
            if (name in self.held_out_transforms) == (split == "held-out-transform")
        )

    def holds_out_subset(self, dataset: str, classes: Sequence[int]) -> bool:
        """Whether the set of ``classes`` is held out."""
        if len(classes) == _datasets.get(dataset).num_classes:
            return False
        return seed_for("held-out-subset", self.salt, dataset, *sorted(classes)) % _ONE_IN == 0

    def holds_out_order(self, dataset: str, classes: Sequence[int]) -> bool:
        """Whether ``classes`` in this order is held out."""
        if tuple(classes) == tuple(range(_datasets.get(dataset).num_classes)):
            return False
        return seed_for("held-out-order", self.salt, dataset, *classes) % _ONE_IN == 0

    def split_of(self, task: DatasetTask) -> str:
        """The split ``task`` belongs to.

        One of :data:`TASK_SPLITS`, ``"held-out-dataset"`` for a dataset this sampler does not have, or
        ``"mixed"`` for a task with several held-out parts, which no split draws.
        """
        if task.dataset not in self.datasets:
            return "held-out-dataset"
        parts = [
            name
            for name, held in (
                ("held-out-subset", self.holds_out_subset(task.dataset, task.classes)),
                ("held-out-order", self.holds_out_order(task.dataset, task.classes)),
                ("held-out-transform", task.transform in self.held_out_transforms),
            )
            if held
        ]
        return "train" if not parts else parts[0] if len(parts) == 1 else "mixed"

    def canonical(self, dataset: str) -> DatasetTask:
        """The task of ``dataset`` with all classes in natural order, or with a fixed choice of them."""
        count, high = self._counts[dataset], self.classes[1]
        if count <= high:
            return self._made(dataset, tuple(range(count)), "id")
        for attempt in range(_TRIES):
            generator = numpy_generator("canonical", self.salt, dataset, attempt)
            classes = tuple(sorted(int(label) for label in generator.choice(count, high, replace=False)))
            if not self.holds_out_subset(dataset, classes) and not self.holds_out_order(dataset, classes):
                return self._made(dataset, classes, "id")
        raise InputError(f"dataset {dataset!r} has no train task of {high} classes")  # pragma: no cover

    def task(self, index: int) -> DatasetTask:
        """Task number ``index`` of this split: the same for the same salt, split and number."""
        if index < 0:
            raise SpecError(f"tasks are numbered from 0, not {index}")
        if self.split == "train" and self.train_canonical and index < len(self.datasets):
            return self.canonical(self.datasets[index])
        generator = numpy_generator("task", self.salt, self.split, index)
        for _ in range(_TRIES):
            task = self._draw(generator)
            if self.split_of(task) == self.split:
                return task
        raise InputError(
            f"the split {self.split!r} has no task with {self.classes[0]} to {self.classes[1]} classes"
        )

    def _draw(self, generator: np.random.Generator) -> DatasetTask:
        dataset = self._usable[int(generator.integers(len(self._usable)))]
        low, high = self.classes[0], min(self.classes[1], self._counts[dataset])
        chosen = generator.choice(
            self._counts[dataset], int(generator.integers(low, high + 1)), replace=False
        )
        transform = self._transforms[int(generator.integers(len(self._transforms)))]
        return self._made(dataset, tuple(int(label) for label in chosen), transform)

    def _made(self, dataset: str, classes: tuple[int, ...], transform: str) -> DatasetTask:
        return DatasetTask(
            dataset=dataset, classes=classes, transform=transform, size=self.size, channels=self.channels
        )
