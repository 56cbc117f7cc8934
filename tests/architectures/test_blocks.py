"""Shared pieces: the poolings chosen at build time, and normalisations at their edge sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from weightloom.architectures.blocks import average_to_two, conv_norm, halving


@pytest.mark.parametrize("high", range(2, 14))
@pytest.mark.parametrize("wide", [2, 5, 8])
def test_average_to_two_is_the_adaptive_pooling(high: int, wide: int) -> None:
    pool, *after = average_to_two(high, wide)
    assert after == [2, 2]
    x = torch.randn(1, 2, high, wide)
    torch.testing.assert_close(x if pool is None else pool(x), nn.AdaptiveAvgPool2d(2)(x))


def test_a_side_of_one_place_stays() -> None:
    pool, *after = average_to_two(1, 6)
    assert after == [1, 2] and pool is not None
    assert pool(torch.randn(1, 2, 1, 6)).shape == (1, 2, 1, 2)
    assert average_to_two(1, 2) == (None, 1, 2)


@pytest.mark.parametrize(("size", "after"), [((16, 16), (8, 8)), ((3, 9), (3, 4)), ((3, 2), (3, 2))])
def test_halving_stops_at_two_places(size: tuple[int, int], after: tuple[int, int]) -> None:
    pool, high, wide = halving(*size)
    assert (high, wide) == after
    assert (pool is None) == (size == after)
    if pool is not None:
        assert pool(torch.randn(1, 1, *size)).shape[2:] == after


@pytest.mark.parametrize("channels", [2, 3, 6, 8, 16, 48])
def test_group_norm_never_has_groups_of_one_channel(channels: int) -> None:
    norm = conv_norm("group", channels)
    assert isinstance(norm, nn.GroupNorm)
    assert norm.num_groups <= 8 and channels // norm.num_groups >= 2
    assert norm(torch.randn(1, channels, 1, 1)).shape == (1, channels, 1, 1)
