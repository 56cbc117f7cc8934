"""A folder of images as a task: one sub-folder per class, images of any size.

Knows files and pictures; the train and test images are told apart by the hash of a file's content, so
adding images never moves an old one, and two copies of one image never land on both sides.
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from weightloom.defaults import with_plain_defaults
from weightloom.errors import InputError
from weightloom.tasks.data import TaskData
from weightloom.tasks.store import SPLITS
from weightloom.tasks.task import DEFAULT_CHANNELS, DEFAULT_SIZE, Task, check_shape
from weightloom.tasks.transforms import parse_transform
from weightloom.tasks.words import Subject

SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)


def split_by_digest(digests: list[bytes], labels: list[int], test_fraction: float) -> list[bool]:
    """Per image whether it is a test image.

    Decided by its digest alone, except that a class with several different images has at least one on each
    side, and a class with one keeps it for training.
    """
    fate = {digest: int.from_bytes(digest[:8], "big") < test_fraction * 2**64 for digest in digests}
    for label in sorted(set(labels)):
        own = sorted({digest for digest, its in zip(digests, labels, strict=True) if its == label})
        if all(fate[digest] for digest in own):
            fate[own[-1]] = False
        elif len(own) > 1 and not any(fate[digest] for digest in own):
            fate[own[0]] = True
    return [fate[digest] for digest in digests]


class FolderTask(Task):
    """A folder with one sub-folder of images per class, the classes in the order of their names.

    Images are cut to their central square and resized. Files that are no images by their suffix, and hidden
    files, are passed over.

    Args:
        path: the folder.
        size: height and width in pixels.
        channels: 1 or 3.
        transform: a transform's name.
        test_fraction: the share of images kept for testing, between 0 and 1.

    Raises:
        InputError: no such folder, fewer than two classes, a class without images; or, as soon as the images
            are needed, one that cannot be read.
    """

    def __init__(
        self,
        path: str | Path,
        size: int = DEFAULT_SIZE,
        channels: int = DEFAULT_CHANNELS,
        transform: str = "id",
        test_fraction: float = 0.2,
    ) -> None:
        check_shape(size, channels)
        if not 0 < test_fraction < 1:
            raise InputError(f"the share of test images is between 0 and 1, not {test_fraction}")
        self.path = Path(path).expanduser()
        self.size, self.channels, self.transform = size, channels, parse_transform(transform)
        self.test_fraction = test_fraction
        self.dataset = self.path.resolve().name
        try:
            if not self.path.is_dir():
                raise InputError(f"{self.path}: no such folder of images")
            folders = sorted(p for p in self.path.iterdir() if p.is_dir() and not p.name.startswith("."))
            self._files = {folder.name: _images_in(folder) for folder in folders}
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror or error})") from error
        if len(folders) < 2:
            raise InputError(
                f"{self.path}: a task needs at least two classes, one sub-folder of images each, "
                f"but this folder has {len(folders)}"
            )
        for name, files in self._files.items():
            if not files:
                raise InputError(
                    f"{self.path / name}: this class has no images ({', '.join(sorted(SUFFIXES))})"
                )

    def __str__(self) -> str:
        """A short name for reports."""
        return f"folder:{self.dataset}"

    def digest(self) -> str:
        """Changes with the names and sizes of the images."""
        files = [[name, file.name, file.stat().st_size] for name, own in self._files.items() for file in own]
        return hashlib.sha256(json.dumps(files).encode()).hexdigest()

    @property
    def class_names(self) -> list[str]:
        """Names of the sub-folders."""
        return list(self._files)

    @property
    def subject(self) -> Subject:
        """Pictures of the classes; a folder has no subject of its own."""
        return Subject(title="", subject="pictures", synonyms=("images", "photos"), grey=False, whole=False)

    @with_plain_defaults
    def data(self, split: str) -> TaskData:
        """The images of ``"train"`` or ``"test"``."""
        if split not in SPLITS:
            raise InputError(f"a task has a train and a test split, no {split!r}")
        data = self._split[split]
        if not len(data):
            raise InputError(
                f"{self.path}: no image is left for testing; give each class at least two different ones"
            )
        return data

    @cached_property
    def _split(self) -> dict[str, TaskData]:
        pixels, digests, labels = [], [], []
        for label, files in enumerate(self._files.values()):
            for file in files:
                picture, digest = read_picture(file, self.size, self.channels)
                pixels.append(picture)
                digests.append(digest)
                labels.append(label)
        held = split_by_digest(digests, labels, self.test_fraction)
        return split_data(np.stack(pixels), labels, held, self.transform, self.channels)


def split_data(
    pixels: np.ndarray, labels: list[int], held: list[bool], transform: str, channels: int
) -> dict[str, TaskData]:
    """Both splits of ``pixels`` (N, C, H, W) uint8 with ``labels``, those ``held`` as the test images."""
    stack, names, test = torch.from_numpy(pixels), torch.tensor(labels), torch.tensor(held)
    rows = {"train": torch.nonzero(~test).flatten(), "test": torch.nonzero(test).flatten()}
    return {
        split: TaskData(stack, rows[split], names[rows[split]], transform=transform, channels=channels)
        for split in SPLITS
    }


def _images_in(folder: Path) -> list[Path]:
    return sorted(
        p
        for p in folder.iterdir()
        if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()
    )


def read_picture(file: Path, size: int, channels: int) -> tuple[np.ndarray, bytes]:
    """Pixels (channels, size, size) uint8 of an image file, and the SHA-256 of its content.

    Raises:
        InputError: the file is broken, empty, too large or no image.
    """
    from PIL import Image, ImageOps

    try:
        content = file.read_bytes()
        with warnings.catch_warnings():
            # A picture beyond Pillow's limit is a mistake or an attack: refuse it like a broken one.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as opened:
                picture = ImageOps.exif_transpose(opened)
                if picture.mode.startswith("I"):  # 16 bits of grey, in whatever container
                    wide = np.asarray(picture, dtype=np.float64)
                    whole = 65535 if wide.max() > 255 else 255
                    picture = Image.fromarray((wide / whole * 255).clip(0, 255).astype(np.uint8))
                if "A" in picture.getbands() or "transparency" in picture.info:
                    picture = picture.convert("RGBA")
                    ground = Image.new("RGBA", picture.size, "white")
                    picture = Image.alpha_composite(ground, picture)
                picture = picture.convert("RGB" if channels == 3 else "L")
                picture = ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)
                pixels = np.array(picture, dtype=np.uint8)
    except Exception as error:
        why = (str(error).splitlines() or [type(error).__name__])[0].partition(" <_io.")[0][:120]
        raise InputError(f"{file}: this image cannot be read ({why})") from error
    pixels = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)  # (H, W[, 3]) -> (C, H, W)
    return np.ascontiguousarray(pixels), hashlib.sha256(content).digest()
