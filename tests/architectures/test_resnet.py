"""``resnet``: depths of 6n+2 and the published size of ResNet-20."""

from __future__ import annotations

import pytest
from torch import nn

from weightloom.architectures import parse_architecture
from weightloom.errors import SpecError


def test_resnet20_has_the_published_size() -> None:
    spec = parse_architecture("resnet(depth=20)").resolve(classes=10, input=(3, 32, 32))
    # 269,722 with parameter-free shortcuts (He et al., table 6: 0.27 M) and two 1 x 1 shortcuts with norm.
    assert spec.num_parameters() == 269_722 + (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)


@pytest.mark.parametrize("depth", [8, 14])
def test_depth_counts_the_weighted_layers(depth: int) -> None:
    module = (
        parse_architecture(f"resnet(depth={depth},width=4)").resolve(classes=3, input=(3, 16, 16)).build()
    )
    weighted = [
        name
        for name, part in module.named_modules()
        if isinstance(part, (nn.Conv2d, nn.Linear)) and "shortcut" not in name
    ]
    assert len(weighted) == depth


def test_other_depths_are_refused_with_the_nearest() -> None:
    with pytest.raises(SpecError, match=r"6n\+2 .* got 18; take 14 or 20"):
        parse_architecture("resnet(depth=18)")
