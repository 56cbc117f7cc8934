"""Pictures from strangers to pixels: which decoders are used, how much they may take, what is refused before.

What a picture is follows from its content, never from a name. Knows bytes and Pillow's images, and no folder.
"""

from __future__ import annotations

import io
import logging
import math
import re
import struct
import sys
import zlib
from functools import cache
from importlib import import_module
from typing import IO, TYPE_CHECKING, Any

from weightloom.errors import InputError
from weightloom.tasks.depth import Picture
from weightloom.tasks.metadata import PNG, in_one_scan, without_metadata
from weightloom.tasks.shrinking import ENOUGH, LARGE, shrink, tag_of

if TYPE_CHECKING:
    from PIL import Image
    from PIL.ImageFile import ImageFile

DECODERS = {
    "PNG": "Png", "JPEG": "Jpeg", "GIF": "Gif", "WEBP": "WebP", "BMP": "Bmp", "TIFF": "Tiff", "AVIF": "Avif",
    "JPEG2000": "Jpeg2K", "QOI": "Qoi", "PPM": "Ppm", "ICO": "Ico", "SGI": "Sgi", "PCX": "Pcx", "DIB": "Bmp",
    "TGA": "Tga",
}  # fmt: skip
"""Formats that are read, each with Pillow's module, in the order in which they are tried.

Never to be added: EPS (starts Ghostscript), WMF, BUFR, GRIB and HDF5 (hand the file to whatever was
registered), IPTC (opens what is inside as any format), FPX and MIC (read by another package).
"""

MOST_BYTES = 256_000_000
"""Bytes of a file."""

MOST_PIXELS = 64_000_000
"""Pixels of a picture: four bytes each once it is decoded."""

IN_ONE_SCAN = 256_000_000
"""Pixels of a JPEG that has all its colours in one scan: it is made small while it is decoded."""

COSTLY = {
    "AVIF": 24_000_000,
    "JPEG2000": 24_000_000,
    "WEBP": 24_000_000,
    "QOI": 4_000_000,
    "PPM of digits": 4_000_000,
    "16 bits a colour": 32_000_000,
}
"""Pixels where a decoder takes 10 to 20 bytes or two microseconds for each, or is asked twice."""

_FOREIGN = (
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"%PDF", "a PDF"),
    (b"8BPS", "a Photoshop file"),
    (b"DDS ", "a DDS texture"),
    (b"BLP", "a BLP texture"),
    (b"icns", "an ICNS icon"),
    (b"SIMPLE  =", "a FITS file"),
    (b"\x89HDF", "an HDF5 file, no picture"),
    (b"\xd7\xcd\xc6\x9a", "a Windows metafile"),
    (b"\x01\0\0\0", "a Windows metafile"),
    (b"PK\3\4", "a zip archive, no picture"),
    (b"\x1f\x8b", "a file compressed with gzip, no picture"),
    (b"version https://git-lfs", "Git LFS"),
)
_HEIF = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"hevm", b"hevs")


class TooLargeError(InputError):
    """A picture with more bytes or pixels than are read."""


def too_large(what: str, most: str) -> TooLargeError:
    """The one error for whatever is too large: what it has, the limit, and how to make it smaller."""
    return TooLargeError(
        f"it has {what}, and at most {most} are read: make it smaller first, for instance with "
        "`magick IN -resize 2048x2048 OUT.jpg` or Pillow's Image.thumbnail"
    )


def _too_many_pixels(count: int | Exception, most: int, kind: str) -> TooLargeError:
    """The same for pixels, which an exception of Pillow has in its message."""
    if isinstance(count, Exception):
        found = re.search(r"\((\d+) pixels\)", str(count))
        count = int(found[1]) if found else most + 1
    return too_large(f"{count / 1e6:,.0f} megapixels", f"{most / 1e6:,.0f} ({kind})")


