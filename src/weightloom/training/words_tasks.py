"""What a generator of networks from words learns from: named pictures, their names and sentences about them.

Of datasets that are known as wholes, subsets and orders of classes are held out as a zoo's tasks are; of the
others, names are held out by their words. What is held out under the salt is for results, and what is held
out under a second salt is for choices; training draws neither. Knows no generator.

Shapes: C classes, V wordings of a name, D width of a name's vector, N images, B images of a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from weightloom.conditioning import encode_text
from weightloom.conditioning.lexicon import define
from weightloom.conditioning.names import readable
from weightloom.errors import SpecError
from weightloom.seeding import numpy_generator, seed_for
from weightloom.tasks import DatasetTask, TaskSampler
from weightloom.tasks.data import TaskData
from weightloom.tasks.store import datasets
from weightloom.tasks.vocabulary import split_of_name, stems
from weightloom.tasks.words import misspell

SECOND = "choices"
"""What is added to the salt for names and tasks that choices are made on."""

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True, kw_only=True)
class PictureSource:
    """A dataset as training draws from it.

    ``weight`` is its share of the steps. Pictures are moved by up to ``shift`` times a tenth of the side,
    turned by up to ``shift`` times 14 degrees, and mirrored at random where ``flip`` says so. ``names``:
    whether names are held out, not subsets.
    """

    dataset: str
    weight: float = 1.0
    shift: float = 0.0
    flip: bool = False
    names: bool = False
    outline: float = 0.0
    """Share of the pictures that are drawn as white outlines on black, as sketches are; half of the
    rest are inverted."""


def known_stems(sources: tuple[PictureSource, ...]) -> frozenset[str]:
    """Stems of the class names of datasets that are known as wholes: they are never held out."""
    whole = [datasets.get(s.dataset).class_names for s in sources if not s.names]
    return frozenset(stem for names in whole for name in names for stem in stems(name))


def names_of_split(dataset: str, split: str, salt: str, known: frozenset[str]) -> list[int]:
    """Labels of a dataset whose names belong to ``train``, ``choices`` or ``unseen``.

    Names that are unseen under the salt are for results; of the others, those unseen under the second salt
    are for choices, and those with no held-out word under either are for training.
    """
    found = []
    for label, name in enumerate(datasets.get(dataset).class_names):
        first = split_of_name(name, salt, known)
        second = split_of_name(name, f"{salt}/{SECOND}", known)
        if first == "train":
            own = {"train": "train", "unseen": "choices", "mixed": "mixed"}[second]
        else:
            own = first
        if own == split:
            found.append(label)
    return found


def holds_out_pair(salt: str, dataset: str, transform: str) -> bool:
    """Whether no sentence about a dataset under a transform is learned from: one pair in four."""
    return transform != "id" and seed_for("held-out-pair", salt, dataset, transform) % 4 == 0


class Pictures:
    """One source: its training pictures by class, vectors of its names and of sentences about it."""

    def __init__(
        self,
        source: PictureSource,
        salt: str,
        known: frozenset[str],
        size: int,
        channels: int,
        sentences: int,
    ) -> None:
        self.source = source
        self.task = DatasetTask(dataset=source.dataset, size=size, channels=channels)
        # Outlines are found at twice the size: at the task's own size lines run into each other.
        self._fine = 2 if source.outline else 1
        fine = DatasetTask(dataset=source.dataset, size=self._fine * size, channels=channels)
        self.data: TaskData = fine.data("train")
        order = torch.argsort(self.data.labels, stable=True)
        counts = torch.bincount(self.data.labels, minlength=self.task.num_classes)
        self._rows = order.split(counts.tolist())
        self._samplers = (
            TaskSampler([source.dataset], salt, classes=(2, self.task.num_classes)),
            TaskSampler([source.dataset], f"{salt}/{SECOND}", classes=(2, self.task.num_classes)),
        )
        self.labels = (
            names_of_split(source.dataset, "train", salt, known)
            if source.names
            else list(range(self.task.num_classes))
        )
        self.names = _name_vectors(self.task.class_names, self.labels)
        self.sentences = encode_text(_sentences(self.task, self.labels, sentences))

    def draw_classes(self, generator: torch.Generator, most: int) -> list[int]:
        """Classes of a training task, in its order; about two in five have ten where there are so many."""
        count = len(self.labels)
        while True:
            kind = float(torch.rand((), generator=generator))
            upper = min(count, most if self.source.names and kind < 0.3 else 10)
            size = upper if kind > 0.6 else int(torch.randint(2, upper + 1, (), generator=generator))
            chosen = torch.randperm(count, generator=generator)[:size].tolist()
            classes = [self.labels[place] for place in chosen]
            if self.source.names or size == self.task.num_classes:
                return classes
            if not any(
                sampler.holds_out_subset(self.source.dataset, classes)
                or sampler.holds_out_order(self.source.dataset, classes)
                for sampler in self._samplers
            ):
                return classes

    def draw(self, classes: list[int], each: int, generator: torch.Generator) -> Tensor:
        """(C, each, channels, height, width): training pictures of the classes, moved a little."""
        rows = []
        for label in classes:
            own = self._rows[label]
            rows.append(own[torch.randint(len(own), (each,), generator=generator)])
        return self._moved(torch.cat(rows), generator).unflatten(0, (len(classes), each))

    def draw_mixed(self, classes: list[int], count: int, generator: torch.Generator) -> Tensor:
        """(count, channels, height, width): training pictures of the classes in random proportions."""
        shares = -torch.rand(len(classes), generator=generator).clamp_min(1e-6).log()
        places = torch.multinomial(shares, count, replacement=True, generator=generator).tolist()
        drawn = torch.rand(count, generator=generator).tolist()
        rows = []
        for place, share in zip(places, drawn, strict=True):
            own = self._rows[classes[place]]
            rows.append(own[int(share * len(own))])
        return self._moved(torch.stack(rows), generator)

    def _moved(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """The pictures of rows (N,), moved a little."""
        images, _ = self.data.batch(rows)
        if self._fine > 1:
            images = F.avg_pool2d(_outlined(images, self.source.outline, generator), self._fine)
        if self.source.shift or self.source.flip:
            images = move_pictures(images, self.source, generator)
        return images

    def draw_names(self, classes: list[int], generator: torch.Generator) -> Tensor:
        """(C, D): a wording of every name, drawn; the plain one in three of four."""
        places = torch.tensor([self.labels.index(label) for label in classes])
        wording = torch.randint(self.names.shape[1], (len(classes),), generator=generator)
        wording[torch.rand(len(classes), generator=generator) < 0.75] = 0
        return self.names[places, wording]


def _outlined(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Pictures (B, channels, H, W), a ``share`` of them as outlines, half of the others as negatives."""
    across = (images[..., 1:] - images[..., :-1]).abs().amax(1, keepdim=True)
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().amax(1, keepdim=True)
    edges = images.new_zeros(len(images), 1, *images.shape[-2:])
    edges[..., 1:] = across
    edges[..., 1:, :] = torch.maximum(edges[..., 1:, :], down)
    lines = (1.2 * edges).clamp(0, 2) - 1
    drawn = torch.rand(len(images), generator=generator)[:, None, None, None]
    others = torch.where(drawn > (1 + share) / 2, -images, images)
    return torch.where(drawn < share, lines.expand_as(images), others)


