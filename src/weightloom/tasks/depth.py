"""Pictures with more values than a byte has: which of them stand for black and for white.

A type of 16 bits may hold 10, 12, 14 or 16 of them, an integer of 32 bits anything, a float [0, 1] or
degrees. So the range follows from all pictures of a folder together, and is one of a few that people use:
pictures keep their brightness relative to each other, and another picture more does not move them. Knows
numbers only.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightloom.errors import InputError

Pixels = NDArray[np.uint8]

KINDS = {
    "sixteen": "16-bit pictures",
    "integers": "pictures of whole numbers",
    "floats": "pictures of floating-point numbers",
}
"""Kinds of values that do not say what black and white are, in words."""

_BITS = (10, 12, 14, 16)  # of cameras that write 16-bit files
_WIDE = (8, 10, 12, 14, 16, 20, 24, 28, 32)
_SIGNED = range(7, 32)
_FLOATS = (1.0, 4.0, 16.0, 64.0, 255.0, 1023.0, 4095.0, 16383.0, 65535.0, *(4.0**k for k in range(9, 65)))
_SIGNED_FLOATS = tuple(2.0**k for k in range(129))

_SLACK = 0.01
"""Share of a range of floats by which a value may lie outside: resampling overshoots."""

_LEAST = 16
"""Pictures whose values span less than one part in so many of their range would come out nearly uniform."""

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture at the size that networks see, its values as they were in the file.

    Attributes:
        pixels: (C, size, size), C 1 or 3: uint8 where ``kind`` is ``"bytes"``, else float32 as in the file,
            times ``cover``.
        kind: ``"bytes"`` or one of :data:`KINDS`.
        low: least value of the whole picture, before it was made small.
        high: greatest.
        cover: (size, size) opacity from 0 to 1, None where all is opaque or ``kind`` is ``"bytes"``.
        inverted: whether the least value stands for white.
        size: width and height in the file.
        digest: SHA-256 of the file, empty where there was none.
    """

    pixels: NDArray[Any]
    kind: str = "bytes"
    low: float = 0.0
    high: float = 255.0
    cover: NDArray[np.float32] | None = None
    inverted: bool = False
    size: tuple[int, int]
    digest: bytes = b""

    @property
    def grey(self) -> bool:
        """Whether it has no colours (JPEG moves the channels of a grey picture by one or two)."""
        if len(self.pixels) == 1:
            return True
        bands = self.pixels.astype(np.float32)
        return float(np.ptp(bands, axis=0).max()) <= 2 / 255 * max(self.high - self.low, 1e-30)

    @property
    def key(self) -> bytes:
        """Equal for pictures of one size that networks cannot tell apart, whatever their formats are."""
        what = repr((self.size, self.kind, self.inverted)).encode()
        cover = b"" if self.cover is None else self.cover.tobytes()
        return hashlib.sha256(what + self.pixels.tobytes() + cover).digest()


@dataclass(frozen=True, kw_only=True)
class ValueRanges:
    """The values that stand for black and white, for each kind of picture; None where no such picture was
    seen.

    Attributes:
        sixteen: of 16-bit pictures.
        integers: of signed ones and of those with 32 bits.
        floats: of those with floating-point numbers.

    Raises:
        InputError: a range that is not two finite numbers, the lower one first.

    Example:
        >>> ranges = ValueRanges(sixteen=(0, 4095))
        >>> ValueRanges.from_json(ranges.to_json()) == ranges
        True
    """

    sixteen: tuple[float, float] | None = None
    integers: tuple[float, float] | None = None
    floats: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for kind in KINDS:
            pair = getattr(self, kind)
            if pair is None:
                continue
            try:
                low, high = (float(value) for value in pair)
            except (TypeError, ValueError):
                low = high = math.nan
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise InputError(f"the range {kind} is two finite numbers, the lower one first, not {pair!r}")
            object.__setattr__(self, kind, (low, high))

    def of(self, kind: str) -> tuple[float, float] | None:
        """The range of one kind, None where it is not known."""
        pair: tuple[float, float] | None = getattr(self, kind)
        return pair

    def to_json(self) -> dict[str, list[float]]:
        """Plain values, those that are known."""
        return {kind: list(pair) for kind in KINDS if (pair := self.of(kind)) is not None}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ValueRanges:
        """What :meth:`to_json` wrote. Raises :class:`InputError` for anything else."""
        if not isinstance(values, Mapping) or not set(values) <= set(KINDS):
            raise InputError(f"ranges of pictures are given for {', '.join(KINDS)}")
        return cls(**values)


