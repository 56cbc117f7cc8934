"""One token a layer: networks of any depth and width from one dictionary."""

from __future__ import annotations

import pytest
import torch

from weightloom.architectures import parse_architecture
from weightloom.errors import SpecError, UnsupportedRequestError
from weightloom.fitting import recalibrate, trunk_features
from weightloom.tokenizers.layers import LayerDictionary, places, widen
from weightloom.weights import layout_of

LARGEST = ("cnn(depth=6,width=8)", "mlp(depth=4,width=8)", "resnet(depth=20,width=4)")
SIZES = (
    "cnn(depth=1,width=8)",
    "cnn(depth=3,width=5)",
    "cnn(depth=5,width=8)",
    "cnn(depth=9,width=12)",
    "mlp(depth=1,width=3)",
    "mlp(depth=3,width=8)",
    "mlp(depth=7,width=20)",
    "resnet(depth=8,width=2)",
    "resnet(depth=14,width=4)",
    "resnet(depth=32,width=6)",
)


def spec(text, classes=3):
    return parse_architecture(text).resolve(classes=classes, input=(3, 16, 16))


@pytest.fixture(scope="module")
def dictionary():
    made = LayerDictionary([spec(text) for text in LARGEST], codes=4)
    with torch.no_grad():  # away from where tables start, so that every one of them matters
        for table in made.tables.values():
            table.add_(0.05 * torch.randn(table.shape, generator=torch.Generator().manual_seed(1)))
    return made


def latents(dictionary, text, count=2):
    shape = (count, dictionary.num_tokens(spec(text)), 4)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("text", SIZES)
def test_every_size_is_made_and_runs(dictionary, text):
    wanted = spec(text)
    flats = dictionary.decode(wanted, latents(dictionary, text))
    assert flats.shape == (2, layout_of(wanted).size) and bool(torch.isfinite(flats).all())
    assert not torch.equal(*flats), "codes matter"
    images = torch.randn(8, 3, 16, 16).clamp(-1, 1)
    features = trunk_features(wanted, recalibrate(wanted, flats, images), images)
    assert bool(torch.isfinite(features).all()) and float(features.std()) > 0


def test_a_narrower_network_takes_the_first_rows_and_columns(dictionary):
    wide, narrow = spec("mlp(depth=3,width=8)"), spec("mlp(depth=3,width=5)")
    z = torch.zeros(1, 3, 4)
    a = layout_of(wide).unflatten(dictionary.decode(wide, z)[0])
    b = layout_of(narrow).unflatten(dictionary.decode(narrow, z)[0])
    ratio = (8 / 5) ** 0.5  # each has weights of the size that its number of inputs asks for
    assert torch.allclose(b["body.3.weight"], a["body.3.weight"][:5, :5] * ratio, atol=1e-6)


def test_filters_before_a_batch_norm_are_of_the_size_of_an_initialisation(dictionary):
    """The norm takes the size out again; an optimiser does not."""
    wanted = spec("resnet(depth=14,width=3)")
    made = layout_of(wanted).unflatten(
        dictionary.decode(wanted, latents(dictionary, "resnet(depth=14,width=3)"))[0]
    )
    fresh = wanted.initialise(0).state_dict()
    for name, weight in made.items():
        if name.endswith("conv.weight"):
            assert torch.allclose(weight.std(), fresh[name].std(), rtol=0.3), name


@pytest.mark.parametrize(
    ("wide", "widest"),
    [
        ("cnn(depth=4,width=24)", "cnn(depth=4,width=8)"),
        ("resnet(depth=14,width=10)", "resnet(depth=14,width=4)"),
        ("mlp(depth=3,width=20)", "mlp(depth=3,width=8)"),
    ],
)
def test_a_wider_network_computes_the_same_function(dictionary, wide, widest):
    big, small = spec(wide), spec(widest)
    z = latents(dictionary, widest, 1)
    images = torch.randn(16, 3, 16, 16).clamp(-1, 1)
    flats = [dictionary.decode(s, z) for s in (big, small)]
    large, held = (
        trunk_features(s, recalibrate(s, flat, images), images)[0]
        for s, flat in zip((big, small), flats, strict=True)
    )
    places_of_a_channel = 4 if "cnn" in wide else 1  # a cnn's features are its channels at 2 x 2 places
    channels = held.shape[1] // places_of_a_channel
    large = large.unflatten(1, (-1, places_of_a_channel))
    held = held.unflatten(1, (channels, places_of_a_channel))
    copies = torch.arange(large.shape[1]) % channels
    assert torch.allclose(large, held[:, copies], atol=1e-4)


