"""Whole numbers at the border: counts, sizes and seeds are read by one check. Knows not what is counted."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from weightloom.errors import InputError, SpecError

_DIGITS = 4000
"""Python writes no longer number as text; a seed stands in reports."""


def whole_number(
    value: Any,
    what: str,
    least: int | None = None,
    most: int | None = None,
    *,
    error: type[InputError] = InputError,
) -> int:
    """``value`` as an ``int``, from any type that is one (Python's, numpy's, a torch scalar); never rounded.

    Truth values are refused, although Python counts with them: ``seed=True`` is a slip.

    Args:
        value: what was handed in.
        what: the sentence's subject, with its verb's place left open: ``"the number of samples"``.
        least: the least that is allowed.
        most: the most that is allowed.
        error: what is raised.

    Raises:
        InputError: it is no whole number, or out of range.

    Example:
        >>> whole_number(np.int64(3), "a seed"), whole_number(torch.tensor(3), "a seed")
        (3, 3)
        >>> whole_number("3", "the number of samples", 1, 10)
        Traceback (most recent call last):
        ...
        weightloom.errors.InputError: the number of samples must be a whole number from 1 to 10, not '3'
    """
    number = None
    if not isinstance(value, bool) and not str(getattr(value, "dtype", "")).endswith("bool"):
        with suppress(TypeError, ValueError, RuntimeError, OverflowError):  # a meta tensor has no value
            number = operator.index(value)
    if number is not None and (least is None or number >= least) and (most is None or number <= most):
        if number.bit_length() < 3.3 * _DIGITS:
            return number
        raise error(f"{what} must have at most {_DIGITS:,} digits")
    if least is not None and most is not None:
        limits = f" from {least:,} to {most:,}"
    elif least is not None:
        limits = f" of at least {least:,}"
    else:
        limits = ""
    raise error(f"{what} must be a whole number{limits}, not {_shown(value)}")


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:  # whatever a stranger's type does, or a number of too many digits
        return f"a {type(value).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def whole_fields(
    options: object, limits: Mapping[str, tuple[int, int]], *, error: type[InputError] = SpecError
) -> None:
    """Check fields of a dataclass, frozen or not, by their least and most, and keep them as ``int``.

    Raises:
        SpecError: a field is no whole number, or out of range.
    """
    for name, (least, most) in limits.items():
        object.__setattr__(
            options, name, whole_number(getattr(options, name), name, least, most, error=error)
        )
