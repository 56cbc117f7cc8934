"""What an exported file says of its network: classes, how a picture becomes its input, origin, licence.

:func:`facts_of` is the one place that reads it out of a network file's header.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightloom import __version__
from weightloom.architectures import ArchitectureSpec
from weightloom.errors import InputError, printable
from weightloom.tasks import NetworkCard
from weightloom.tasks.data import PIXELS

NO_LICENCE = "unknown: the network's file does not say under which licence its weights are"
NO_TEMPERATURE = "not measured: probabilities are not calibrated"


@dataclass(frozen=True)
class Facts:
    """What is known of a network.

    Attributes:
        class_names: in the order of the logits; ``class 0`` and so on where nobody has named them.
        input: (channels, height, width).
        low: what the network is shown for a black pixel.
        high: what it is shown for a white one.
        licence: of the weights, or None where it is not known.
        architecture: the spec's full text, or the class of a module that has none.
        generator: what made the weights, where that is known.
        temperature: what the logits are divided by before a softmax; None where that was not measured.
        source: the file that the network was read from, which no output may overwrite.
    """

    class_names: tuple[str, ...]
    input: tuple[int, int, int]
    low: float = -1.0
    high: float = 1.0
    licence: str | None = None
    architecture: str = ""
    generator: str | None = None
    temperature: float | None = None
    source: Path | None = None

    @property
    def scale(self) -> float:
        """``(byte - mean) * scale`` is what the network reads for a byte of 0 to 255."""
        return (self.high - self.low) / 255

    @property
    def mean(self) -> float:
        """See :attr:`scale`."""
        return -self.low / self.scale

    def preprocessing(self) -> dict[str, Any]:
        """How a picture becomes the input, for whoever reads it from a file's metadata."""
        return {
            "input": list(self.input),
            "layout": "NCHW",
            "colours": "grey" if self.input[0] == 1 else "RGB",
            "value_range": [self.low, self.high],
            "mean": self.mean,
            "scale": self.scale,
            "resize": "central square, bilinear, transparent on white",
        }

    def lines(self) -> list[tuple[str, str]]:
        """Names and values for a comment: one line each, nothing that a terminal or a compiler obeys."""
        size = "x".join(map(str, self.input))
        told = [
            ("made by", f"Weightloom {__version__}" + (f", {self.generator}" if self.generator else "")),
            ("architecture", self.architecture),
            ("licence of the weights", self.licence or NO_LICENCE),
            ("input", f"{size} (channels, height, width), (byte - {self.mean:g}) * {self.scale:.9g}"),
            ("classes", str(len(self.class_names))),
            ("temperature", NO_TEMPERATURE if self.temperature is None else f"{self.temperature:.9g}"),
        ]
        return [(name, printable(text, one_line=True)) for name, text in told]


def facts_of(
    metadata: Mapping[str, str],
    spec: ArchitectureSpec,
    names: Sequence[str] | None = None,
    source: str | Path | None = None,
) -> Facts:
    """The facts in a network file's header.

    Args:
        metadata: the header's text, as :func:`weightloom.zoo.reading.read_checked` gives it.
        spec: the network's resolved architecture.
        names: of the classes, where the header does not say them.
        source: the network's file.

    Example:
        >>> from weightloom.architectures import parse_architecture
        >>> spec = parse_architecture("mlp(depth=1,width=4,classes=2,input=1x4x4)")
        >>> facts = facts_of({"report": '{"class_names": ["ant", "bee"]}'}, spec)
        >>> facts.class_names, facts.mean, round(facts.scale * 255, 6)
        (('ant', 'bee'), 127.5, 2.0)
    """
    assert spec.classes is not None and spec.input is not None
    card = NetworkCard.from_metadata("the network", metadata, input=spec.input, classes=spec.classes)
    low, high = card.value_range or PIXELS
    named = card.class_names or (names if names and len(names) == spec.classes else None)
    return Facts(
        class_names=tuple(named or card.labels(spec.classes)),
        input=spec.input,
        low=low,
        high=high,
        licence=_text(card.licence),
        architecture=spec.full_text(),
        generator=_text(card.made_by),
        temperature=card.temperature,
        source=None if source is None else Path(source),
    )


def checked_names(named: list[str] | tuple[str, ...], classes: int) -> tuple[str, ...]:
    """``named`` for so many classes. Raises :class:`InputError` for another number of names."""
    if len(named) != classes:
        raise InputError(f"the network tells apart {classes} classes, but {len(named)} names are given")
    return tuple(named)


def _text(value: Any) -> str | None:
    return re.sub(r"\s+", " ", value).strip()[:500] or None if isinstance(value, str) else None
