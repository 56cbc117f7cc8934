"""``tinycnn``: exactly the networks of the Tiny Model Zoo."""

from __future__ import annotations

import pytest
import torch

from weightloom.architectures import parse_architecture
from weightloom.errors import SpecError


@pytest.mark.parametrize(
    ("variant", "shape", "count", "flat"),
    [("small", (1, 28, 28), 2_464, 36), ("medium", (3, 32, 32), 10_853, 60)],
)
def test_the_published_counts(variant: str, shape: tuple[int, int, int], count: int, flat: int) -> None:
    spec = parse_architecture(f"tinycnn(variant={variant})").resolve(classes=10, input=shape)
    assert spec.num_parameters() == count
    shapes = [tuple(p.shape) for p in spec.build().parameters() if p.dim() == 2]
    assert shapes == [(20, flat), (10, 20)]


@pytest.mark.parametrize(("variant", "least"), [("small", 20), ("medium", 22)])
def test_the_smallest_picture(variant: str, least: int) -> None:
    text = f"tinycnn(variant={variant})"
    spec = parse_architecture(text).resolve(classes=4, input=(3, least, least))
    assert spec.build()(torch.zeros(2, 3, least, least)).shape == (2, 4)
    with pytest.raises(SpecError, match=f"at least {least} x {least} pixels"):
        parse_architecture(text).resolve(classes=4, input=(3, least, least - 1))
