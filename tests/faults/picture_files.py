"""Pictures of every format and mode, broken ones, and what is right for each, without the tested reader.

``truth`` computes colours from the values that were written, by the formulas of each colour space.
``independent`` reads a file with imagecodecs and tifffile, which share nothing with Pillow but libraries of
single formats. ``resampled`` makes pictures small.
"""

from __future__ import annotations

import colorsys
import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

SIDE = 32
MODES = (
    "1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I",
    "I;16", "I;16B", "I;16L", "I;16N", "F",
)  # fmt: skip
CHANGING = ("AVIF", "JPEG", "MPO", "WEBP", "GIF")
"""Formats that change pixels when they are written."""

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n"

FLAT = ("BMP", "DIB", "PPM")
"""Formats that leave opacity out when they are written."""


def smooth(channels: int, seed: int = 0) -> np.ndarray:
    """(SIDE, SIDE, channels) uint8, from 0 to 255 in every channel, without edges."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (4, 4, channels), dtype=np.uint8)
    large = [
        Image.fromarray(small[..., c]).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for c in range(channels)
    ]
    planes = np.stack([np.asarray(plane) for plane in large], -1).astype(float)
    planes -= planes.min((0, 1))
    return np.round(255 * planes / planes.max((0, 1))).astype(np.uint8)


def picture(mode: str) -> Image.Image:
    """A picture of one mode with known values."""
    if mode.startswith("I;16"):
        order = {"I;16B": ">u2", "I;16N": "=u2"}.get(mode, "<u2")
        values = smooth(1)[..., 0].astype(np.uint16) * 257
        return Image.frombytes(mode, (SIDE, SIDE), values.astype(order).tobytes())
    if mode == "I":
        return Image.fromarray(smooth(1)[..., 0].astype(np.int32) * 257)
    if mode == "F":
        return Image.fromarray(smooth(1)[..., 0].astype(np.float32) / 255)
    if mode == "1":
        return Image.fromarray(smooth(1)[..., 0] > 127)
    if mode in ("P", "PA"):
        colours = Image.fromarray(smooth(3)).quantize(64)
        if mode == "P":
            return colours
        both = Image.frombytes("PA", (SIDE, SIDE), np.stack(
            [np.asarray(colours), smooth(1, 1)[..., 0]], -1).tobytes())  # fmt: skip
        both.putpalette(colours.getpalette())
        return both
    if mode in ("La", "RGBa"):
        plain = {"La": "LA", "RGBa": "RGBA"}[mode]
        return picture(plain).convert(mode)
    bands = len(Image.new(mode, (1, 1)).getbands())
    values = smooth(bands)
    if mode == "LAB":  # colours that sRGB has: what is made of others is a matter of taste
        values = np.stack(
            [60 + values[..., 0] // 2, *((values[..., c] // 8 + 240).astype(np.uint8) for c in (1, 2))], -1
        )
    return Image.frombytes(mode, (SIDE, SIDE), values.tobytes())


def truth(image: Image.Image) -> np.ndarray:
    """(SIDE, SIDE, 3) float from 0 to 255: a picture's colours on white, from its values."""
    mode, values = image.mode, np.asarray(image)
    if mode.startswith("I") or mode == "F":
        top = 1.0 if mode == "F" else 65535.0
        return grey(values.astype(float) / top * 255)
    if mode == "1":
        return grey(values * 255.0)
    if mode in ("P", "PA"):
        palette = np.array(image.getpalette()).reshape(-1, 3)
        if mode == "P":
            return palette[values].astype(float)
        return on_white(palette[values[..., 0]], values[..., 1])
    values = values.astype(float)
    if mode == "L":
        return grey(values)
    if mode == "LA":
        return on_white(grey(values[..., 0]), values[..., 1])
    if mode == "La":  # multiplied by the opacity already
        return grey(values[..., 0] + 255 - values[..., 1])
    if mode == "RGBA":
        return on_white(values[..., :3], values[..., 3])
    if mode == "RGBa":
        return values[..., :3] + 255 - values[..., 3:]
    if mode == "CMYK":
        return from_cmyk(values)
    if mode == "YCbCr":
        return from_ycbcr(values)
    if mode == "LAB":
        return from_lab(np.asarray(image))
    if mode == "HSV":
        flat = [colorsys.hsv_to_rgb(*pixel) for pixel in values.reshape(-1, 3) / 255]
        return 255 * np.array(flat).reshape(values.shape)
    return values[..., :3]


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None].astype(float), 3, -1)


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    cover = alpha[..., None] / 255
    return colours * cover + 255 * (1 - cover)


