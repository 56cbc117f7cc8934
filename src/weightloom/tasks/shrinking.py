"""A decoded picture at the size that a network sees: upright, its central square, what is transparent on
white.

Knows Pillow's images, whatever their mode, and no files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from weightloom.errors import InputError
from weightloom.tasks.depth import Picture

if TYPE_CHECKING:
    from PIL import Image

Box = tuple[int, int, int, int]

LARGE = 16_000_000
"""Pixels from which on a picture is made small in two steps, which needs less memory."""

ENOUGH = 8
"""How many times the final size the first of two steps leaves."""

_BAND = 4_000_000
"""Pixels that are converted at once."""


def tag_of(picture: Image.Image, number: int) -> tuple[Any, ...]:
    """An entry of a picture that comes from a TIFF file; () where there is none."""
    value = getattr(picture, "tag_v2", {}).get(number, ())
    return value if isinstance(value, tuple) else (value,)


def shrink(
    picture: Image.Image, size: int, whole: tuple[int, int], low_bytes: Image.Image | None = None
) -> Picture:
    """A picture at ``size``, its values as they are where they are deeper than bytes.

    Args:
        picture: decoded.
        size: height and width in pixels.
        whole: width and height in its file.
        low_bytes: the same picture's low bytes, where it has colours of 16 bits and ``picture`` the high
            ones.

    Raises:
        InputError: it holds NaN or infinite values.
    """
    view: np.dtype[Any] | None = None
    signed = tag_of(picture, 339)[:1] == (2,)
    if signed and picture.mode == "L":
        view = np.dtype(np.int8)  # Pillow reads signed bytes as if they had no sign
    elif not signed and picture.mode == "I" and tag_of(picture, 258) == (32,):
        view = np.dtype(np.uint32)  # and whole numbers without a sign as if they had one
    kind = "integers" if view is not None else "sixteen" if low_bytes is not None else _kind(picture)
    if kind == "bytes":
        (plane,) = _shrunk(picture, size, whole, lambda box: [_on_white(_cut(picture, box))])
        pixels = plane[None] if plane.ndim == 2 else plane.transpose(2, 0, 1)  # (H, W[, 3]) -> (C, H, W)
        return Picture(pixels=_upright(pixels, picture), size=whole)
    values = _Values(picture, low_bytes, view)
    planes = np.stack(_shrunk(picture, size, whole, values.planes))  # (C[ + 1], H, W)
    planes = _upright(planes, picture)
    return Picture(
        pixels=planes[:-1] if values.covers else planes,
        kind=kind,
        low=values.low if math.isfinite(values.low) else 0.0,
        high=values.high if math.isfinite(values.high) else 0.0,
        cover=planes[-1].clip(0, 1) if values.covers else None,
        inverted=tag_of(picture, 262)[:1] == (0,),  # "white is zero", which Pillow heeds for bytes only
        size=whole,
    )


def _kind(picture: Image.Image) -> str:
    if picture.mode.startswith("I;16"):
        return "sixteen"
    if picture.mode == "I":  # these two formats have no more than 16 bits
        return "sixteen" if picture.format in ("PNG", "PPM") else "integers"
    return "floats" if picture.mode == "F" else "bytes"


def _shrunk(
    picture: Image.Image,
    size: int,
    whole: tuple[int, int],
    planes: Callable[[Box], list[Image.Image]],
) -> list[NDArray[Any]]:
    """The central square of every plane at ``size``.

    Args:
        picture: of the planes' width and height.
        size: height and width in pixels.
        whole: width and height in the file.
        planes: gives the planes inside a box.
    """
    from PIL import Image

    wide, high = picture.size
    factor = max(1, min(wide, high) // (ENOUGH * size)) if wide * high > LARGE else 1
    if factor == 1:
        made = planes((0, 0, wide, high))
    else:
        made, rows = [], factor * max(1, _BAND // (wide * factor))
        for top in range(0, high, rows):
            parts = [plane.reduce(factor) for plane in planes((0, top, wide, min(top + rows, high)))]
            made = made or [Image.new(part.mode, (part.width, -(-high // factor))) for part in parts]
            for plane, part in zip(made, parts, strict=True):
                plane.paste(part, (0, top // factor))
    # The last pixel of what was made small, here or by a JPEG's decoder, may stand for fewer than the others.
    scale = max(1, round(max(whole) / max(picture.size))) if picture.format == "JPEG" else 1
    width, height = (length / scale for length in whole) if scale > 1 else picture.size
    across, down = width / factor, height / factor
    side = min(across, down)
    box = ((across - side) / 2, (down - side) / 2, (across + side) / 2, (down + side) / 2)
    return [np.array(plane.resize((size, size), Image.Resampling.BILINEAR, box=box)) for plane in made]


def _cut(picture: Image.Image, box: Box) -> Image.Image:
    return picture if box == (0, 0, *picture.size) else picture.crop(box)


def _on_white(picture: Image.Image) -> Image.Image:
    """A picture of bytes, in whatever mode, as grey or RGB."""
    from PIL import Image

    if picture.mode == "LAB":
        return _from_lab(picture)
    if picture.mode == "La":
        picture = picture.convert("LA")
    grey = picture.mode in ("1", "L", "LA")
    if {"A", "a"} & set(picture.getbands()) or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("L" if grey else "RGB")


def _from_lab(picture: Image.Image) -> Image.Image:
    """CIE L*a*b* as RGB, computed for each pixel; what Pillow does itself interpolates in a coarse table."""
    from PIL import ImageCms

    made = ImageCms.profileToProfile(
        picture,
        ImageCms.createProfile("LAB"),
        ImageCms.createProfile("sRGB"),
        outputMode="RGB",
        flags=ImageCms.Flags.NOOPTIMIZE,
    )
    assert made is not None  # it is not done in place
    return made


class _Values:
    """Planes of floats from a picture that is deeper than bytes, and the least and the greatest value seen.

    Attributes:
        covers: whether the last plane is opacity, by which the others are multiplied.
    """

    def __init__(
        self, picture: Image.Image, low_bytes: Image.Image | None, view: np.dtype[Any] | None
    ) -> None:
        self._picture, self._low_bytes, self._view = picture, low_bytes, view
        self._hole = picture.info.get("transparency") if view is None and picture.mode != "F" else None
        self._alpha = "A" in picture.getbands()
        self.covers = self._alpha or self._hole is not None
        self.low, self.high = math.inf, -math.inf

    def planes(self, box: Box) -> list[Image.Image]:
        """The planes inside a box. Raises InputError for values that are no numbers."""
        from PIL import Image

        values = np.asarray(_cut(self._picture, box))
        if self._view is not None:
            values = values.view(self._view)
        if self._low_bytes is not None:
            values = values.astype(np.uint16) << 8 | np.asarray(_cut(self._low_bytes, box))
        cover = None
        if self._alpha:
            values, cover = values[..., :-1], values[..., -1].astype(np.float32) / 65535  # (h, w, C)
        elif self._hole is not None:
            apart = values != np.asarray(self._hole)
            cover = (apart if apart.ndim == 2 else apart.any(-1)).astype(np.float32)  # (h, w)
        seen = values if cover is None else values[cover > 0]
        if seen.size:
            low, high = float(seen.min()), float(seen.max())
            if not (math.isfinite(low) and math.isfinite(high)):
                raise InputError("it holds values that are NaN or infinite")
            self.low, self.high = min(self.low, low), max(self.high, high)
        channels = [values] if values.ndim == 2 else [values[..., c] for c in range(values.shape[-1])]
        floats: list[NDArray[Any]] = [channel.astype(np.float32) for channel in channels]
        if cover is not None:
            floats = [*(channel * cover for channel in floats), cover]
        return [Image.fromarray(plane) for plane in floats]


def _upright(planes: NDArray[Any], picture: Image.Image) -> NDArray[Any]:
    """Planes (C, H, W) turned as the picture's EXIF says, where that is intact."""
    try:
        orientation = picture.getexif().get(0x0112)
    except Exception:  # whatever a broken EXIF leads to: it costs the orientation, not the pixels
        orientation = None
    if orientation in (5, 6, 7, 8):
        planes = planes.transpose(0, 2, 1)
    if orientation in (2, 3, 6, 7):
        planes = planes[:, :, ::-1]
    if orientation in (3, 4, 7, 8):
        planes = planes[:, ::-1]
    return np.ascontiguousarray(planes)
