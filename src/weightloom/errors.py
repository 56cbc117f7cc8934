"""One exception family: every mistake a user can make ends in one of these, with one clear sentence.

The command line turns :class:`InputError` into exit code 2 and any other
:class:`WeightloomError` into exit code 1. This file imports nothing of the package.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

_BEGIN, _END = 1200, 400
"""Letters of a message that is too long to be read: a broken file can name a thing by thousands of them."""


class WeightloomError(Exception):
    """Something the user should read failed; the base of the family (exit code 1)."""

    exit_code = 1

    def __str__(self) -> str:
        text = super().__str__()
        return text if len(text) <= _BEGIN + _END else f"{text[:_BEGIN]} ... {text[-_END:]}"


class InputError(WeightloomError, ValueError):
    """What the caller handed in cannot be used (exit code 2)."""

    exit_code = 2


class UnknownNameError(InputError):
    """A name that no registry knows; the message offers the nearest names.

    Example:
        >>> raise UnknownNameError("dataset", "fashion-mnits", ["fashion-mnist", "mnist"])
        Traceback (most recent call last):
        ...
        weightloom.errors.UnknownNameError: unknown dataset 'fashion-mnits'; did you mean 'fashion-mnist'?
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        shown = name if len(name) <= 80 else name[:77] + "..."
        near = difflib.get_close_matches(name[:200], known, n=3, cutoff=0.5)
        if near:
            hint = "did you mean " + " or ".join(repr(n) for n in near) + "?"
        elif known:
            hint = "known: " + ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
        else:
            hint = "none is known"
        super().__init__(f"unknown {kind} {shown!r}; {hint}")
        self.kind, self.name, self.known = kind, name, known


class SpecError(InputError):
    """An architecture, task or recipe text that cannot be read or makes no sense."""


class UnsupportedRequestError(InputError):
    """A generator was asked for more than it is valid for; the message says what it can do."""


class UnsupportedLayerError(UnsupportedRequestError):
    """A module has layers whose weights cannot be predicted; ``layers`` has all of them.

    Example:
        >>> raise UnsupportedLayerError([("rnn", "LSTM", "used by lstm"), ("act", "PReLU", "used by prelu")])
        Traceback (most recent call last):
        ...
        weightloom.errors.UnsupportedLayerError: cannot predict the weights of 2 layers: rnn (LSTM, used by
        lstm); act (PReLU, used by prelu). Pass partial=True to keep them as they are
    """

    def __init__(self, layers: Iterable[tuple[str, str, str]]) -> None:
        self.layers = list(layers)
        count = len(self.layers)
        shown = "; ".join(f"{name} ({kind}, {why})" for name, kind, why in self.layers[:20])
        if count > 20:
            shown += f"; and {count - 20} more"
        super().__init__(
            f"cannot predict the weights of {count} layer{'s' * (count > 1)}: {shown}. "
            "Pass partial=True to keep them as they are"
        )


class CheckpointError(InputError):
    """A file or folder of weights that is broken, incomplete, foreign or not what its config says."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = Path(path), reason


class DataUnavailableError(WeightloomError):
    """No source of a dataset, encoder or bundled file answers on this machine."""


class TrainingError(WeightloomError):
    """A run cannot go on: a loss that is not finite, a collapsed codebook, a budget that is spent."""
