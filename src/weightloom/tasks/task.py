"""What a network is to do: a dataset, its classes in label order, a transform and a resolution.

``parse_task`` reads the text form::

    fashion-mnist                            all classes, at 3 x 16 x 16
    fashion-mnist[3,1,7,2]                   four classes, labels in this order
    fashion-mnist[bag,coat]+rot90+invert     classes by name; a transform
    mnist@28c1                               28 x 28 pixels, one channel

Knows nothing of networks.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from weightloom.defaults import with_plain_defaults
from weightloom.errors import InputError, SpecError, UnknownNameError
from weightloom.seeding import check_seed
from weightloom.tasks import words
from weightloom.tasks.data import PixelCache, SupportSet, TaskData, draw_support
from weightloom.tasks.depth import ValueRanges
from weightloom.tasks.store import SPLITS, DatasetInfo, cache_folder, datasets, read_split
from weightloom.tasks.transforms import parse_transform
from weightloom.whole import whole_number

DEFAULT_SIZE = 16
DEFAULT_CHANNELS = 3
_SIZES = (4, 256)
_MAX_TEXT = 60_000

_MOST_PIXELS = 1_000_000_000
"""Bytes of a split's pixels that are kept at the size that is asked for."""

_pixels = PixelCache()


def check_shape(size: int, channels: int) -> tuple[int, int]:
    """``size`` and ``channels`` as ``int``. Raises :class:`SpecError` where they are out of range."""
    size = whole_number(size, "the width of a task's images", error=SpecError)
    if not _SIZES[0] <= size <= _SIZES[1]:
        raise SpecError(f"a task's images can be {_SIZES[0]} to {_SIZES[1]} pixels wide, not {size}")
    channels = whole_number(channels, "the number of channels", error=SpecError)
    if channels not in (1, 3):
        raise SpecError(f"a task's images have 1 or 3 channels, not {channels}")
    return size, channels


class Task(ABC):
    """Any classification task on images: of a known dataset, a folder or a torch dataset.

    Attributes:
        dataset: name of where the images come from.
        transform: canonical name of the transform (:mod:`weightloom.tasks.transforms`).
        size: height and width in pixels.
        channels: 1 or 3.
    """

    dataset: str
    transform: str
    size: int
    channels: int

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Names in label order."""

    @abstractmethod
    def data(self, split: str) -> TaskData:
        """The images of ``"train"`` or ``"test"``, made once.

        Raises:
            InputError: another split, or images that cannot be used.
            DataUnavailableError: the dataset is not on this machine.
            CheckpointError: its file in the cache is broken.
        """

    @property
    @abstractmethod
    def subject(self) -> words.Subject:
        """What its pictures show, for descriptions and instructions."""

    @property
    def num_classes(self) -> int:
        """Number of classes, the rows of a network's head."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return (self.channels, self.size, self.size)

    @property
    def picture_ranges(self) -> ValueRanges:
        """What black and white are in its pictures that are deeper than bytes."""
        return ValueRanges()

    @property
    def licence(self) -> str | None:
        """Of its pictures, as their source states it; None where it is not known."""
        return None

    def _class_keys(self) -> list[str | int]:
        """Per label a name of the class that does not depend on its place in the task."""
        return list(self.class_names)

    def support(self, shots: int = 16, seed: int = 0) -> SupportSet:
        """``shots`` train images per class, the same for the same ``seed`` whatever the order of the classes.

        A class with fewer images repeats its own.

        Raises:
            InputError: ``shots`` or ``seed`` is no whole number, or a class has no image.
        """
        address = ("support", self.dataset, check_seed(seed))
        drawn = draw_support(self.data("train"), self._class_keys(), self.class_names, shots, address)
        return replace(drawn, ranges=self.picture_ranges, licence=self.licence)

    def describe(self) -> str:
        """One short English phrase, for instance ``"grey-scale pictures of clothing, 10 classes: ..."``."""
        return words.describe(self.subject, self.class_names, self.transform)

    def instructions(self, n: int, seed: int = 0, *, misspelt: float = 0.0) -> list[str]:
        """``n`` different English instructions for this task, the same for the same ``seed``.

        Args:
            n: how many.
            seed: which ones.
            misspelt: the share of them that get a few typing errors.
        """
        return words.instructions(
            self.subject,
            self.class_names,
            self.transform,
            n,
            ("instructions", str(self), check_seed(seed)),
            misspelt=misspelt,
        )


