"""The sixteen ways to turn a picture: four rotations, mirrored or not, inverted or not.

A transform is named by its parts joined with ``+``: ``id``, ``rot90``, ``rot180+flip``,
``rot270+flip+invert``.
Rotations are counter-clockwise and come first, then the left-right mirror, then the negative.
Knows pixels only, no datasets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weightloom.errors import SpecError, UnknownNameError

_ROTATIONS = ("", "rot90", "rot180", "rot270")
_PARTS = (*_ROTATIONS[1:], "flip", "invert")
_WORDS = {
    "rot90": "rotated by 90 degrees",
    "rot180": "upside down",
    "rot270": "rotated by 270 degrees",
    "flip": "mirrored",
    "invert": "with inverted brightness",
}


def transform_names() -> tuple[str, ...]:
    """All sixteen names, ``id`` first.

    Example:
        >>> len(transform_names()), transform_names()[:5]
        (16, ('id', 'rot90', 'rot180', 'rot270', 'flip'))
    """
    names = []
    for invert in ("", "invert"):
        for flip in ("", "flip"):
            for rotation in _ROTATIONS:
                names.append("+".join(part for part in (rotation, flip, invert) if part) or "id")
    return tuple(names)


def parse_transform(text: str) -> str:
    """The canonical name of the transform that ``text`` names with its parts in any order.

    Raises:
        UnknownNameError: a part is no transform.
        SpecError: a part is named twice, or two rotations are.

    Example:
        >>> parse_transform("invert+rot90")
        'rot90+invert'
    """
    parts = [part.strip() for part in text.split("+") if part.strip() not in ("", "id")]
    for part in parts:
        if part not in _PARTS:
            raise UnknownNameError("transform", part, ("id", *_PARTS))
    if len(set(parts)) != len(parts) or sum(part.startswith("rot") for part in parts) > 1:
        raise SpecError(f"transform {text!r} may name one rotation, one flip and one invert at most")
    return "+".join(part for part in _PARTS if part in parts) or "id"


def apply_transform(images: Tensor, transform: str) -> Tensor:
    """``images`` (..., H, W) uint8 turned by ``transform``, a canonical name; H must equal W."""
    if transform == "id":
        return images
    parts = transform.split("+")
    if parts[0].startswith("rot"):
        images = torch.rot90(images, int(parts[0][3:]) // 90, dims=(-2, -1))
    if "flip" in parts:
        images = images.flip(-1)
    return 255 - images if "invert" in parts else images


def transform_words(transform: str) -> str:
    """Plain English for ``transform``; empty for ``id``.

    Example:
        >>> transform_words("rot90+invert")
        'rotated by 90 degrees, with inverted brightness'
    """
    return ", ".join(_WORDS[part] for part in transform.split("+") if part != "id")
