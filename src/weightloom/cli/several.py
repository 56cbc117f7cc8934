"""A command over several things goes on after a bad one, lists what failed, and ends with exit code 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from weightloom.cli.failures import Interrupted, explain
from weightloom.cli.interrupts import debugging
from weightloom.cli.output import note
from weightloom.errors import WeightloomError


class Several:
    """What became of each of ``total`` things that were named.

    Example:
        >>> several = Several(3, "files")
        >>> for name in ("a", "b", "c"):
        ...     with several.attempt(name):
        ...         if name == "b":
        ...             raise WeightloomError("b: is broken")
        >>> several.failed
        [{'name': 'b', 'reason': 'is broken'}]
        >>> several.finish()
        Traceback (most recent call last):
        ...
        weightloom.errors.WeightloomError: 1 of 3 files failed: b
    """

    def __init__(self, total: int, what: str) -> None:
        self.total, self.what = total, what
        self.failed: list[dict[str, str]] = []

    @contextmanager
    def attempt(self, name: object) -> Iterator[None]:
        """What fails inside is noted and no more, unless it is the only one that was asked for.

        Raises:
            Exception: what was raised inside, where there is only one.
        """
        try:
            yield
        except Exception as error:
            if self.total == 1 or isinstance(error, Interrupted) or debugging():
                raise
            self.add(name, explain(error)[0])

    def add(self, name: object, reason: str) -> None:
        """``name`` has failed."""
        reason = reason.removeprefix(f"{name}: ")
        self.failed.append({"name": str(name), "reason": reason})
        note(f"{name}: {reason}")

    def finish(self) -> None:
        """The end of the command.

        Raises:
            WeightloomError: something has failed; why has been noted.
        """
        if self.failed:
            names = ", ".join(dict.fromkeys(entry["name"] for entry in self.failed))
            raise WeightloomError(f"{len(self.failed)} of {self.total} {self.what} failed: {names}")
