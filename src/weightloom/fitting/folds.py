"""Which training images judge: a part that is held back, or each image once.

Shapes: n training images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from weightloom.seeding import torch_generator
from weightloom.tasks import TaskData
from weightloom.tasks.data import MOST_HELD, shuffled_classes


class Division(Protocol):
    """What decides how images are divided."""

    @property
    def held_back(self) -> float: ...
    @property
    def few(self) -> int: ...
    @property
    def folds(self) -> int: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class Part:
    """Images to learn from, images to judge by, and the places of both.

    ``unseen`` says whether none of those that judge was used to make the network before fine-tuning.
    """

    learn: TaskData
    held: TaskData
    learning: Tensor
    judging: Tensor
    unseen: bool


def parts_of(
    data: TaskData, names: Sequence[str], settings: Division, unseen: Tensor | None = None
) -> list[Part]:
    """One part held back of many images; of few, parts that hold each image back once.

    Args:
        data: the train split.
        names: of the classes, in label order.
        settings: how much is held back, up to which number of images there are several parts, and the seed.
        unseen: (n,) images that the network was not made from; those judge where they are enough, of every
            class.

    Raises:
        InputError: a class has fewer than two images.
    """
    count = len(data)
    share = min(settings.held_back, MOST_HELD / max(1, count))
    folds = settings.folds if count <= settings.few else 1
    fold = torch.full((count,), -1, dtype=torch.int64)
    for label, own in enumerate(shuffled_classes(data, names, ("fine-tuning", settings.seed))):
        if folds > 1:
            fold[own] = (torch.arange(len(own)) + label) % folds
            continue
        wanted = min(max(1, round(share * len(own))), len(own) - 1)
        if unseen is not None:
            own = torch.cat([own[unseen[own]], own[~unseen[own]]])
        fold[own[:wanted]] = 0
    if folds > 1 and unseen is not None and int(unseen.sum()) >= 2 * len(names) * folds:
        judges = unseen
    else:
        judges = torch.ones(count, dtype=torch.bool)
    places = [torch.nonzero((fold == number) & judges).flatten() for number in range(folds)]
    clean = unseen is not None and all(bool(unseen[held].all()) for held in places)
    parts = []
    for number, held in enumerate(places):
        learning = torch.nonzero(fold != number).flatten()
        parts.append(Part(data.part(learning), data.part(held), learning, held, clean))
    return parts


def some_of(data: TaskData, count: int, seed: int) -> Tensor:
    """(M,) places of about ``count`` images, of every class its share and at least two where it has them."""
    chosen = []
    for label in data.labels.unique().tolist():
        own = torch.nonzero(data.labels == label).flatten()
        own = own[torch.randperm(len(own), generator=torch_generator("fine-tuning, some", seed, label))]
        chosen.append(own[: max(2, count * len(own) // len(data))])
    return torch.cat(chosen).sort().values
