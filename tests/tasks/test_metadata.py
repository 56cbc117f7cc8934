from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image
from tests.faults.picture_files import (
    chunk,
    readable_kinds,
    saved,
    smooth,
    with_chunk,
    with_segment,
    with_tag,
)

from weightloom.tasks.metadata import in_one_scan, without_metadata

IMAGE = Image.fromarray(smooth(3))


def pixels(content: bytes) -> list:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).tolist()


def test_only_what_pixels_need_is_left():
    png = with_chunk(saved(IMAGE, "PNG"), chunk(b"tEXt", b"Title\0ant"), chunk(b"iCCP", b"p\0\0abc"))
    plain = without_metadata(png)
    assert plain is not None and plain == saved(IMAGE, "PNG") and pixels(plain) == pixels(png)
    jpeg = saved(IMAGE, "JPEG", quality=90)
    noted = with_segment(with_segment(jpeg, 0xFE, b"a note"), 0xED, b"Photoshop 3.0\0")
    assert without_metadata(noted) == jpeg and without_metadata(jpeg) is None
    tiff = saved(IMAGE, "TIFF", dpi=(100, 100), description="a note")
    plain = without_metadata(tiff)
    assert plain is not None and pixels(plain) == pixels(tiff)
    tags = dict(Image.open(io.BytesIO(plain)).tag_v2)
    assert 282 not in tags and 270 not in tags and tags[256] == IMAGE.width
    assert without_metadata(b"GIF89a") is None and without_metadata(b"") is None


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_an_orientation_that_is_intact_stays(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = saved(IMAGE, kind, exif=exif)
    if kind == "PNG":
        content = with_chunk(content, chunk(b"tEXt", b"x", crc=1))
    plain = without_metadata(content)
    found = Image.open(io.BytesIO(plain or content))
    assert found.getexif()[0x0112] == 6


def test_directories_of_both_orders_and_sizes():
    for order, start in (("<", b"II*\0"), (">", b"MM\0*")):
        entries = [(256, 3, 1, 1), (282, 4, 1, 7), (273, 4, 1, 0)]
        packed = b"".join(
            struct.pack(order + "HHI", tag, kind, count)
            + struct.pack(order + ("HH" if kind == 3 else "I"), *(
                (value, 0) if kind == 3 else (value,)))
            for tag, kind, count, value in entries
        )  # fmt: skip
        content = start + struct.pack(order + "I", 8) + struct.pack(order + "H", 3) + packed + bytes(4)
        plain = without_metadata(content)
        assert plain is not None and plain[:4] == start
        (place,) = struct.unpack_from(order + "I", plain, 4)
        assert struct.unpack_from(order + "HH", plain, place) == (2, 256)
        assert struct.unpack_from(order + "H", plain, place + 14)[0] == 273
    big = b"II+\0" + struct.pack("<HHQ", 8, 0, 16) + struct.pack("<Q", 2)
    big += struct.pack("<HHQQ", 256, 4, 1, 9) + struct.pack("<HHQQ", 305, 2, 4, 0) + bytes(8)
    plain = without_metadata(big)
    assert plain is not None
    (place,) = struct.unpack_from("<Q", plain, 8)
    assert struct.unpack_from("<QH", plain, place) == (1, 256)


def test_what_ends_too_early_is_left_alone():
    for content in readable_kinds().values():
        for count in (5, 9, 20, 40):
            without_metadata(content[:count])  # None or bytes, never an exception
    assert without_metadata(with_tag(saved(IMAGE, "TIFF"), 282, 2, 4, 0)[:100]) is None


def test_one_scan_or_several():
    assert in_one_scan(saved(IMAGE, "JPEG")) and in_one_scan(saved(IMAGE.convert("L"), "JPEG"))
    assert in_one_scan(saved(IMAGE.convert("CMYK"), "JPEG"))
    assert not in_one_scan(saved(IMAGE, "JPEG", progressive=True))
    jpeg = saved(IMAGE, "JPEG")
    scan = jpeg.index(b"\xff\xda")
    apart = jpeg[: scan + 2] + struct.pack(">HBBBBBB", 8, 1, 1, 0, 0, 63, 0) + jpeg[scan + 14 :]
    assert not in_one_scan(apart), "its colours come one after another"
    for broken in (b"", b"\xff\xd8\xff", jpeg[:50], b"\xff\xd8\xff\xd9"):
        assert not in_one_scan(broken)
