"""Pictures of every format and mode, and broken ones: the right pixels or one sentence, no program started.

What is right is computed from the values that were written; the full size reads every file with imagecodecs
and tifffile besides, which ``make faults`` installs.
"""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image
from tests.faults.picture_files import (
    CHANGING,
    FLAT,
    MODES,
    POSTSCRIPT,
    SIDE,
    chunk,
    grey,
    independent,
    independent_tiff,
    on_white,
    picture,
    readable_kinds,
    refused_kinds,
    resampled,
    saved,
    smooth,
    truth,
    with_tag,
)
from torch.utils.data import Dataset

from weightloom.errors import InputError
from weightloom.tasks import FolderTask, TorchTask, read_picture

NEAR = 2.0  # of 255
REFUSED = ("BLP", "DDS", "EPS", "ICNS", "IM", "MSP", "PALM", "PDF", "SPIDER", "XBM")
"""Formats that Pillow writes and that are not read."""


quiet = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning",  # refused ones stay open
    "ignore::UserWarning", "ignore::DeprecationWarning",  # of Pillow: broken metadata, rare formats
)  # fmt: skip


class Opened(Dataset):
    """Files as many torch datasets give them: opened by Pillow, not decoded."""

    def __init__(self, *files: Path) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.open(self.files[index]), index % 2


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """The programs that were started since: stand-ins on the path write their names down."""
    place, log = tmp_path / "bin", tmp_path / "started"
    place.mkdir()
    for name in ("gs", "gswin64c", "gswin32c", "djpeg", "convert", "magick", "ffmpeg", "xdg-open"):
        program = place / name
        program.write_text(f'#!/bin/sh\necho "$0" >> "{log}"\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # where Pillow keeps what it has found before

    def started() -> list[str]:
        return log.read_text().splitlines() if log.exists() else []

    subprocess.run(["gs"], check=True)
    assert len(started()) == 1, "the stand-ins do not work"
    log.unlink()
    return started


def reference(full: bool) -> bool:
    """Whether imagecodecs and tifffile are here, which the full size must have."""
    try:
        import imagecodecs  # noqa: F401
        import tifffile  # noqa: F401
    except ImportError:
        assert not full, "the full size compares with imagecodecs and tifffile: install the extra 'faults'"
        return False
    return True


def fill(folder: Path, files: dict[str, bytes]) -> dict[str, Path]:
    """A folder of two classes, these files in the first; the name of each promises a PNG, whatever it is."""
    made = {}
    for label in ("odd", "plain"):
        (folder / label).mkdir(parents=True)
    for number, (name, content) in enumerate(files.items()):
        made[name] = folder / "odd" / f"{number:03}.png"
        made[name].write_bytes(content)
    Image.fromarray(smooth(3, 9)).save(folder / "plain" / "0.png")
    return made


def in_folder(folder: Path, files: dict[str, Path]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Pixels (SIDE, SIDE, 3) of the files that are read, and reasons for the others."""
    task = FolderTask(folder, size=SIDE, skip_broken=True)
    broken = {one["file"]: one["reason"] for one in task.report()["broken"]}
    read = {}
    for split in ("train", "test"):
        if task.report()["pictures"][split]:
            images, labels = task.data(split).all()
            rows = [number for number, test in enumerate(task._read.test) if test == (split == "test")]
            for row, image, label in zip(rows, images, labels, strict=True):
                if label == 0:
                    read[task._read.files[row]] = (image.permute(1, 2, 0).numpy() + 1) * 127.5
    names = {path: name for name, path in files.items()}
    return (
        {names[path]: pixels for path, pixels in read.items()},
        {name: broken[f"odd/{path.name}"] for name, path in files.items() if f"odd/{path.name}" in broken},
    )


def in_dataset(file: Path, plain: Path) -> np.ndarray | str:
    """Pixels (SIDE, SIDE, 3) of a file in a torch dataset, or the sentence that refuses it."""
    try:
        images, _ = TorchTask(Opened(file, plain), Opened(plain), size=SIDE).data("train").all()
    except InputError as error:
        return str(error)
    return (images[0].permute(1, 2, 0).numpy() + 1) * 127.5


@quiet
def test_every_format_and_mode_that_pillow_writes(tmp_path, programs, full, record_property):
    Image.init()
    files, images = {}, {}
    for kind in sorted(Image.SAVE):
        for mode in MODES:
            image = picture(mode)
            try:
                options = {"sizes": [(SIDE, SIDE)]} if kind == "ICO" else {}
                files[f"{kind} {mode}"] = saved(image, kind, **options)
                images[f"{kind} {mode}"] = image
            except (OSError, ValueError, KeyError, TypeError, AttributeError, SystemError):
                continue  # Pillow does not write this
    assert programs() == [] and len(files) > 130
    paths = fill(tmp_path / "all", files)
    read, refused = in_folder(tmp_path / "all", paths)
    assert set(read) | set(refused) == set(files)
    assert {name.split()[0] for name in refused} == {name.split()[0] for name in files} & set(REFUSED)
    assert not {name.split()[0] for name in read} & set(REFUSED)
    other = reference(full)
    compared = 0
    for name, pixels in read.items():
        kind, mode = name.split(" ", 1)
        dataset = in_dataset(paths[name], tmp_path / "all" / "plain" / "0.png")
        assert not isinstance(dataset, str), (name, dataset)
        assert np.abs(dataset - pixels).max() < 0.6, f"{name}: another picture in a torch dataset"
        right = []
        if kind in FLAT and mode == "RGBA":
            right.append(np.asarray(images[name])[..., :3])
        elif kind not in CHANGING:
            right.append(truth(images[name]))
        if other and kind not in ("DIB", "ICO", "PCX", "PPM", "SGI", "TGA"):
            own = mode == "CMYK" and kind == "JPEG2000"  # which does not say that these are inks
            right += [] if own else [independent(kind, files[name])]
        for colours in right:
            assert np.abs(pixels - colours).max() <= NEAR, f"{name}: {np.abs(pixels - colours).max():.0f} off"
        compared += bool(right)
    for name, reason in refused.items():
        assert reason and "\n" not in reason, name
        dataset = in_dataset(paths[name], tmp_path / "all" / "plain" / "0.png")
        assert isinstance(dataset, str) and "\n" not in dataset, name
    assert compared == len(read) if other else compared > 60
    assert programs() == []
    record_property("inputs", len(files))
    record_property("compared", compared)
    record_property("refused", len(refused))


@quiet
def test_broken_kinds(tmp_path, programs, record_property):
    shown, none = readable_kinds(), refused_kinds()
    files = shown | {name: content for name, (content, _) in none.items()}
    paths = fill(tmp_path / "all", files)
    read, refused = in_folder(tmp_path / "all", paths)
    assert set(read) == set(shown) and set(refused) == set(none)
    plain = tmp_path / "all" / "plain" / "0.png"
    for name, pixels in read.items():
        near = 12 if name.startswith(("jpeg", "avif")) else NEAR  # what these formats change
        assert np.abs(pixels - smooth(3)).max() <= near, name
        dataset = in_dataset(paths[name], plain)  # Pillow itself may refuse to open what it stumbles over
        assert isinstance(dataset, str) or np.abs(dataset - pixels).max() < 0.6, name
    for name, reason in refused.items():
        assert none[name][1] in reason and "\n" not in reason and len(reason) < 300, (name, reason)
        dataset = in_dataset(paths[name], plain)
        assert isinstance(dataset, str) and "\n" not in dataset, name
    with pytest.raises(InputError) as caught:
        FolderTask(tmp_path / "all", size=SIDE).data("train")
    assert all(f"odd/{paths[name].name} (" in str(caught.value) for name in none), (
        "not all are listed at once"
    )
    assert programs() == []
    record_property("inputs", len(files))


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp", "eps"])
def test_a_picture_never_starts_a_program(tmp_path, programs, suffix):
    for number, content in enumerate((POSTSCRIPT, saved(Image.fromarray(smooth(3)), "EPS"))):
        file = tmp_path / f"{number}.{suffix}"
        file.write_bytes(content)
        for source in (file, content, Image.open(io.BytesIO(content))):
            with pytest.raises(InputError, match=r"PostScript|EPS"):
                read_picture(source, 16, 3)
    assert programs() == []


@quiet
def test_values_of_every_depth(tmp_path, full, record_property):
    """What other programs write into TIFF, PNG, AVIF, JPEG and JPEG 2000."""
    if not reference(full):
        pytest.skip("imagecodecs and tifffile write these files, and are not installed (extra 'faults')")
    import imagecodecs
    import tifffile

    one, three, four = smooth(1)[..., 0], smooth(3), smooth(4)
    wide = {"one": one.astype(np.uint16) * 257, "three": three.astype(np.uint16) * 257}
    twelve = {
        name: (values.astype(int) * 4095 // 255).astype(np.uint16)
        for name, values in (("1", one), ("3", three))
    }
    tiffs = {
        "u16": (wide["one"], {}),
        "12 of 16 bits": (twelve["1"], {}),
        "u32": (one.astype(np.uint32) * 16_843_009, {}),
        "i8": ((one.astype(int) - 128).astype(np.int8), {}),
        "i16": ((one.astype(int) * 257 - 32768).astype(np.int16), {}),
        "i32": ((one.astype(float) * 2047 / 255 - 1024).round().astype(np.int32), {}),
        "f32": ((one / 255).astype(np.float32), {}),
        "f64": (one / 255, {}),
        "f16": ((one / 255).astype(np.float16), {}),
        "rgb": (three, {"photometric": "rgb"}),
        "rgb16": (wide["three"], {"photometric": "rgb"}),
        "rgb, 12 of 16 bits": (twelve["3"], {"photometric": "rgb"}),
        "rgb, floats": ((three / 255).astype(np.float32), {"photometric": "rgb"}),
        "rgba16": (four.astype(np.uint16) * 257, {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
        "rgb in planes": (np.moveaxis(three, -1, 0), {"photometric": "rgb", "planarconfig": "separate"}),
        "rgb16 in planes": (
            np.moveaxis(wide["three"], -1, 0), {"photometric": "rgb", "planarconfig": "separate"}),
        "white is zero": (one, {"photometric": "miniswhite"}),
        "white is zero, u16": (wide["one"], {"photometric": "miniswhite"}),
        "white is zero, f32": ((one / 255).astype(np.float32), {"photometric": "miniswhite"}),
        "inks16": (four.astype(np.uint16) * 257, {"photometric": "separated"}),
        "bits": (one > 127, {}),
        "a stack": (np.stack([one, 255 - one]), {}),
    }  # fmt: skip
    ways = (
        {}, {"compression": "zlib"}, {"compression": "lzw", "predictor": True}, {"tile": (16, 16)},
        {"bigtiff": True}, {"compression": "zstd", "tile": (16, 16)}, {"rowsperstrip": 5},
    )  # fmt: skip
    inputs = refused = 0
    for name, (values, options) in tiffs.items():
        for order in "<>":
            for way in ways:
                file = io.BytesIO()
                try:
                    tifffile.imwrite(file, values, byteorder=order, **options, **way)
                except ValueError:
                    continue
                inputs += 1
                right = independent_tiff(file.getvalue())
                path = tmp_path / "x.tif"
                path.write_bytes(file.getvalue())
                for source in (path, file.getvalue(), opened(file.getvalue())):
                    try:
                        pixels = read_picture(source, SIDE, 3)[0].transpose(1, 2, 0).astype(float)
                    except InputError as error:
                        refused += 1
                        assert name in ("f64", "f16", "rgb, floats", "rgb16 in planes") or order == ">", (
                            name,
                            error,
                        )
                        continue
                    assert np.abs(pixels - right).max() <= NEAR, (name, order, way)
    others = {
        "png, rgb16": (imagecodecs.png_encode(wide["three"]), three),
        "png, rgba16": (
            imagecodecs.png_encode(four.astype(np.uint16) * 257), on_white(four[..., :3], four[..., 3])),
        "png, grey and opacity of 16 bits": (
            imagecodecs.png_encode(four[..., :2].astype(np.uint16) * 257),
            on_white(grey(four[..., 0]), four[..., 1])),
        "png, rgb, 12 of 16 bits": (imagecodecs.png_encode(twelve["3"]), three),
        "jpeg 2000, 16 bits": (imagecodecs.jpeg2k_encode(wide["one"], level=0), grey(one)),
        "jpeg 2000, rgb": (imagecodecs.jpeg2k_encode(three, level=0), three),
        "jpeg 2000, codestream": (imagecodecs.jpeg2k_encode(three, level=0, codecformat="j2k"), three),
        "avif, 10 bits": (
            imagecodecs.avif_encode(three.astype(np.uint16) * 4, level=100, bitspersample=10), three),
    }  # fmt: skip
    for name, (content, right) in others.items():
        inputs += 1
        for source in (content, opened(content)):
            pixels = read_picture(source, SIDE, 3)[0].transpose(1, 2, 0).astype(float)
            assert np.abs(pixels - right).max() <= NEAR, (name, np.abs(pixels - right).max())
    record_property("inputs", inputs)
    record_property("refusals", refused)


def opened(content: bytes) -> Image.Image | bytes:
    try:
        return Image.open(io.BytesIO(content))
    except OSError:
        return content


@pytest.mark.parametrize("size", [(300, 200), (211, 457), (64, 64), (9, 13), (5003, 3607)], ids=str)
def test_pictures_are_made_small_as_an_independent_resampler_does(size):
    values = np.asarray(Image.fromarray(smooth(3)).resize(size, Image.Resampling.BICUBIC))
    image, right = Image.fromarray(values), resampled(values.astype(float), 16)
    deep = Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    files = {"PNG": saved(image, "PNG"), "deep": saved(deep, "PNG")}
    if min(size) >= 200:  # where what JPEG does to single pixels averages out
        files["JPEG"] = saved(image, "JPEG", quality=95)
    for kind, content in files.items():
        pixels = read_picture(content, 16, 3)[0].transpose(1, 2, 0).astype(float)
        off = np.abs(pixels - (right[..., :1] if kind == "deep" else right)).max()
        assert off <= NEAR, (kind, off)


CHILD = """
import json, sys, time
from PIL import Image
from weightloom.errors import InputError
from weightloom.tasks import read_picture

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024

read_picture(Image.new("RGB", (8, 8)), 16, 3)
found = []
for file in sys.argv[2:]:
    open("/proc/self/clear_refs", "w").write("5")
    before, start, error = peak(), time.process_time(), ""
    try:
        read_picture(file, int(sys.argv[1]), 3)
    except InputError as refused:
        error = str(refused)
    seconds = time.process_time() - start
    found.append({"megabytes": (peak() - before) * 1.048576, "seconds": seconds, "error": error})
print(json.dumps(found))
"""


def measured(*files: Path, size: int = 16) -> list[dict[str, Any]]:
    """What reading each takes in a process of its own, beyond what that takes already."""
    command = [sys.executable, "-c", CHILD, str(size), *map(str, files)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


on_linux = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak of memory"
)


@on_linux
def test_a_photograph_of_108_megapixels(tmp_path, full, record_property):
    file = tmp_path / "phone.jpg"
    values = np.asarray(Image.fromarray(smooth(3)).resize((752, 564), Image.Resampling.BICUBIC))
    # Sixteen times as many pixels a side: the same picture, written in seconds.
    Image.fromarray(values).resize((12032, 9024), Image.Resampling.NEAREST).save(file, quality=90)
    for size in (16, 256) if full else (16,):
        (found,) = measured(file, size=size)
        assert found["error"] == "" and found["megabytes"] < 300, found
        record_property(f"megabytes at {size}", round(found["megabytes"]))
    pixels = read_picture(file, 16, 3)[0].transpose(1, 2, 0).astype(float)
    assert np.abs(pixels - resampled(values.astype(float), 16)).max() <= NEAR + 1


@on_linux
def test_what_is_too_large_is_refused_before_it_is_read(tmp_path, full, record_property):
    """A sparse file of 8 GB, and of every format a picture with more pixels than are decoded."""
    files = {}
    for name, start in (("sparse.png", b"\x89PNG\r\n\x1a\n"), ("sparse.jpg", b"\xff\xd8\xff\xe0")):
        files[name] = start
    image = Image.fromarray(smooth(3))
    png, tiff, jpeg = saved(image, "PNG"), saved(image, "TIFF"), saved(image, "JPEG", progressive=True)
    gif, bmp, webp = saved(image, "GIF"), saved(image, "BMP"), saved(image, "WEBP", lossless=True)
    frame = jpeg.index(b"\xff\xc2") + 5
    files["x.png"] = png[:8] + chunk(b"IHDR", struct.pack(">II", 8001, 8000) + png[24:29]) + png[33:]
    files["x.tif"] = with_tag(with_tag(tiff, 256, 4, 1, 8001), 257, 4, 1, 8000)
    files["x.jpg"] = jpeg[:frame] + struct.pack(">HH", 8001, 8000) + jpeg[frame + 4 :]
    files["x.gif"] = gif[:6] + struct.pack("<HH", 8001, 8000) + gif[10:]
    files["x.bmp"] = bmp[:18] + struct.pack("<ii", 8001, 8000) + bmp[26:]
    bits = 7999 | 7999 << 14 | (int.from_bytes(webp[21:25], "little") & ~0xFFFFFFF)
    files["x.webp"] = webp[:21] + bits.to_bytes(4, "little") + webp[25:]
    files["x.ppm"] = b"P6 8001 8000 255\n" + bytes(1000)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        if name.startswith("sparse"):
            os.truncate(tmp_path / name, 8 << 30)
    found = measured(*(tmp_path / name for name in files))
    for name, one in zip(files, found, strict=True):
        what = "8,590 megabytes" if name.startswith("sparse") else "64 megapixels"
        assert what in one["error"] and "are read: make it smaller first" in one["error"], (name, one)
        assert one["megabytes"] < 20 and one["seconds"] < (0.1 if full else 0.5), (name, one)
    record_property("milliseconds for 8 GB", max(round(1000 * one["seconds"], 1) for one in found[:2]))
    record_property("milliseconds at most", max(round(1000 * one["seconds"], 1) for one in found))
