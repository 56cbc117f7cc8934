"""What has to be undone where the process ends in the middle of it: temporary files, processes of its own.

Whoever starts something that would outlive the process says beforehand how it is undone, and forgets it when
it is done. An interrupt of the command line ends the process wherever it is and calls :func:`undo_all`;
nothing else of Python's tidying is run then, so that no step of it can be the one that hangs.

Imports nothing but what the interpreter has loaded already: the command line has it before everything else.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any

_pending: dict[int, Callable[[], Any]] = {}
_written: list[str] = []
_NAMED, _KEPT = 3, 1000


class Undoing:
    """``with Undoing(remove):`` calls ``remove`` where the process is interrupted inside the block.

    ``remove`` runs in another thread while the main one stands still, wherever that is: it must not import,
    nor wait for a lock.
    """

    def __init__(self, undo: Callable[[], Any]) -> None:
        self._undo = undo

    def __enter__(self) -> Undoing:
        _pending[id(self)] = self._undo
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.forget()

    def forget(self) -> None:
        """It is done, or undone."""
        _pending.pop(id(self), None)


class WholeStep:
    """``with WholeStep():`` an interrupt waits for the end of the block, which must be a matter of moments.

    For what cannot be undone half done: a process that is started, and not yet known by its number.
    """

    depth = 0
    then: Callable[[], None] | None = None
    """What an interrupt that came meanwhile wants to have called at the end."""

    def __enter__(self) -> WholeStep:
        WholeStep.depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        WholeStep.depth -= 1
        if WholeStep.depth == 0 and WholeStep.then is not None:
            WholeStep.then()


def written(path: Any) -> None:
    """``path`` is in its place now, whole: an interrupt says so."""
    if len(_written) < _KEPT:
        _written.append(os.fspath(path))


def nothing_yet() -> None:
    """A command begins: what was written before is not its own."""
    _written.clear()


def what_was_written() -> str:
    """What this process has put in its place, for a sentence: the first few names, and how many more."""
    if not _written:
        return "nothing was written"
    names = list(dict.fromkeys(_written))
    return f"written before: {', '.join(names[:_NAMED])}" + (" and more" if len(names) > _NAMED else "")


def undo_all() -> None:
    """Undo everything that is not done, the newest first; what fails is left as it is."""
    while _pending:
        try:
            _, undo = _pending.popitem()
            undo()
        except BaseException:
            pass