def test_copies_of_a_channel_do_not_share_their_inputs_evenly(dictionary):
    """Otherwise training could never tell them apart."""
    wanted = spec("cnn(depth=3,width=16)")
    state = layout_of(wanted).unflatten(dictionary.decode(wanted, torch.zeros(1, 3, 4))[0])
    weight = state["body.1.conv.weight"]  # (16, 16, 3, 3) of 8 channels
    assert not torch.allclose(weight[:, :8], weight[:, 8:])
    other = layout_of(wanted).unflatten(dictionary.decode(wanted, torch.zeros(1, 3, 4), seed=1)[0])
    assert not torch.equal(weight, other["body.1.conv.weight"])


def test_layers_of_one_role_are_interpolated_along_the_depth(dictionary):
    three = places(spec("mlp(depth=4,width=8)"))
    assert [p.position for p in three] == [0.0, 0.0, 0.5, 1.0]
    assert [p.role for p in three] == ["first.linear"] + ["hidden.linear"] * 3
    table = dictionary.tables["mlp/hidden-linear/weight"]
    made = dictionary.decode_layer(
        spec("mlp(depth=6,width=8)"), places(spec("mlp(depth=6,width=8)"))[2], torch.zeros(1, 4)
    )
    between = torch.lerp(table[0], table[1], 0.5)
    assert torch.allclose(next(iter(made.values()))[0], between, atol=1e-6)


def test_a_batch_equals_its_singles(dictionary):
    text = "resnet(depth=14,width=3)"
    z = latents(dictionary, text, 3)
    together = dictionary.decode(spec(text), z)
    for n in range(3):
        assert torch.allclose(dictionary.decode(spec(text), z[n : n + 1])[0], together[n], atol=1e-6)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("vgg(depth=2,width=4)", "cnn, mlp, resnet"),
        ("cnn(depth=3,width=8,kernel=5)", "kernel=3"),
        ("cnn(depth=3,width=8,norm=none)", "norm=batch"),
        ("mlp(depth=0,width=8,norm=batch)", "norm=none"),
    ],
)
def test_what_it_cannot_make_is_said(dictionary, text, words):
    with pytest.raises(UnsupportedRequestError, match=words):
        dictionary.check(spec(text))


def test_roles_that_were_never_learned_are_refused():
    shallow = LayerDictionary([spec("cnn(depth=2,width=4)")], codes=2)
    shallow.check(spec("cnn(depth=1,width=4)"))
    with pytest.raises(UnsupportedRequestError, match="this deep"):
        shallow.check(spec("cnn(depth=4,width=4)"))


def test_a_family_is_named_once():
    with pytest.raises(SpecError, match="each family"):
        LayerDictionary([spec("cnn(depth=2,width=4)"), spec("cnn(depth=3,width=4)")], codes=2)


def test_families_without_places_are_refused():
    with pytest.raises(UnsupportedRequestError, match="layer by layer"):
        places(spec("vit(depth=1,width=8)"))


@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (4, 3), (4, 3, 16)])
def test_a_wider_weight_is_the_same_whole_and_in_parts(shape):
    weight = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    wide = (10, 7, *shape[2:])
    whole = widen(weight, wide, ("role", 3))
    assert whole.shape == (2, *wide)
    for rows in (range(10), range(3, 8), range(0, 10, 4), range(9, 10)):
        assert torch.equal(widen(weight, wide, ("role", 3), rows), whole[:, list(rows)])
    # The copies of a channel share out what it feeds.
    shared = torch.stack([whole[:, :, column::3].sum(2) for column in range(3)], dim=2)
    assert torch.allclose(shared[:, :4], weight, atol=1e-6) and torch.equal(whole[:, :4], whole[:, 4:8])
    assert not torch.equal(whole, widen(weight, wide, ("role", 4)))


def test_a_wider_weight_in_inference_leaves_nothing_behind():
    weight, wide = torch.randn(1, 2, 3), (4, 8)
    with torch.inference_mode():
        first = widen(weight, wide, ("only here", 1))
    weight.requires_grad_()
    later = widen(weight, wide, ("only here", 1))
    later.square().sum().backward()
    assert torch.equal(first, later) and weight.grad.abs().min() > 0
