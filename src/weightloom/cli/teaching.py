"""Help that teaches: a command's docstring is its help, and its examples stand below the options.

Knows no command.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import typer

F = TypeVar("F", bound=Callable[..., Any])


def command(app: typer.Typer, name: str) -> Callable[[F], F]:
    """Decorator that adds a command to ``app``; its docstring must end with examples."""

    def add(function: F) -> F:
        text, examples = parts_of(inspect.getdoc(function) or "")
        app.command(name, help=text, epilog=examples)(function)
        return function

    return add


def parts_of(docstring: str) -> tuple[str, str]:
    r"""The prose of ``docstring``, a paragraph a line, and its examples.

    Example:
        >>> parts_of("Do it.\n\nAll of\nit.\n\nExample:\n    weightloom do it")
        ('Do it.\n\nAll of it.', 'Example:\n  weightloom do it')
    """
    prose, mark, examples = docstring.partition("\n\nExample")
    assert mark, f"a command without an example: {docstring[:60]!r}"
    paragraphs = [" ".join(paragraph.split()) for paragraph in prose.split("\n\n")]
    title, _, lines = examples.partition("\n")
    shown = [f"  {line.removeprefix('    ')}" for line in lines.split("\n") if line.strip()]
    return "\n\n".join(paragraphs), "\n".join([f"Example{title}", *shown])
