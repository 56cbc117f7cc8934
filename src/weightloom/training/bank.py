"""Tasks with their conditions encoded beforehand: wordings and support sets, several of each.

Encoders of words and images are frozen while a prior is trained, so their work is done once here.

Shapes: C classes, F features, I wordings, J support sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from weightloom.architectures import ArchitectureSpec
from weightloom.conditioning import Condition, SupportEncoder, encode_text, stack_conditions
from weightloom.conditioning.text import TEXT_WIDTH
from weightloom.tasks import DatasetTask, TaskData
from weightloom.tokenizers import WeightTokenizer
from weightloom.training.loop import Progress


class StartsFromCodes(Protocol):
    """A generator that starts from codes of its tokenizer."""

    tokenizer: WeightTokenizer

    def training_codes(self, spec: ArchitectureSpec, support: Tensor, classes: Tensor) -> Tensor:
        """(T, D) codes for a support set, described as classes (C, 2F)."""
        ...


@dataclass(frozen=True)
class BankedTask:
    """A task, its train images, wordings (I, 384) and support descriptions (J, C, 2F)."""

    task: DatasetTask
    data: TaskData
    wordings: Tensor
    supports: Tensor
    images: list[Tensor]
    """The support sets themselves, (C, S, ...) each."""
    initial: dict[ArchitectureSpec, list[Tensor]] = field(default_factory=dict)
    """The codes (T, D) that a model starts from for every support set, by architecture; made when needed."""


def build_bank(
    encoder: SupportEncoder,
    tasks: Sequence[DatasetTask],
    *,
    wordings: int = 2,
    supports: int = 1,
    shots: Sequence[int] = (16,),
    misspelt: float = 0.25,
    seed: int = 0,
    progress: Progress = lambda *_: None,
) -> dict[str, BankedTask]:
    """Encode ``tasks``; support set j of a task has ``shots[j % len(shots)]`` examples a class."""
    named = {str(task): task for task in tasks}
    texts = [task.instructions(wordings, seed=seed, misspelt=misspelt) for task in named.values()]
    encoded = encode_text([text for group in texts for text in group]).split(wordings)
    bank: dict[str, BankedTask] = {}
    for number, ((name, task), words) in enumerate(zip(named.items(), encoded, strict=True)):
        sets = [task.support(shots[j % len(shots)], seed=seed + j).images for j in range(supports)]
        with torch.no_grad():
            described = torch.stack([encoder.describe(images) for images in sets])
        bank[name] = BankedTask(task, task.data("train"), words, described, sets)
        progress("task bank", number + 1, len(named))
    return bank


def initial_codes_of(
    model: StartsFromCodes, spec: ArchitectureSpec, tasks: Sequence[BankedTask]
) -> list[list[Tensor]]:
    """The codes that ``model`` starts from in training for every support set of each task, made where they
    are missing.
    """
    for banked in tasks:
        if spec not in banked.initial:
            pairs = zip(banked.images, banked.supports, strict=True)
            banked.initial[spec] = [model.training_codes(spec, images, seen) for images, seen in pairs]
    return [banked.initial[spec] for banked in tasks]


def banked_condition(
    tasks: Sequence[BankedTask],
    generator: torch.Generator,
    *,
    initial: Sequence[Sequence[Tensor]] | None = None,
    drop_instruction: float = 0.0,
    drop_dataset: float = 0.0,
    drop_all: float = 0.0,
) -> Condition:
    """One condition a task, wording and support set drawn at random, parts left out at random.

    ``initial`` are the codes that each support set of each task starts from, for a generator that has such.
    """
    words: list[Tensor | None] = []
    classes: list[Tensor | None] = []
    codes: list[Tensor | None] = []
    supports: list[Tensor | None] = []
    for number, banked in enumerate(tasks):
        i = int(torch.randint(len(banked.wordings), (1,), generator=generator))
        j = int(torch.randint(len(banked.supports), (1,), generator=generator))
        chance = torch.rand(3, generator=generator)
        bare = bool(chance[0] < drop_all)
        words.append(None if bare or chance[1] < drop_instruction else banked.wordings[i])
        without = bare or bool(chance[2] < drop_dataset)
        classes.append(None if without else banked.supports[j])
        supports.append(None if without else banked.images[j])
        codes.append(None if without or initial is None else initial[number][j])
    shape = tuple(tasks[0].supports.shape[1:])
    condition = stack_conditions(words, classes, text_width=TEXT_WIDTH, shape=shape, initial=codes)  # type: ignore[arg-type]
    return replace(condition, supports=tuple(supports))
