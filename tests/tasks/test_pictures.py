from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from weightloom.errors import BrokenPicturesError, InputError
from weightloom.tasks import ValueRanges, read_picture, read_pictures
from weightloom.tasks.decoding import MOST_BYTES
from weightloom.tasks.listing import find_pictures
from weightloom.tasks.pictures import TooLargeError, load_picture

QUARTERS = np.zeros((16, 16, 3), np.uint8)
QUARTERS[:8, :8], QUARTERS[:8, 8:], QUARTERS[8:, :8] = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)  # type: ignore[arg-type]
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright_whatever_holds_them(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"subsampling": "4:4:4"} if kind == "AVIF" else {}
    content = saved(Image.fromarray(QUARTERS), kind, exif=exif, **options)
    right = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))
    (tmp_path / "x").write_bytes(content)
    loaded = Image.open(io.BytesIO(content))
    loaded.load()
    for source in (tmp_path / "x", str(tmp_path / "x"), content, Image.open(io.BytesIO(content)), loaded):
        pixels, _ = read_picture(source, 16, 3)
        assert np.abs(pixels.transpose(1, 2, 0).astype(int) - right).max() <= 1


def test_a_wide_picture_of_16_bits_is_turned_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    values = np.tile(np.linspace(0, 65535, 16).astype(np.uint16), (16, 1))  # dark at the left
    content = saved(Image.fromarray(values), "PNG", exif=exif)
    pixels = read_picture(content, 16, 1)[0][0].astype(int)  # dark at the top
    assert pixels[0].max() == 0 and pixels[-1].min() == 255


def test_grey_with_one_transparent_value_of_16_bits():
    values = np.full((16, 16), 300, np.uint16)
    values[:, 8:] = 65535 // 2
    content = saved(Image.fromarray(values), "PNG", transparency=300)
    for source in (content, Image.open(io.BytesIO(content))):
        pixels = read_picture(source, 16, 1)[0][0]
        assert (pixels[:, :8] == 255).all() and (pixels[:, 8:] == round(32767 / 65535 * 255)).all()


def test_the_callers_image_stays_as_it_is(tmp_path):
    Image.fromarray(QUARTERS).save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        image.info["note"] = "mine"
        read_picture(image, 16, 3)
        assert image.size == (16, 16) and image.mode == "RGB" and image.info["note"] == "mine"
        assert np.asarray(image).tolist() == QUARTERS.tolist()


def test_a_large_photograph_is_made_small_while_it_is_decoded(tmp_path):
    image = Image.fromarray(QUARTERS).resize((5000, 4000), Image.Resampling.NEAREST)
    content = saved(image, "JPEG", quality=60)
    opened = Image.open(io.BytesIO(content))
    for source in (content, opened):
        pixels = read_picture(source, 16, 3)[0]
        assert np.abs(pixels[:, 2, 2].astype(int) - (255, 0, 0)).max() <= 2
    assert opened.size == (5000, 4000), "the caller's image was made small"
    assert load_picture(content, 16).size == (5000, 4000)


def test_what_is_too_large_is_one_sentence_that_names_the_limit(tmp_path):
    file = tmp_path / "x.png"
    with file.open("wb") as handle:
        handle.truncate(MOST_BYTES + 1)
    with pytest.raises(
        TooLargeError, match="it has 256 megabytes, and at most 256 are read: make it smaller"
    ):
        read_picture(file, 16, 3)
    with pytest.raises(TooLargeError, match=r"it has 64 megapixels, and at most 64 \(PNG\) are read"):
        read_picture(saved(Image.new("1", (8001, 8000)), "PNG"), 16, 3)
    strip = saved(Image.new("L", (65000, 40)), "JPEG")
    assert read_picture(strip, 16, 3)[0].shape == (3, 16, 16)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for name, words in (
        ("pipe.png", "not a regular file"),
        ("", "is a folder"),
        ("none.png", "does not exist"),
    ):
        with pytest.raises(InputError, match=words):
            read_picture(tmp_path / name, 16, 3)


