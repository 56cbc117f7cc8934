"""What generators are compared on: a zoo's tasks, seen and held out, architectures and datasets beyond it.

A ground is read from a zoo's folder, or from its recipe and the index of it that a generator carries: the
index holds the training checkpoints, and what is held out follows from the recipe. Knows no generator and
measures nothing.

Shapes: N checkpoints, P values of a network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest

import torch
from torch import Tensor

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.errors import InputError, SpecError
from weightloom.generators.zoo_index import ZooIndex
from weightloom.io import dump_json
from weightloom.seeding import numpy_generator, torch_generator
from weightloom.tasks import TASK_SPLITS, DatasetTask, TaskSampler, dataset_info, dataset_names, parse_task
from weightloom.zoo import Zoo, ZooRecipe

SEEN, UNSEEN, ARCHITECTURES, DATASETS = GROUPS = (
    "seen tasks",
    "unseen tasks",
    "unseen architectures",
    "unseen datasets",
)


@dataclass(frozen=True)
class Trial:
    """One network to be made: its group, resolved architecture and task, and the mean accuracy in [0, 1] of
    the zoo's own networks of both, None where the zoo has none.
    """

    group: str
    spec: ArchitectureSpec
    task: DatasetTask
    trained: float | None = None

    def key(self) -> dict[str, str]:
        """What it is, in words."""
        return {"group": self.group, "architecture": self.spec.full_text(), "task": str(self.task)}


@dataclass(frozen=True)
class Ground:
    """See the top of this file.

    Attributes:
        name: of the zoo.
        recipe: that the zoo was built from.
        checkpoint_ids: of the training checkpoints.
        trained: by group of networks (split, resolved architecture), the mean accuracy of every task.
        checkpoints: (N, P) final training checkpoints of a resolved architecture; N is 0 where there is none.
    """

    name: str
    recipe: ZooRecipe
    checkpoint_ids: frozenset[str]
    trained: dict[tuple[str, ArchitectureSpec], dict[str, float | None]]
    checkpoints: Callable[[ArchitectureSpec], Tensor]

    @classmethod
    def from_zoo(cls, zoo: Zoo) -> Ground:
        """The ground of a zoo's folder.

        Raises:
            InputError: it was not built from a recipe, or has no training checkpoints.
        """
        recipe = zoo.recipe("datasets", "salt", "size", "channels")
        if recipe is None:
            raise InputError(f"{zoo.path} was not built from a recipe, so its held-out tasks are not known")
        trained: dict[tuple[str, ArchitectureSpec], dict[str, list[float | None]]] = {}
        for split in TASK_SPLITS:
            for spec, records in zoo.by_architecture(split=split, final=True):
                for record in records:
                    own = trained.setdefault((split, spec), {})
                    own.setdefault(record.task, []).append(record.accuracy)
        if not any(split == "train" for split, _ in trained):
            raise InputError(f"{zoo.path} has no training checkpoints")

        def checkpoints(spec: ArchitectureSpec) -> Tensor:
            for held, records in zoo.by_architecture(split="train", final=True):
                if held == spec:
                    return zoo.load(records)
            return torch.zeros(0, 0)

        ids = frozenset(record.id for record in zoo.records(split="train", final=True))
        means = {key: {task: _mean(values) for task, values in own.items()} for key, own in trained.items()}
        return cls(str(recipe["name"]), ZooRecipe(**recipe), ids, means, checkpoints)

    @classmethod
    def from_zoo_index(cls, recipe: ZooRecipe, zoo_index: ZooIndex) -> Ground:
        """The ground of a zoo that is not here, by its recipe and the index of it that a generator carries.

        What networks reach on held-out tasks is not known.

        Raises:
            InputError: the index is of another zoo.
        """
        trained: dict[tuple[str, ArchitectureSpec], dict[str, float | None]] = {}
        ids = []
        for spec, group in zoo_index.groups.items():
            accuracies: dict[str, list[float | None]] = {}
            for row in group.rows:
                accuracies.setdefault(str(row["task"]), []).append(row.get("accuracy"))
                ids.append(str(row["id"]))
            if accuracies:
                trained["train", spec] = {task: _mean(values) for task, values in accuracies.items()}
        own = {str(parse_architecture(text)) for text in recipe.architectures}
        held = {str(replace(spec, classes=None, input=None)) for _, spec in trained}
        shape = (recipe.channels, recipe.size, recipe.size)
        if not held or not held <= own or any(spec.input != shape for _, spec in trained):
            raise InputError(
                f"the generator carries checkpoints of {', '.join(sorted(held)) or 'no zoo'}, "
                f"which are not those of {recipe.name}"
            )
        for wanted in recipe.groups:
            if wanted.split == "train":
                continue
            sampler = _sampler(recipe, wanted.split, wanted.classes)
            tasks: dict[str, float | None] = {str(sampler.task(i)): None for i in range(wanted.tasks)}
            for text in recipe.architectures:
                spec = parse_architecture(text).resolve(classes=wanted.classes, input=shape)
                trained.setdefault((wanted.split, spec), {}).update(tasks)

        def checkpoints(spec: ArchitectureSpec) -> Tensor:
            if ("train", spec) not in trained:
                return torch.zeros(0, 0)
            return zoo_index.groups[spec].flats

        return cls(recipe.name, recipe, frozenset(ids), trained, checkpoints)

    @cached_property
    def digest(self) -> str:
        """Changes with the recipe, with the checkpoints and with what is known of them."""
        known = [[*map(str, key), own] for key, own in self.trained.items()]
        about = [self.recipe.model_dump(mode="json"), sorted(self.checkpoint_ids), known]
        return hashlib.sha256(dump_json(about).encode()).hexdigest()[:16]

    def specs(self) -> list[ArchitectureSpec]:
        """Resolved architectures of the training checkpoints."""
        return [spec for split, spec in self.trained if split == "train"]

    # ------------------------------------------------------------------ trials

    def seen(self, count: int) -> list[Trial]:
        """``count`` training tasks of the zoo, architectures and class counts in turn."""
        return self._of(SEEN, ["train"], count)

    def unseen(self, count: int) -> list[Trial]:
        """``count`` held-out tasks; kinds of novelty, architectures and class counts in turn."""
        return self._of(UNSEEN, [split for split in TASK_SPLITS if split != "train"], count)

    def _of(self, group: str, splits: Sequence[str], count: int) -> list[Trial]:
        columns = []
        for spec in self.specs():
            for split in splits:
                tasks = sorted(self.trained.get((split, spec), {}).items())
                stream = torch_generator("leaderboard", split, spec.full_text())
                order = torch.randperm(len(tasks), generator=stream).tolist()
                columns.append([Trial(group, spec, parse_task(tasks[i][0]), tasks[i][1]) for i in order])
        # First one column of each architecture, with another split each time, then all others.
        places = sorted(range(len(columns)), key=lambda place: place % (len(splits) + 1) > 0)
        return list(_in_turn([columns[place] for place in places], count))

    def other_architectures(self, count: int, texts: Sequence[str] = ()) -> list[Trial]:
        """``count`` held-out tasks for architectures that the zoo has none of, ``texts`` or by default the
        zoo's own a quarter wider.

        Raises:
            SpecError: an architecture that the zoo has, or that cannot be read.
        """
        own = {str(replace(spec, classes=None, input=None)) for spec in self.specs()}
        wanted = [str(parse_architecture(text)) for text in texts] or [
            str(wider) for text in sorted(own) if (wider := _wider(parse_architecture(text))) is not None
        ]
        for text in wanted:
            if text in own:
                raise SpecError(f"{text} is no unseen architecture: {self.name} has networks of it")
        if not wanted:
            return []
        trials = []
        for number, trial in enumerate(self.unseen(count)):
            spec = parse_architecture(wanted[number % len(wanted)])
            spec = spec.resolve(classes=trial.spec.classes, input=trial.spec.input)
            trials.append(Trial(ARCHITECTURES, spec, trial.task))
        return trials

    def other_datasets(self, count: int, names: Sequence[str] = ()) -> list[Trial]:
        """``count`` tasks of datasets that the zoo has none of: ``names``, or all that are on this machine.

        Raises:
            UnknownNameError: no such dataset.
            SpecError: a dataset that the zoo has.
        """
        for name in names:
            if name in self.recipe.datasets:
                raise SpecError(f"{name} is no unseen dataset: {self.name} has networks of it")
        wanted = [dataset_info(name) for name in names] or [
            dataset_info(name)
            for name in dataset_names()
            if name not in self.recipe.datasets and dataset_info(name).cached()
        ]
        trials: list[Trial] = []
        specs = self.specs()
        for number in range(count if wanted else 0):
            info, spec = wanted[number % len(wanted)], specs[number % len(specs)]
            stream = numpy_generator("unseen dataset", info.name, number)
            size = min(spec.classes or 2, info.num_classes)
            classes = tuple(int(c) for c in stream.choice(info.num_classes, size, replace=False))
            task = DatasetTask(
                dataset=info.name, classes=classes, size=self.recipe.size, channels=self.recipe.channels
            )
            trials.append(Trial(DATASETS, replace(spec, classes=size), task))
        return trials


def _sampler(recipe: ZooRecipe, split: str, classes: int) -> TaskSampler:
    return TaskSampler(
        datasets=list(recipe.datasets),
        salt=recipe.salt,
        split=split,
        classes=(classes, classes),
        size=recipe.size,
        channels=recipe.channels,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _in_turn(columns: Sequence[list[Trial]], count: int) -> Iterator[Trial]:
    """The first of every column, then the second of every column, and so on, at most ``count``."""
    found = (trial for row in zip_longest(*columns) for trial in row if trial is not None)
    for _, trial in zip(range(count), found, strict=False):
        yield trial


def _wider(spec: ArchitectureSpec) -> ArchitectureSpec | None:
    """A quarter more channels, at least one; None for a family without a width."""
    width = getattr(spec, "width", None)
    return None if width is None else replace(spec, width=width + max(1, width // 4))  # type: ignore[call-arg]
