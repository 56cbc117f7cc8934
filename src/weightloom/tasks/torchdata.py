"""Any ``torch.utils.data.Dataset`` of images with labels as a task.

Knows the dataset only by its length, its items and the names that it has for its classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from weightloom.defaults import with_plain_defaults
from weightloom.errors import InputError
from weightloom.finite import layout_fault
from weightloom.tasks.data import TaskData, resize_pixels
from weightloom.tasks.depth import Picture, ValueRanges, fit_ranges, scaled
from weightloom.tasks.folder import split_by_digest, split_data
from weightloom.tasks.items import agreed_names, class_names_of, image_and_label
from weightloom.tasks.pictures import load_picture
from weightloom.tasks.store import SPLITS
from weightloom.tasks.task import DEFAULT_CHANNELS, DEFAULT_SIZE, Task, check_shape
from weightloom.tasks.transforms import parse_transform
from weightloom.tasks.words import Subject
from weightloom.whole import whole_number


class TorchTask(Task):
    """A map-style torch dataset as a task.

    An item is a pair of an image and a label, or a dictionary with one of the keys ``image``, ``img`` and one
    of ``label``, ``labels``, ``target``, ``targets``.

    An image is a PIL image, which becomes what its file becomes in a folder (:class:`FolderTask`), an array
    (H, W) or (H, W, C) of bytes, or a tensor (H, W) or (C, H, W) of bytes or of floats in [0, 1] or [-1, 1];
    all tensors of floats in one dataset use one range. A label is an integer from 0.

    Args:
        train: the dataset; where ``test`` is missing, a fifth of it, chosen by the hash of its content, is
            kept for testing.
        test: the test images.
        class_names: names in label order; else the dataset's own, also through ``Subset`` and
            ``ConcatDataset`` (:func:`weightloom.tasks.items.class_names_of`); else ``"class 0"`` and so on.
        name: what reports call it.
        size: height and width in pixels.
        channels: 1 or 3.
        transform: a transform's name.
        test_fraction: the share kept for testing where ``test`` is missing.

    Raises:
        InputError: the dataset is empty or has no length, or, as soon as its images are needed, an item is
            not an image with a label, or only one class is present.
    """

    def __init__(
        self,
        train: Dataset[Any],
        test: Dataset[Any] | None = None,
        class_names: Sequence[str] | None = None,
        name: str = "custom",
        size: int = DEFAULT_SIZE,
        channels: int = DEFAULT_CHANNELS,
        transform: str = "id",
        test_fraction: float = 0.2,
    ) -> None:
        if not 0 < test_fraction < 1:
            raise InputError(f"the share of test images is between 0 and 1, not {test_fraction}")
        for part in (train, test):
            if part is not None and (not hasattr(part, "__len__") or len(part) == 0):
                raise InputError(f"dataset {name!r} has no images, or does not say how many it has")
        self._train, self._test = train, test
        if class_names is not None:
            self._names: list[str] | None = [str(n) for n in class_names]
        else:
            self._names = class_names_of(train, name)
            if test is not None and (others := class_names_of(test, name)) is not None:
                self._names = agreed_names([self._names or others, others], name)
        self.ranges = ValueRanges()  # of PIL images deeper than bytes: those of the training images
        self.size, self.channels = check_shape(size, channels)
        self.dataset = name
        self.transform, self.test_fraction = parse_transform(transform), test_fraction

    def __str__(self) -> str:
        """A short name for reports."""
        return f"torch:{self.dataset}"

    @cached_property
    def class_names(self) -> list[str]:  # type: ignore[override]
        """Names in label order."""
        if self._names is not None:
            return self._names
        labels = set(self._items["train"][1])
        if max(labels) >= 2 * len(labels):  # most classes would be missing: no list of a billion names
            gap = min(set(range(len(labels) + 1)) - labels)
            raise InputError(f"dataset {self.dataset!r} has no train image of class 'class {gap}'")
        return [f"class {label}" for label in range(max(labels) + 1)]

    @property
    def subject(self) -> Subject:
        """Pictures; a torch dataset has no subject of its own."""
        pixels = self._items["train"][0].astype(np.int16)  # (N, C, size, size)
        grey = bool(
            np.ptp(pixels, axis=1).max(initial=0) <= 2
        )  # JPEG moves the channels of grey by one or two
        return Subject(title="", subject="pictures", synonyms=("images",), grey=grey, whole=False)

    @property
    def picture_ranges(self) -> ValueRanges:
        """Of the training images, once these have been read."""
        return self.ranges

    @with_plain_defaults
    def data(self, split: str) -> TaskData:
        """The images of ``"train"`` or ``"test"``."""
        if split not in SPLITS:
            raise InputError(f"a task has a train and a test split, no {split!r}")
        return self._split[split]

    @cached_property
    def _items(self) -> dict[str, tuple[np.ndarray, list[int]]]:
        """Resized pixels (N, C, size, size) and labels of what was handed in as train and test."""
        parts = {"train": self._train} | ({"test": self._test} if self._test is not None else {})
        return {split: self._read(part, split) for split, part in parts.items()}

    @cached_property
    def _split(self) -> dict[str, TaskData]:
        pixels, labels = self._items["train"]
        classes = self.num_classes
        if len(set(labels)) < 2:
            raise InputError(f"dataset {self.dataset!r} has images of one class only")
        for split, (_, present) in self._items.items():
            if max(present) >= classes:
                raise InputError(
                    f"dataset {self.dataset!r} has the label {max(present)} in {split}, "
                    f"but {classes} class names"
                )
        missing = sorted(set(range(classes)) - set(labels))
        if missing:
            raise InputError(
                f"dataset {self.dataset!r} has no train image of class {self.class_names[missing[0]]!r}"
            )
        if "test" in self._items:
            more, more_labels = self._items["test"]
            held = [False] * len(labels) + [True] * len(more_labels)
            return split_data(
                np.concatenate([pixels, more]), labels + more_labels, held, self.transform, self.channels
            )
        digests = [hashlib.sha256(row.tobytes()).digest() for row in pixels]
        held = split_by_digest(digests, labels, self.test_fraction)
        return split_data(pixels, labels, held, self.transform, self.channels)

    @with_plain_defaults
    def _read(self, dataset: Dataset[Any], split: str) -> tuple[np.ndarray, list[int]]:
        images, labels = [], []
        for i in range(len(dataset)):  # type: ignore[arg-type]
            where = f"item {i} of the {split} images of dataset {self.dataset!r}"
            try:
                item = dataset[i]
            except Exception as error:  # what a dataset of files raises for one that is broken
                raise InputError(f"{where} cannot be read ({error or type(error).__name__})") from error
            image, label = image_and_label(item, where)
            try:
                labels.append(whole_number(label, "a label"))  # int() would round 1.5 and read "3"
            except InputError as error:
                shown = repr(label)
                shown = shown if len(shown) <= 40 else shown[:37] + "..."
                raise InputError(
                    f"{where} is not a pair of an image and an integer label: its label is {shown}"
                ) from error
            if labels[-1] < 0:
                raise InputError(f"{where} has the label {labels[-1]}; labels count from 0")
            images.append(_picture(image, where, self.size) or _tensor(image, where))
        pictures = [image for image in images if isinstance(image, Picture)]
        self.ranges = fit_ranges(pictures, f"dataset {self.dataset!r}", self.ranges)
        floats = [i for i in images if isinstance(i, torch.Tensor) and i.is_floating_point()]
        low = min((float(image.min()) for image in floats), default=0.0)
        high = max((float(image.max()) for image in floats), default=1.0)
        if not (low >= -1.001 and high <= 1.001):  # also catches NaN
            raise InputError(
                f"dataset {self.dataset!r} has float images from {low:.3g} to {high:.3g}; "
                "they must lie in [0, 1] or [-1, 1]"
            )
        resized = []
        for number, image in enumerate(images):
            if isinstance(image, Picture):
                try:
                    resized.append(scaled(image, self.ranges, self.channels))
                except InputError as error:
                    raise InputError(
                        f"item {number} of the {split} images of dataset {self.dataset!r} {error}"
                    ) from error
                continue
            if image.is_floating_point():
                image = (image + 1) / 2 if low < 0 else image
                image = (image * 255).round().clamp(0, 255).to(torch.uint8)
            image = resize_pixels(image[None], self.size, self.channels)[0]  # (C', H, W) -> (C', size, size)
            resized.append(image.expand(self.channels, -1, -1).numpy())
        return np.stack(resized), labels


def _picture(image: Any, where: str, size: int) -> Picture | None:
    """A PIL image, read as its file is in a folder; None for anything else."""
    from PIL import Image

    if not isinstance(image, Image.Image):
        return None
    try:
        return load_picture(image, size)
    except InputError as error:
        raise InputError(f"{where} cannot be read ({error})") from error


def _tensor(image: Any, where: str) -> torch.Tensor:
    """An image of any other accepted kind as (1 or 3, H, W) of bytes or floats."""
    if isinstance(image, torch.Tensor):
        if (fault := layout_fault(image)) is not None:
            raise InputError(f"{where} {fault}")
        tensor = image.detach().cpu()
    else:
        try:
            array = np.array(image)
            tensor = torch.from_numpy(array)
        except (TypeError, ValueError) as error:
            raise InputError(f"{where} is not an image") from error
        if tensor.ndim == 3 and tensor.shape[-1] in (1, 3, 4):
            tensor = tensor.permute(2, 0, 1)  # (H, W, C) -> (C, H, W)
    if tensor.ndim == 2:
        tensor = tensor[None]  # (H, W) -> (1, H, W)
    if tensor.ndim == 3 and tensor.shape[0] == 4:
        tensor = tensor[:3]
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3) or 0 in tensor.shape:
        raise InputError(f"{where} has the shape {tuple(tensor.shape)}, which is no image")
    if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
        raise InputError(f"{where} has values of type {tensor.dtype}; images hold bytes or floats")
    return tensor if tensor.dtype == torch.uint8 else tensor.float()
