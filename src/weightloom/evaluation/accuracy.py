"""What a network answers to a task's test images, counted by class. Knows no generator and no file.

Shapes: P values of a network, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.defaults import with_plain_defaults
from weightloom.engines import Engine, Payload, job
from weightloom.errors import InputError
from weightloom.fitting import images_at_once, run_networks
from weightloom.tasks import DatasetTask, FolderTask, Task, ValueRanges, parse_task

AT_ONCE = 16
"""Networks of one task that are measured after one reading of its images, at most."""


@with_plain_defaults
def confusion(spec: ArchitectureSpec, flat: Tensor, task: Task) -> Tensor:
    """(C, C) how many test images of each class (row) the network takes for each class (column).

    Args:
        spec: its architecture, resolved.
        flat: (P,) its weights.
        task: one of as many classes, of the size that the network reads.

    Raises:
        DataUnavailableError: the task's data are not here.

    Example:
        >>> task = parse_task("digits@8c1")
        >>> spec = parse_architecture("mlp(depth=1,width=4)").resolve(classes=10, input=task.input_shape)
        >>> int(confusion(spec, torch.zeros(spec.num_parameters()), task)[:, 0].sum())
        500
    """
    test, classes = task.data("test"), task.num_classes
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    with torch.no_grad():
        for index in torch.arange(len(test)).split(images_at_once(spec)):
            images, labels = test.batch(index)
            answers = run_networks(spec, flat[None], images)[0].argmax(-1)
            pairs = torch.bincount(labels * classes + answers, minlength=classes**2)
            counts += pairs.reshape(classes, classes)  # (C * C,) -> (C, C)
    return counts


def task_payload(task: Task) -> Payload:
    """What a worker finds the same task by. A folder of images has to be where it is here.

    Raises:
        InputError: a task that has neither a name nor a folder.
    """
    if isinstance(task, FolderTask):
        names = ("size", "channels", "test_fraction", "skip_broken")
        folder = {name: getattr(task, name) for name in names}
        folder |= {"path": str(task.path.absolute()), "transform": str(task.transform)}
        if task.known_ranges is not None:
            folder["ranges"] = task.known_ranges.to_json()
        if task.outputs is not None:
            folder["matched"] = {"outputs": list(task.outputs), "places": list(task.places)}
        return {"folder": folder, "files": task.digest()}
    if isinstance(task, DatasetTask):
        return {"task": str(task)}
    raise InputError(f"{task} is known to this process alone; a worker cannot measure on it")


@with_plain_defaults
def confusions(
    wanted: Sequence[tuple[ArchitectureSpec, Tensor, Task]],
    engine: Engine,
    *,
    jobs: int = 1,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> list[list[list[int]]]:
    """:func:`confusion` of many networks, each an architecture, weights (P,) and a task, by an engine.

    Args:
        wanted: the networks.
        engine: where they are measured.
        jobs: how many are to be at work together. Networks of one task share the reading of its images as far
            as that leaves work for all.
        progress: told of networks.

    Raises:
        InputError: a task that a worker cannot find, or finds with other images.
    """
    tasks = [task_payload(task) for _, _, task in wanted]
    _here.update({_key(own): task for own, (_, _, task) in zip(tasks, wanted, strict=True)})
    most = AT_ONCE if jobs == 1 else max(1, min(AT_ONCE, len(wanted) // (4 * jobs)))
    groups: list[list[int]] = []
    for number, own in enumerate(tasks):
        fitting = (group for group in groups if len(group) < most and tasks[group[0]] == own)
        if (group := next(fitting, None)) is None:
            groups.append([number])
        else:
            group.append(number)

    def network(number: int) -> Payload:
        spec, flat, _ = wanted[number]
        return {"architecture": spec.full_text(), "weights": flat.numpy()}

    payloads = [{**tasks[group[0]], "networks": [network(number) for number in group]} for group in groups]
    found: dict[int, list[list[int]]] = {}
    try:
        for number, counts in engine.map(measure_networks, payloads):
            found |= zip(groups[number], counts, strict=True)
            progress("networks", len(found), len(wanted))
    finally:
        _here.clear()
    return [found[number] for number in range(len(wanted))]


_here: dict[str, Task] = {}
"""Tasks that this process measures on, so that it does not read a folder of images twice."""


def _key(payload: Payload) -> str:
    """What a task's payload says, without the networks."""
    return json.dumps({key: value for key, value in payload.items() if key != "networks"}, sort_keys=True)


def _task_of(payload: Payload) -> Task:
    if "folder" not in payload:
        return parse_task(payload["task"])
    options = dict(payload["folder"])
    matched = options.pop("matched", None)
    if "ranges" in options:
        options["ranges"] = ValueRanges.from_json(options["ranges"])
    folder = FolderTask(**options)
    if matched is not None:
        folder = folder.matched(**matched)
    if folder.digest() != payload["files"]:
        raise InputError(f"a worker finds other images in {folder.path} than this process does")
    return folder


@job
@with_plain_defaults
def measure_networks(payload: Payload, step: Callable[[int], None]) -> list[list[list[int]]]:
    """:func:`confusion` of every one of ``networks`` on one task, wherever an engine runs it."""
    task = _here.get(_key(payload)) or _task_of(payload)
    found: list[list[list[int]]] = []
    for one in payload["networks"]:
        flat = torch.tensor(one["weights"])
        found.append(confusion(parse_architecture(one["architecture"]), flat, task).tolist())
        step(len(found))
    return found
