"""What a network answers to a task's test images, counted by class. Knows no generator and no file.

Shapes: P values of a network, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.engines import Payload, job
from weightloom.fitting import run_networks
from weightloom.tasks import FolderTask, Task, parse_task

IMAGES = 1000
"""Test images that a network looks at together."""


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
        for index in torch.arange(len(test)).split(IMAGES):
            images, labels = test.batch(index)
            answers = run_networks(spec, flat[None], images)[0].argmax(-1)
            pairs = torch.bincount(labels * classes + answers, minlength=classes**2)
            counts += pairs.reshape(classes, classes)  # (C * C,) -> (C, C)
    return counts


def network_payload(spec: ArchitectureSpec, flat: Tensor, task: Task) -> Payload:
    """What :func:`measure_network` is given. A folder of images has to be where the worker finds it."""
    plain: Payload = {"architecture": spec.full_text(), "weights": flat.numpy(), "task": str(task)}
    if isinstance(task, FolderTask):
        names = ("size", "channels", "test_fraction")
        plain["folder"] = {name: getattr(task, name) for name in names}
        plain["folder"] |= {"path": str(task.path.absolute()), "transform": str(task.transform)}
    return plain


@job
def measure_network(payload: Payload, step: Callable[[int], None]) -> list[list[int]]:
    """:func:`confusion`, wherever an engine runs it."""
    task = FolderTask(**payload["folder"]) if "folder" in payload else parse_task(payload["task"])
    spec, flat = parse_architecture(payload["architecture"]), torch.from_numpy(payload["weights"])
    counts: list[list[int]] = confusion(spec, flat, task).tolist()
    return counts
