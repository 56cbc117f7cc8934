from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from weightloom.errors import InputError
from weightloom.tasks import FolderTask
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


@pytest.mark.parametrize("kind", ["text", "cut", "empty", "bomb"])
def test_the_first_broken_image_is_named(tmp_path, kind, monkeypatch):
    folder = fill(tmp_path / "f")
    file = folder / "cup" / "3.png"
    content = file.read_bytes()
    if kind == "bomb":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
        file = folder / "cup" / "0.png"
    else:
        file.write_bytes({"text": b"hello", "cut": content[: len(content) // 2], "empty": b""}[kind])
        (folder / "spoon" / "0.png").write_bytes(b"broken too")
    task = FolderTask(folder)
    with pytest.raises(InputError) as caught:
        task.support()
    assert str(file) in str(caught.value) and "cannot be read" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_image_is_passed_over(tmp_path):
    folder = fill(tmp_path / "f")
    (folder / "cup" / "notes.txt").write_text("hello")
    (folder / "cup" / ".hidden.png").write_text("hello")
    (folder / ".git").mkdir()
    assert len(FolderTask(folder).data("train")) + len(FolderTask(folder).data("test")) == 20


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
