from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.consolidation.conftest import small_state

from weightloom.consolidation.coding import CONTEXTS, SYMBOLS, prior_from
from weightloom.consolidation.compress import make_parts
from weightloom.consolidation.packing import Parts, duplicates, pack, shortened, size_of, unpack


def packed() -> tuple[Parts, dict[str, torch.Tensor], np.ndarray]:
    parts = make_parts(small_state(), {}, 0.0, error=0.02)
    counts = np.zeros((CONTEXTS, SYMBOLS))
    parts.add_counts(counts)
    prior = prior_from(counts)
    return parts, pack(parts, prior), prior


def test_parts_come_back_bit_for_bit() -> None:
    parts, bytes_, prior = packed()
    there, back = parts.state(), unpack(bytes_, prior).state()
    true = small_state()
    assert list(back) == list(true)
    assert all(torch.equal(back[name], there[name]) for name in true)
    assert {n: (t.shape, t.dtype) for n, t in back.items()} == {
        n: (t.shape, t.dtype) for n, t in true.items()
    }
    error = (back["hidden.weight"] - true["hidden.weight"]).norm() / true["hidden.weight"].norm()
    assert 0.01 < float(error) < 0.03
    assert torch.equal(back["steps"], true["steps"])
    assert float((back["first.bias"] - true["first.bias"]).abs().max()) < 1e-4


def test_what_is_there_twice_costs_once() -> None:
    state = small_state()
    assert duplicates(state) == {"copy.weight": "hidden.weight"}
    parts, bytes_, _ = packed()
    assert parts.values == sum(t.numel() for n, t in state.items() if n != "copy.weight")
    assert 8 * sum(size_of(bytes_).values()) / parts.values < 9


def test_a_difference_rests_on_the_other_checkpoint() -> None:
    true = small_state()
    near = {n: t * 1.01 if t.is_floating_point() else t for n, t in true.items()}
    whole = make_parts(near, {}, 0.0, error=0.02)
    rest = make_parts(near, {}, 0.0, error=0.02, base=("small", true))
    prior = packed()[2]
    assert size_of(pack(rest, prior))["stream"] < 0.5 * size_of(pack(whole, prior))["stream"]
    made = unpack(pack(rest, prior), prior)
    assert made.base == "small"
    error = (made.state(true)["hidden.weight"] - near["hidden.weight"]).norm() / near["hidden.weight"].norm()
    assert float(error) < 0.03


def test_three_bytes_keep_small_and_large_values_alike() -> None:
    values = torch.tensor([0.0, -0.0, 1e-30, -3.14159265, 65504.0, 3e38, -3.4028e38, 1e-42])
    short = shortened(values)
    assert torch.isfinite(short).all() and torch.equal(shortened(short), short)
    assert float(((short - values).abs() / values.abs().clamp(min=1e-38)).max()) < 1e-4


@pytest.mark.parametrize("part", ["header", "stream", "shorts", "whole"])
def test_bytes_that_are_missing_are_noticed(part: str) -> None:
    _, bytes_, prior = packed()
    cut = {**bytes_, part: bytes_[part][:-2]}
    with pytest.raises(Exception):  # noqa: B017 - the generator makes one error of all
        unpack(cut, prior)
