"""Decoders: every width exactly, of unit variance at the start, with or without copies."""

from __future__ import annotations

import pytest
import torch

from weightloom.nn import CoordinateDecoder, TilingDecoder

MAKE = {
    "tiling": lambda **o: TilingDecoder(16, classes=5, block=8, kernel=3, **o),
    "coordinate": lambda **o: CoordinateDecoder(16, classes=5, rank=6, kernel=3, **o),
}


@pytest.fixture(params=sorted(MAKE))
def decoder(request):
    return MAKE[request.param]()


def test_every_width_comes_out_exactly(decoder):
    """The public code fails on 18 of the widths below 32."""
    states = torch.randn(2, 16)
    for width in (*range(1, 34), 100):
        assert decoder.weight(states, (width, 3, 3, 3)).shape == (2, width, 3, 3, 3)
        assert decoder.weight(states, (3, width, 1, 1)).shape == (2, 3, width, 1, 1)
        assert decoder.vectors(states, width).shape == (2, 2, width)
        assert decoder.head(states, width).shape == (2, 5, width)
    assert decoder.head_bias(states).shape == (2, 5)


@pytest.mark.parametrize("sides", [(1, 1), (1, 7), (7, 1), (2, 3), (5, 5), (16, 16)])
def test_every_kernel_comes_out_exactly(decoder, sides):
    made = decoder.weight(torch.randn(2, 16), (4, 3, *sides))
    assert made.shape == (2, 4, 3, *sides) and bool(torch.isfinite(made).all())


@pytest.mark.parametrize("kind", sorted(MAKE))
def test_the_start_is_of_unit_variance_with_quiet_heads_and_gains(kind):
    torch.manual_seed(0)
    decoder = {
        "tiling": TilingDecoder(32, classes=10),
        "coordinate": CoordinateDecoder(32, classes=10),
    }[kind]  # fmt: skip
    states = torch.nn.functional.layer_norm(torch.randn(200, 32), (32,))
    with torch.no_grad():
        assert 0.5 < float(decoder.weight(states, (32, 16, 3, 3)).var()) < 2.0
        for quiet in (decoder.vectors(states, 48), decoder.head(states, 64)):
            assert 0.03 < float(quiet.var()) < 0.2


@torch.no_grad()
def test_tensors_of_other_states_are_others():
    """A mean that all states share would make the layers of a network copies of each other."""
    torch.manual_seed(0)
    states = torch.nn.functional.layer_norm(torch.randn(50, 32), (32,))
    made = TilingDecoder(32, classes=10).weight(states, (16, 16, 3, 3)).flatten(1)
    alike = torch.nn.functional.normalize(made, dim=1) @ torch.nn.functional.normalize(made, dim=1).T
    assert float((alike - torch.eye(50)).mean()) < 0.2


def test_a_smaller_tensor_is_the_corner_of_a_larger_one():
    for make in MAKE.values():
        decoder, states = make(centred=False), torch.randn(1, 16)
        large = decoder.weight(states, (7, 6, 3, 3))
        assert torch.allclose(decoder.weight(states, (5, 2, 2, 1)), large[:, :5, :2, :2, :1], atol=1e-5)


def test_centred_kernels_share_their_middle():
    decoder, states = MAKE["tiling"](centred=True), torch.randn(1, 16)
    assert torch.allclose(
        decoder.weight(states, (4, 4, 1, 1))[..., 0, 0],
        decoder.weight(states, (4, 4, 3, 3))[..., 1, 1],
        atol=1e-5,
    )


@torch.no_grad()
def test_tiling_copies_and_coordinates_do_not():
    states = torch.randn(1, 16)
    tiled = MAKE["tiling"]().weight(states, (20, 20, 3, 3))[0]
    assert torch.equal(tiled[:8], tiled[8:16]) and torch.equal(tiled[:, :8], tiled[:, 8:16])
    free = MAKE["coordinate"]().weight(states, (200, 20, 3, 3))[0]
    apart = torch.cdist(free.flatten(1), free.flatten(1)) + torch.eye(200) * 9
    assert float(apart.min()) > 1e-3


def test_gradients_reach_every_parameter(decoder):
    states = torch.randn(3, 16, requires_grad=True)
    parts = [decoder.weight(states, (9, 9, 3, 3)), decoder.vectors(states, 9), decoder.head(states, 9)]
    (sum(part.square().sum() for part in parts) + decoder.head_bias(states).square().sum()).backward()
    assert states.grad is not None and bool(states.grad.abs().sum(1).gt(0).all())
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name
