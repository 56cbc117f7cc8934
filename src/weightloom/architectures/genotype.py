"""Genotypes of random cell networks, in the spirit of DeepNets-1M, drawn on the fly from an address.

A genotype says which operations a network's cells are made of and how they hang together; it knows no
tensors. Every number comes from a private stream named by (salt, space, split, index, attempt), so that
splits share nothing and no file of a million networks is needed.

Source: Knyazev et al. (arXiv 2110.13100), appendix B and table 1, for operations, rules and ranges.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from weightloom.seeding import seed_for

T = TypeVar("T")

OPERATIONS = (
    "none",
    "max_pool",
    "avg_pool",
    "skip",
    "sep_conv_3",
    "sep_conv_5",
    "dil_conv_3",
    "dil_conv_5",
    "conv_1",
    "conv_7x1",
    "conv_3",
    "conv_5",
    "conv_7",
    "attention",
    "gate",
)
"""What an edge of a cell can be; ``gate`` is squeeze-and-excitation."""

POOLING = ("max_pool", "avg_pool", "skip")
SPLITS = ("train", "val", "test", "wide", "deep", "dense", "bn-free")


class Edge(NamedTuple):
    """One operation of a cell and which earlier state it reads (0 and 1 are the two cells before)."""

    operation: str
    reads: int


@dataclass(frozen=True)
class Cell:
    """Steps of two edges each, whose sum is a new state, and the states that are joined in the end."""

    steps: tuple[tuple[Edge, Edge], ...]
    joined: tuple[int, ...]


@dataclass(frozen=True)
class Genotype:
    """Everything of a network but its input and its classes.

    Attributes:
        cells: number of cells; those at a third and at two thirds halve the map.
        normal, reduction: the two kinds of cells.
        width: channels of the first cells.
        growth: what the channels are multiplied by at a reduction, 1 or 2.
        norm: batch norms after convolutions, or biases in them.
        preprocess: 1 x 1 convolutions bring what a cell reads to its channels.
        kernel: of the stem's first convolution.
        stem: ``simple`` keeps the map, ``pooled`` halves it, ``deep`` halves it with strides.
        global_average: the map is averaged before the last layers, or flattened.
        hidden: neurons of linear layers before the head.
    """

    cells: int
    normal: Cell
    reduction: Cell
    width: int
    growth: int
    norm: bool
    preprocess: bool
    kernel: int
    stem: str
    global_average: bool
    hidden: tuple[int, ...]

    @property
    def reductions(self) -> frozenset[int]:
        """Which cells halve the map."""
        return frozenset({self.cells // 3, 2 * self.cells // 3} - {0})

    @property
    def attends(self) -> bool:
        """Whether any cell has attention, which needs positions."""
        return any(edge.operation == "attention" for edge in _edges(self.normal, self.reduction))


@dataclass(frozen=True, kw_only=True)
class Space:
    """Ranges to draw from, both ends included."""

    cells: tuple[int, int]
    shallow: tuple[int, int]
    """Networks of more cells than a number of this range have fewer steps a cell."""
    steps: tuple[int, int]
    deep_steps: tuple[int, int]
    widths: tuple[int, ...]
    hidden: tuple[int, ...]
    stems: tuple[str, ...]
    norm: bool | None = None
    """Always or never; None for the rule of the paper."""


def _space(base: Space, **changes: object) -> Space:
    return Space(**{**base.__dict__, **changes})  # type: ignore[arg-type]


_DEEPNETS = Space(
    cells=(4, 18),
    shallow=(7, 10),
    steps=(1, 4),
    deep_steps=(1, 2),
    widths=tuple(range(32, 65, 16)),
    hidden=tuple(range(64, 513, 64)),
    stems=("simple", "pooled", "deep"),
)
_TINY = Space(
    cells=(1, 4),
    shallow=(2, 3),
    steps=(1, 3),
    deep_steps=(1, 2),
    widths=(8, 10, 12, 14, 16, 20, 24),
    hidden=(16, 24, 32, 48),
    stems=("pooled", "deep"),
)

SPACES: dict[str, dict[str, Space]] = {
    name: {
        "train": base,
        "val": base,
        "test": base,
        "wide": _space(base, widths=tuple(4 * width for width in base.widths)),
        "deep": _space(base, cells=deep, shallow=(deep_after, deep_after)),
        "dense": _space(base, steps=dense, deep_steps=dense_deep),
        "bn-free": _space(base, norm=False),
    }
    for name, base, deep, deep_after, dense, dense_deep in (
        ("deepnets", _DEEPNETS, (10, 36), 18, (2, 10), (2, 6)),
        ("tiny", _TINY, (5, 8), 6, (3, 6), (3, 4)),
    )
}
"""``deepnets`` has the paper's ranges, ``tiny`` those that a few CPU cores can train on."""