def fit_ranges(pictures: Iterable[Picture], where: str, known: ValueRanges | None = None) -> ValueRanges:
    """The ranges of pictures that belong together; what is ``known`` already stays.

    Args:
        pictures: all of them.
        where: what they are, for the error.
        known: ranges to keep.

    Raises:
        InputError: the values of a kind span so little of any usual range that nothing could be seen.

    Example:
        >>> twelve = Picture(pixels=np.zeros((1, 4, 4), np.float32), kind="sixteen", high=3000.0, size=(9, 9))
        >>> fit_ranges([twelve], "photos").sixteen
        (0.0, 4095.0)
    """
    seen: dict[str, tuple[float, float]] = {}
    for picture in pictures:
        if picture.kind != "bytes":
            low, high = seen.get(picture.kind, (math.inf, -math.inf))
            seen[picture.kind] = (min(low, picture.low), max(high, picture.high))
    ranges = known or ValueRanges()
    fitted = {kind: ranges.of(kind) for kind in KINDS}
    for kind, (low, high) in seen.items():
        if fitted[kind] is None:
            fitted[kind] = least, greatest = _usual(kind, low, high)
            if 0 < _LEAST * (high - low) < greatest - least:
                raise InputError(
                    f"{where}: its {KINDS[kind]} hold values from {low:.6g} to {high:.6g}, of which hardly "
                    f"anything would be left in the usual range from {least:.6g} to {greatest:.6g}: rescale "
                    "them, or say what black and white are (in Python: "
                    f"ranges=ValueRanges({kind}=({low:.6g}, {high:.6g})))"
                )
    return ValueRanges(**fitted)


def _usual(kind: str, low: float, high: float) -> tuple[float, float]:
    """The narrowest range in use that holds values from ``low`` to ``high``."""
    if kind == "sixteen":
        return 0.0, 2.0 ** next(bits for bits in _BITS if high < 2**bits) - 1
    if kind == "integers":
        if low >= 0:
            return 0.0, 2.0 ** next(bits for bits in _WIDE if high < 2**bits) - 1
        least = next(bits for bits in _SIGNED if low >= -(2**bits))
        return -(2.0**least), 2.0 ** next(bits for bits in _SIGNED if high < 2**bits) - 1
    greatest = next(top for top in _FLOATS if high <= (1 + _SLACK) * top)
    if low >= -_SLACK * greatest:
        return 0.0, greatest
    greatest = next(top for top in _SIGNED_FLOATS if high <= (1 + _SLACK) * top)
    return -next(top for top in _SIGNED_FLOATS if low >= -(1 + _SLACK) * top), greatest


def scaled(picture: Picture, ranges: ValueRanges, channels: int) -> Pixels:
    """A picture's pixels (channels, size, size) uint8; what is transparent becomes white.

    Args:
        picture: any.
        ranges: with that of its kind.
        channels: 1 or 3.

    Raises:
        InputError: its values lie outside the range.
    """
    pixels = picture.pixels
    if picture.kind != "bytes":
        pair = ranges.of(picture.kind)
        assert pair is not None, picture.kind
        low, high = pair
        slack = _SLACK * (high - low) if picture.kind == "floats" else 0.0
        if picture.low < low - slack or picture.high > high + slack:
            raise InputError(
                f"it holds values from {picture.low:.6g} to {picture.high:.6g}, outside the range from "
                f"{low:.6g} to {high:.6g}"
            )
        cover = np.float64(1.0) if picture.cover is None else picture.cover.astype(np.float64)
        light = (pixels.astype(np.float64) - low * cover) / (high - low)
        if picture.inverted:
            light = cover - light
        pixels = (255 * (light + 1 - cover)).round().clip(0, 255).astype(np.uint8)
    if channels == 1 and len(pixels) == 3:
        pixels = np.tensordot(_LUMA, pixels, 1)[None].round().astype(np.uint8)  # (3, H, W) -> (1, H, W)
    return np.ascontiguousarray(np.broadcast_to(pixels, (channels, *pixels.shape[1:])))
