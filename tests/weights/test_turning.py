"""A turned network answers to turned pictures as the network did to the pictures."""

from __future__ import annotations

import pytest
import torch

from weightloom.architectures import parse_architecture
from weightloom.errors import UnsupportedRequestError
from weightloom.fitting import initial_flats, run_networks
from weightloom.tasks.transforms import apply_transform, transform_names
from weightloom.weights.turning import turned, undone


def network(text, size=16):
    spec = parse_architecture(text).resolve(classes=4, input=(3, size, size))
    flat = initial_flats(spec, [3])[0]
    noise = torch.rand(flat.shape, generator=torch.Generator().manual_seed(1))
    return spec, flat + 0.3 * noise  # no norm is at its start, variances stay above zero


def pictures(size=16):
    return torch.randint(0, 256, (6, 3, size, size), generator=torch.Generator().manual_seed(2)).to(
        torch.uint8
    )


def to_float(pixels):
    return pixels.float() * (2 / 255) - 1


@pytest.mark.parametrize("transform", transform_names())
@pytest.mark.parametrize(
    "text", ["cnn(depth=3,width=6)", "cnn(depth=5,width=4,kernel=5,norm=none)", "mlp(depth=2,width=8)",
             "mlp(depth=0,width=8)"]
)  # fmt: skip
def test_it_is_exact_where_every_step_is_symmetric(text, transform):
    spec, flat = network(text)
    other = turned(spec, flat, transform)
    before = run_networks(spec, flat[None], to_float(pictures()))
    after = run_networks(spec, other[None], to_float(apply_transform(pictures(), transform)))
    assert torch.allclose(before, after, atol=1e-4)
    if transform != "id":
        assert not torch.equal(flat, other)


def test_negatives_are_exact_for_residual_networks_too():
    spec, flat = network("resnet(depth=8,width=4)")
    other = turned(spec, flat, "invert")
    images = to_float(pictures())
    assert torch.allclose(
        run_networks(spec, flat[None], images), run_networks(spec, other[None], -images), atol=1e-4
    )


@pytest.mark.parametrize("transform", transform_names())
def test_pictures_come_back(transform):
    there = to_float(apply_transform(pictures(), transform))
    assert torch.allclose(undone(there, transform), to_float(pictures()), atol=1e-6)


def test_a_family_that_cannot_be_turned_is_refused():
    spec, flat = network("vit(depth=1,width=8)")
    with pytest.raises(UnsupportedRequestError, match="'vit'"):
        turned(spec, flat, "rot90")
