"""Build a zoo from a recipe: populations trained together, committed shard by shard, resumable.

A shard that the index names is never trained again; an interrupted build goes on with the next one.

Shapes: N networks, P values of a network.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.defaults import with_plain_defaults
from weightloom.engines import Engine, Payload, job, one_thread, open_engine
from weightloom.errors import InputError
from weightloom.fitting import FitSettings, accuracy, fit_population, initial_flats
from weightloom.seeding import seed_for, torch_generator
from weightloom.tasks import DatasetTask, TaskSampler, parse_task
from weightloom.tasks.store import SPLITS, read_split
from weightloom.weights import layout_of
from weightloom.zoo.index import INDEX, Record
from weightloom.zoo.opening import discard_empty
from weightloom.zoo.recipe import GroupRecipe, ZooRecipe
from weightloom.zoo.store import Zoo

TEST_IMAGES = 2000
"""Test images of a task on which the accuracy in the index is measured (all of them if there are fewer)."""

_START = "start"
"""Group of the common start; ``start-NAME`` is that of a dataset."""

_HEADS_ANEW = 5.0
"""Learning rate of a dataset's start's heads over that of its trunk: heads begin at zero, the trunk is
trained.
"""

Progress = Callable[[str, int, int], None]
"""Called with what is being made, steps done and steps in all."""

_Job = tuple[str, str, int, list[DatasetTask], int]
"""Architecture, group, chunk, tasks and steps of a shard."""


@with_plain_defaults
def build_zoo(
    recipe: ZooRecipe,
    path: str | Path,
    progress: Progress = lambda *_: None,
    *,
    workers: int = 1,
    engine: Engine | None = None,
) -> Zoo:
    """Train every network of ``recipe`` that the zoo at ``path`` does not hold yet.

    With several ``workers`` shards are trained by that many processes of this machine; an ``engine`` trains
    them elsewhere. The weights are the same. Only this process writes to the zoo, which is made when
    everything is there that the recipe asks for; a recipe that cannot be built leaves nothing behind.

    Raises:
        InputError: the folder holds a zoo of another recipe, or the recipe asks for what cannot be.
        TrainingError: a loss is not finite; what was committed before stays.
    """
    zoo = Zoo.planned(path)
    said = recipe.model_dump(mode="json")
    zoo.check_recipe(said)
    zoo.tidy()
    jobs = list(_jobs(recipe))
    for text, classes in dict.fromkeys((text, tasks[0].num_classes) for text, _, _, tasks, _ in jobs):
        layout_of(_spec(recipe, text, classes))  # one that does not fit is found before any training
    existed, was_zoo = (os.path.lexists(place) for place in (zoo.path, zoo.path / INDEX))
    try:
        if engine is None:
            with open_engine("local", workers=workers) as engine:
                _build(recipe, jobs, zoo, progress, engine)
        else:
            _build(recipe, jobs, zoo, progress, engine)
    except Exception:
        if not was_zoo:
            discard_empty(zoo.path, keep_folder=existed)
        raise
    return zoo


def _build(recipe: ZooRecipe, jobs: list[_Job], zoo: Zoo, progress: Progress, engine: Engine) -> None:
    said = recipe.model_dump(mode="json")
    total = sum(steps * len(tasks) for *_, tasks, steps in jobs)
    done = 0
    if not {_shard_name(*each[:3]) for each in jobs} <= zoo.shards():
        for _ in engine.map(find_data, [{"datasets": list(recipe.datasets)}]):
            pass  # a dataset that is missing is found before anything is written
    zoo.claim(said)
    # Starts come first, then those of the datasets: the shards after them begin where they end.
    for stage in range(3):
        waiting: list[tuple[str, int, int]] = []  # shard, its networks, steps of each
        payloads: list[Payload] = []
        there = zoo.shards()
        starts: dict[tuple[str, str], Any] = {}
        for text, group, chunk, tasks, steps in jobs:
            if _stage(group) != stage:
                continue
            shard = _shard_name(text, group, chunk)
            if shard in there:
                done += steps * len(tasks)
                progress(shard, done, total)
                continue
            begin: dict[str, Any] = {}
            if recipe.initialisation == "shared" and stage:
                spec = _spec(recipe, text, tasks[0].num_classes)
                for name in ("",) if stage == 1 else sorted({task.dataset for task in tasks}):
                    key = (spec.full_text(), name)
                    if key not in starts:
                        starts[key] = start_network(zoo, spec, name).numpy()
                    begin[name] = starts[key]
            waiting.append((shard, len(tasks), steps))
            payloads.append(
                {
                    "recipe": said, "shard": shard, "architecture": text, "group": group,
                    "tasks": [str(task) for task in tasks], "starts": begin,
                }
            )  # fmt: skip
        before = done

        def told(number: int, step: int) -> None:
            shard, count, _ = waiting[number]  # noqa: B023
            progress(shard, before + step * count, total)  # noqa: B023

        for number, made in engine.map(train_shard, payloads, told):
            shard, count, steps = waiting[number]
            records = [Record(**record) for record in made["records"]]
            spec = parse_architecture(made["architecture"])
            zoo.add(shard, spec, torch.from_numpy(made["flats"].copy()), records, recipe=said)
            done = before = done + steps * count
            progress(shard, done, total)


def _stage(group: str) -> int:
    return 0 if group == _START else 1 if group.startswith(_START) else 2


def start_network(zoo: Zoo, spec: ArchitectureSpec, dataset: str = "") -> Tensor:
    """(P,) the common start of ``spec``'s networks in a shared zoo, its head zero.

    With a ``dataset`` the start of its own that the zoo has for it, else the one for all.

    Raises:
        InputError: the zoo has no common start for this architecture.
    """
    starts = {}
    for record in zoo.records(split="start"):
        if replace(record.spec(), classes=None) == replace(spec, classes=None):
            starts[record.dataset] = record
    found = starts.get(dataset) or starts.get("")
    if found is None:
        raise InputError(f"this zoo has no common start for {spec}")
    return with_head(found.spec(), zoo.load([found])[0], spec)


def with_head(source: ArchitectureSpec, flat: Tensor, target: ArchitectureSpec) -> Tensor:
    """(P,) of ``target``: the trunk of ``source`` and a head of zeros (they differ in classes only)."""
    state = layout_of(source).unflatten(flat)
    layout = layout_of(target)
    heads = {slot.name: slot for layer in layout.layers if layer.kind == "head" for slot in layer.slots}
    for name, slot in heads.items():
        state[name] = torch.zeros(slot.shape)
    return layout.flatten(state)


def _jobs(recipe: ZooRecipe) -> Iterator[_Job]:
    """The start first, then each group by chunks."""
    sampled: dict[int, list[DatasetTask]] = {}
    for text in recipe.architectures:
        if recipe.initialisation == "shared":
            yield text, _START, 0, _start_tasks(recipe), recipe.start.steps
            for name in recipe.datasets if recipe.start.dataset_tasks else ():
                yield text, f"{_START}-{name}", 0, _start_tasks(recipe, name), recipe.start.dataset_steps
        for number, group in enumerate(recipe.groups):
            if number not in sampled:
                tasks = _group_tasks(recipe, group)
                sampled[number] = [task for task in tasks for _ in range(group.repeats)]
            members = sampled[number]
            for chunk, first in enumerate(range(0, len(members), recipe.members_at_once)):
                yield (
                    text,
                    str(number),
                    chunk,
                    members[first : first + recipe.members_at_once],
                    recipe.fit.steps,
                )


def _sampler(recipe: ZooRecipe, split: str, classes: int, dataset: str = "") -> TaskSampler:
    return TaskSampler(
        datasets=[dataset] if dataset else list(recipe.datasets),
        salt=recipe.salt,
        split=split,
        classes=(classes, classes),
        size=recipe.size,
        channels=recipe.channels,
    )


def _start_tasks(recipe: ZooRecipe, dataset: str = "") -> list[DatasetTask]:
    sampler = _sampler(recipe, "train", recipe.start.classes, dataset)
    count = recipe.start.dataset_tasks if dataset else recipe.start.tasks
    return [sampler.task(100_000 + index) for index in range(count)]


def _group_tasks(recipe: ZooRecipe, group: GroupRecipe) -> list[DatasetTask]:
    sampler = _sampler(recipe, group.split, group.classes)
    if group.canonical:
        return [sampler.canonical(name) for name in recipe.datasets][: group.tasks]
    return [sampler.task(index) for index in range(group.tasks)]


def _spec(recipe: ZooRecipe, text: str, classes: int) -> ArchitectureSpec:
    shape = (recipe.channels, recipe.size, recipe.size)
    return parse_architecture(text).resolve(classes=classes, input=shape)


@job
def find_data(payload: Payload, step: Callable[[int], None]) -> None:
    """Read every one of ``datasets``, where an engine's jobs run.

    Raises:
        DataUnavailableError: one is not there.
        CheckpointError: its file in the cache is broken.
    """
    for name in payload["datasets"]:
        for split in SPLITS:
            read_split(name, split)


@job
def train_shard(payload: Payload, step: Callable[[int], None]) -> dict[str, Any]:
    """A shard's networks and records, from its recipe, tasks and the networks that it starts from."""
    with one_thread():
        spec, flats, records = _train_shard(
            ZooRecipe(**payload["recipe"]),
            payload["shard"],
            payload["architecture"],
            payload["group"],
            [parse_task(text) for text in payload["tasks"]],
            {name: torch.tensor(start) for name, start in payload["starts"].items()},
            step,
        )
    return {
        "architecture": spec.full_text(),
        "flats": flats.numpy(),
        "records": [asdict(record) for record in records],
    }


