"""A folder of images as a task: one sub-folder per class, images of any size.

Knows files and pictures; the train and test images are told apart by the hash of a file's content, so
adding images never moves an old one, and two copies of one image never land on both sides. A folder with a
part for training and one for testing is split as it is.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from weightloom.defaults import with_plain_defaults
from weightloom.errors import BrokenPicturesError, InputError, printable
from weightloom.tasks.data import TaskData
from weightloom.tasks.depth import ValueRanges
from weightloom.tasks.listing import find_pictures, list_folder, list_test_folder
from weightloom.tasks.pictures import PictureSet, read_picture, read_pictures
from weightloom.tasks.store import SPLITS
from weightloom.tasks.task import DEFAULT_CHANNELS, DEFAULT_SIZE, Task, check_shape
from weightloom.tasks.transforms import parse_transform
from weightloom.tasks.words import Subject

__all__ = ["FolderTask", "read_picture", "split_by_digest", "split_data", "unlabelled_pictures"]

_MOST_NAMED = 20
"""Groups of pictures that a report names; it counts all."""


def split_by_digest(digests: Sequence[bytes], labels: Sequence[int], test_fraction: float) -> list[bool]:
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


@dataclass(frozen=True, kw_only=True)
class _Read:
    """The pictures of a folder and where they belong.

    Attributes:
        files: N files.
        labels: N labels.
        test: whether each of the N is a test image.
        pictures: what was read; its ``broken`` are positions in the list of all files.
        broken: files that were left out, with the reason.
    """

    files: list[Path]
    labels: list[int]
    test: list[bool]
    pictures: PictureSet
    broken: list[tuple[Path, str]]


class FolderTask(Task):
    """A folder with one sub-folder of images per class, the classes in the order of their names.

    A folder ``train`` beside one ``test`` (or, where there is none, ``val``), each with the classes in it,
    is read as it is divided. Images are cut to their central square and resized; those in sub-folders of a
    class belong to it. What is no picture, and what systems put into folders, is passed over and counted
    (:meth:`report`).

    Args:
        path: the folder.
        size: height and width in pixels.
        channels: 1 or 3.
        transform: a transform's name.
        test_fraction: the share of images kept for testing, between 0 and 1, where the folder has no test
            part; 1 keeps all, of a folder that is there for measuring alone and may have one class.
        skip_broken: leave images out that cannot be read.
        ranges: what black and white are in images deeper than bytes (16-bit ones, floats); left out, it
            follows from all images of the folder together.

    Raises:
        InputError: no such folder, fewer than two classes, a class without images, parts whose classes
            differ; or, as soon as the images are needed, values that no usual range fits, or a class of
            which none can be read.
        BrokenPicturesError: as soon as the images are needed, some that cannot be read; it names all of them.
    """

    def __init__(
        self,
        path: str | Path,
        size: int = DEFAULT_SIZE,
        channels: int = DEFAULT_CHANNELS,
        transform: str = "id",
        test_fraction: float = 0.2,
        *,
        skip_broken: bool = False,
        ranges: ValueRanges | None = None,
    ) -> None:
        if not 0 < test_fraction <= 1:
            raise InputError(f"the share of test images is between 0 and 1, not {test_fraction}")
        self.path = Path(path).expanduser()
        self.size, self.channels = check_shape(size, channels)
        self.transform = parse_transform(transform)
        self.test_fraction, self.skip_broken, self.known_ranges = test_fraction, skip_broken, ranges
        self.dataset = printable(self.path.resolve().name, one_line=True)
        self._listing = list_test_folder(self.path) if test_fraction == 1 else list_folder(self.path)
        self.outputs: tuple[str, ...] | None = None
        self.places: tuple[int, ...] = ()

    def __str__(self) -> str:
        """A short name for reports."""
        return f"folder:{self.dataset}"

    def digest(self) -> str:
        """Changes with the names and sizes of the images."""
        files = [
            [part, label, str(file.relative_to(self.path)), file.stat().st_size]
            for part, label, file in self._listing.pictures()
        ]
        return hashlib.sha256(json.dumps(files).encode()).hexdigest()

    @property
    def class_names(self) -> list[str]:
        """Names of the sub-folders; what cannot be shown in them is spelt out. After :meth:`matched`, those
        of the network.
        """
        return self._listing.class_names if self.outputs is None else list(self.outputs)

    @property
    def own_names(self) -> list[str]:
        """Names of the sub-folders in their order, whatever the labels are."""
        return self._listing.class_names

    def matched(self, outputs: Sequence[str], places: Sequence[int]) -> FolderTask:
        """The same folder with labels that are the outputs of a network; pictures are not read again.

        Args:
            outputs: names of all classes of the network, in its order.
            places: for every class of this folder, in the order of its names, which output it is.
        """
        assert len(places) == len(set(places)) == len(self.own_names)
        twin = copy.copy(self)
        twin.outputs, twin.places = tuple(outputs), tuple(places)
        twin.__dict__.pop("_split", None)
        return twin

    @property
    def subject(self) -> Subject:
        """Pictures of the classes, grey where all are; for that the images are read."""
        grey = self._read.pictures.grey
        return Subject(title="", subject="pictures", synonyms=("images", "photos"), grey=grey, whole=False)

    @property
    def ranges(self) -> ValueRanges:
        """What stood for black and white in images deeper than bytes, with which further ones are read."""
        return self._read.pictures.ranges

    @property
    def picture_ranges(self) -> ValueRanges:
        """As :attr:`ranges`."""
        return self.ranges

    @with_plain_defaults
    def data(self, split: str) -> TaskData:
        """The images of ``"train"`` or ``"test"``."""
        if split not in SPLITS:
            raise InputError(f"a task has a train and a test split, no {split!r}")
        data = self._split[split]
        if not len(data) and split == "train":
            raise InputError(f"{self.path}: all of its images are there to be measured on")
        if not len(data):
            raise InputError(
                f"{self.path}: no image is left for testing; give each class at least two different ones"
            )
        return data

    def report(self) -> dict[str, Any]:
        """What was read of the folder and what was not, in plain values; reads the images.

        ``pictures`` counts them by part, ``parts`` names the folders of the parts, ``nested`` counts by
        class those in sub-folders, ``passed_over`` what was not read, ``broken`` has the files that were
        skipped. ``repeated`` has the pictures that networks cannot tell apart and that stand in both parts
        or under two classes: how many, and the files of the first. ``ranges`` is what stood for black and
        white in images deeper than bytes.
        """
        read, listing = self._read, self._listing
        return {
            "folder": printable(str(self.path), one_line=True),
            "pictures": {"train": read.test.count(False), "test": read.test.count(True)},
            "parts": {part: printable(folder.name) for part, folder in listing.parts.items()},
            "grey": read.pictures.grey,
            "nested": dict(listing.nested),
            "passed_over": listing.passed_over.to_json(),
            "broken": [{"file": self._named(file), "reason": reason} for file, reason in read.broken],
            "repeated": {
                "in_train_and_test": self._repeated(read.test),
                "in_two_classes": self._repeated(read.labels),
            },
            "ranges": read.pictures.ranges.to_json(),
        }

    def _named(self, file: Path) -> str:
        return printable(str(file.relative_to(self.path)), one_line=True)

    def _repeated(self, sides: Sequence[int]) -> dict[str, Any]:
        """Groups of files that look the same to a network and do not all have the same entry of ``sides``."""
        groups: dict[bytes, list[int]] = {}
        for number, key in enumerate(self._read.pictures.keys):
            groups.setdefault(key, []).append(number)
        split = [group for group in groups.values() if len({sides[number] for number in group}) > 1]
        named = [[self._named(self._read.files[number]) for number in group] for group in split[:_MOST_NAMED]]
        return {"pictures": len(split), "files": named}

    @cached_property
    def _read(self) -> _Read:
        every = list(self._listing.pictures())
        try:
            pictures = read_pictures(
                [file for _, _, file in every],
                self.size,
                self.channels,
                ranges=self.known_ranges,
                skip_broken=self.skip_broken,
                where=printable(str(self.path)),
            )
        except BrokenPicturesError as error:
            prefix = f"{printable(str(self.path), one_line=True)}/"
            files = [(name.removeprefix(prefix), reason) for name, reason in error.files]
            raise BrokenPicturesError(prefix.rstrip("/"), len(every), files) from error
        kept = [every[number] for number in pictures.kept]
        labels = [label for _, label, _ in kept]
        if self._listing.parts:
            test = [part == "test" for part, _, _ in kept]
        elif self.test_fraction == 1:
            test = [True] * len(kept)
        else:
            # A picture that was saved anew looks the same and has other bytes: it stays where its copy is.
            first: dict[bytes, bytes] = {}
            for key, digest in zip(pictures.keys, pictures.digests, strict=True):
                first[key] = min(digest, first.get(key, digest))
            test = split_by_digest([first[key] for key in pictures.keys], labels, self.test_fraction)
        present = {(part, label) for part, label, _ in kept}
        for part, label, _ in every:
            if (part, label) not in present:
                name = self.own_names[label]
                folder = self._listing.parts.get(part, self.path).name
                raise InputError(f"{self.path}: none of the images of class {name!r} in {folder} can be read")
        broken = [(every[number][2], reason) for number, reason in pictures.broken]
        return _Read(
            files=[file for _, _, file in kept], labels=labels, test=test, pictures=pictures, broken=broken
        )

    @cached_property
    def _split(self) -> dict[str, TaskData]:
        read = self._read
        labels = read.labels if self.outputs is None else [self.places[label] for label in read.labels]
        return split_data(read.pictures.pixels, labels, read.test, self.transform, self.channels)


@with_plain_defaults
def unlabelled_pictures(
    path: str | Path, like: FolderTask | None, size: int, channels: int, *, skip_broken: bool = False
) -> torch.Tensor:
    """(U, channels, size, size): all pictures in a folder and below it, whatever its folders mean.

    ``like`` is the folder of examples: what is deeper than bytes is read as there, and pictures that networks
    cannot tell from its test images are left out.

    Raises:
        InputError: no such folder, or no picture in it.
        BrokenPicturesError: some cannot be read; it names all of them.
    """
    path = Path(path).expanduser()
    files, _ = find_pictures(path)
    if not files:
        raise InputError(f"{path}: there is no picture in this folder")
    ranges = None if like is None else like.ranges
    found = read_pictures(
        files, size, channels, ranges=ranges, skip_broken=skip_broken, where=printable(str(path))
    )
    none, held = [0] * len(found.kept), [False] * len(found.kept)
    if like is not None:
        tested = {key for key, test in zip(like._read.pictures.keys, like._read.test, strict=True) if test}
        held = [key in tested for key in found.keys]
        if all(held):
            raise InputError(f"{path}: all of its pictures are test images of {like.path}")
    return split_data(found.pixels, none, held, "id", channels)["train"].all()[0]


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
