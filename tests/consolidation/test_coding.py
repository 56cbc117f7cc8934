from __future__ import annotations

import numpy as np
import pytest

from weightloom.consolidation.coding import (
    CONTEXTS,
    SYMBOLS,
    Reader,
    Writer,
    bits_of,
    count,
    library,
    prior_from,
)
from weightloom.errors import DataUnavailableError


def matrices() -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    scales = np.exp(draw.normal(0, 2, (60, 1)))
    return [
        np.round(draw.normal(0, 3, (40, 70))).astype(np.int64),
        np.round(draw.standard_cauchy((60, 9)) * scales).astype(np.int64).clip(-(2**22), 2**22),
        np.zeros((5, 4), dtype=np.int64),
        np.round(draw.normal(0, 4000, (3, 200))).astype(np.int64),
        np.array([[7]], dtype=np.int64),
    ]


def prior() -> np.ndarray:
    counts = np.zeros((CONTEXTS, SYMBOLS))
    for matrix in matrices()[:2]:
        count(matrix, counts)
    return prior_from(counts)


def test_what_is_written_is_read_back_exactly() -> None:
    writer, steps = Writer(prior()), np.array([-500, -498, 3, 3, 900])
    for matrix in matrices():
        writer.matrix(matrix)
        writer.numbers(steps)
    reader = Reader(prior(), writer.bits())
    for matrix in matrices():
        assert np.array_equal(reader.matrix(*matrix.shape), matrix)
        assert np.array_equal(reader.numbers(len(steps)), steps)


def test_the_stream_is_as_short_as_the_prior_says() -> None:
    matrix = matrices()[0]
    writer = Writer(prior())
    writer.matrix(matrix)
    said, written = bits_of(matrix, prior()), 32 * len(writer.bits())
    assert said <= written <= said + 6 * 40 + 64  # levels of 40 lines, and the end of the stream


def test_the_prior_is_near_the_entropy_of_gaussian_codes() -> None:
    draw = np.random.default_rng(1)
    matrix = np.round(draw.normal(0, 6, (200, 500))).astype(np.int64)
    counts = np.zeros((CONTEXTS, SYMBOLS))
    count(matrix, counts)
    entropy = np.log2(6 * np.sqrt(2 * np.pi * np.e))
    assert bits_of(matrix, prior_from(counts)) / matrix.size < entropy + 0.03


def test_rows_of_different_size_cost_what_each_needs() -> None:
    draw = np.random.default_rng(2)
    scales = np.repeat([1.0, 64.0], 128)[:, None]
    matrix = np.round(draw.normal(0, 1, (256, 128)) * scales).astype(np.int64)
    counts = np.zeros((CONTEXTS, SYMBOLS))
    count(matrix, counts)
    entropy = np.log2(np.sqrt(2 * np.pi * np.e)) + np.log2(64) / 2
    assert bits_of(matrix, prior_from(counts)) / matrix.size < entropy + 0.25


def test_without_the_library_there_is_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "constriction", None)
    with pytest.raises(DataUnavailableError, match=r"pip install 'weightloom\[consolidate\]'"):
        library()
