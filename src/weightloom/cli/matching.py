"""Which class of a task or folder is which output of a network: by name, never by chance.

Knows no command.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from weightloom.cli.inputs import Network, require_task
from weightloom.cli.output import note
from weightloom.errors import InputError

if TYPE_CHECKING:
    from weightloom.tasks import FolderTask, Task

_SHOWN = 12  # names in a sentence


def fitting_task(network: Network, task: str | None, data: Path | None, skip_broken: bool = False) -> Task:
    """The task to run ``network`` on, at the size that it reads, its labels those of the network's outputs.

    Classes of the same names in another order are matched. Where all names are others, labels are taken for
    outputs in their order, and that is said.

    Raises:
        InputError: none is given, its number of classes is another one, or some of its names are the
            network's and some are not.
    """
    from weightloom.tasks import FolderTask

    found = require_task(task, data, network.spec.input, skip_broken)
    if found.num_classes != network.spec.classes:
        hint = "; --test-data takes pictures of some of them" if data is not None else ""
        counts = f"{network.spec.classes} classes, but {found} has {found.num_classes}"
        raise InputError(f"the network tells apart {counts}{hint}")
    if found.input_shape != network.spec.input:
        wanted, got = ("x".join(map(str, shape or ())) for shape in (network.spec.input, found.input_shape))
        raise InputError(f"the network reads {wanted} images, but those of {found} are {got}")
    if network.card.class_names is None:
        if isinstance(found, FolderTask):
            _by_order(found.class_names)
        return found
    return _in_order_of(found, network.card.class_names)


def measured_folder(network: Network, folder: Path, skip_broken: bool = False) -> FolderTask:
    """All pictures of ``folder``, one sub-folder a class, with the network's outputs as labels.

    Classes are matched by name; some may be missing, which is said.

    Raises:
        InputError: no such folder, classes that the network does not have, or, where the network has no
            names, another number of classes.
        UnsupportedRequestError: the network reads images that no picture becomes.
    """
    from weightloom.cli.inputs import load_task
    from weightloom.conditioning.names import places_of, shown_names
    from weightloom.tasks import FolderTask

    found = load_task(None, folder, network.spec.input, skip_broken, whole=True)
    assert isinstance(found, FolderTask) and network.spec.classes is not None
    outputs, names = network.card.class_names, found.own_names
    if outputs is None:
        if len(names) != network.spec.classes:
            raise InputError(
                f"the network does not say what its {network.spec.classes} classes are called, and {folder} "
                f"has {len(names)}: they cannot be matched"
            )
        _by_order(names)
        return found
    places = places_of(names, outputs)
    others = [name for name, place in zip(names, places, strict=True) if place is None]
    if others:
        raise InputError(
            f"{folder}: the network has no class {shown_names([repr(name) for name in others], _SHOWN)}; it "
            f"tells apart {shown_names(outputs, _SHOWN)}"
        )
    missing = [name for place, name in enumerate(outputs) if place not in places]
    if missing:
        note(f"note: there are no pictures of {shown_names(missing, _SHOWN)} in {folder}: not measured")
    return found.matched(outputs, [place for place in places if place is not None])


def _in_order_of(task: Task, outputs: tuple[str, ...]) -> Task:
    """``task`` with its labels in the order of ``outputs``, where these are its classes.

    Raises:
        InputError: only some of them are: taken in order, a class could be measured as another of the two.
    """
    from weightloom.conditioning.names import places_of, shown_names
    from weightloom.tasks import DatasetTask, FolderTask

    found = places_of(task.class_names, outputs)
    places = [place for place in found if place is not None]
    if 0 < len(places) < len(outputs):
        others = [repr(name) for name, place in zip(task.class_names, found, strict=True) if place is None]
        raise InputError(
            f"the network has no class {shown_names(others, _SHOWN)}, though others of {task} are its own; "
            f"it tells apart {shown_names(outputs, _SHOWN)}"
        )
    if not places:
        note(
            f"note: the network was made for {shown_names(outputs, _SHOWN)}; here its outputs are taken for "
            f"{shown_names(task.class_names, _SHOWN)}, in this order"
        )
    elif isinstance(task, FolderTask):
        return task.matched(outputs, places)
    elif isinstance(task, DatasetTask):
        return replace(task, classes=tuple(task.classes[places.index(place)] for place in range(len(places))))
    return task


def _by_order(names: list[str]) -> None:
    from weightloom.conditioning.names import shown_names

    note(
        "note: the network does not say what its classes are called; its outputs are taken for "
        f"{shown_names(names, _SHOWN)}, in this order"
    )