def from_cmyk(values: np.ndarray) -> np.ndarray:
    return (255 - values[..., :3]) * (255 - values[..., 3:]) / 255


def from_ycbcr(values: np.ndarray) -> np.ndarray:
    y, blue, red = np.moveaxis(values.astype(float), -1, 0)
    blue, red = blue - 128, red - 128
    return np.stack([y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue], -1).clip(
        0, 255
    )


def from_lab(values: np.ndarray) -> np.ndarray:
    """CIE L*a*b* with the white D50, as bytes (a and b from -128), to sRGB."""
    light = values[..., 0] / 255 * 100
    a, b = (values[..., c].view(np.int8).astype(float) for c in (1, 2))
    fy = (light + 16) / 116
    f = np.stack([fy + a / 500, fy, fy - b / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, (f - 4 / 29) * 3 * (6 / 29) ** 2) * np.array([0.96422, 1.0, 0.82521])
    linear = xyz @ np.array(
        [
            [3.1338561, -1.6168667, -0.4906146],
            [-0.9787684, 1.9161415, 0.0334540],
            [0.0719453, -0.2289914, 1.4052427],
        ]
    ).T  # fmt: skip
    linear = linear.clip(0, 1)
    return 255 * np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)


def independent(kind: str, content: bytes) -> np.ndarray:
    """(SIDE, SIDE, 3) float from 0 to 255: a file's first picture on white, by imagecodecs or tifffile."""
    import imagecodecs

    if kind == "TIFF":
        return independent_tiff(content)
    name = {"JPEG": "jpeg8", "MPO": "jpeg8", "JPEG2000": "jpeg2k"}.get(kind, kind.lower())
    values = getattr(imagecodecs, f"{name}_decode")(content)
    while values.ndim > 3:
        values = values[0]
    values = values.astype(float) / (257 if values.dtype == np.uint16 else 1)
    if values.ndim == 2:
        return grey(values)
    if values.shape[-1] == 2:
        return on_white(grey(values[..., 0]), values[..., 1])
    if values.shape[-1] == 4 and name == "jpeg8":  # Adobe writes inks upside down
        return from_cmyk(255 - values)
    return on_white(values[..., :3], values[..., 3]) if values.shape[-1] == 4 else values


def independent_tiff(content: bytes) -> np.ndarray:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = file.pages[0]
        values, kind, extra = page.asarray(), page.photometric.name, page.extrasamples
        palette = page.colormap
    if page.planarconfig == 2 and values.ndim == 3:
        values = np.moveaxis(values, 0, -1)
    if kind == "CIELAB":
        return from_lab(values)
    if kind == "PALETTE":
        indices = values if values.ndim == 2 else values[..., 0]
        colours = palette.T[indices] / 257
        return on_white(colours, values[..., 1]) if values.ndim == 3 else colours
    values = in_bytes(values)
    if kind == "MINISWHITE":
        values = 255 - values
    if kind == "SEPARATED":
        return from_cmyk(values)
    if kind == "YCBCR":
        return from_ycbcr(values)
    if values.ndim == 2:
        return grey(values)
    colours = grey(values[..., 0]) if values.shape[-1] == 2 else values[..., :3]
    if extra and extra[0].name == "ASSOCALPHA":
        return colours + 255 - values[..., -1:]
    return on_white(colours, values[..., -1]) if extra and extra[0].name == "UNASSALPHA" else colours


def in_bytes(values: np.ndarray) -> np.ndarray:
    """Values that fill one of the ranges in use, as floats from 0 to 255."""
    if values.dtype == bool:
        return values * 255.0
    low, high = float(values.min()), float(values.max())
    if values.dtype == np.uint8:
        low, high = 0.0, 255.0
    elif values.dtype.kind == "f":
        low, high = 0.0, 1.0
    return (values.astype(float) - low) / (high - low) * 255


def resampled(values: np.ndarray, size: int) -> np.ndarray:
    """The central square of (H, W, C) at ``size``: triangles as wide as two pixels of the result."""
    height, width = values.shape[:2]
    side = min(height, width)
    for axis, whole in ((0, height), (1, width)):
        scale = side / size
        centres = (whole - side) / 2 + (np.arange(size) + 0.5) * scale
        reach = max(scale, 1.0)
        weights = (1 - np.abs(np.arange(whole) + 0.5 - centres[:, None]) / reach).clip(0)  # (size, whole)
        weights /= weights.sum(1, keepdims=True)
        values = np.moveaxis(np.tensordot(weights, values, (1, axis)), 0, axis)
    return values


