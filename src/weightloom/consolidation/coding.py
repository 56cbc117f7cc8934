"""Codes to bits and back: one prior over the codes of all checkpoints, and a range coder.

A matrix of codes is read line by line along its shorter side. What is expected of a code's size is the
line's own level, which is written down, times how large this position has been in the lines so far,
relative to theirs. The prior is a table: for every expected size, how likely each code is; it is counted
over all checkpoints together. Everything a context is made of are whole numbers, so that writer and reader
agree on every machine. Large codes give their low bits away as they are.

The range coder is the ``constriction`` library's (Bamler, arXiv 2201.01741). Knows nothing of networks.

Shapes: L lines of K codes; S contexts; V symbols.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from weightloom.errors import DataUnavailableError

Ints = NDArray[np.int64]

ONE = 256
"""Sizes are in units of 1/256."""
LEVELS = 64
_SIZES = np.array([round(2 ** (k / 4 - 5) * ONE) for k in range(LEVELS)], dtype=np.int64)
_EDGES = np.array([round(2 ** (k / 4 + 3)) for k in range(1, 36)], dtype=np.int64)
CONTEXTS = len(_EDGES) + 1
_FULL = 16 * ONE
"""Codes that are expected to be larger than 16 lose low bits until they are not."""
REACH = 80
"""Symbols are -80 to 80, and one that says that a code lies further out."""
SYMBOLS = 2 * REACH + 2
_FAR = 1 << 12


def library() -> ModuleType:
    """The range coder. Raises DataUnavailableError with the command that installs it."""
    try:
        return importlib.import_module("constriction")
    except ImportError:
        raise DataUnavailableError(
            "consolidated checkpoints are read with the package constriction: "
            "pip install 'weightloom[consolidate]'"
        ) from None


def levels_of(lines: Ints) -> Ints:
    """(L,) the level of each line: its mean size, on a grid of quarter octaves."""
    mean = np.abs(lines).mean(1)
    return np.clip(np.round(4 * (np.log2(np.maximum(mean, 1e-9)) + 5)), 0, LEVELS - 1).astype(np.int64)


class Expectation:
    """What is expected of the codes of the next line, from those before."""

    def __init__(self, width: int) -> None:
        self.seen = np.zeros(width, dtype=np.int64)
        self.total = 0

    def contexts(self, level: int) -> tuple[Ints, Ints]:
        """Context and number of low bits for each of the (K,) codes of a line of ``level``."""
        size = int(_SIZES[level])
        prior = 3 * size + 1
        expected = size * (self.seen + prior) // (self.total + prior)
        low = np.zeros_like(expected)
        while bool((over := expected > _FULL).any()):
            expected = np.where(over, expected >> 1, expected)
            low += over
        return np.searchsorted(_EDGES, expected, side="right"), low

    def add(self, line: Ints, level: int) -> None:
        """Take in a line that is known now."""
        self.seen += np.abs(line) * ONE
        self.total += int(_SIZES[level])


def as_lines(codes: Ints) -> Ints:
    """The matrix along its shorter side."""
    return codes if codes.shape[0] <= codes.shape[1] else codes.T


def symbols_of(line: Ints, low: Ints) -> tuple[Ints, Ints]:
    """Symbols of a line, and what its low bits say."""
    high = line >> low
    symbol = np.where(np.abs(high) <= REACH, high + REACH, SYMBOLS - 1)
    return symbol, line - (high << low)


def walk(lines: Ints, levels: Ints) -> Iterator[tuple[Ints, Ints, Ints]]:
    """For every line its contexts, numbers of low bits, and symbols."""
    expectation = Expectation(lines.shape[1])
    for line, level in zip(lines, levels, strict=True):
        context, low = expectation.contexts(int(level))
        yield context, low, symbols_of(line, low)[0]
        expectation.add(line, int(level))


def count(codes: Ints, counts: NDArray[np.float64]) -> None:
    """Add the symbols of a matrix of codes to ``counts`` (S, V)."""
    lines = as_lines(codes)
    flat = counts.reshape(-1)
    for context, _, symbol in walk(lines, levels_of(lines)):
        flat += np.bincount(context * SYMBOLS + symbol, minlength=flat.size)


def prior_from(counts: NDArray[np.float64]) -> NDArray[np.float16]:
    """(S, V) the logarithms of the prior: what was counted, and a little of what a context expects.

    Both signs are alike.
    """
    c = counts.copy()
    c[:, :-1] = (c[:, :-1] + c[:, -2::-1]) / 2
    # A two-sided geometric distribution of the context's expected size, with a flat tail.
    size = 2.0 ** (np.arange(CONTEXTS) / 4 - 5)  # (S,)
    at = np.abs(np.arange(SYMBOLS) - REACH).astype(np.float64)
    expected = np.exp(-at[None] / (size[:, None] + 0.1))
    expected[:, -1] = 0
    expected = 0.999 * expected / expected.sum(1, keepdims=True) + 0.001 / SYMBOLS
    smooth = c + 30 * expected
    return np.log(smooth / smooth.sum(1, keepdims=True)).astype(np.float16)


def bits_of(codes: Ints, prior: NDArray[np.float16]) -> float:
    """How many bits the prior gives a matrix of codes, low bits included and lines' levels not."""
    table = _probabilities(prior)
    lines, total = as_lines(codes), 0.0
    for context, low, symbol in walk(lines, levels_of(lines)):
        total -= float(np.log2(table[context, symbol]).sum()) - float(low.sum())
        total += 24 * int((symbol == SYMBOLS - 1).sum())
    return total


