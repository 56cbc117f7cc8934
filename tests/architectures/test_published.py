"""Families of published networks: with the published weights they are what was published."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from weightloom.architectures import parse_architecture
from weightloom.architectures.blocks import Rescale, Root, scaled_width
from weightloom.consolidation.networks import networks
from weightloom.errors import InputError
from weightloom.generators.trunks import checkpoint_of, installed, trunk_of

FAMILIES = {
    "efficientnet-lite": ("efficientnet-lite", (0.498,) * 3, (0.502,) * 3),
    "efficientnet-lite(size=1)": ("efficientnet-lite", (0.498,) * 3, (0.502,) * 3),
    "efficientnet-lite(size=2)": ("efficientnet-lite", (0.498,) * 3, (0.502,) * 3),
    "mobilenetv2": ("mobilenet-v2", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Architecture, forward pass of the published weights, and mean and deviation of the pixels it reads."""


def resolved(text: str, classes: int = 3, input: tuple[int, int, int] = (3, 64, 64)):
    return parse_architecture(text).resolve(classes=classes, input=input)


@pytest.mark.parametrize("side", [64, 75])
@pytest.mark.parametrize("text", FAMILIES)
def test_with_published_weights_it_is_the_published_network(text, side):
    """Sides that are no multiple of 32 are padded as the publishers pad them."""
    if not installed(parse_architecture(text)):
        pytest.skip("the package with the weights is not installed")
    name, mean, deviation = FAMILIES[text]
    options = "ending=plain" if "(" not in text else "ending=plain," + text.partition("(")[2][:-1]
    spec = resolved(f"{text.partition('(')[0]}({options})", 1000, (3, side, side))
    held = checkpoint_of(spec).read()
    weight, bias = list(held.values())[-2:]
    module = spec.build().eval()
    module.load_state_dict({**trunk_of(spec).body, "head.weight": weight, "head.bias": bias})
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(side))
    own = (images - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]
    with torch.no_grad():
        made, wanted = module(2 * images - 1), networks.get(name)(held, own)
    assert made.shape == (2, 1000) and float(wanted.std()) > 0.5
    assert torch.allclose(made, wanted, atol=1e-3 * float(wanted.abs().max()))


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        # Published counts without the last layer, 1,281,000, and with one of three classes.
        ("efficientnet-lite", 4_652_008 - 1_281_000 + 3 * 1281),
        ("mobilenetv2", 3_504_872 - 1_281_000 + 3 * 1281),
    ],
)
def test_parameters_are_those_of_the_published_networks(text, parameters):
    assert resolved(text).num_parameters() == parameters


def test_larger_sizes_are_deeper_and_wider():
    counts = [resolved(f"efficientnet-lite(size={size},scale=10)").num_parameters() for size in range(3)]
    assert counts == sorted(set(counts))


@pytest.mark.parametrize("text", ["efficientnet-lite(scale=5)", "mobilenetv2(scale=5)"])
@pytest.mark.parametrize("input", [(1, 8, 8), (3, 8, 8), (3, 33, 33), (3, 96, 96)])
def test_any_size_and_grey_pictures(text, input):
    module = resolved(text, input=input).initialise(0).eval()
    images = torch.rand(2, *input) * 2 - 1
    with torch.no_grad():
        made = module(images)
        assert made.shape == (2, 3) and bool(torch.isfinite(made).all())
        if input[0] == 1:  # grey is three equal channels
            colour = resolved(text, input=(3, *input[1:])).build().eval()
            colour.load_state_dict(module.state_dict())
            assert torch.allclose(colour(images.expand(-1, 3, -1, -1)), made, atol=1e-6)


def test_what_the_head_sees():
    spec = resolved("efficientnet-lite(scale=10)")
    module = spec.initialise(0).eval()
    images = torch.rand(3, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        features = module.features(images)
    assert torch.allclose(features.norm(dim=1), torch.ones(3), atol=1e-5)
    plain = resolved("efficientnet-lite(scale=10,ending=plain)").build().eval()
    plain.load_state_dict(module.state_dict())
    with torch.no_grad():
        assert torch.allclose(Root()(plain.features(images)), features, atol=1e-6)


def test_roots_have_gradients_at_zero():
    zero = torch.zeros(2, 4, requires_grad=True)
    Root()(zero)[:, 0].sum().backward()
    assert bool(torch.isfinite(zero.grad).all())


def test_scaling_of_pixels_has_no_weights():
    scale = Rescale((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    assert not list(scale.state_dict()) and not list(scale.parameters())
    black = scale(torch.full((1, 3, 2, 2), -1.0))[0, :, 0, 0]
    assert torch.allclose(black, torch.tensor([-2.5, -2.0, -1.5]), atol=1e-6)


def test_widths_are_rounded_as_published():
    assert [scaled_width(c, 1.1) for c in (16, 24, 40, 80, 112, 192, 320)] == [16, 24, 48, 88, 120, 208, 352]
    assert [scaled_width(c, 0.1) for c in (16, 32, 1280)] == [2, 3, 128]


def test_batch_norms_of_efficientnets_have_their_own_constant():
    for text, eps in (("efficientnet-lite(scale=5)", 1e-3), ("mobilenetv2(scale=5)", 1e-5)):
        norms = [part.eps for part in resolved(text).build().modules() if isinstance(part, nn.BatchNorm2d)]
        assert norms and set(norms) == {eps}


@pytest.mark.parametrize(
    "text",
    [
        "efficientnet-lite(size=3)",
        "efficientnet-lite(size=-1)",
        "efficientnet-lite(scale=0)",
        "efficientnet-lite(ending=roots)",
        "mobilenetv2(size=1)",
        "mobilenetv2(scale=1000)",
    ],
)
def test_bad_options(text):
    with pytest.raises(InputError) as caught:
        parse_architecture(text)
    assert "\n" not in str(caught.value)