# -- broken files ------------------------------------------------------------------------------


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    """A chunk of a PNG, with a wrong sum where one is given."""
    total = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", total)


def with_chunk(png: bytes, *chunks: bytes, before: bytes = b"IDAT") -> bytes:
    place = png.index(before) - 4
    return png[:place] + b"".join(chunks) + png[place:]


def with_segment(jpeg: bytes, marker: int, data: bytes) -> bytes:
    return jpeg[:2] + bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data + jpeg[2:]


def with_tag(tiff: bytes, tag: int, kind: int, count: int, value: int) -> bytes:
    """A little-endian TIFF with one entry more in its first directory, which moves to the end."""
    (place,) = struct.unpack_from("<I", tiff, 4)
    (entries,) = struct.unpack_from("<H", tiff, place)
    own = [tiff[place + 2 + 12 * n : place + 14 + 12 * n] for n in range(entries)]
    own = [entry for entry in own if struct.unpack_from("<H", entry)[0] != tag]
    own = sorted(
        [*own, struct.pack("<HHII", tag, kind, count, value)], key=lambda e: struct.unpack_from("<H", e)[0]
    )
    directory = struct.pack("<H", len(own)) + b"".join(own) + bytes(4)
    return tiff[:4] + struct.pack("<I", len(tiff)) + tiff[8:] + directory


def readable_kinds() -> dict[str, bytes]:
    """Files that are broken beside their pixels: each shows ``smooth(3)``, as far as its format can."""
    image = Image.fromarray(smooth(3))
    png, jpeg, tiff = (
        saved(image, "PNG"),
        saved(image, "JPEG", quality=95, subsampling=0),
        saved(image, "TIFF"),
    )
    webp = saved(image, "WEBP", lossless=True)
    bad_exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\1\x12"
    avif = saved(image, "AVIF", quality=95, subsampling="4:4:4", exif=saved_exif())
    bomb = zlib.compress(bytes(80_000_000))
    riff = webp + b"EXIF" + struct.pack("<I", 8) + b"\xff" * 8
    return {
        "png, broken EXIF": saved(image, "PNG", exif=b"Exif\0\0\0\x08\0\x02\x01\x12\0\x03"),
        "png, EXIF without an end": with_chunk(png, chunk(b"eXIf", bad_exif[6:])),
        "png, text with a wrong sum": with_chunk(png, chunk(b"tEXt", b"Title\0ant", crc=1)),
        "png, text that unpacks to 80 megabytes": with_chunk(png, chunk(b"zTXt", b"Title\0\0" + bomb)),
        "png, text packed in an unknown way": with_chunk(png, chunk(b"zTXt", b"Title\0\7abc")),
        "png, text that is no UTF-8": with_chunk(png, chunk(b"iTXt", b"Title\0\0\0\0\0\xff\xfe")),
        "png, text cut off behind the pixels": png[:-12] + chunk(b"tEXt", b"Title\0" + b"x" * 99)[:40],
        "png, colour profile that unpacks to nothing": with_chunk(png, chunk(b"iCCP", b"p\0\0abc")),
        "png, colour profile packed in an unknown way": with_chunk(png, chunk(b"iCCP", b"p\0\7abc")),
        "png, resolution cut off": with_chunk(png, chunk(b"pHYs", b"\0\0")),
        "png, gamma cut off": with_chunk(png, chunk(b"gAMA", b"")),
        "png, opacity cut off": with_chunk(png, chunk(b"tRNS", b"\0")),
        "png, opacity with a wrong sum": with_chunk(png, chunk(b"tRNS", bytes(6), crc=1)),
        "png, animation out of order": with_chunk(png, chunk(b"acTL", bytes((0, 0, 0, 2, 0, 0, 0, 0))),
                                                  chunk(b"fcTL", b"\0\0\0\5" + bytes(22))),
        "png, without its end": png[:-12],
        "png, followed by something else": png + b"PK\3\4" + bytes(100),
        "jpeg, broken EXIF": with_segment(jpeg, 0xE1, bad_exif),
        "jpeg, EXIF of garbage": with_segment(jpeg, 0xE1, b"Exif\0\0" + b"\xff" * 50),
        "jpeg, JFIF cut off": with_segment(jpeg, 0xE0, b"JFIF\0"),
        "jpeg, Adobe cut off": with_segment(jpeg, 0xEE, b"Adobe"),
        "jpeg, colour profile in pieces that do not fit": with_segment(jpeg, 0xE2, b"ICC_PROFILE\0"),
        "jpeg, several pictures announced": with_segment(jpeg, 0xE2, b"MPF\0MM\0*\0\0\0\x08" + b"\xff" * 20),
        "jpeg, Photoshop cut off": with_segment(jpeg, 0xED, b"Photoshop 3.0\x008BIM\4"),
        "jpeg, followed by something else": jpeg + bytes(100),
        "tiff, EXIF beyond its end": with_tag(tiff, 34665, 4, 1, 1 << 30),
        "tiff, EXIF that is its own directory": with_tag(tiff, 34665, 4, 1, 8),
        "tiff, places beyond its end": with_tag(tiff, 34853, 4, 1, (1 << 32) - 1),
        "tiff, resolution that is text": with_tag(tiff, 282, 2, 4, 0x00746E61),
        "tiff, colour profile beyond its end": with_tag(tiff, 34675, 7, 1 << 20, 1 << 30),
        "tiff, XMP that is a number": with_tag(tiff, 700, 4, 1, 7),
        "webp, EXIF that is not announced": riff[:4] + struct.pack("<I", len(riff) - 8) + riff[8:],
        "avif, EXIF of garbage": avif.replace(saved_exif()[6:], b"\xff" * len(saved_exif()[6:])),
    }  # fmt: skip


