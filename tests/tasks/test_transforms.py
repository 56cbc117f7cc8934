from __future__ import annotations

import itertools

import pytest
import torch

from weightloom.errors import SpecError, UnknownNameError
from weightloom.tasks.transforms import apply_transform, parse_transform, transform_names, transform_words


def test_all_sixteen_differ():
    image = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4)
    seen = [apply_transform(image, name) for name in transform_names()]
    assert len(seen) == 16 and all(not torch.equal(a, b) for a, b in itertools.combinations(seen, 2))
    assert len({transform_words(name) for name in transform_names()}) == 16


def test_rotation_is_counter_clockwise_then_flip_then_invert():
    image = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8)[None, None]
    assert apply_transform(image, "rot90")[0, 0].tolist() == [[2, 4], [1, 3]]
    assert apply_transform(image, "rot90+flip+invert")[0, 0].tolist() == [[251, 253], [252, 254]]


def test_names_are_canonical():
    for name in transform_names():
        assert parse_transform(name) == name == parse_transform("+".join(reversed(name.split("+"))))
    assert parse_transform("") == "id" == parse_transform("+id")


def test_bad_names():
    with pytest.raises(UnknownNameError, match="did you mean 'rot90'"):
        parse_transform("rot9")
    for text in ("flip+flip", "rot90+rot180"):
        with pytest.raises(SpecError):
            parse_transform(text)
