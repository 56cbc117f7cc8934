from __future__ import annotations

import pytest
import torch

from weightloom.conditioning import stack_conditions


@pytest.fixture
def condition():
    words = [torch.ones(4), None]
    classes = [None, torch.ones(3, 5)]
    return stack_conditions(words, classes, text_width=4, shape=(3, 5))


def test_missing_parts_are_marked_and_zero(condition):
    assert len(condition) == 2 and condition.num_classes == 3
    assert condition.has_instruction.tolist() == [True, False]
    assert condition.has_classes.tolist() == [False, True]
    assert condition.has_architecture
    assert condition.instruction.tolist() == [[1] * 4, [0] * 4]
    assert not bool(condition.classes[0].any()) and bool(condition.classes[1].all())


def test_parts_can_be_taken_away(condition):
    assert condition.without("instruction").has_instruction.tolist() == [False, False]
    assert condition.without("instruction").has_classes.tolist() == [False, True]
    assert condition.without("dataset").has_classes.tolist() == [False, False]
    bare = condition.without("instruction", "dataset", "architecture")
    assert not bare.has_architecture and not bool(bare.has_classes.any() | bare.has_instruction.any())
    assert condition.has_instruction.tolist() == [True, False], "the original has changed"
    assert not bare.without().has_architecture


def test_requests_repeat_in_a_row(condition):
    many = condition.without("architecture").repeat(3)
    assert len(many) == 6 and not many.has_architecture
    assert many.has_instruction.tolist() == [True] * 3 + [False] * 3
    assert torch.equal(many.classes[3:], condition.classes[1:].expand(3, -1, -1))