def _probabilities(prior: NDArray[np.float16]) -> NDArray[np.float32]:
    table = np.exp(prior.astype(np.float64))
    return (table / table.sum(1, keepdims=True)).astype(np.float32)


@dataclass
class _Models:
    """The library's models: one for each context, and plain ones."""

    def __init__(self, prior: NDArray[np.float16]) -> None:
        self.model = library().stream.model
        self.tables = [self.model.Categorical(row, perfect=False) for row in _probabilities(prior)]
        self.uniform = {bits: self.model.Uniform(1 << bits) for bits in range(1, 25)}
        self.near = self.model.QuantizedLaplace(-2048, 2047, 0.0, 2.5)


class Writer:
    """Matrices of codes to one stream of bits."""

    def __init__(self, prior: NDArray[np.float16]) -> None:
        self.models = _Models(prior)
        self.coder = library().stream.queue.RangeEncoder()

    def numbers(self, values: Sequence[int] | Ints) -> None:
        """Whole numbers from -1000 to 1000 that change little from one to the next."""
        steps = np.diff(np.asarray(values, dtype=np.int32), prepend=0).astype(np.int32)
        assert not len(steps) or np.abs(steps).max() < 2047
        self.coder.encode(steps, self.models.near)

    def matrix(self, codes: Ints) -> None:
        """A matrix of codes below 2^23 in size."""
        lines = as_lines(codes)
        levels = levels_of(lines)
        self.numbers(levels)
        expectation = Expectation(lines.shape[1])
        for line, level in zip(lines, levels, strict=True):
            context, low = expectation.contexts(int(level))
            symbol, rest = symbols_of(line, low)
            for at, places in _by_value(context):
                self.coder.encode(symbol[places].astype(np.int32), self.models.tables[at])
            far = symbol == SYMBOLS - 1
            if bool(far.any()):
                value = (line >> low)[far] + (1 << 23)
                assert value.min() >= 0 and value.max() < 1 << 24, "a code beyond all measure"
                self.coder.encode((value >> 12).astype(np.int32), self.models.uniform[12])
                self.coder.encode((value % _FAR).astype(np.int32), self.models.uniform[12])
            for bits, places in _by_value(low):
                if bits:
                    self.coder.encode(rest[places].astype(np.int32), self.models.uniform[bits])
            expectation.add(line, int(level))

    def bits(self) -> NDArray[np.uint32]:
        """The stream."""
        return np.asarray(self.coder.get_compressed())


class Reader:
    """The same way back."""

    def __init__(self, prior: NDArray[np.float16], stream: NDArray[np.uint32]) -> None:
        self.models = _Models(prior)
        self.coder = library().stream.queue.RangeDecoder(stream)

    def numbers(self, count: int) -> Ints:
        """``count`` numbers as :meth:`Writer.numbers` wrote them."""
        return np.cumsum(self.coder.decode(self.models.near, count).astype(np.int64))

    def matrix(self, rows: int, columns: int) -> Ints:
        """(rows, columns) codes."""
        turned = rows > columns
        length, width = (columns, rows) if turned else (rows, columns)
        levels = self.numbers(length)
        if length and not 0 <= levels.min() <= levels.max() < LEVELS:
            raise ValueError("a level that cannot be")
        lines = np.empty((length, width), dtype=np.int64)
        expectation = Expectation(width)
        for index, level in enumerate(levels):
            context, low = expectation.contexts(int(level))
            symbol = np.empty(width, dtype=np.int64)
            for at, places in _by_value(context):
                symbol[places] = self.coder.decode(self.models.tables[at], len(places))
            high = symbol - REACH
            far = np.flatnonzero(symbol == SYMBOLS - 1)
            if len(far):
                top = self.coder.decode(self.models.uniform[12], len(far)).astype(np.int64)
                high[far] = (top << 12) + self.coder.decode(self.models.uniform[12], len(far)) - (1 << 23)
            line = high << low
            for bits, places in _by_value(low):
                if bits:
                    line[places] += self.coder.decode(self.models.uniform[bits], len(places))
            lines[index] = line
            expectation.add(line, int(level))
        return lines.T if turned else lines


def _by_value(values: Ints) -> list[tuple[int, Ints]]:
    """Each value with the places where it stands, in order."""
    order = np.argsort(values, kind="stable")
    found, starts = np.unique(values[order], return_index=True)
    return [(int(v), part) for v, part in zip(found, np.split(order, starts[1:]), strict=True)]