def decode_bytes(content: bytes, size: int) -> Picture:
    """The picture in a file's content at ``size``; where its metadata are in the way, without them.

    Raises:
        InputError: it is of another kind, or too large.
        Exception: whatever Pillow's decoder raises for what is broken.
    """
    from PIL import Image

    refuse_foreign(content)
    try:
        return _decoded(content, size)
    except (InputError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels(error, MOST_PIXELS, "a picture inside") from error
    except Exception:
        plain = without_metadata(content)
        if plain is None:
            raise
        return _decoded(plain, size)


def decode_image(image: Image.Image, size: int) -> Picture:
    """A PIL image at ``size``. One that still lies in its file becomes what its file would.

    Raises:
        InputError: as :func:`decode_bytes`.
        Exception: whatever Pillow raises.
    """
    from PIL import ImageFile

    if isinstance(image, ImageFile.ImageFile):
        kind = "JPEG" if image.format == "MPO" else image.format
        if kind not in DECODERS:  # to load it might start a program
            raise InputError(f"it is a {kind} file, which is not read; save it as PNG")
        stream = image.fp if image.tile and image.tell() == 0 else None  # what it was not decoded from yet
        large = kind == "JPEG" and math.prod(image.size) > LARGE
        if stream is not None and (large or _wide_modes(image) or _native_order(image)):
            content = _whole(stream)
            if content is not None:
                return decode_bytes(content, size)
        if not large or image.tile:
            _check(image, one_scan=False)
        try:
            image.load()
        except Exception:
            content = _whole(stream) if stream is not None else None
            if content is None:
                raise
            return decode_bytes(content, size)
    return shrink(image, size, image.size)


def refuse_foreign(content: bytes) -> None:
    """Say what a file is that people take for a picture, or that is none. Raises :class:`InputError`."""
    if not content:
        raise InputError("it is empty")
    kind = next((what for start, what in _FOREIGN if content.startswith(start)), None)
    if content[4:8] == b"ftyp" and content[8:12] in _HEIF:
        kind = "HEIC"
    text = content[:1000].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        kind = "a web page, no picture"
    elif text.startswith(b"<") and b"<svg" in text:
        kind = "SVG, a drawing made of lines"
    if kind == "PostScript":
        raise InputError("it is PostScript, a program that draws, which is never run; save it as PNG")
    if kind == "Git LFS":
        raise InputError("it is a pointer of Git LFS; `git lfs pull` fetches the picture itself")
    if kind is not None:
        raise InputError(
            f"it is {kind}" if "no picture" in kind else f"it is {kind}, which is not read; save it as PNG"
        )


@cache
def _formats() -> tuple[str, ...]:
    """The names of :data:`DECODERS` that this Pillow has, with their modules loaded."""
    from PIL import Image

    logging.getLogger("PIL").addHandler(logging.NullHandler())  # what it says of broken files is said by us
    for module in DECODERS.values():
        try:
            import_module(f"PIL.{module}ImagePlugin")
        except ImportError:
            continue
    return tuple(name for name in DECODERS if name in Image.OPEN)


def _opened(content: bytes) -> ImageFile:
    """Pillow's object for a file's content, its pixels not decoded yet.

    Not by ``Image.open``, which may load every module that there is, Ghostscript's among them, and whose
    limit of pixels does not know that a JPEG can be made small while it is decoded.
    """
    from PIL import Image, JpegImagePlugin, UnidentifiedImageError

    for name in _formats():
        factory, accepts = Image.OPEN[name]
        if name == "JPEG":
            factory = JpegImagePlugin.JpegImageFile  # two views of a scene are not two pictures
        if name == "TGA" and not content.endswith(b"TRUEVISION-XFILE.\0"):
            continue  # its beginning may be anything
        try:
            if accepts is None or accepts(content[:16]) is True:
                return factory(io.BytesIO(content), "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # it is of another format, or broken
            continue
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise _too_many_pixels(error, COSTLY.get(name, MOST_PIXELS), name) from error
    raise UnidentifiedImageError("no format")


def _decoded(content: bytes, size: int) -> Picture:
    picture = _opened(content)
    width, height = picture.size
    jpeg = picture.format == "JPEG"
    _check(picture, jpeg and in_one_scan(content))
    if jpeg and width * height > LARGE:
        _draft(picture, size)
    low_bytes = _low_bytes(picture, content)
    picture.tile = _native_order(picture) or picture.tile
    picture.load()
    return shrink(picture, size, (width, height), low_bytes)


def _check(picture: ImageFile, one_scan: bool) -> None:
    """Raise :class:`InputError` for more pixels than are decoded, and for what Pillow decodes wrongly."""
    if tag_of(picture, 284)[:1] == (2,) and max(tag_of(picture, 258), default=8) > 8:
        raise InputError("it has colours of 16 bits in planes of their own, which are not read")
    count, kind = math.prod(picture.size), "JPEG" if picture.format == "MPO" else str(picture.format)
    if kind == "JPEG" and not one_scan:
        kind = "JPEG in several scans"
    elif picture.tile and picture.tile[0].codec_name == "ppm_plain":
        kind = "PPM of digits"
    elif _wide_modes(picture):
        kind = "16 bits a colour"
    most = IN_ONE_SCAN if one_scan else COSTLY.get(kind, MOST_PIXELS)
    if count > most:
        raise _too_many_pixels(count, most, kind)


def _draft(picture: ImageFile, size: int) -> None:
    """Have a JPEG decoded at a half, a quarter or an eighth, which its decoder does block by block."""
    width, height = picture.size
    side = min(width, height)
    scale = next((s for s in (8, 4, 2) if side // s >= ENOUGH * size), 1)
    while scale < 8 and width * height > MOST_PIXELS * scale**2 and side // (2 * scale) >= size:
        scale *= 2  # a long strip
    if width * height > MOST_PIXELS * scale**2:
        raise _too_many_pixels(width * height, MOST_PIXELS, f"JPEG, {side:,} pixels wide or high")
    if scale > 1:
        picture.draft(None, (width // scale, height // scale))


def _native_order(picture: ImageFile) -> list[Any]:
    """The parts of a compressed TIFF with deep values as libtiff gives them; [] for other pictures.

    It turns the bytes of each value to the machine's order; Pillow turns those of a big-endian file again.
    """
    if any(tile.codec_name != "libtiff" for tile in picture.tile):
        return []
    tiles = []
    for tile, way in zip(picture.tile, _ways(picture), strict=True):
        native = re.sub(r"^F;32B?F$", "F;32NF", re.sub(r"^(I;16|I;32)B?S$", r"\1NS", way))
        if native != way:
            tiles.append(tile._replace(args=(native, *(tile.args or ())[1:])))
    return tiles


def _ways(picture: ImageFile) -> list[str]:
    """How each part of a picture that is not decoded yet is unpacked."""
    return [
        tile.args if isinstance(tile.args, str) else str((tile.args or ("",))[0]) for tile in picture.tile
    ]


def _wide_modes(picture: ImageFile) -> set[str]:
    """The ways in which a picture's parts are unpacked, where all have 16 bits a colour."""
    ways = set(_ways(picture))
    wide = all(way[-4:-1] == ";16" and not way.startswith("I") for way in ways)
    return ways if wide else set()


def _low_bytes(picture: ImageFile, content: bytes) -> Image.Image | None:
    """The low bytes of colours with 16 bits, of which Pillow keeps the high ones; None for other pictures."""
    from PIL import Image

    ways = _wide_modes(picture)
    if ways == {"LA;16B"} and content.startswith(PNG):
        # Grey and opacity of 16 bits are the very bytes of four channels of 8: only the header says which.
        header = content[12:24] + b"\x08\x06" + content[26:29]
        four = _opened(content[:12] + header + zlib.crc32(header).to_bytes(4, "big") + content[33:])
        _, low, _, cover = four.split()
        bands = (low, cover) if picture.mode == "LA" else (low, low, low, cover)  # as many as the high bytes
        return Image.merge(picture.mode, bands)
    if len(ways) != 1 or (way := ways.pop())[:-1] not in ("RGB;16", "RGBX;16", "RGBA;16"):
        return None
    little = way[-1] == "L" or (way[-1] == "N" and sys.byteorder == "little")
    swapped = way[:-1] + ("B" if little else "L")
    other = _opened(content)
    other.tile = [
        tile._replace(args=swapped if isinstance(tile.args, str) else (swapped, *(tile.args or ())[1:]))
        for tile in other.tile
    ]
    other.load()
    return other


def _whole(stream: IO[bytes]) -> bytes | None:
    """All of an open file, which stays where it is; None where it is closed or cannot be read again."""
    if stream.closed or not stream.seekable():
        return None
    place = stream.tell()
    count = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    content = stream.read(MOST_BYTES) if count <= MOST_BYTES else b""
    stream.seek(place)
    if count > MOST_BYTES:
        raise too_large(f"{count / 1e6:,.0f} megabytes", f"{MOST_BYTES / 1e6:,.0f}")
    return content
