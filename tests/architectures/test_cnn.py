"""``cnn``: its count, and its 2 x 2 map at any picture size and depth."""

from __future__ import annotations

import pytest
import torch

from weightloom.architectures import parse_architecture


def test_default_count() -> None:
    spec = parse_architecture("cnn").resolve(classes=10, input=(3, 16, 16))
    # 3 convolutions without bias, 3 batch norms, head on 16 channels of 2 x 2
    assert spec.num_parameters() == (3 + 16 + 16) * 16 * 9 + 3 * 32 + 64 * 10 + 10 == 5786
    assert parse_architecture("cnn(depth=3,width=16)") == parse_architecture("cnn")


@pytest.mark.parametrize("depth", [1, 3, 6])
@pytest.mark.parametrize("size", [(2, 2), (16, 16), (17, 31), (28, 28)])
def test_the_head_always_sees_a_map_of_two_by_two(depth: int, size: tuple[int, int]) -> None:
    spec = parse_architecture(f"cnn(depth={depth},width=4)").resolve(classes=3, input=(1, *size))
    module = spec.build()
    assert module.head.in_features == 4 * 4
    assert module(torch.zeros(2, 1, *size)).shape == (2, 3)


def test_a_convolution_has_a_bias_only_without_a_norm() -> None:
    normed, plain = (
        parse_architecture(f"cnn(norm={norm})").resolve(classes=10, input=(3, 16, 16))
        for norm in ("layer", "none")
    )
    assert "body.0.conv.bias" not in normed.build().state_dict()
    assert "body.0.conv.bias" in plain.build().state_dict()
