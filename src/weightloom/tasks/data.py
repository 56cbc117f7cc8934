"""The images of a task: resized pixels in memory, batches of floats, and the support set.

Knows arrays, not where they come from: a task hands in uint8 pixels and labels.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from weightloom.defaults import with_plain_defaults
from weightloom.errors import InputError
from weightloom.finite import extremes, layout_fault
from weightloom.seeding import torch_generator
from weightloom.tasks.depth import ValueRanges
from weightloom.tasks.store import Images, Labels
from weightloom.tasks.transforms import apply_transform
from weightloom.whole import whole_number

_CHUNK = 4096

MAX_SHOTS = 100_000
"""Examples a class of a support set: more than a generator could look at, and few enough to be held."""

ONE_EXAMPLE = "a classifier needs examples of at least two classes"
"""What is wrong with a support set of one example, or of one class."""


@with_plain_defaults
def integer_labels(labels: object) -> Tensor:
    """``labels`` as one int64 tensor.

    Raises:
        InputError: they are not integers; what is not whole is never rounded.
    """
    if isinstance(labels, Tensor) and (fault := layout_fault(labels)) is not None:
        raise InputError(f"labels are integers from 0, but their tensor {fault}")
    try:
        found = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(
            f"labels are integers from 0, not {type(labels).__name__} of something else"
        ) from error
    if found.numel() and (found.is_floating_point() or found.is_complex() or found.dtype is torch.bool):
        raise InputError(f"labels are integers from 0, but these are of type {found.dtype}")
    return found.resolve_neg().to(torch.int64)


PIXELS = (-1.0, 1.0)
"""What pixels are from and to, wherever a network reads them."""

TOLERANCE = 1e-3
"""Resizing and rounding may leave the range by so little."""


def checked_images(images: object, what: str, shape: Sequence[int] | None = None) -> Tensor:
    """``images`` in one piece and without their gradients, if a network can read them.

    Args:
        images: what was handed in.
        what: how the sentence calls them, in the plural.
        shape: (channels, height, width) that they must end with.

    Raises:
        InputError: they are no plain tensor of float32, of another shape, empty, or not all pixels lie in
            [-1, 1] (within a thousandth).

    Example:
        >>> checked_images(torch.full((2, 1, 4, 4), 255.0), "the examples")
        Traceback (most recent call last):
        ...
        weightloom.errors.InputError: the examples hold pixels from 255 to 255; they must lie in [-1, 1] ...
    """
    if not isinstance(images, Tensor):
        hint = "; torch.from_numpy makes one of an array" if isinstance(images, np.ndarray) else ""
        raise InputError(f"{what} must be one tensor, not {type(images).__name__}{hint}")
    if (fault := layout_fault(images)) is not None:
        raise InputError(f"{what} must be a plain tensor, but it {fault}")
    if images.dtype != torch.float32:
        raise InputError(f"{what} must be float32 images in [-1, 1], not {images.dtype}")
    ends = tuple(images.shape[-3:])
    if shape is not None and (images.dim() < 4 or ends != tuple(shape)):
        wanted, got = "x".join(map(str, shape)), "x".join(map(str, images.shape))
        raise InputError(f"{what} must be images of {wanted}, in a batch, not {got}")
    if not images.numel():
        raise InputError(f"{what} are none: their shape is {tuple(images.shape)}")
    low, high = extremes(images)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(f"{what} hold pixels that are not finite")
    if low < PIXELS[0] - TOLERANCE or high > PIXELS[1] + TOLERANCE:
        raise InputError(
            f"{what} hold pixels from {low:.4g} to {high:.4g}; they must lie in [-1, 1] "
            "(bytes: pixels / 127.5 - 1; from 0 to 1: 2 * pixels - 1)"
        )
    return images.detach().resolve_neg().contiguous()


def checked_labels(labels: object, count: int, classes: int | None = None) -> Tensor:
    """``labels`` as (count,) int64 from 0, below ``classes`` where that is given.

    Raises:
        InputError: they are something else.
    """
    found = integer_labels(labels)
    if found.shape != (count,):
        raise InputError(f"there are {count:,} images, but labels of shape {tuple(found.shape)}")
    if count and int(found.min()) < 0:
        raise InputError(f"an example has the label {int(found.min())}; labels count from 0")
    if count and classes is not None and int(found.max()) >= classes:
        raise InputError(f"an example has the label {int(found.max())}, but there are {classes} classes")
    return found


@dataclass(frozen=True, kw_only=True)
class SupportSet:
    """The few labelled examples that describe a task to a generator.

    Attributes:
        images: (classes, shots, C, H, W) float32 in [-1, 1]; row ``c`` shows label ``c``.
        class_names: names in label order.
        ranges: what black and white were in pictures deeper than bytes.
        licence: of the pictures, where it is known.
    """

    images: Tensor
    class_names: tuple[str, ...]
    ranges: ValueRanges = field(default_factory=ValueRanges)
    licence: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.images, Tensor):
            raise InputError(f"a support set's images are one tensor, not {type(self.images).__name__}")
        shape = () if self.images.is_nested else tuple(self.images.shape)
        if len(shape) != 5 or shape[0] != len(self.class_names) or shape[1] < 1:
            raise InputError(
                f"a support set needs images of shape (classes, shots, C, H, W) for its "
                f"{len(self.class_names)} class names, not {shape or 'a tensor without one'}"
            )

    @classmethod
    @with_plain_defaults
    def from_labelled(
        cls, images: Tensor, labels: Tensor | Sequence[int], class_names: Sequence[str] | None = None
    ) -> SupportSet:
        """A support set from examples in any order; a class with fewer examples repeats its own.

        Args:
            images: (N, C, H, W) float32 in [-1, 1].
            labels: (N,) integers from 0.
            class_names: names in label order; left out, ``"class 0"`` and so on up to the highest label.

        Raises:
            InputError: one example in all, a class without examples, labels that are not integers from 0
                below the number of classes, or images that no network can read (:func:`checked_images`).

        Example:
            >>> SupportSet.from_labelled(torch.zeros(3, 1, 8, 8), [1, 0, 1]).images.shape
            torch.Size([2, 2, 1, 8, 8])
        """
        if not isinstance(images, Tensor) or images.is_nested or images.ndim != 4:
            raise InputError("labelled examples are one tensor of images of shape (N, C, H, W)")
        found = checked_labels(labels, len(images))
        if len(found) < 2:
            raise InputError(f"{ONE_EXAMPLE}, but there {'is' if len(found) else 'are'} {len(found)}")
        images = checked_images(images, "labelled examples")
        count = int(found.max()) + 1
        if class_names is None:
            if count > len(found):  # checked before a list of that many names is made
                missing = min(set(range(len(found) + 1)) - set(found.tolist()))
                raise InputError(f"there is no example of class 'class {missing}'")
            class_names = [f"class {label}" for label in range(count)]
        if count > len(class_names):
            raise InputError(
                f"an example has the label {count - 1}, but there are {len(class_names)} classes"
            )
        members = [torch.nonzero(found == label).flatten() for label in range(len(class_names))]
        for name, own in zip(class_names, members, strict=True):
            if not len(own):
                raise InputError(f"there is no example of class {name!r}")
        shots = max(len(own) for own in members)
        rows = torch.stack([own[torch.arange(shots) % len(own)] for own in members])  # (classes, shots)
        return cls(images=images[rows.to(images.device)], class_names=tuple(class_names))

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.images.shape[0]

    @property
    def shots(self) -> int:
        """Examples per class."""
        return self.images.shape[1]

    @with_plain_defaults
    def flat(self) -> tuple[Tensor, Tensor]:
        """All examples as one labelled batch: (classes*shots, C, H, W) and (classes*shots,) int64."""
        labels = torch.arange(self.num_classes, device=self.images.device).repeat_interleave(self.shots)
        return self.images.flatten(0, 1), labels  # (classes, shots, ...) -> (classes*shots, ...)

    @with_plain_defaults
    def to(self, device: torch.device | str) -> SupportSet:
        """The same examples on ``device``."""
        return replace(self, images=self.images.to(device))


class TaskData:
    """The images of one split of a task.

    Pixels stay uint8 at the task's resolution, shared by all tasks of a dataset; a batch is a row
    selection, the task's transform and a conversion to float.
    """

    def __init__(
        self,
        pixels: Tensor,
        rows: Tensor,
        labels: Tensor,
        *,
        transform: str = "id",
        channels: int = 3,
        side: int | None = None,
    ) -> None:
        """Wrap ``pixels`` (M, C', H, W) uint8, of which ``rows`` (N,) are this task's, with ``labels`` (N,).

        C' is 1 or ``channels``; one grey channel is repeated. ``side`` is the height and width of the images
        of a batch, where it is not that of the pixels: they are then resized batch by batch.

        Raises:
            InputError: labels that are not integers from 0, or pixels of another type or shape.
        """
        labels = checked_labels(labels, len(rows))
        if (fault := layout_fault(pixels)) is not None:
            raise InputError(f"the pixels of a task are a plain tensor, but this {fault}")
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, channels):
            raise InputError(
                f"the pixels of a task are uint8 of shape (M, 1 or {channels}, H, W), not {pixels.dtype} of "
                f"{tuple(pixels.shape)}"
            )
        self._pixels, self._rows, self.labels = pixels, _checked_index(rows, len(pixels)), labels
        self._transform, self._channels, self._side = transform, channels, side

    def __len__(self) -> int:
        """Number of images N."""
        return len(self._rows)

    @with_plain_defaults
    def batch(self, index: Tensor | Sequence[int]) -> tuple[Tensor, Tensor]:
        """The images at ``index`` (B,): (B, C, H, W) float32 in [-1, 1] and labels (B,) int64."""
        index = _checked_index(index, len(self)).to(self._rows.device)
        pixels = self._pixels.index_select(0, self._rows[index])
        if self._side is not None:
            pixels = resize_pixels(pixels, self._side, self._channels)
        pixels = apply_transform(pixels, self._transform)
        images = pixels.to(torch.float32).mul_(2 / 255).sub_(1)
        if images.shape[1] != self._channels:
            images = images.repeat(1, self._channels, 1, 1)  # (B, 1, H, W) -> (B, C, H, W)
        return images, self.labels[index]

    @with_plain_defaults
    def part(self, index: Tensor) -> TaskData:
        """The images at ``index`` (B,) as data of their own; pixels are shared, not copied."""
        index = _checked_index(index, len(self)).to(self._rows.device)
        return TaskData(
            self._pixels,
            self._rows[index],
            self.labels[index],
            transform=self._transform,
            channels=self._channels,
            side=self._side,
        )

    @with_plain_defaults
    def all(self) -> tuple[Tensor, Tensor]:
        """All images and labels as one batch."""
        return self.batch(torch.arange(len(self), device=self._rows.device))

    @with_plain_defaults
    def to(self, device: torch.device | str) -> TaskData:
        """The same images with their pixels on ``device``, so that batches are made there."""
        return TaskData(
            self._pixels[self._rows].to(device),
            torch.arange(len(self), device=device),
            self.labels.to(device),
            transform=self._transform,
            channels=self._channels,
            side=self._side,
        )


def _checked_index(index: object, count: int) -> Tensor:
    """``index`` as (B,) int64 of images that there are, counted from the end where negative.

    Raises:
        InputError: it is something else.
    """
    wanted = f"images are chosen by a row of whole numbers below {count:,}"
    if isinstance(index, Tensor) and (fault := layout_fault(index)) is not None:
        raise InputError(f"{wanted}, but this tensor {fault}")
    try:
        found = torch.as_tensor(index)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InputError(f"{wanted}, not by {type(index).__name__}") from None
    whole = not (found.is_floating_point() or found.is_complex() or found.dtype is torch.bool)
    if found.ndim != 1 or not (whole or not found.numel()):  # an empty list is a tensor of floats
        raise InputError(f"{wanted}, not by {found.dtype} of shape {tuple(found.shape)}")
    found = found.resolve_neg().to(torch.int64)
    if found.numel():
        low, high = (int(value) for value in torch.aminmax(found))
        if low < -count or high >= count:
            raise InputError(f"{wanted}, not by {low if low < -count else high}")
    return found


@with_plain_defaults
def draw_support(
    data: TaskData,
    keys: Sequence[str | int],
    class_names: Sequence[str],
    shots: int,
    address: Sequence[str | int],
) -> SupportSet:
    """``shots`` examples per class of ``data``, a class with fewer images repeating its own.

    Args:
        data: the train split.
        keys: per label what names the class apart from its label, so that its examples do not depend on its
            place in the task.
        class_names: names in label order.
        shots: examples per class.
        address: seed address, without the class.

    Raises:
        InputError: ``shots`` is not positive, or a class has no image.
    """
    shots = whole_number(shots, "the number of examples a class", 1, MAX_SHOTS)
    chosen = []
    for label, key in enumerate(keys):
        members = torch.nonzero(data.labels == label).flatten()
        if not len(members):
            raise InputError(f"class {class_names[label]!r} has no image to take examples from")
        order = torch.randperm(len(members), generator=torch_generator(*address, key))
        chosen.append(members[order[torch.arange(shots) % len(members)]])
    images, _ = data.batch(torch.cat(chosen))
    # (classes*shots, C, H, W) -> (classes, shots, C, H, W)
    return SupportSet(
        images=images.reshape(len(keys), shots, *images.shape[1:]), class_names=tuple(class_names)
    )


@with_plain_defaults
def resize_pixels(images: Images | Tensor, size: int, channels: int) -> Tensor:
    """uint8 images (N, C', H, W) at ``size`` x ``size``, smoothed against aliasing.

    Colour becomes grey by the luma weights of ITU-R BT.601 where ``channels`` is 1; grey stays one channel.
    """
    source = torch.as_tensor(np.ascontiguousarray(images) if isinstance(images, np.ndarray) else images)
    out = []
    for start in range(0, len(source), _CHUNK):
        part = source[start : start + _CHUNK]
        if part.shape[1] == 3 and channels == 1:
            weights = torch.tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)
            part = (part * weights).sum(1, keepdim=True)  # (n, 3, H, W) -> (n, 1, H, W)
        if part.shape[-2:] != (size, size):
            part = F.interpolate(part.float(), size=(size, size), mode="bilinear", antialias=True)
        out.append(part if part.dtype == torch.uint8 else part.round_().clamp_(0, 255).to(torch.uint8))
    return torch.cat(out)


@with_plain_defaults
def not_shown(data: TaskData, support: SupportSet, most: int, address: Sequence[str | int]) -> TaskData:
    """Up to ``most`` images of ``data`` that look like none of ``support``, the same for the same address.

    Example:
        >>> pixels = torch.arange(3 * 16, dtype=torch.uint8).reshape(3, 1, 4, 4)
        >>> data = TaskData(pixels, torch.arange(3), torch.tensor([0, 1, 1]), channels=1)
        >>> support = SupportSet.from_labelled(*data.batch([0, 1]))
        >>> len(not_shown(data, support, 10, ["a seed"]))
        1
    """
    return data.part(places_not_shown(data, support, most, address))


@with_plain_defaults
def places_not_shown(data: TaskData, support: SupportSet, most: int, address: Sequence[str | int]) -> Tensor:
    """Where the images of :func:`not_shown` are in ``data``: (M,) int64."""
    shown = {image.numpy().tobytes() for image in support.images.flatten(0, 1).cpu()}
    found: list[int] = []
    for index in torch.randperm(len(data), generator=torch_generator(*address)).split(_CHUNK):
        images, _ = data.batch(index)
        others = (image.numpy().tobytes() not in shown for image in images)
        found += [place for place, other in zip(index.tolist(), others, strict=True) if other]
        if len(found) >= most:
            break
    return torch.tensor(found[:most], dtype=torch.int64)


class PixelCache:
    """Resized pixels and labels in memory, made once per key."""

    def __init__(self) -> None:
        self._made: dict[tuple[str | int, ...], tuple[Tensor, Tensor]] = {}
        self._lock = threading.Lock()

    def get(
        self, key: tuple[str | int, ...], read: Callable[[], tuple[Images, Labels]], size: int, channels: int
    ) -> tuple[Tensor, Tensor]:
        """Pixels (N, C', size, size) uint8 and native labels (N,) int64 of what ``read`` gives."""
        with self._lock:
            if key not in self._made:
                images, labels = read()
                self._made[key] = (
                    resize_pixels(images, size, channels),
                    torch.from_numpy(labels.astype(np.int64)),
                )
            return self._made[key]

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._made.clear()


def shuffled_classes(data: TaskData, names: Sequence[str], address: Sequence[str | int]) -> Iterator[Tensor]:
    """The places of each class's images, in label order, each class in an order of chance.

    Raises:
        InputError: a class has fewer than two images, so that none could judge what the other teaches.
    """
    for label, name in enumerate(names):
        own = torch.nonzero(data.labels == label).flatten()
        if len(own) < 2:
            few = "one training image" if len(own) else "no training image"
            raise InputError(
                f"class {name!r} has {few}; choosing needs two of every class, one to learn from and one to "
                "judge by"
            )
        yield own[torch.randperm(len(own), generator=torch_generator(*address, label))]


MOST_HELD = 1500
"""Images that :func:`hold_back` keeps from training at most."""


@with_plain_defaults
def hold_back(
    data: TaskData, names: Sequence[str], share: float, address: Sequence[str | int]
) -> tuple[TaskData, TaskData]:
    """Training images and images held back from them, of every class at least one each.

    Args:
        data: the train split.
        names: of the classes, in label order.
        share: of each class's images, held back; at most 1,500 images in all.
        address: seed address.

    Raises:
        InputError: a class has fewer than two images.
    """
    share = min(share, MOST_HELD / max(1, len(data)))
    kept, held = [], []
    for own in shuffled_classes(data, names, address):
        count = min(max(1, round(share * len(own))), len(own) - 1)
        held.append(own[:count])
        kept.append(own[count:])
    return data.part(torch.cat(kept)), data.part(torch.cat(held))