def saved_exif() -> bytes:
    exif = Image.Exif()
    exif[0x010E] = "a description that is long enough to be found again"
    return exif.tobytes()


def refused_kinds() -> dict[str, tuple[bytes, str]]:
    """Files without pixels that could be shown, each with words of the one sentence that refuses it."""
    image = Image.fromarray(smooth(3))
    formats = ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "AVIF", "JPEG2000", "BMP", "PPM", "SGI", "ICO", "QOI")
    options = {"AVIF": {"quality": 95}, "ICO": {"sizes": [(SIDE, SIDE)]}}
    cut = {f"{kind}, cut in the middle": saved(image, kind, **options.get(kind, {})) for kind in formats}
    png, tiff = saved(image, "PNG"), saved(image, "TIFF")
    huge = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    giant = Image.new("1", (15_000, 15_000))
    icon = saved(giant, "PNG")
    values = smooth(1)[..., 0].astype(np.float32)
    holes, ends = values.copy(), values.copy()
    holes[3, 4], ends[5, 6] = np.nan, np.inf
    return {
        **{name: (content[: len(content) // 2], "") for name, content in cut.items()},
        "nothing": (b"", "it is empty"),
        "text": (b"ants and bees\n" * 50, "no picture"),
        "zeros": (bytes(5000), "no picture"),
        "noise": (np.random.default_rng(0).bytes(5000), "no picture"),
        "PostScript": (POSTSCRIPT, "never run"),
        "PostScript of DOS": (
            b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 30, 100) + bytes(18) + POSTSCRIPT, "never run"),
        "PDF": (b"%PDF-1.7\n", "a PDF"),
        "SVG": (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        "a web page": (b"\n<!DOCTYPE html><html>404</html>", "web page"),
        "HEIC": (struct.pack(">I", 24) + b"ftypheic" + bytes(12), "HEIC"),
        "Photoshop": (b"8BPS\0\1" + bytes(100), "Photoshop"),
        "a zip archive": (b"PK\3\4" + bytes(100), "zip"),
        "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "lfs pull"),
        "png, header alone": (png[:33], ""),
        "png, header with a wrong sum": (png[:29] + bytes(4) + png[33:], ""),
        "png, pixels with a flipped byte": (flipped(png, png.index(b"IDAT") + 40), ""),
        "png, 3,600 megapixels": (png[:8] + chunk(b"IHDR", huge) + png[33:], "megapixels, and at most 64"),
        "tiff, NaN": (saved(Image.fromarray(holes), "TIFF"), "NaN"),
        "tiff, infinite": (saved(Image.fromarray(ends), "TIFF"), "infinite"),
        "tiff, directory beyond its end": (tiff[:4] + struct.pack("<I", 1 << 30) + tiff[8:], ""),
        "tiff, 4,000 megapixels": (with_tag(tiff, 256, 4, 1, 125_000_000), "megapixels, and at most 64"),
        "tiff, pixels beyond its end": (with_tag(tiff, 273, 4, 1, 1 << 30), ""),
        "icon with a picture of 225 megapixels": (
            struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(icon), 22) + icon, "megapixels"),
    }  # fmt: skip


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes((content[place] ^ 0x55,)) + content[place + 1 :]
