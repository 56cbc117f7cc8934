"""What a generator can be asked for: architectures, pictures and numbers of classes. Knows no method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.architectures.wording import short_text
from weightloom.errors import SpecError, UnsupportedRequestError

ANY_ARCHITECTURE = "any architecture"
"""In a validity's architectures: every one that can be built."""


@dataclass(frozen=True, kw_only=True)
class Validity:
    """What a generator can be asked for.

    ``architectures`` are spec texts without a class count, or :data:`ANY_ARCHITECTURE` alone. With ``sizes``
    (smallest, largest) they read square pictures of any size between, and the texts have no input.
    """

    architectures: tuple[str, ...]
    input: tuple[int, int, int]
    min_classes: int
    max_classes: int
    tasks: tuple[str, ...] = ()
    sizes: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """
        Raises:
            SpecError: not three sides, or class counts that no request can have. A file may say anything.
        """
        sizes = (*self.input, self.min_classes, self.max_classes)
        if len(self.input) != 3 or not all(type(size) is int and size > 0 for size in sizes):
            raise SpecError("the input must be three sides, and class counts whole numbers above 0")
        if self.sizes is not None and not (
            len(self.sizes) == 2
            and all(type(size) is int for size in self.sizes)
            and 0 < self.sizes[0] <= self.sizes[1]
        ):
            raise SpecError("sizes of pictures are the smallest and the largest, whole numbers above 0")
        words = (*self.architectures, *self.tasks)
        if self.min_classes > self.max_classes or not all(isinstance(word, str) for word in words):
            raise SpecError(
                "the least classes must not be above the most; architectures and tasks must be text"
            )

    @classmethod
    def from_json(cls, held: Mapping[str, Any]) -> Validity:
        """Again what :func:`dataclasses.asdict` gave, after a file.

        Raises:
            SpecError: something else.
        """
        try:
            listed = {key: tuple(held[key]) for key in ("architectures", "input", "tasks")}
            if held.get("sizes") is not None:
                listed["sizes"] = tuple(held["sizes"])
            return cls(**{**held, **listed})
        except (KeyError, TypeError) as error:
            raise SpecError(f"this says not what can be asked for ({error})") from None

    def input_for(self, spec: ArchitectureSpec) -> tuple[int, int, int]:
        """The images that a network of ``spec`` is for: its own, or else the only ones that it is made
        for.
        """
        if spec.input is not None:
            return spec.input
        if self.architectures == (ANY_ARCHITECTURE,):
            return self.input
        specs = [parse_architecture(key) for key in self.architectures]
        wanted = replace(spec, classes=None)
        known = [own.input for own in specs if replace(own, classes=None, input=None) == wanted]
        return known[0] if len(known) == 1 and known[0] is not None else self.input

    def listed(self) -> list[str]:
        """What is made, in words, with the size of the pictures where that differs."""
        if self.architectures == (ANY_ARCHITECTURE,):
            return [ANY_ARCHITECTURE]
        specs = [parse_architecture(key) for key in self.architectures]
        several = len({spec.input for spec in specs}) > 1
        size = [f" for {'x'.join(map(str, s.input))}" if several and s.input else "" for s in specs]
        return [short_text(spec) + text for spec, text in zip(specs, size, strict=True)]

    def refusal(self, spec: ArchitectureSpec) -> str | None:
        """Why ``spec`` cannot be asked for, with what can be; None where it fits."""
        key = str(replace(spec, classes=None, input=spec.input if self.sizes is None else None))
        if self.sizes is not None:
            if (problem := self._size_problem(spec, self.sizes)) is not None:
                return problem
        elif spec.input != self.input and key not in self.architectures:
            wanted, got = ("x".join(map(str, shape or ())) for shape in (self.input, spec.input))
            return f"this generator makes networks for {wanted} images, not {got}"
        if self.architectures != (ANY_ARCHITECTURE,) and key not in self.architectures:
            return f"this generator was not trained for {_in_full(spec)}; it makes: " + "; ".join(
                self.listed()
            )
        classes = spec.classes or 0
        if not self.min_classes <= classes <= self.max_classes:
            return (
                f"this generator makes classifiers of {self.min_classes} to {self.max_classes} classes, "
                f"not {classes}"
            )
        return None

    def check(self, spec: ArchitectureSpec) -> None:
        """Raise :class:`UnsupportedRequestError`, saying what can be done, unless ``spec`` fits."""
        refusal = self.refusal(spec)
        if refusal is not None:
            raise UnsupportedRequestError(refusal)

    def _size_problem(self, spec: ArchitectureSpec, sizes: tuple[int, int]) -> str | None:
        channels, height, width = spec.input or (0, 0, 0)
        if channels == self.input[0] and height == width and sizes[0] <= height <= sizes[1]:
            return None
        return (
            f"this generator makes networks for square pictures of {sizes[0]} to {sizes[1]} pixels with "
            f"{self.input[0]} channels, not {'x'.join(map(str, spec.input or ()))}"
        )


def _in_full(spec: ArchitectureSpec) -> str:
    """With what was left to the defaults: it may be that which does not fit."""
    return replace(spec, input=None, classes=None).full_text()
