"""Class names on the command line, and which generator answers where none is named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from weightloom.cli.inputs import plain_text

if TYPE_CHECKING:
    from weightloom.architectures import ArchitectureSpec

WITH_EXAMPLES, FROM_WORDS = "igpg-tiny", "words-small"

Classes = Annotated[
    str | None,
    typer.Option(
        "--classes",
        metavar="NAMES",
        help="The names of the classes, in the order of the outputs: 'cat, dog, truck'.",
    ),
]
GeneratorOrNone = Annotated[
    str | None,
    typer.Option(
        "--generator",
        metavar="NAME",
        help=f"A bundled name, a local folder, or a hub id. Left out: {WITH_EXAMPLES} with examples, "
        f"{FROM_WORDS} from words alone.",
    ),
]


def given_names(classes: str | None) -> tuple[str, ...] | None:
    """The class names of ``--classes``. Raises InputError where they are none."""
    if classes is None:
        return None
    from weightloom.conditioning.names import parse_names

    return parse_names(plain_text(classes, "class names"))


def default_generator(
    names: tuple[str, ...] | None, instruction: str | None, spec: ArchitectureSpec, *, examples: bool
) -> str:
    """Which bundled generator answers: it follows from what the request has.

    Where classes are only listed in the sentence, the request is for words alone if it can be answered so.
    """
    if examples:
        return WITH_EXAMPLES
    if names is not None:
        return FROM_WORDS
    if instruction is None:
        return WITH_EXAMPLES
    from weightloom.conditioning.names import names_in

    listed = names_in(instruction)
    return FROM_WORDS if listed is not None and _makes(spec, len(listed)) else WITH_EXAMPLES


def _makes(spec: ArchitectureSpec, classes: int) -> bool:
    """Whether the generator from words makes ``spec`` with so many classes; only its config is read."""
    from weightloom.errors import InputError
    from weightloom.generators import Validity
    from weightloom.generators.load import BUNDLED
    from weightloom.io import read_json

    validity = Validity.from_json(read_json(BUNDLED / FROM_WORDS / "config.json")["validity"])
    if spec.classes not in (None, classes):
        return False
    try:
        validity.check(spec.resolve(classes=classes, input=validity.input_for(spec)))
    except InputError:
        return False
    return True