@dataclass(frozen=True, kw_only=True)
class DatasetTask(Task):
    """A task made of a registered dataset. Built by :func:`parse_task` or by its fields.

    Attributes:
        classes: native labels in this task's label order; ``()`` stands for all in natural order.
    """

    dataset: str
    classes: tuple[int, ...] = ()
    transform: str = "id"
    size: int = DEFAULT_SIZE
    channels: int = DEFAULT_CHANNELS

    def __post_init__(self) -> None:
        info = datasets.get(self.dataset)
        size, channels = check_shape(self.size, self.channels)
        classes = tuple(whole_number(label, "a class", error=SpecError) for label in self.classes)
        classes = classes or tuple(range(info.num_classes))
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "channels", channels)
        for label in classes:
            if not 0 <= label < info.num_classes:
                raise SpecError(f"{self.dataset} has classes 0 to {info.num_classes - 1}, not {label}")
        if len(set(classes)) != len(classes):
            raise SpecError(f"a task names each class once, but {list(classes)} repeats one")
        if len(classes) < 2:
            raise SpecError("a task needs at least 2 classes")
        object.__setattr__(self, "classes", classes)
        object.__setattr__(self, "transform", parse_transform(self.transform))

    @property
    def info(self) -> DatasetInfo:
        """The dataset it is made of."""
        return datasets.get(self.dataset)

    @property
    def whole(self) -> bool:
        """Whether it has every class of its dataset, in whatever order."""
        return len(self.classes) == self.info.num_classes

    @property
    def canonical(self) -> bool:
        """Whether it has every class in natural order and leaves the pictures as they are."""
        return self.transform == "id" and self.classes == tuple(range(self.info.num_classes))

    @property
    def class_names(self) -> list[str]:
        """Names in label order."""
        return [self.info.class_names[label] for label in self.classes]

    @property
    def subject(self) -> words.Subject:
        """What its pictures show."""
        info = self.info
        return words.Subject(
            title=info.title,
            subject=info.subject,
            synonyms=info.synonyms,
            grey=info.channels == 1,
            whole=self.whole,
        )

    @property
    def licence(self) -> str | None:
        """Of the dataset."""
        return f"pictures of {self.dataset}: {self.info.licence}"

    def _class_keys(self) -> list[str | int]:
        return list(self.classes)

    def __str__(self) -> str:
        """The canonical text; :func:`parse_task` reads it back."""
        text = self.dataset
        if self.classes != tuple(range(self.info.num_classes)):
            text += "[" + ",".join(map(str, self.classes)) + "]"
        if self.transform != "id":
            text += "+" + self.transform
        if (self.size, self.channels) != (DEFAULT_SIZE, DEFAULT_CHANNELS):
            text += f"@{self.size}c{self.channels}"
        return text

    def resized(self, size: int, channels: int) -> DatasetTask:
        """The same task at another resolution."""
        return replace(self, size=size, channels=channels)

    @with_plain_defaults
    def data(self, split: str) -> TaskData:
        """The images of ``"train"`` or ``"test"``."""
        if split not in SPLITS:
            raise InputError(f"a task has a train and a test split, no {split!r}")
        made: dict[str, TaskData] = self._made
        if split not in made:
            # All images of a dataset, made large, would not fit into memory: then each batch is made large.
            channels = min(self.channels, self.info.channels)
            whole = self.info.counts.get(split, 0) * channels * self.size**2
            size = self.size if whole <= _MOST_PIXELS else min(self.size, self.info.size)
            key = (str(cache_folder()), self.dataset, split, size, channels)
            pixels, native = _pixels.get(key, lambda: read_split(self.dataset, split), size, self.channels)
            # native label -> label of this task, -1 for classes it does not have
            table = torch.full((self.info.num_classes,), -1, dtype=torch.int64)
            table[list(self.classes)] = torch.arange(len(self.classes))
            labels = table[native]
            rows = torch.nonzero(labels >= 0).flatten()
            made[split] = TaskData(
                pixels,
                rows,
                labels[rows],
                transform=self.transform,
                channels=self.channels,
                side=None if size == self.size else self.size,
            )
        return made[split]

    @cached_property
    def _made(self) -> dict[str, TaskData]:
        return {}


_TASK = re.compile(
    r"(?P<dataset>[A-Za-z0-9._-]+)\s*(?:\[(?P<classes>[^\[\]]*)\])?\s*(?P<transform>(?:\+[A-Za-z0-9 ]*)*)"
    r"(?:@(?P<size>\d{1,6})(?:c(?P<channels>\d{1,3}))?)?"
)


def parse_task(text: str) -> DatasetTask:
    """Read a task text such as ``fashion-mnist[3,1,7,2]+rot90+invert@28c1``.

    Raises:
        SpecError: the text is malformed, repeats a class or asks for an impossible size.
        UnknownNameError: no such dataset, class or transform; the message offers near names.

    Example:
        >>> str(parse_task("mnist[3, 1]+invert+rot90@28c1"))
        'mnist[3,1]+rot90+invert@28c1'
        >>> parse_task("fashion-mnist[bag,coat]").classes
        (8, 4)
    """
    if not isinstance(text, str) or not text.strip():
        raise SpecError("a task text is empty: name a dataset, for instance 'fashion-mnist'")
    match = _TASK.fullmatch(text.strip()) if len(text) <= _MAX_TEXT else None
    if match is None:
        shown = text.strip() if len(text) <= 80 else text.strip()[:77] + "..."
        raise SpecError(f"cannot read the task {shown!r}: write NAME[classes]+transform@SIZEcCHANNELS, "
                        "for instance 'fashion-mnist[3,1,7,2]+rot90@28c1'")  # fmt: skip
    info = datasets.get(match["dataset"])
    classes: tuple[int, ...] = ()
    if match["classes"] is not None:
        classes = tuple(_class_label(info, token) for token in match["classes"].split(","))
    return DatasetTask(
        dataset=info.name,
        classes=classes,
        transform=parse_transform(match["transform"]),
        size=int(match["size"] or DEFAULT_SIZE),
        channels=int(match["channels"] or DEFAULT_CHANNELS),
    )


def _class_label(info: DatasetInfo, token: str) -> int:
    """The native label that ``token`` names by number or by class name."""
    token = token.strip()
    if not token:
        raise SpecError(f"the class list of {info.name!r} has an empty place")
    if token.isdecimal() and token.isascii():
        return int(token[:9])
    by_name = {name.casefold(): label for label, name in enumerate(info.class_names)}
    if token.casefold() not in by_name:
        raise UnknownNameError(f"class of {info.name}", token, info.class_names)
    return by_name[token.casefold()]
