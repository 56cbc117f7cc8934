"""``mobilenet``: depthwise convolutions, three stages, any number of blocks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from weightloom.architectures import parse_architecture
from weightloom.architectures.mobilenet import InvertedResidual


@pytest.mark.parametrize("depth", [1, 2, 3, 7])
def test_any_number_of_blocks(depth: int) -> None:
    module = (
        parse_architecture(f"mobilenet(depth={depth},width=4)").resolve(classes=3, input=(3, 16, 16)).build()
    )
    blocks = [part for part in module.modules() if isinstance(part, InvertedResidual)]
    assert len(blocks) == depth
    halvings = [part for part in module.modules() if isinstance(part, nn.Conv2d) and part.stride == (2, 2)]
    assert len(halvings) == min(depth, 3) - 1
    depthwise = [part for part in module.modules() if isinstance(part, nn.Conv2d) and part.groups > 1]
    assert len(depthwise) == depth and all(part.groups == part.in_channels for part in depthwise)
    assert module(torch.zeros(2, 3, 16, 16)).shape == (2, 3)


def test_default_count() -> None:
    assert parse_architecture("mobilenet").resolve(classes=10, input=(3, 16, 16)).num_parameters() == 22_962


def test_without_expansion_nothing_is_widened() -> None:
    names = (
        parse_architecture("mobilenet(expansion=1)")
        .resolve(classes=3, input=(3, 16, 16))
        .build()
        .state_dict()
    )
    assert not any("widen" in name for name in names)
