"""What a request calls its classes, and where the names are from. Knows no method."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from weightloom.conditioning.names import check_names, names_in, readable, shown_names
from weightloom.errors import InputError
from weightloom.generators.base import Request


def told_names(request: Request, generator: str) -> dict[str, Any]:
    """What the report says of the names: which they are, where they are from, and others in the sentence.

    Raises:
        InputError: nothing names the classes.
    """
    listed = None if request.instruction is None else names_in(request.instruction)
    if request.classes is not None:
        names = request.classes
        source = "listed in the instruction" if listed == names else "given"
    elif request.support is not None:
        names, source = request.support.class_names, "of the examples"
        with suppress(InputError):  # folders may be called "+" and "-": then the examples say what they are
            names = check_names(names)
    elif listed is None:
        raise InputError(
            f"generator {generator} makes a network from the names of its classes; give them as "
            "--classes 'cat, dog, truck' (classes=[...]), or list them in the instruction"
        )
    else:  # a list that fits has become the request's classes
        raise InputError(
            f"the instruction lists {len(listed)} classes ({shown_names(listed)}), but the architecture "
            f"has {request.architecture.classes}"
        )
    said: dict[str, Any] = {"class_names": list(names), "names_from": source}
    if listed is not None and not {readable(n) for n in names} <= {readable(n) for n in listed}:
        said["instruction_lists"] = list(listed)
    return said
