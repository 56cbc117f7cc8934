"""Tokens are told apart; what is known of an architecture is its own; the rest does without."""

from __future__ import annotations

import torch

from weightloom.architectures import parse_architecture
from weightloom.conditioning import SlotEncoder
from weightloom.weights import chunk_layout, layout_of

NAME = "cnn(depth=1,width=4,input=1x8x8)"


def slots_of(classes=3, text=NAME):
    spec = parse_architecture(text).resolve(classes=classes)
    return chunk_layout(layout_of(spec), 16).slots


def encoder():
    slots = slots_of()
    return SlotEncoder(width=8, known={NAME: int((slots.class_index < 0).sum())})


def test_every_token_has_a_vector_of_its_own():
    for name in (NAME, None):
        found = encoder()(slots_of(), name).detach()
        assert found.shape == (len(slots_of()), 8)
        assert float((torch.cdist(found, found) + torch.eye(len(found)) * 9).min()) > 1e-4


def test_known_vectors_are_used_where_the_name_is_given():
    one = encoder()
    slots = slots_of()
    plain = one(slots, None)
    assert not torch.allclose(one(slots, NAME), plain)
    assert torch.equal(one(slots, "mlp(depth=9)"), plain)
    with torch.no_grad():
        for parameter in one.own.values():
            parameter.zero_()
    assert torch.equal(one(slots, NAME), plain)


def test_head_tokens_share_one_vector_whatever_their_class():
    one = encoder()
    few, many = slots_of(3), slots_of(7)
    for slots in (few, many):
        own = one(slots, NAME) - one(slots, None)
        head = own[slots.class_index >= 0]
        assert torch.allclose(head, head[:1].expand_as(head), atol=1e-6)
    trunk = few.class_index < 0
    assert torch.allclose(one(few, NAME)[trunk], one(many, NAME)[many.class_index < 0], atol=1e-6)


def test_gradients_reach_every_parameter():
    one = encoder()
    one(slots_of(), NAME).square().sum().backward()
    for name, parameter in one.named_parameters():
        assert parameter.grad is not None, name


def test_more_classes_than_the_table_holds():
    found = encoder()(slots_of(70), NAME)
    assert len(found) == len(slots_of(70)) and bool(torch.isfinite(found).all())
