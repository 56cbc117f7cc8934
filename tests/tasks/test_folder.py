from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from weightloom.errors import BrokenPicturesError, InputError
from weightloom.tasks import FolderTask, ValueRanges
from weightloom.tasks.folder import split_by_digest


def fill(folder: Path, count: int = 10, classes: tuple[str, ...] = ("cup", "spoon"), size=(20, 14)) -> Path:
    generator = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = generator.integers(0, 256, (size[1] + i, size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def test_a_folder_is_a_task(tmp_path):
    task = FolderTask(fill(tmp_path / "kitchen"))
    assert task.class_names == ["cup", "spoon"] and task.input_shape == (3, 16, 16)
    assert str(task) == "folder:kitchen" and "cup and spoon" in task.describe()
    train, test = task.data("train"), task.data("test")
    assert len(train) + len(test) == 20 and len(test) > 0
    assert set(train.labels.tolist()) == {0, 1} == set(test.labels.tolist())
    assert task.support(5).images.shape == (2, 5, 3, 16, 16)
    assert len(set(task.instructions(20))) == 20
    assert FolderTask(tmp_path / "kitchen", channels=1, size=8).data("test").all()[0].shape[1:] == (1, 8, 8)


def test_the_split_follows_the_content(tmp_path):
    fill(tmp_path / "a")
    for file in sorted((fill(tmp_path / "b")).rglob("*.png")):
        file.rename(file.with_name(f"x{file.name}"))
    one, two = (FolderTask(tmp_path / name).data("test").all()[0] for name in "ab")
    assert sorted(one.flatten(1).sum(1).tolist()) == sorted(two.flatten(1).sum(1).tolist())


def test_copies_stay_on_one_side():
    digests = [bytes([i % 5]) * 32 for i in range(40)]
    held = split_by_digest(digests, [i % 2 for i in range(40)], 0.5)
    assert all(held[i] == held[j] for i in range(40) for j in range(40) if digests[i] == digests[j])


def test_both_sides_have_every_class_that_can():
    low, high = b"\0" * 32, b"\xff" * 32
    assert split_by_digest([low, low[:-1] + b"\1"], [0, 0], 0.2) == [True, False]
    assert split_by_digest([high, high[:-1] + b"\1"], [0, 0], 0.2) == [False, True]
    assert split_by_digest([low], [0], 0.2) == [False]


def test_all_broken_images_are_named_at_once_and_can_be_left_out(tmp_path):
    folder = fill(tmp_path / "f")
    content = (folder / "cup" / "3.png").read_bytes()
    broken = {"cup/3.png": b"hello", "cup/4.png": content[: len(content) // 2], "spoon/0.png": b""}
    for name, start in broken.items():
        (folder / name).write_bytes(start)
    with pytest.raises(BrokenPicturesError) as caught:
        FolderTask(folder).support()
    text = str(caught.value)
    assert f"{folder}: 3 of 20 pictures cannot be read: cup/3.png (it is no picture" in text
    assert "cup/4.png (it is broken: " in text and "spoon/0.png (it is empty)" in text
    assert "\n" not in text and "--skip-broken" in text and "skip_broken=True" in text
    assert [name for name, _ in caught.value.files] == list(broken)
    task = FolderTask(folder, skip_broken=True)
    assert len(task.data("train")) + len(task.data("test")) == 17
    assert [one["file"] for one in task.report()["broken"]] == list(broken)
    for file in (folder / "spoon").iterdir():
        file.write_bytes(b"")
    with pytest.raises(InputError, match="none of the images of class 'spoon' in f can be read"):
        FolderTask(folder, skip_broken=True).data("train")
    for file in (folder / "cup").iterdir():
        file.write_bytes(b"")
    with pytest.raises(BrokenPicturesError, match="20 of 20"):
        FolderTask(folder, skip_broken=True).data("train")


def test_thousands_of_broken_images_make_one_message_that_can_be_read(tmp_path):
    folder = fill(tmp_path / "f", count=1)
    for number in range(300):
        (folder / "cup" / f"x{number:03}.jpg").write_bytes(b"x" * number)
    with pytest.raises(BrokenPicturesError) as caught:
        FolderTask(folder).data("train")
    assert len(caught.value.files) == 300 and str(caught.value).count(".jpg (") == 100
    assert "; and 200 more. Mend or remove them" in str(caught.value)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_a_picture_of_postscript_starts_no_program(tmp_path, monkeypatch, suffix):
    """Pillow hands PostScript to Ghostscript, whatever a file is called; a stand-in writes down its start."""
    started, program = tmp_path / "started", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho started >> "{started}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    folder = fill(tmp_path / "f", count=2)
    text = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    (folder / "cup" / f"x{suffix}").write_text(text)
    with pytest.raises(InputError, match="cannot be read"):
        FolderTask(folder).data("train")
    assert not started.exists(), "an external program was started on a picture"


def test_what_is_no_image_is_passed_over_and_counted(tmp_path):
    folder = fill(tmp_path / "f")
    (folder / "cup" / "notes.txt").write_text("hello")
    (folder / "cup" / "sound.WAV").write_text("hello")
    (folder / "cup" / ".hidden.png").write_text("hello")
    (folder / ".git").mkdir()
    (folder / "beside.png").write_bytes((folder / "cup" / "0.png").read_bytes())
    (folder / "cup" / "gone.png").symlink_to("nowhere.png")
    task = FolderTask(folder)
    assert len(task.data("train")) + len(task.data("test")) == 20
    assert task.report()["passed_over"] == {
        "suffixes": {".txt": 1, ".wav": 1}, "system": {".git": 1}, "hidden": 1, "beside": 1, "not_files": 1,
    }  # fmt: skip


def test_the_content_decides_what_a_picture_is(tmp_path):
    folder = fill(tmp_path / "f", count=2)
    png = (folder / "cup" / "0.png").read_bytes()
    for name in ("no-suffix", "dump.bin", "wrong.jpg", "photo.jfif"):
        (folder / "cup" / name).write_bytes(png)
    tiff = io.BytesIO()
    Image.new("L", (8, 8)).save(tiff, "TIFF")
    (folder / "cup" / "raw.nef").write_bytes(tiff.getvalue())  # a thumbnail inside a raw photograph
    (folder / "cup" / "scan").write_bytes(tiff.getvalue())
    task = FolderTask(folder)
    assert sum(task.report()["pictures"].values()) == 4 + 5
    assert task.report()["passed_over"] == {"suffixes": {".nef": 1}}


def test_folders_that_systems_make_are_no_classes(tmp_path):
    folder = fill(tmp_path / "f")
    for name in ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found", ".ipynb_checkpoints", "cup/@eaDir"):
        (folder / name / "cup").mkdir(parents=True)
        (folder / name / "cup" / "0.png").write_bytes((folder / "cup" / "0.png").read_bytes())
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "cup/._0.png", "cup/thumbs.DB"):
        (folder / name).write_bytes(b"x")
    task = FolderTask(folder)
    assert task.class_names == ["cup", "spoon"] and sum(task.report()["pictures"].values()) == 20
    system = task.report()["passed_over"]["system"]
    assert system["@eaDir"] == 2 and system["._*"] == 1 and sum(system.values()) == 11, system
    assert set(task.report()["passed_over"]) == {"system"}


def test_pictures_in_sub_folders_of_a_class_belong_to_it(tmp_path):
    folder = fill(tmp_path / "f", count=4)
    (folder / "cup" / "2019" / "spring").mkdir(parents=True)
    for number in (1, 2):
        (folder / "cup" / f"{number}.png").rename(folder / "cup" / "2019" / "spring" / f"{number}.png")
    (folder / "cup" / "2019" / "again").symlink_to(folder / "cup")  # a circle
    task = FolderTask(folder)
    assert sum(task.report()["pictures"].values()) == 8 and task.report()["nested"] == {"cup": 2}
    assert task.report()["passed_over"] == {"not_files": 1}


def parts(root: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        for label in ("cup", "spoon"):
            (root / name / label).mkdir(parents=True, exist_ok=True)
            for i in range(3 + seed):
                pixels = np.random.default_rng([seed, i, label == "cup"]).integers(0, 256, (9, 9, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(root / name / label / f"{i}.png")
    return root


@pytest.mark.parametrize(
    ("names", "used"),
    [
        (("train", "test"), ("train", "test")),
        (("Train", "VAL"), ("Train", "VAL")),
        (("training", "valid", "testing"), ("training", "testing")),
        (("train", "validation"), ("train", "validation")),
    ],
)
def test_a_folder_with_parts_is_divided_as_it_is(tmp_path, names, used):
    task = FolderTask(parts(tmp_path / "f", *names))
    sizes = {name: 2 * (3 + seed) for seed, name in enumerate(names)}
    assert task.class_names == ["cup", "spoon"]
    assert (len(task.data("train")), len(task.data("test"))) == tuple(sizes[name] for name in used)
    report = task.report()
    assert report["parts"] == dict(zip(("train", "test"), used, strict=True))
    unused = {name: sizes[name] for name in names if name not in used}
    assert report["passed_over"] == ({"folders": unused} if unused else {})
    pixels = np.asarray(Image.open(task.path / used[1] / "spoon" / "0.png").resize((16, 16), 2))
    images, labels = task.data("test").all()
    found = ((images[labels == 1][0] + 1) * 127.5).round().permute(1, 2, 0).numpy()
    assert np.abs(found - pixels).max() <= 1


def test_parts_whose_classes_differ_are_one_sentence(tmp_path):
    root = parts(tmp_path / "f", "train", "test")
    (root / "test" / "cup").rename(root / "test" / "mug")
    with pytest.raises(
        InputError, match="train and test must have the same classes, but test lacks cup and train"
    ):
        FolderTask(root)
    (root / "test" / "mug").rename(root / "test" / "cup")
    for file in (root / "test" / "spoon").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="spoon: this class has no images; remove its folder"):
        FolderTask(root)
    root = tmp_path / "g"
    (root / "train").mkdir(parents=True)
    (root / "test").mkdir()
    with pytest.raises(InputError, match="train has no sub-folders; a folder for training"):
        FolderTask(root)
    root = parts(tmp_path / "unlabelled", "train")
    (root / "test").mkdir()
    (root / "test" / "x.png").write_bytes((root / "train" / "cup" / "0.png").read_bytes())
    with pytest.raises(
        InputError, match=r"its folder for testing has no sub-folder .* give .*train alone, of which"
    ):
        FolderTask(root)
    parts(root, "val", "train")
    report = FolderTask(root).report()
    assert report["parts"] == {"train": "train", "test": "val"}
    assert report["passed_over"] == {"folders": {"test": 1}}
    root = parts(tmp_path / "h", "train", "TRAIN", "test")
    with pytest.raises(InputError, match="TRAIN and train could both be meant"):
        FolderTask(root)
    root = fill(tmp_path / "vehicles", classes=("car", "train"))  # a class of that name is a class
    assert FolderTask(root).class_names == ["car", "train"]


def test_a_validation_part_that_repeats_the_training_part_is_refused(tmp_path):
    root = parts(tmp_path / "f", "train")
    shutil.copytree(root / "train", root / "val")
    with pytest.raises(InputError, match="all pictures in its sub-folder val are in train too"):
        FolderTask(root)
    (root / "val" / "cup" / "0.png").write_bytes((root / "val" / "spoon" / "1.png").read_bytes() + b" ")
    assert FolderTask(root).report()["parts"] == {"train": "train", "test": "val"}
    (root / "val").rename(root / "test")  # what is called test is taken at its word, and its copies are named
    assert FolderTask(root).report()["repeated"]["in_train_and_test"]["pictures"] == 5


def test_one_level_too_high_is_said(tmp_path):
    root = parts(tmp_path / "f", "photos")
    with pytest.raises(
        InputError, match=r"this folder has 1; .*photos, with its 2 sub-folders, may be meant"
    ):
        FolderTask(root)
    with pytest.raises(InputError, match="the pictures that lie in it directly have no class"):
        FolderTask(root / "photos" / "cup")


def test_a_picture_that_stands_twice_is_named(tmp_path):
    root = parts(tmp_path / "f", "train", "test")
    (root / "test" / "cup" / "copy.png").write_bytes((root / "train" / "cup" / "0.png").read_bytes())
    Image.open(root / "train" / "spoon" / "1.png").save(root / "test" / "spoon" / "anew.bmp")  # other bytes
    Image.open(root / "train" / "cup" / "2.png").save(root / "train" / "spoon" / "both.tif")
    repeated = FolderTask(root).report()["repeated"]
    assert repeated["in_train_and_test"] == {
        "pictures": 2,
        "files": [["train/cup/0.png", "test/cup/copy.png"], ["train/spoon/1.png", "test/spoon/anew.bmp"]],
    }
    assert repeated["in_two_classes"] == {
        "pictures": 1,
        "files": [["train/cup/2.png", "train/spoon/both.tif"]],
    }


def test_a_picture_saved_anew_stays_on_the_side_of_its_copy(tmp_path):
    folder = fill(tmp_path / "f", count=30)
    for number in range(30):
        Image.open(folder / "cup" / f"{number}.png").save(folder / "cup" / f"{number}.bmp")
    assert FolderTask(folder).report()["repeated"]["in_train_and_test"] == {"pictures": 0, "files": []}


def test_grey_pictures_are_not_called_colour(tmp_path):
    folder = tmp_path / "f"
    for label in ("cup", "spoon"):
        (folder / label).mkdir(parents=True)
        for i in range(3):
            pixels = np.random.default_rng([i, label == "cup"]).integers(0, 256, (20, 20), dtype=np.uint8)
            grey = Image.fromarray(pixels)
            grey.save(folder / label / f"{i}.png")
            grey.convert("RGB").save(folder / label / f"{i}.jpg")
    assert FolderTask(folder).describe().startswith("grey-scale pictures, 2 classes")
    Image.new("RGB", (9, 9), "red").save(folder / "cup" / "red.png")
    assert FolderTask(folder).describe().startswith("colour pictures, 2 classes")
    assert FolderTask(folder, channels=1).describe().startswith("colour pictures, 2 classes")


def test_names_that_cannot_be_shown_are_spelt_out(tmp_path):
    folder = tmp_path / "caf\udce9"
    for name in ("t\u0065\u0301a", "\x1b[31mred", "sp\udcffoon", "two\nlines"):
        (folder / name).mkdir(parents=True)
        for i in range(3):
            pixels = np.random.default_rng([i, len(name)]).integers(0, 256, (9, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"\x07{i}.png")
    task = FolderTask(folder)
    assert task.class_names == ["\\x1b[31mred", "sp\\xffoon", "te\u0301a", "two\\nlines"]
    assert str(task) == "folder:caf\\xe9"
    (folder / "sp\udcffoon" / "\x07x.png").write_bytes(b"x")
    with pytest.raises(InputError) as caught:
        FolderTask(folder).data("train")
    assert "caf\\xe9: 1 of 13" in str(caught.value) and "sp\\xffoon/\\x07x.png" in str(caught.value)
    str(caught.value).encode()
    assert len(task.digest()) == 64 and task.instructions(3)


def test_depth_follows_from_all_pictures_of_a_folder(tmp_path):
    folder = tmp_path / "f"
    ramp = np.tile(np.linspace(0, 1, 16), (16, 1))
    for label, most in (("dark", 218), ("light", 262), ("full", 4000)):
        (folder / label).mkdir(parents=True)
        Image.fromarray((ramp * most).astype(np.uint16)).save(folder / label / "0.png")
    task = FolderTask(folder)
    assert task.ranges == ValueRanges(sixteen=(0, 4095)) and task.report()["ranges"] == {"sixteen": [0, 4095]}
    images, labels = task.data("train").all()
    highest = [round((float(images[labels == label].max()) + 1) * 127.5) for label in range(3)]
    assert highest == [14, 249, 16]  # dark, full, light
    again = FolderTask(folder, ranges=ValueRanges(sixteen=(0, 65535))).data("train").all()[0]
    assert float(again.max()) < -0.8
    with pytest.raises(
        BrokenPicturesError, match=r"full/0.png \(it holds values from 0 to 4000, outside the range"
    ):
        FolderTask(folder, ranges=ValueRanges(sixteen=(0, 1023))).data("train")
    shutil.rmtree(folder / "full")
    Image.fromarray((ramp * 9).astype(np.uint16)).save(folder / "light" / "0.png")
    Image.fromarray((ramp * 5).astype(np.uint16)).save(folder / "dark" / "0.png")
    with pytest.raises(InputError, match=r"hold values from 0 to 9, of which hardly .*\(sixteen=\(0, 9\)"):
        FolderTask(folder).data("train")
    assert float(FolderTask(folder, ranges=ValueRanges(sixteen=(0, 9))).data("train").all()[0].max()) == 1


def test_bad_folders(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        FolderTask(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="no such folder"):
        FolderTask(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="at least two classes"):
        FolderTask(tmp_path / "empty")
    with pytest.raises(InputError, match="this folder has 1"):
        FolderTask(fill(tmp_path / "one", classes=("cup",)))
    folder = fill(tmp_path / "f")
    (folder / "fork").mkdir()
    with pytest.raises(InputError, match="fork: this class has no images"):
        FolderTask(folder)
    with pytest.raises(InputError, match="pixels wide"):
        FolderTask(folder, size=1)
    with pytest.raises(InputError, match="between 0 and 1"):
        FolderTask(folder, test_fraction=0)
    single = FolderTask(fill(tmp_path / "single", count=1))
    assert len(single.data("train")) == 2
    with pytest.raises(InputError, match="left for testing"):
        single.data("test")
    with pytest.raises(InputError, match="no 'valid'"):
        single.data("valid")


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK", "I;16", "I", "F"])
def test_every_kind_of_picture(tmp_path, mode):
    folder = tmp_path / "f"
    for name, value in (("dark", 0), ("light", 255)):
        (folder / name).mkdir(parents=True)
        if mode == "I;16":
            picture = Image.fromarray(np.full((9, 12), value * 257, dtype=np.uint16))
        else:
            picture = Image.new("L", (12, 9), value).convert(mode)
        picture.save(folder / name / ("x.tiff" if mode in ("CMYK", "F", "I", "LA") else "x.png"))
    images, labels = FolderTask(folder).data("train").all()
    assert images.shape == (2, 3, 16, 16)
    assert labels.tolist() == [0, 1] and (images[0] < -0.98).all() and (images[1] > 0.98).all()


def test_transparent_is_white_and_turned_photos_stand_up(tmp_path):
    folder = fill(tmp_path / "f", count=1)
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(folder / "cup" / "0.png")
    images, labels = FolderTask(folder).data("train").all()
    assert (images[labels == 0] == 1).all()
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8] = 255  # light above
    exif = Image.Exif()
    exif[0x0112] = 3  # the camera was upside down
    Image.fromarray(pixels).save(folder / "cup" / "0.png", exif=exif)
    images, labels = FolderTask(folder).data("train").all()
    photo = images[labels == 0][0]
    assert photo[:, 12:].mean() > 0.9 and photo[:, :4].mean() < -0.9


def test_transforms_apply(tmp_path):
    folder = fill(tmp_path / "f")
    plain, turned = (FolderTask(folder, transform=name).data("train").all()[0] for name in ("id", "invert"))
    assert torch.allclose(plain, -turned, atol=1e-6)
