"""What a saved network says of itself beside its weights: the one place that reads and writes it.

Whoever uses a network needs to know what its outputs are called, which pictures it reads and how they become
its input. All of it stands as JSON in the file's header, under the key ``card``. Files from before there were
cards have what their report says. Knows no network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from weightloom.errors import CheckpointError, InputError
from weightloom.io import dump_json, parse_json
from weightloom.tasks.data import PIXELS
from weightloom.tasks.depth import ValueRanges
from weightloom.tasks.task import Task, parse_task

KEY = "card"
"""Under which a file's header has it."""

CENTRAL_SQUARE = "the central square, resized bilinearly with antialiasing"
"""How pictures become the input of every network of ours."""

_MOST_TEXT = 20_000
"""Characters of a note."""

LEAST_TEMPERATURE, MOST_TEMPERATURE = 1e-3, 1e3
"""Between which temperatures are measured (:mod:`weightloom.fitting.calibration`)."""

_MOST_VALUE, _LEAST_WIDTH = 1e6, 1e-6
"""Of the values that stand for black and white: beyond them float32 has no room for the bytes between."""


@dataclass(frozen=True, kw_only=True)
class NetworkCard:
    """What a network's outputs are called, what it reads, and where it is from. None is what is not known.

    Attributes:
        class_names: in the order of the outputs.
        input: (channels, height, width) of the pictures that it reads.
        value_range: the values that stand for black and white in its input.
        ranges: what black and white were in pictures deeper than bytes that it was made from; further ones
            are read in the same way.
        resize: how pictures of any size become its input, in words.
        licence: of its pictures or weights, free text.
        temperature: what its outputs are divided by, so that their softmax is a probability; None where that
            was not measured.
        calibration: what the temperature was measured on, in words.
        made_by: what made it, in words.

    Example:
        >>> card = NetworkCard(class_names=("cat", "dog"), input=(3, 16, 16))
        >>> NetworkCard.from_metadata("net.safetensors", card.to_metadata(), input=card.input) == card
        True
        >>> card.labels(2), NetworkCard().labels(2)
        (('cat', 'dog'), ('class 0', 'class 1'))
    """

    class_names: tuple[str, ...] | None = None
    input: tuple[int, int, int] | None = None
    value_range: tuple[float, float] | None = PIXELS
    ranges: ValueRanges = field(default_factory=ValueRanges)
    resize: str | None = CENTRAL_SQUARE
    licence: str | None = None
    temperature: float | None = None
    calibration: str | None = None
    made_by: str | None = None

    def labels(self, classes: int) -> tuple[str, ...]:
        """What the outputs of a network of ``classes`` are called, ``"class 0"`` and so on without names."""
        return self.class_names or placeholders(classes)

    def for_task(self, task: Task) -> NetworkCard:
        """With what ``task`` says of classes, depth and licence; see :meth:`for_names`."""
        return self.for_names(task.class_names, task.picture_ranges, task.licence)

    def for_names(
        self, names: Sequence[str], ranges: ValueRanges | None = None, licence: str | None = None
    ) -> NetworkCard:
        """For the classes ``names``, of pictures of these ranges and this licence.

        What was measured for other classes is forgotten.
        """
        named = None if tuple(names) == placeholders(len(names)) else tuple(names)
        card = replace(self, class_names=named, ranges=ranges or self.ranges)
        card = replace(card, licence=joined(licence, self.licence))
        return card if named == self.class_names else replace(card, temperature=None, calibration=None)

    def calibrated(self, found: Mapping[str, Any] | None) -> NetworkCard:
        """With a ``temperature`` and what it was measured ``on``; None forgets both."""
        found = found or {"temperature": None, "on": None}
        return replace(self, temperature=found["temperature"], calibration=found["on"])

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is not known is None."""
        return {
            "class_names": None if self.class_names is None else list(self.class_names),
            "input": None if self.input is None else list(self.input),
            "value_range": None if self.value_range is None else list(self.value_range),
            "ranges": self.ranges.to_json(),
            "resize": self.resize,
            "licence": self.licence,
            "temperature": self.temperature,
            "calibration": self.calibration,
            "made_by": self.made_by,
        }

    def to_metadata(self) -> dict[str, str]:
        """The entry of a file's header."""
        return {KEY: dump_json(self.to_json())}

    @classmethod
    def from_report(
        cls,
        report: Mapping[str, Any],
        *,
        input: tuple[int, int, int] | None = None,
        classes: int | None = None,
    ) -> NetworkCard:
        """What a report says, of a file without a card or of a sample that is not saved yet.

        Names that do not fit are left out: a report may say anything.
        """
        names = report.get("class_names")
        if not _is_names(names):
            names = _names_of_task(report.get("task") or report.get("valid_for"))
        if names is not None and (classes not in (None, len(names)) or names == [*placeholders(len(names))]):
            names = None
        made_by, licence = (
            text if isinstance(text := report.get(key), str) else None for key in ("generator", "licence")
        )
        return cls(
            class_names=None if names is None else tuple(names),
            input=input,
            made_by=made_by,
            licence=licence,
        )

    @classmethod
    def from_metadata(
        cls,
        path: str | Path,
        metadata: Mapping[str, str],
        *,
        input: tuple[int, int, int] | None = None,
        classes: int | None = None,
    ) -> NetworkCard:
        """The card in a file's header, or what the report there says where there is none.

        Args:
            path: for the error.
            metadata: the header's text.
            input: (channels, height, width) that the file's network reads, which holds whatever the card
                says.
            classes: how many outputs it has.

        Raises:
            CheckpointError: the card is no card, or names another number of classes.
        """
        text = metadata.get(KEY)
        if text is None:
            try:
                report = parse_json(path, metadata.get("report", "{}"), what="report")
            except CheckpointError:
                report = {}
            return cls.from_report(report if isinstance(report, dict) else {}, input=input, classes=classes)
        held = parse_json(path, text, what="card")
        try:
            card = cls._from_json(held)
        except (InputError, OverflowError) as error:  # a number may have thousands of digits
            raise CheckpointError(path, f"its card cannot be read ({error})") from None
        if card.class_names is not None and classes not in (None, len(card.class_names)):
            raise CheckpointError(
                path, f"its card names {len(card.class_names)} classes, but its network has {classes}"
            )
        return card if input is None else replace(card, input=input)

    @classmethod
    def _from_json(cls, held: Any) -> NetworkCard:
        """What :meth:`to_json` gave; entries that are not known are passed over: they are of a later version.

        Raises:
            InputError: an entry of another kind.
        """
        if not isinstance(held, dict):
            raise InputError(f"{type(held).__name__} where names with values are expected")
        names, sides, values = (held.get(key) for key in ("class_names", "input", "value_range"))
        if names is not None and not _is_names(names):
            raise InputError("its class names are no list of different texts")
        if sides is not None and not _is_numbers(sides, 3, lambda side: type(side) is int and side > 0):
            raise InputError(f"its input is not three sides, but {str(sides)[:60]}")
        if values is not None and not _is_range(values):
            raise InputError(
                f"its range of values is not two numbers, apart and within {_MOST_VALUE:,.0f} of 0, but "
                f"{str(values)[:60]}"
            )
        texts = {key: held.get(key) for key in ("resize", "licence", "calibration", "made_by")}
        for key, text in texts.items():
            if text is not None and not (_is_text(text) and len(text) <= _MOST_TEXT):
                raise InputError(f"its {key} is no text of at most {_MOST_TEXT:,} characters")
        temperature = held.get("temperature")
        if temperature is not None and not (
            _is_finite(temperature) and LEAST_TEMPERATURE <= temperature <= MOST_TEMPERATURE
        ):
            raise InputError(
                f"its temperature is no number from {LEAST_TEMPERATURE:g} to {MOST_TEMPERATURE:g}, but "
                f"{str(temperature)[:60]}"
            )
        return cls(
            class_names=None if names is None else tuple(names),
            input=None if sides is None else tuple(sides),
            value_range=None if values is None else (float(values[0]), float(values[1])),
            ranges=ValueRanges.from_json(held.get("ranges") or {}),
            temperature=None if temperature is None else float(temperature),
            **texts,
        )


