"""Tokens hold every value exactly once, head rows stay apart, descriptions are sane."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightloom.architectures import architecture_families, architectures, parse_architecture
from weightloom.errors import SpecError
from weightloom.weights import chunk_layout, layout_of
from weightloom.weights.chunking import NUM_FEATURES
from weightloom.weights.layout import KINDS

TEXTS = [architectures.get(family).example_texts()[-1] for family in architecture_families()]
TINY = ["mlp(depth=1,width=3)", "cnn(depth=1,width=4)", "resnet(depth=8,width=2)", "vit(depth=1,width=8)"]


def resolved(text, classes=10):
    spec = parse_architecture(text)
    return spec.resolve(classes=spec.classes or classes, input=spec.input or (3, 16, 16))


def check(layout, size):
    chunking = chunk_layout(layout, size)
    mask = chunking.mask
    assert mask.shape == (chunking.num_tokens, size) == chunking.gather.shape
    # A bijection: each value stands in one place, and that place is a held one.
    assert torch.equal(chunking.gather[mask].sort().values, torch.arange(layout.size))
    assert torch.equal(chunking.gather.flatten()[chunking.scatter], torch.arange(layout.size))
    assert int(mask.sum()) == layout.size and bool(mask.any(1).all())
    # Padding stands at the end of a token only.
    assert torch.equal(mask, torch.arange(size)[None] < mask.sum(1, keepdim=True))
    return chunking


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("size", [32, 288])
def test_every_family_is_cut_into_a_bijection(text, size):
    layout = layout_of(resolved(text))
    chunking = check(layout, size)
    flats = torch.randn(2, 3, layout.size)
    tokens = chunking.to_tokens(flats)
    assert tokens.shape == (2, 3, chunking.num_tokens, size)
    assert torch.equal(chunking.from_tokens(tokens), flats)
    assert bool((tokens[..., ~chunking.mask] == 0).all())
    tokens[..., ~chunking.mask] = torch.nan  # what stands in the padding must not matter
    assert torch.equal(chunking.from_tokens(tokens), flats)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(TINY), st.integers(1, 400), st.integers(2, 12))
def test_any_size_is_a_bijection(text, size, classes):
    check(layout_of(resolved(text, classes)), size)


@pytest.mark.parametrize("size", [1, 5, 16, 64, 300])
def test_head_tokens_belong_to_one_class_each(size):
    spec = resolved("cnn(depth=1,width=4)", classes=7)
    layout = layout_of(spec)
    chunking = chunk_layout(layout, size)
    slots = chunking.slots
    head = layout.layers[-1]
    start = layout.size - head.rows * head.cols
    for token in range(chunking.num_tokens):
        values = chunking.gather[token][chunking.mask[token]]
        if int(slots.class_index[token]) < 0:
            assert int(values.max()) < start and KINDS[slots.kind[token]] != "head"
        else:
            classes = (values - start) // head.cols
            assert bool((classes == slots.class_index[token]).all()) and KINDS[slots.kind[token]] == "head"
    assert set(slots.class_index.tolist()) - {-1} == set(range(7))


def test_the_trunk_is_the_same_for_any_number_of_classes():
    few, many = (chunk_layout(layout_of(resolved("cnn(depth=1,width=4)", c)), 16) for c in (3, 9))
    for name in ("kind", "layer", "position", "features"):
        a, b = (getattr(one.slots, name)[one.slots.class_index < 0] for one in (few, many))
        assert torch.equal(a, b), name


def test_tokens_keep_whole_units_while_they_fit():
    layout = layout_of(parse_architecture("mlp(depth=1,width=6,classes=2,input=1x1x3)"))  # 6 rows of 4 values
    chunking = chunk_layout(layout, 8)
    first = chunking.gather[:3]
    assert torch.equal(first, torch.arange(24).reshape(3, 8))
    long = chunk_layout(layout, 3)  # rows of 4 values in tokens of 3: two pieces of 2, none of 1
    assert bool((long.mask[:12].sum(1) == 2).all())


@pytest.mark.parametrize("text", TEXTS)
def test_descriptions_are_finite_bounded_and_tell_tokens_apart(text):
    chunking = chunk_layout(layout_of(resolved(text)), 64)
    slots = chunking.slots
    count = chunking.num_tokens
    assert len(slots) == count
    assert slots.features.shape == (count, NUM_FEATURES) and bool(torch.isfinite(slots.features).all())
    assert float(slots.features.abs().max()) <= 2
    for index in (slots.kind, slots.layer, slots.position, slots.class_index):
        assert index.shape == (count,) and index.dtype == torch.int64
    places = set(zip(slots.layer.tolist(), slots.position.tolist(), strict=True))
    assert len(places) == count
    for layer in range(int(slots.layer.max()) + 1):
        own = slots.position[slots.layer == layer]
        assert own.tolist() == list(range(len(own)))


@pytest.mark.parametrize("size", [0, -3])
def test_a_token_needs_a_value(size):
    with pytest.raises(SpecError, match="at least one value"):
        chunk_layout(layout_of(resolved(TINY[0])), size)
