"""``vit``: its attention against torch's own, its patches, its refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from weightloom.architectures import parse_architecture
from weightloom.architectures.vit import Attention, Patches
from weightloom.errors import SpecError


def test_attention_is_torchs_attention() -> None:
    mine = Attention(12, 3)
    x = torch.randn(2, 5, 12)

    def split(y: torch.Tensor) -> torch.Tensor:
        return y.reshape(2, 5, 3, 4).transpose(1, 2)

    fused = nn.functional.scaled_dot_product_attention(
        split(mine.query(x)), split(mine.key(x)), split(mine.value(x))
    )
    torch.testing.assert_close(mine(x), mine.out(fused.transpose(1, 2).reshape(2, 5, 12)))


def test_patches_are_those_of_a_strided_convolution() -> None:
    patches = Patches((3, 8, 12), patch=4, width=6, token=False)
    x = torch.randn(2, 3, 8, 12)
    kernel = patches.embed.weight.reshape(6, 3, 4, 4)
    expected = nn.functional.conv2d(x, kernel, patches.embed.bias, stride=4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patches(x), expected + patches.position)


def test_default_count_and_class_token() -> None:
    mean, token = (
        parse_architecture(f"vit(pool={pool})").resolve(classes=10, input=(3, 16, 16))
        for pool in ("mean", "token")
    )
    block = 4 * 32 * 32 + 3 * 32 + (32 * 64 + 64) + (64 * 32 + 32) + 4 * 32
    assert mean.num_parameters() == (48 * 32 + 32) + 16 * 32 + 4 * block + 2 * 32 + 330
    assert token.num_parameters() == mean.num_parameters() + 2 * 32  # the token and its position


def test_refusals() -> None:
    with pytest.raises(SpecError, match="width=30 cannot be split among heads=4"):
        parse_architecture("vit(width=30)")
    with pytest.raises(SpecError, match="pictures of 1x28x30 cannot be cut into patches of side patch=4"):
        parse_architecture("vit").resolve(classes=10, input=(1, 28, 30))
