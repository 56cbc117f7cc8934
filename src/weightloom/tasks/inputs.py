"""Pictures of any kind as the input of one network, as its card says: files, PIL images, arrays and tensors.

Files and images go through the one reader (:mod:`weightloom.tasks.pictures`), so that a network sees them as
it saw those of a folder. Knows no network.

Shapes: C channels, H and W of a picture, S the side that the network reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from weightloom.errors import InputError, SpecError, UnsupportedRequestError
from weightloom.finite import layout_fault
from weightloom.tasks.card import NetworkCard
from weightloom.tasks.data import TOLERANCE
from weightloom.tasks.depth import Picture, ValueRanges, fit_ranges, scaled
from weightloom.tasks.pictures import load_picture
from weightloom.tasks.task import check_shape

if TYPE_CHECKING:
    from PIL import Image

    Asked = str | Path | bytes | Image.Image | np.ndarray[Any, Any] | Tensor

_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as for all pictures
_KINDS = "a path, the bytes of a file, a PIL image, an array or a tensor"


def checked_input(card: NetworkCard) -> tuple[int, int]:
    """Side and channels of the pictures that a network reads.

    Raises:
        UnsupportedRequestError: no picture can become its input.
    """
    if card.input is None or card.value_range is None:
        raise UnsupportedRequestError("nothing says which pictures this network reads, at which size")
    channels, height, width = card.input
    text = "x".join(map(str, card.input))
    if height != width:
        raise UnsupportedRequestError(f"the network reads {text} images, and pictures are made square")
    try:
        return check_shape(width, channels)
    except SpecError as error:
        raise UnsupportedRequestError(f"the network reads {text} images, but {error}") from None


def single_pictures(pictures: Any) -> list[Asked]:
    """One picture or many as a list of single ones.

    Raises:
        InputError: something that is no picture.

    Example:
        >>> len(single_pictures("a.png")), len(single_pictures(["a.png", np.zeros((5, 8, 8, 3), np.uint8)]))
        (1, 6)
    """
    if isinstance(pictures, str | Path | bytes | np.ndarray | Tensor) or _is_image(pictures):
        pictures = [pictures]
    if isinstance(pictures, dict) or not isinstance(pictures, Iterable):
        raise InputError(f"a picture is {_KINDS}, not {type(pictures).__name__}")
    found: list[Asked] = []
    for place, picture in enumerate(pictures):
        if isinstance(picture, Tensor) and (fault := layout_fault(picture)) is not None:
            raise InputError(f"picture {place}: a picture is a plain tensor, but this {fault}")
        if isinstance(picture, np.ndarray | Tensor) and picture.ndim == 4:
            found += list(picture)
        elif isinstance(picture, str | Path | bytes | np.ndarray | Tensor) or _is_image(picture):
            found.append(picture)
        else:
            raise InputError(f"picture {place}: a picture is {_KINDS}, not {type(picture).__name__}")
    return found


def network_inputs(pictures: Iterable[Asked], card: NetworkCard) -> Iterator[tuple[int, Tensor | str]]:
    """The place of every picture with (C, S, S) float32, what the network reads, or why it cannot be read.

    Pictures deeper than bytes whose range the card does not know come last: it follows from all of them.

    Raises:
        UnsupportedRequestError: no picture can become the network's input.
        InputError: no usual range fits the values of deep pictures.
    """
    size, channels = checked_input(card)
    assert card.value_range is not None
    low, high = card.value_range
    waiting: dict[int, Picture] = {}

    def ready(picture: Picture, ranges: ValueRanges) -> Tensor | str:
        try:
            pixels = torch.from_numpy(scaled(picture, ranges, channels).copy())
        except InputError as error:
            return str(error)
        return pixels.to(torch.float32).mul_((high - low) / 255).add_(low)

    for place, source in enumerate(pictures):
        try:
            if isinstance(source, np.ndarray | Tensor):
                found = _from_array(source, size, channels, (low, high))
            else:
                found = load_picture(source, size)
        except InputError as error:
            yield place, str(error)
            continue
        if isinstance(found, Tensor):
            yield place, found
        elif found.kind == "bytes" or card.ranges.of(found.kind) is not None:
            yield place, ready(found, card.ranges)
        else:
            waiting[place] = found
    ranges = fit_ranges(waiting.values(), "these pictures", card.ranges)
    for place, found in waiting.items():
        yield place, ready(found, ranges)


def _is_image(value: Any) -> bool:
    from PIL import Image

    return isinstance(value, Image.Image)


def _from_array(
    values: np.ndarray[Any, Any] | Tensor, size: int, channels: int, value_range: tuple[float, float]
) -> Picture | Tensor:
    """A picture of an array (H, W), (H, W, C) or (C, H, W), or the network's input of one of floats.

    Raises:
        InputError: it is of another shape or type, or floats that lie outside ``value_range``.
    """
    from PIL import Image

    first = isinstance(values, Tensor)
    if isinstance(values, Tensor):
        values = values.detach().cpu().resolve_neg()
        # NumPy has no bfloat16, and Pillow no half
        values = (values.float() if values.dtype in (torch.bfloat16, torch.float16) else values).numpy()
    array = values
    shape = array.shape
    last, front = len(shape) == 3 and shape[-1] in (1, 2, 3, 4), len(shape) == 3 and shape[0] in (1, 2, 3, 4)
    if len(shape) == 3 and front and (first or not last):
        array = array.transpose(1, 2, 0)  # (C, H, W) -> (H, W, C)
    elif len(shape) == 2:
        array = array[..., None]
    elif not last:
        raise InputError(f"it is an array of shape {shape}, not (H, W), (H, W, C) or (C, H, W)")
    if not array.size:
        raise InputError(f"it is empty: its shape is {shape}")
    if array.dtype.kind == "f":
        return _from_floats(array, size, channels, value_range)
    bands = array.shape[-1]
    if array.dtype != np.uint8 and not (array.dtype == np.uint16 and bands == 1):
        raise InputError(
            f"it is an array of {array.dtype}; pictures are uint8, grey ones uint16, or floats in "
            f"[{value_range[0]:g}, {value_range[1]:g}]"
        )
    plain = np.ascontiguousarray(array[..., 0] if bands == 1 else array)
    return load_picture(Image.fromarray(plain), size)


def _from_floats(
    array: np.ndarray[Any, Any], size: int, channels: int, value_range: tuple[float, float]
) -> Tensor:
    """(C, S, S) of floats (H, W, C'), as they are where they fit already."""
    from PIL import Image

    low, high = value_range
    if array.shape[-1] not in (1, 3):
        raise InputError(f"it has {array.shape[-1]} channels of floats, where 1 or 3 are read")
    least, greatest = float(array.min()), float(array.max())
    if not (np.isfinite(least) and np.isfinite(greatest)):
        raise InputError("it holds values that are NaN or infinite")
    if least < low - TOLERANCE or greatest > high + TOLERANCE:
        raise InputError(
            f"it holds floats from {least:.4g} to {greatest:.4g}; they must lie in [{low:g}, {high:g}]: hand "
            "over bytes as uint8"
        )
    planes = [np.ascontiguousarray(array[..., band], dtype=np.float32) for band in range(array.shape[-1])]
    height, width = array.shape[:2]
    if (height, width) != (size, size):
        side = min(height, width)
        box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
        how = Image.Resampling.BILINEAR
        planes = [np.asarray(Image.fromarray(plane).resize((size, size), how, box=box)) for plane in planes]
    pixels = torch.from_numpy(np.stack(planes))  # (C', S, S)
    if channels == 1 and len(pixels) == 3:
        pixels = torch.tensordot(torch.tensor(_GREY), pixels, 1)[None]  # (3, S, S) -> (1, S, S)
    return pixels.expand(channels, size, size).contiguous()