def move_pictures(images: Tensor, source: PictureSource, generator: torch.Generator) -> Tensor:
    """Pictures (B, channels, H, W) turned, scaled, sheared, moved and mirrored at random."""
    count, shift = len(images), source.shift
    if not shift:
        mirrored = torch.rand(count, generator=generator) < 0.5
        return torch.where(mirrored[:, None, None, None], images.flip(-1), images)

    def drawn(width: float) -> Tensor:
        return (torch.rand(count, generator=generator) - 0.5) * width * shift

    angle, scale, shear = drawn(0.5), 1 + drawn(0.3), drawn(0.3)
    sign = torch.ones(count)
    if source.flip:
        sign = (torch.rand(count, generator=generator) < 0.5).float() * 2 - 1
    grid = torch.zeros(count, 2, 3)
    grid[:, 0, 0] = angle.cos() * scale * sign
    grid[:, 0, 1] = -angle.sin() * scale + shear
    grid[:, 1, 0] = angle.sin() * scale
    grid[:, 1, 1] = angle.cos() * scale * (1 + drawn(0.3))
    grid[:, 0, 2], grid[:, 1, 2] = drawn(0.2), drawn(0.2)
    where = F.affine_grid(grid, list(images.shape), align_corners=False)
    return F.grid_sample(images, where, padding_mode="border", align_corners=False)


def _name_vectors(names: list[str], labels: list[int]) -> Tensor:
    """(C, V, D): each name plain, misspelt, and in another form, as :func:`encode_names` makes vectors."""
    generator = numpy_generator("wordings", *names[:3])
    plain = [readable(names[label]) for label in labels]
    wordings = [
        plain,
        [misspell(name, generator) if len(name) > 3 else name for name in plain],
        [_other_form(name) for name in plain],
    ]
    defined = [f": {meaning}" if (meaning := define(name)) else "" for name in plain]
    found = []
    for wording in wordings:
        vectors = encode_text([*wording, *(a + b for a, b in zip(wording, defined, strict=True))])
        found.append(torch.cat(vectors.chunk(2), 1))
    return torch.stack(found, 1)


def _other_form(name: str) -> str:
    if name.isdecimal() and len(name) == 1:
        return _DIGITS[int(name)]
    return name if name.endswith("s") or len(name) < 3 else f"{name}s"


def _sentences(task: DatasetTask, labels: list[int], count: int) -> list[str]:
    """Instructions for the whole dataset and for parts of it, one in four misspelt."""
    generator = numpy_generator("sentences", task.dataset)
    found: list[str] = []
    if len(labels) == task.num_classes:
        found += task.instructions(count // 2, seed=1, misspelt=0.25)
    while len(found) < count:
        size = int(generator.integers(2, min(11, len(labels) + 1)))
        classes = tuple(int(label) for label in generator.choice(labels, size, replace=False))
        part = DatasetTask(dataset=task.dataset, classes=classes, size=task.size, channels=task.channels)
        found += part.instructions(1, seed=len(found), misspelt=0.25)
    return found


def open_sources(
    sources: tuple[PictureSource, ...], salt: str, size: int, channels: int, sentences: int = 64
) -> list[Pictures]:
    """All sources, opened. Raises DataUnavailableError where a dataset is not on this machine."""
    if not sources or len({source.dataset for source in sources}) != len(sources):
        raise SpecError("training needs at least one dataset and each of them once")
    known = known_stems(sources)
    return [Pictures(source, salt, known, size, channels, sentences) for source in sources]
