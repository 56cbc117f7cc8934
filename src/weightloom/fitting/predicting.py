"""What a network answers to pictures: class names with probabilities, or that it is none of them.

Knows cards and modules; no file of weights and no generator.

Shapes: N pictures, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from weightloom.defaults import with_plain_defaults
from weightloom.errors import BrokenPicturesError, InputError, printable
from weightloom.finite import all_finite
from weightloom.tasks import NetworkCard
from weightloom.tasks.inputs import checked_input, network_inputs, single_pictures
from weightloom.whole import whole_number

Run = Callable[[Tensor], Tensor]
"""A network: (N, channels, height, width) float32 in, logits (N, C) out."""

Progress = Callable[[str, int, int], None]

_AT_ONCE, _VALUES = 256, 1 << 22
"""Pictures, and values of their pixels, that a network looks at together at most."""


class Answer(NamedTuple):
    """A class and its probability."""

    name: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a network answers to one picture.

    Attributes:
        file: its path as it was given; None for what came from memory.
        answers: the likeliest classes with their probabilities, the likeliest first.
        rejected: whether the likeliest is less probable than was asked for: none of the classes.
        problem: why it cannot be read, where such pictures are skipped; then there are no answers.
    """

    file: str | None
    answers: tuple[Answer, ...]
    rejected: bool = False
    problem: str | None = None

    @property
    def name(self) -> str | None:
        """The likeliest class; None where it was rejected or cannot be read."""
        return None if self.rejected or not self.answers else self.answers[0].name

    @property
    def probability(self) -> float | None:
        """Of the likeliest class."""
        return self.answers[0].probability if self.answers else None


class Predict:
    """``network.predict(pictures)`` of a module that was read from a file.

    A plain attribute beside the module's own: weights, their names and ``forward`` are as without it.
    """

    def __init__(self, module: nn.Module, card: NetworkCard) -> None:
        self.module, self.card = module, card

    def __call__(
        self, pictures: Any, top: int = 3, reject: float | None = None, *, skip_broken: bool = False
    ) -> list[Prediction]:
        """As :func:`predict`, by the module as it is now, in eval mode."""
        module = self.module
        training = [(part, part.training) for part in module.modules()]  # a frozen norm may be in eval mode
        held = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))

        def run(images: Tensor) -> Tensor:
            found: Tensor = module(images.to(device=held.device, dtype=held.dtype))
            return found

        module.eval()
        try:
            return predict(run, self.card, pictures, top, reject, skip_broken=skip_broken)
        finally:
            for part, mode in training:
                part.training = mode


def with_card(module: nn.Module, card: NetworkCard) -> nn.Module:
    """``module`` with ``.card``, ``.class_names`` and ``.predict(pictures, top=3, reject=None)``.

    Example:
        >>> net = with_card(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), NetworkCard(input=(1, 4, 4)))
        >>> sorted(net.state_dict()), [p.rejected for p in net.predict(torch.zeros(1, 4, 4), reject=1.0)]
        (['1.bias', '1.weight'], [True])
    """
    module.card, module.class_names = card, card.class_names  # type: ignore[assignment]
    module.predict = Predict(module, card)  # type: ignore[assignment]
    return module


@torch.no_grad()
@with_plain_defaults
def predict(
    run: Run,
    card: NetworkCard,
    pictures: Any,
    top: int = 3,
    reject: float | None = None,
    *,
    skip_broken: bool = False,
    progress: Progress = lambda *_: None,
) -> list[Prediction]:
    """What a network answers to each of one or many pictures, in their order.

    Args:
        run: the network.
        card: what it reads and what its outputs are called.
        pictures: paths, bytes of files, PIL images, arrays (H, W) or (H, W, C) and tensors (C, H, W), of
            uint8 or of floats in the card's range of values; one, several, or a batch (N, ...).
        top: how many classes to name, the likeliest first.
        reject: below which probability the answer is none of the classes; None never rejects.
        skip_broken: whether a picture that cannot be read is told by its ``problem`` instead of an error.
        progress: told of pictures.

    Raises:
        InputError: ``top`` or ``reject`` is out of range, something is no picture, or one picture that cannot
            be read.
        BrokenPicturesError: several of which some cannot be read; it names all of them.
        UnsupportedRequestError: no picture can become the network's input.
    """
    top = whole_number(top, "the number of classes to name", 1)
    if reject is not None and not (isinstance(reject, int | float) and 0 <= reject <= 1):
        raise InputError(f"a picture is rejected below a probability from 0 to 1, not {reject!r}")
    checked_input(card)
    asked = single_pictures(pictures)
    files = [str(one) if isinstance(one, str | Path) else None for one in asked]
    shares: dict[int, Tensor] = {}
    problems: dict[int, str] = {}
    for places, images in _batches(network_inputs(asked, card), problems):
        logits = run(images).float().cpu()
        if not all_finite(logits):
            raise InputError("the network's answers are not finite")
        rows = (logits.double() / (card.temperature or 1.0)).softmax(1)
        shares |= dict(zip(places, rows, strict=True))
        progress("pictures", len(shares) + len(problems), len(asked))
    if problems and not skip_broken:
        named = [(_called(files[place], place), problems[place]) for place in sorted(problems)]
        if len(asked) == 1:
            name = "a picture in memory" if files[0] is None else named[0][0]
            raise InputError(f"{name}: this image cannot be read ({named[0][1]})")
        raise BrokenPicturesError("these pictures", len(asked), named)
    return [
        Prediction(file=file, answers=(), problem=problems[place])
        if place in problems
        else _prediction(file, shares[place], card, top, reject)
        for place, file in enumerate(files)
    ]


def _prediction(
    file: str | None, shares: Tensor, card: NetworkCard, top: int, reject: float | None
) -> Prediction:
    """The answer of probabilities (C,)."""
    names = card.labels(len(shares))
    if len(names) != len(shares):
        raise InputError(f"the network has {len(shares)} outputs, but its card names {len(names)} classes")
    order = shares.argsort(descending=True, stable=True)[:top].tolist()
    answers = tuple(Answer(names[label], float(shares[label])) for label in order)
    return Prediction(
        file=file, answers=answers, rejected=reject is not None and answers[0].probability < reject
    )


def _called(file: str | None, place: int) -> str:
    return f"picture {place}, in memory" if file is None else printable(file, one_line=True)


def _batches(
    inputs: Iterator[tuple[int, Tensor | str]], problems: dict[int, str]
) -> Iterator[tuple[list[int], Tensor]]:
    """Places and inputs (N, channels, height, width), some at a time; ``problems`` get what is none."""
    places: list[int] = []
    images: list[Tensor] = []
    for place, found in inputs:
        if isinstance(found, str):
            problems[place] = found
            continue
        places.append(place)
        images.append(found)
        if len(images) >= min(_AT_ONCE, max(1, _VALUES // found.numel())):
            yield places, torch.stack(images)
            places, images = [], []
    if images:
        yield places, torch.stack(images)