def _train_shard(
    recipe: ZooRecipe,
    shard: str,
    text: str,
    group: str,
    tasks: list[DatasetTask],
    starts: dict[str, Tensor],
    on_step: Callable[[int], None] | None = None,
) -> tuple[ArchitectureSpec, Tensor, list[Record]]:
    spec = _spec(recipe, text, tasks[0].num_classes)
    is_start = _stage(group) < 2
    members = len(tasks)
    if is_start:
        first = group == _START
        steps = recipe.start.steps if first else recipe.start.dataset_steps
        settings = FitSettings(
            steps=steps,
            tied_steps=steps,
            batch_size=recipe.start.batch_size,
            learning_rate=recipe.start.learning_rate if first else recipe.start.dataset_learning_rate,
            head_rate=1.0 if first else _HEADS_ANEW,
        )
        begin = initial_flats(spec, [seed_for(recipe.salt, _START, text)])[0]
        flats = (begin if first else starts[""]).repeat(members, 1)
    else:
        settings = recipe.fit.settings()
        if recipe.initialisation == "shared":
            flats = torch.stack([starts[task.dataset] for task in tasks])
        else:
            flats = initial_flats(spec, [seed_for(recipe.salt, shard, i) for i in range(members)])
    data = [task.data("train") for task in tasks]
    kept: list[Tensor] = []
    records: list[Record] = []
    seed = seed_for(recipe.salt, "fit", shard, recipe.seed)
    for snapshot in fit_population(spec, flats, data, settings, seed=seed, on_step=on_step):
        if is_start:
            # The trunks are equal but for their batch-norm statistics: their mean is the common start.
            mean = with_head(spec, snapshot.flats.mean(0), spec)
            kept.append(mean[None])
            dataset = group.removeprefix(_START).removeprefix("-")
            made = _record(recipe, shard, spec, None, 0, snapshot.step, True, None, None)
            records.append(replace(made, dataset=dataset))
            break
        kept.append(snapshot.flats)
        for member, task in enumerate(tasks):
            score = float(accuracy(spec, snapshot.flats[member : member + 1], *_test_images(task))[0])
            final = snapshot.step == settings.steps
            loss = float(snapshot.loss[member])
            records.append(_record(recipe, shard, spec, task, member, snapshot.step, final, score, loss))
    return spec, torch.cat(kept), records