class Draw:
    """Choices from one private stream."""

    def __init__(self, *address: str | int) -> None:
        self._stream = random.Random(seed_for(*address))

    def chance(self, share: float) -> bool:
        """True in this share of the draws."""
        return self._stream.random() < share

    def pick(self, items: Sequence[T]) -> T:
        """One of ``items``; by ``random()`` alone, whose values Python promises to keep."""
        return items[int(self._stream.random() * len(items))]

    def whole(self, low: int, high: int) -> int:
        """From ``low`` to ``high``, both included."""
        return self.pick(range(low, high + 1))

    def two(self, count: int) -> tuple[int, int]:
        """Two different numbers below ``count``, in order."""
        first, second = self.whole(0, count - 1), self.whole(0, count - 2)
        second += second >= first
        return min(first, second), max(first, second)


def draw_genotype(space: str, split: str, index: int, attempt: int, salt: int = 0) -> Genotype | None:
    """One draw, or None where the rules refuse it.

    Example:
        >>> first = draw_genotype("tiny", "train", 0, 2)
        >>> first == draw_genotype("tiny", "train", 0, 2), first == draw_genotype("tiny", "test", 0, 2)
        (True, False)
    """
    limits = SPACES[space][split]
    draw = Draw("deepnet", salt, space, split, index, attempt)
    cells = draw.whole(*limits.cells)
    threshold = draw.whole(*limits.shallow)
    steps = draw.whole(*(limits.deep_steps if cells > threshold else limits.steps))
    normal = _draw_cell(draw, steps, OPERATIONS)
    reduction = _draw_cell(draw, steps, POOLING if draw.chance(0.5) else OPERATIONS)
    if not _allowed(normal, reduction):
        return None
    attends = any(edge.operation == "attention" for edge in _edges(normal, reduction))
    growth = draw.pick((1, 2))
    norm = limits.norm
    if norm is None:
        norm = not (cells <= limits.cells[0] + 1 and steps <= 2 and draw.chance(0.5))
    return Genotype(
        cells=cells,
        normal=normal,
        reduction=reduction,
        width=draw.pick(limits.widths),
        growth=growth,
        norm=norm,
        preprocess=steps > 1 or growth > 1 or not attends or draw.chance(0.2),
        kernel=draw.pick((3, 5, 7)),
        stem=draw.pick(limits.stems),
        global_average=attends or cells > threshold or draw.chance(0.9),
        hidden=(draw.pick(limits.hidden),) if draw.chance(0.5) else (),
    )


def _draw_cell(draw: Draw, steps: int, operations: Sequence[str]) -> Cell:
    # "none" with a single step could leave a cell without any connection.
    usable = [op for op in operations if op != "none" or steps > 1]
    made = []
    for step in range(steps):
        first, second = draw.two(step + 2)
        made.append((Edge(draw.pick(usable), first), Edge(draw.pick(usable), second)))
    joined = list(range(2, steps + 2))
    if steps > 1 and draw.chance(0.5):
        joined = [state for state in joined[:-1] if draw.chance(0.5)] + joined[-1:]
    return Cell(tuple(made), tuple(joined))


def _edges(*cells: Cell) -> list[Edge]:
    return [edge for cell in cells for step in cell.steps for edge in step]


def _allowed(normal: Cell, reduction: Cell) -> bool:
    """The paper's rules: something that learns, at most one gate and one large kernel a cell."""
    for cell in (normal, reduction):
        names = [edge.operation for edge in _edges(cell)]
        if names.count("gate") > 1 or sum(name in ("conv_5", "conv_7") for name in names) > 1:
            return False
        if any(all(edge.operation == "none" for edge in step) for step in cell.steps):
            return False
    names = [edge.operation for edge in _edges(normal, reduction)]
    convolves = any("conv" in name for name in names)
    return (convolves or "attention" in names) and (convolves or "gate" not in names)
