"""Pictures without what is written beside their pixels: text, colour profiles, EXIF.

A reader that stumbles over a broken text chunk gives the pixels up with it. Given the same picture without
such parts it does not. What stays is what the pixels need, and an orientation where it is intact. Knows
bytes only.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf")

# Size, bits, compression, photometry, fill order, strips, orientation, samples, planes, predictor, palette,
# tiles, extra samples, sample format, JPEG tables, the old kind of JPEG, YCbCr. Resolution, text, profiles,
# EXIF and GPS are not among them.
_TIFF_KEPT = frozenset(
    (
        254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324,
        325, 332, 338, 339, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532,
    )
)  # fmt: skip

# The entry of an AVIF file that says "this item is EXIF": a box of version 2 with a number of 16 bits.
_AVIF_EXIF = re.compile(rb"(infe\x02.{3}.{2}\0\0)Exif", re.DOTALL)


def without_metadata(content: bytes) -> bytes | None:
    """The same picture with what its pixels need, or None where nothing can be left out.

    Args:
        content: a whole file.
    """
    try:
        if content.startswith(PNG):
            plain = _png(content)
        elif content.startswith(JPEG):
            plain = _jpeg(content)
        elif content.startswith(TIFF):
            plain = _tiff(content)
        elif content[4:8] == b"ftyp":
            plain = _AVIF_EXIF.sub(rb"\1none", content)
        else:
            return None
    except (struct.error, IndexError):  # it ends before it should: the picture is broken, not its metadata
        return None
    return plain if plain != content else None


def _png(content: bytes) -> bytes:
    """Chunks that pixels need as they are; of the others transparency and EXIF, where they are intact."""
    kept, place, seen = [PNG], len(PNG), False
    while place < len(content):
        (length,) = struct.unpack_from(">I", content, place)
        kind, end = content[place + 4 : place + 8], place + 12 + length
        if kind == b"IEND" or (seen and end > len(content) and kind != b"IDAT"):
            break  # the pixels are complete; what is cut off came after them
        chunk = content[place:end]
        seen = seen or kind == b"IDAT"
        critical = kind[:1].isupper()
        fits = kind != b"tRNS" or length >= {0: 2, 2: 6}.get(content[25], 1)  # by the kind of colours
        if kind in _PNG_KEPT and (critical or (_intact(chunk) and fits)):
            kept.append(chunk)
        place = end
    kept.append(struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND")))
    return b"".join(kept)


def _intact(chunk: bytes) -> bool:
    return len(chunk) >= 12 and zlib.crc32(chunk[4:-4]) == struct.unpack(">I", chunk[-4:])[0]


def segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment of a JPEG up to its first scan, that scan's header included.

    Raises:
        struct.error, IndexError: it ends before.
    """
    place = 2
    while True:
        while content[place] != 0xFF:  # readers skip what lies between segments
            place += 1
        while content[place] == 0xFF:
            place += 1
        marker, place = content[place], place + 1
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # these stand alone
            continue
        if marker == 0xD9:  # the end, before any scan
            raise IndexError
        (length,) = struct.unpack_from(">H", content, place)
        yield marker, place, place + length
        if marker == 0xDA:
            return
        place += length


def _jpeg(content: bytes) -> bytes:
    """Tables, frame and scans; JFIF and Adobe segments, which say how colours are coded; EXIF."""
    kept, end = [b"\xff\xd8"], 2
    for marker, start, end in segments(content):
        body = content[start + 2 : end]
        coded = (
            (marker == 0xE0 and body.startswith(b"JFIF\0") and len(body) >= 14)
            or (marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12)
            or (marker == 0xE1 and body.startswith(b"Exif\0\0"))
        )
        if coded or not (0xE0 <= marker <= 0xEF or marker in (0xFE, 0xDA)):
            kept.append(bytes((0xFF, marker)) + content[start:end])
        elif marker == 0xDA:
            kept.append(b"\xff\xda" + content[start:])  # this and all further scans, as they are
    return b"".join(kept)


def in_one_scan(content: bytes) -> bool:
    """Whether a JPEG has all its colours in one scan, so that it is decoded row by row.

    Decoders keep every coefficient of other ones (progressive ones among them) in memory, at any scale.
    """
    layers = 0
    try:
        for marker, start, _ in segments(content):
            if marker in (0xC0, 0xC1):  # baseline, and sequential with more tables
                layers = content[start + 7]
            elif marker == 0xDA:
                return 0 < layers == content[start + 2]
    except (struct.error, IndexError):
        pass
    return False


def _tiff(content: bytes) -> bytes:
    """The first picture's entries that pixels need, in a new directory behind the rest of the file."""
    order = "<" if content.startswith(b"II") else ">"
    big = 43 in content[2:4]
    at, counted, entry = (8, "Q", 20) if big else (4, "H", 12)
    pointer = order + ("Q" if big else "I")
    (place,) = struct.unpack_from(pointer, content, at)
    (count,) = struct.unpack_from(order + counted, content, place)
    place += struct.calcsize(order + counted)
    entries = [content[place + entry * n : place + entry * (n + 1)] for n in range(min(count, 65_535))]
    kept = [one for one in entries if struct.unpack_from(order + "H", one)[0] in _TIFF_KEPT]
    directory = struct.pack(order + counted, len(kept)) + b"".join(kept) + struct.pack(pointer, 0)
    start = len(content) + len(content) % 2
    header = content[:at] + struct.pack(pointer, start)
    return header + content[len(header) :].ljust(start - len(header), b"\0") + directory