def placeholders(classes: int) -> tuple[str, ...]:
    """What classes without names are called.

    Example:
        >>> placeholders(2)
        ('class 0', 'class 1')
    """
    return tuple(f"class {label}" for label in range(classes))


def joined(*notes: str | None) -> str | None:
    """Several notes as one, each once; None without any.

    Example:
        >>> joined("MIT", None, "MIT", "BSD-3-Clause")
        'MIT; BSD-3-Clause'
    """
    return "; ".join(dict.fromkeys(note for note in notes if note)) or None


def _is_names(names: Any) -> bool:
    listed = isinstance(names, list | tuple) and bool(names) and all(map(_is_text, names))
    return listed and len(set(names)) == len(names)


def _is_text(text: Any) -> bool:
    """Whether it is text to others than Python too: half of a surrogate pair is none."""
    return isinstance(text, str) and not any("\ud800" <= letter <= "\udfff" for letter in text)


def _is_range(values: Any) -> bool:
    if not _is_numbers(values, 2, lambda value: _is_finite(value) and abs(value) <= _MOST_VALUE):
        return False
    return float(values[1]) - float(values[0]) >= _LEAST_WIDTH


def _names_of_task(held: Any) -> list[str] | None:
    """The classes of a named task, or of the only one that a network is valid for; None for anything else."""
    if isinstance(held, dict):
        tasks = held.get("tasks")
        held = tasks[0] if isinstance(tasks, list) and len(tasks) == 1 else None
    try:
        return parse_task(held).class_names
    except InputError:
        return None


def _is_numbers(values: Any, count: int, fits: Any) -> bool:
    return isinstance(values, list) and len(values) == count and all(fits(value) for value in values)


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
