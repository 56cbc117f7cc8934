"""One exception family: every mistake a user can make ends in one of these, with one clear sentence.

The command line turns :class:`InputError` into exit code 2 and any other
:class:`WeightloomError` into exit code 1. This file imports nothing of the package.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

_BEGIN, _END = 1200, 400
"""Letters of a message that is too long to be read: a broken file can name a thing by thousands of them."""

_MOST_LISTED = 100
"""Broken pictures that one message names; the error has all of them."""

UNSHOWABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and new line: a terminal obeys them
    "\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069"  # these end lines, or turn the direction of reading
    "\ud800-\udfff]"  # bytes of a name that is not UTF-8, as Python hands them over: no output takes them
)
"""Characters that must not reach a terminal."""


def printable(text: str, *, one_line: bool = False) -> str:
    r"""``text`` with what cannot or must not be shown spelt out: bytes that are no UTF-8, control characters.

    Args:
        text: for instance a file's name, which a stranger chose.
        one_line: whether tabs and new lines are spelt out too.

    Example:
        >>> printable("caf\udce9 \x1b[31mred")
        'caf\\xe9 \\x1b[31mred'
    """

    def spelt(found: re.Match[str]) -> str:
        code = ord(found[0])
        if 0xDC80 <= code <= 0xDCFF:  # how Python keeps the byte 0x80 to 0xFF of such a name
            return f"\\x{code - 0xDC00:02x}"
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"

    text = UNSHOWABLE.sub(spelt, text)
    return text.replace("\t", "\\t").replace("\n", "\\n") if one_line else text


class WeightloomError(Exception):
    """Something the user should read failed; the base of the family (exit code 1)."""

    exit_code = 1
    longest = _BEGIN + _END

    def __str__(self) -> str:
        text = printable(super().__str__())
        return text if len(text) <= self.longest else f"{text[:_BEGIN]} ... {text[-_END:]}"


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
    """A module has layers whose weights cannot be predicted, or that a kind of file lacks.

    ``layers`` has all of them.

    Example:
        >>> raise UnsupportedLayerError([("rnn", "LSTM", "used by lstm"), ("act", "PReLU", "used by prelu")])
        Traceback (most recent call last):
        ...
        weightloom.errors.UnsupportedLayerError: cannot predict the weights of 2 layers: rnn (LSTM, used by
        lstm); act (PReLU, used by prelu). Pass partial=True to keep them as they are
    """

    def __init__(self, layers: Iterable[tuple[str, str, str]], message: str | None = None) -> None:
        self.layers = list(layers)
        if message is not None:  # it is not weights that cannot be had
            super().__init__(message)
            return
        count = len(self.layers)
        shown = "; ".join(f"{name} ({kind}, {why})" for name, kind, why in self.layers[:20])
        if count > 20:
            shown += f"; and {count - 20} more"
        super().__init__(
            f"cannot predict the weights of {count} layer{'s' * (count > 1)}: {shown}. "
            "Pass partial=True to keep them as they are"
        )


class BrokenPicturesError(InputError):
    """Pictures that cannot be read; ``files`` has all of them, each with the reason.

    Example:
        >>> raise BrokenPicturesError("photos", 12, [("ant/1.png", "is empty"), ("bee/3.jpg", "is cut off")])
        Traceback (most recent call last):
        ...
        weightloom.errors.BrokenPicturesError: photos: 2 of 12 pictures cannot be read: ant/1.png (is empty);
        bee/3.jpg (is cut off). Mend or remove them, or leave them out: --skip-broken, in Python
        skip_broken=True
    """

    longest = 40_000  # the list is what the user needs
    files: Sequence[tuple[str, str]] = ()

    def __init__(self, where: str, count: int, files: Sequence[tuple[str, str]]) -> None:
        self.files = list(files)
        listed = "; ".join(f"{name} ({reason})" for name, reason in self.files[:_MOST_LISTED])
        more = f"; and {len(self.files) - _MOST_LISTED} more" if len(self.files) > _MOST_LISTED else ""
        super().__init__(
            f"{where}: {len(self.files)} of {count} picture{'s' * (count > 1)} cannot be read: "
            f"{listed}{more}. Mend or remove them, or leave them out: --skip-broken, in Python "
            "skip_broken=True"
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