def _test_images(task: DatasetTask) -> tuple[Tensor, Tensor]:
    data = task.data("test")
    if len(data) <= TEST_IMAGES:
        return data.all()
    order = torch.randperm(len(data), generator=torch_generator("zoo-test", str(task)))
    return data.batch(order[:TEST_IMAGES])


def _record(
    recipe: ZooRecipe,
    shard: str,
    spec: ArchitectureSpec,
    task: DatasetTask | None,
    member: int,
    step: int,
    final: bool,
    score: float | None,
    loss: float | None,
) -> Record:
    split = "start"
    if task is not None:
        split = _sampler(recipe, "train", task.num_classes).split_of(task)
    return Record(
        id=f"{shard}-{member:03d}-{step:06d}",
        shard=shard,
        row=0,  # the store numbers rows as they are added
        architecture=spec.full_text(),
        task="" if task is None else str(task),
        dataset="" if task is None else task.dataset,
        classes=spec.classes or 0,
        split=split,
        member=member,
        step=step,
        final=final,
        accuracy=score,
        loss=loss,
        provenance={"recipe": recipe.name, "salt": recipe.salt, "initialisation": recipe.initialisation},
    )


def _shard_name(text: str, group: str, chunk: int) -> str:
    return f"{_slug(text)}-{group}-{chunk}"


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text).strip("-")