def test_pictures_without_classes_are_read_together(tmp_path):
    ramp = np.tile(np.linspace(0, 1, 16), (16, 1))
    (tmp_path / "deep").mkdir()
    Image.fromarray((ramp * 900).astype(np.uint16)).save(tmp_path / "a.png")
    Image.fromarray((ramp * 3000).astype(np.uint16)).save(tmp_path / "deep" / "b.png")
    (tmp_path / "c.png").write_bytes(b"broken")
    (tmp_path / "notes.txt").write_text("x")
    files, passed = find_pictures(tmp_path)
    assert [file.name for file in files] == ["a.png", "c.png", "b.png"] and passed.to_json() == {
        "suffixes": {".txt": 1}
    }
    with pytest.raises(BrokenPicturesError, match=r"1 of 3 pictures cannot be read: .*c\.png"):
        read_pictures(files, 16, 1)
    found = read_pictures(files, 16, 1, skip_broken=True)
    assert found.kept == [0, 2] and found.broken[0][0] == 1 and found.ranges == ValueRanges(sixteen=(0, 4095))
    assert (
        found.pixels.shape == (2, 1, 16, 16)
        and found.pixels.max(axis=(1, 2, 3)).tolist() == [56, 187]
        and found.grey
    )
    alone = read_picture(files[0], 16, 1, ranges=found.ranges)[0]
    assert (alone == found.pixels[0]).all(), "with the range of the others it is as it was among them"
    assert read_picture(files[0], 16, 1)[0].max() > 200  # as if it were alone in a folder
    with pytest.raises(InputError, match="there is no picture"):
        read_pictures([], 16, 3)


def test_an_image_whose_file_was_closed_is_one_sentence(tmp_path):
    Image.fromarray(QUARTERS).save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        pass
    with pytest.raises(InputError, match="a picture in memory: this image cannot be read"):
        read_picture(image, 16, 3)


def test_a_stack_shows_the_frame_that_was_chosen(tmp_path):
    frames = [Image.new("L", (8, 8), value) for value in (0, 255)]
    file = tmp_path / "x.tif"
    frames[0].save(file, save_all=True, append_images=frames[1:])
    assert read_picture(file, 8, 1)[0].max() == 0
    with Image.open(file) as image:
        image.seek(1)
        assert read_picture(image, 8, 1)[0].min() == 255


def test_the_first_bytes_of_everything_are_refused_in_one_sentence():
    kinds = [
        "PNG",
        "JPEG",
        "GIF",
        "BMP",
        "TIFF",
        "WEBP",
        "AVIF",
        "JPEG2000",
        "PPM",
        "ICO",
        "SGI",
        "PCX",
        "TGA",
        "QOI",
    ]
    for kind in kinds:
        content = saved(Image.fromarray(QUARTERS), kind)
        for count in range(1, 30):
            with pytest.raises(InputError, match="this image cannot be read"):
                read_picture(content[:count], 16, 3)


def test_names_do_not_decide(tmp_path):
    content = saved(Image.fromarray(QUARTERS), "PNG")
    for name in ("a.jpg", "b.eps", "c", "d.txt"):
        (tmp_path / name).write_bytes(content)
        assert (read_picture(tmp_path / name, 16, 3)[0].transpose(1, 2, 0) == QUARTERS).all()


def test_only_modules_that_are_named_are_loaded():
    """Ghostscript's module in particular is not there unless somebody else has loaded it."""
    import subprocess
    import sys

    code = (
        "import sys; from weightloom.tasks import read_picture\n"
        "try: read_picture(b'hello', 16, 3)\n"
        "except ValueError: pass\n"
        "read_picture(b'P5 1 1 255 x', 4, 3)\n"
        "names = ('Eps', 'Wmf', 'Fpx', 'Iptc', 'Hdf5Stub')\n"
        "print([name for name in names if f'PIL.{name}ImagePlugin' in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_files_are_found_by_their_names_as_text(tmp_path):
    Image.fromarray(QUARTERS).save(tmp_path / "x.png")
    pixels, digest = read_picture(str(tmp_path / "x.png"), 16, 3)
    assert len(digest) == 32 and (read_picture(Path(tmp_path / "x.png"), 16, 3)[0] == pixels).all()
    assert read_picture(Image.fromarray(QUARTERS), 16, 3)[1] == b""
