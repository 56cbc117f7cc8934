"""The one reader of pictures: files, their bytes or PIL images in, the few pixels that a network sees out.

For folders, datasets and single pictures alike. Knows no task and no classes.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from weightloom.errors import BrokenPicturesError, CheckpointError, InputError, printable
from weightloom.io import open_regular
from weightloom.tasks.decoding import (
    MOST_BYTES,
    TooLargeError,
    decode_bytes,
    decode_image,
    too_large,
)
from weightloom.tasks.depth import Picture, Pixels, ValueRanges, fit_ranges, scaled
from weightloom.tasks.metadata import JPEG, PNG, TIFF
from weightloom.tasks.task import check_shape

if TYPE_CHECKING:
    from PIL import Image

    Source = str | Path | bytes | Image.Image

SUFFIXES = frozenset(
    (
        ".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".ico", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc",
        ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pcx", ".pfm", ".pgm", ".png", ".pnm",
        ".ppm", ".qoi", ".sgi", ".tga", ".tif", ".tiff", ".webp",
    )
)  # fmt: skip
"""Ends of names that promise a picture."""

_PLAIN_BEGINNINGS = (PNG, JPEG, b"GIF87a", b"GIF89a", b"\0\0\0\x0cjP  \r\n\x87\n", b"qoif")


def load_picture(source: Source, size: int) -> Picture:
    """A picture cut to its central square and made small; values deeper than bytes are not scaled yet.

    Args:
        source: a file, its bytes, or a PIL image, which is left as it is but for being loaded.
        size: height and width in pixels.

    Raises:
        InputError: it is no picture of a kind that is read, broken, too large, or holds NaN; without its
            name.
    """
    from PIL import Image, UnidentifiedImageError

    content = source if isinstance(source, bytes) else b""
    try:
        with warnings.catch_warnings():
            # What Pillow says of broken metadata helps nobody; pictures inside icons have Pillow's own limit.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if isinstance(source, Image.Image):
                return decode_image(source, size)
            if not isinstance(source, bytes):
                content = _content(Path(source))
            return replace(decode_bytes(content, size), digest=hashlib.sha256(content).digest())
    except InputError:
        raise
    except UnidentifiedImageError as error:
        what = "it is no picture of a kind that is read, or its beginning is broken"
        if content.startswith(TIFF):
            what = "it is a TIFF of a kind that is not read, or broken; save it with 8, 16 or 32 bits a value"
        raise InputError(what) from error
    except MemoryError as error:
        raise InputError("there is not enough memory to decode it") from error
    except Exception as error:  # Pillow's decoders raise whatever a broken file leads to
        text = (str(error).splitlines() or [""])[0].partition(" <_io.")[0].partition(" <PIL.")[0]
        raise InputError(f"it is broken: {printable(text or type(error).__name__)[:120]}") from error


def read_picture(
    source: Source, size: int, channels: int, ranges: ValueRanges | None = None
) -> tuple[Pixels, bytes]:
    """Pixels (channels, size, size) uint8 of one picture, and the SHA-256 of its file's content.

    Args:
        source: a file, its bytes, or a PIL image, for which the sum is empty.
        size: height and width in pixels, from 4 to 256.
        channels: 1 or 3.
        ranges: what black and white are in pictures deeper than bytes, as it was for those that a network has
            learned from; left out, as if it were alone in a folder.

    Raises:
        InputError: it is broken, empty, too large, no picture, or its values lie outside the range.
        SpecError: ``size`` or ``channels`` is another number.
    """
    size, channels = check_shape(size, channels)
    name = _name(source)
    try:
        picture = load_picture(source, size)
        return scaled(picture, fit_ranges([picture], "this picture", ranges), channels), picture.digest
    except TooLargeError as error:
        raise TooLargeError(f"{name}: {error}") from error
    except InputError as error:
        raise InputError(f"{name}: this image cannot be read ({error})") from error


@dataclass(frozen=True, kw_only=True)
class PictureSet:
    """Several pictures that were read together.

    Attributes:
        pixels: (N, channels, size, size) uint8.
        kept: N positions in what was asked for; the others are broken.
        digests: N sums of the files' contents.
        keys: N of :attr:`Picture.key`: equal where networks see the same.
        broken: position and reason of those that were skipped.
        ranges: what stood for black and white in those deeper than bytes; hand it in with further pictures.
        grey: whether none has a colour.
    """

    pixels: Pixels
    kept: list[int]
    digests: list[bytes]
    keys: list[bytes]
    broken: list[tuple[int, str]]
    ranges: ValueRanges
    grey: bool


def read_pictures(
    sources: Sequence[Source],
    size: int,
    channels: int,
    *,
    ranges: ValueRanges | None = None,
    skip_broken: bool = False,
    where: str = "these pictures",
) -> PictureSet:
    """Pictures that belong together: what is deeper than bytes is scaled by the range of all of them.

    Args:
        sources: files, their bytes, or PIL images.
        size: height and width in pixels, from 4 to 256.
        channels: 1 or 3.
        ranges: of the pictures that a network has learned from, where these are further ones.
        skip_broken: leave out what cannot be read.
        where: what errors call them.

    Raises:
        BrokenPicturesError: some cannot be read; it has all of them.
        InputError: none is left, or no usual range fits their values.
        SpecError: ``size`` or ``channels`` is another number.
    """
    size, channels = check_shape(size, channels)
    pictures: dict[int, Picture] = {}
    broken: dict[int, str] = {}
    for number, source in enumerate(sources):
        try:
            pictures[number] = load_picture(source, size)
        except InputError as error:
            broken[number] = str(error)
    ranges = fit_ranges(pictures.values(), where, ranges)
    pixels: dict[int, Pixels] = {}
    for number, picture in pictures.items():
        try:
            pixels[number] = scaled(picture, ranges, channels)
        except InputError as error:
            broken[number] = str(error)
    listed = sorted(broken.items())
    if listed and not (skip_broken and pixels):
        names = [(_name(sources[number]), reason) for number, reason in listed]
        raise BrokenPicturesError(where, len(sources), names)
    if not pixels:
        raise InputError(f"{where}: there is no picture")
    kept = list(pixels)
    return PictureSet(
        pixels=np.stack([*pixels.values()]),
        kept=kept,
        digests=[pictures[number].digest for number in kept],
        keys=[pictures[number].key for number in kept],
        broken=listed,
        ranges=ranges,
        grey=all(pictures[number].grey for number in kept),
    )


def promises_a_picture(path: Path) -> bool:
    """Whether a regular file should be a picture: by its name, or by its first bytes where that says nothing.

    TIFF is the container of raw photographs and of whole-slide scans too, whose first picture may be a
    thumbnail; only a name that ends in .tif or in nothing at all makes one a picture.
    """
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with open_regular(path) as (handle, _):
            start = handle.read(16)
    except CheckpointError:
        return False
    return begins_a_picture(start) and (not path.suffix or not start.startswith(TIFF))


def begins_a_picture(start: bytes) -> bool:
    """Whether the first 16 bytes of a file are those of a picture, of a kind that they tell."""
    known = start.startswith((*_PLAIN_BEGINNINGS, *TIFF)) or start[4:12] in (b"ftypavif", b"ftypavis")
    return known or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")


def _name(source: Source) -> str:
    if isinstance(source, str | Path):
        return printable(str(source), one_line=True)
    return "a picture in memory"


def _content(path: Path) -> bytes:
    """A file's bytes, no more than are read. Raises :class:`InputError`."""
    try:
        with open_regular(path) as (handle, count):
            content = handle.read(MOST_BYTES + 1) if count <= MOST_BYTES else b""
    except CheckpointError as error:
        raise InputError(error.reason) from error
    count = max(count, len(content))  # it may have grown
    if count > MOST_BYTES:
        raise too_large(f"{count / 1e6:,.0f} megabytes", f"{MOST_BYTES / 1e6:,.0f}")
    return content
