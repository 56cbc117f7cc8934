"""Class names on the command line, and which generator answers where none is named."""

from __future__ import annotations

from typing import Annotated

import typer

from weightloom.cli.inputs import plain_text

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


def default_generator(names: tuple[str, ...] | None, instruction: str | None, *, examples: bool) -> str:
    """Which bundled generator answers: it follows from what the request has."""
    if examples:
        return WITH_EXAMPLES
    if names is None and instruction is not None:
        from weightloom.conditioning.names import names_in

        names = names_in(instruction)
    return WITH_EXAMPLES if names is None else FROM_WORDS
