"""Which bundled generators can answer where none is named."""

from __future__ import annotations

import pytest

from weightloom.architectures import parse_architecture
from weightloom.cli.naming import FIRST, OTHER, default_generators


@pytest.mark.parametrize(
    ("arch", "options", "wanted"),
    [
        ("cnn(depth=3,width=16)", {"classes": 5}, (FIRST, OTHER)),
        ("cnn(depth=3,width=16)", {"classes": 5, "more": True}, (FIRST,)),
        ("cnn(depth=3,width=16)", {"classes": 40}, (FIRST,)),
        ("cnn(depth=3,width=8)", {"classes": 5}, (OTHER,)),
        ("cnn(depth=3,width=16,classes=5)", {"classes": 5}, (FIRST, OTHER)),
        ("cnn(depth=3,width=16)", {"names": ("cat", "dog")}, (FIRST,)),
        ("cnn(depth=3,width=16)", {"instruction": "Tell cats from dogs"}, (FIRST,)),
        ("cnn(depth=3,width=8)", {"instruction": "Tell cats from dogs"}, (OTHER,)),
        ("cnn(depth=3,width=16)", {"instruction": "Sort photos"}, (OTHER,)),
        ("cnn(depth=3,width=16)", {}, (OTHER,)),
    ],
)
def test_which_ones_can_answer(arch, options, wanted, text_encoder):
    given = {"names": None, "instruction": None, "classes": None, **options}
    assert default_generators(spec=parse_architecture(arch), **given) == wanted


def test_without_a_sentence_encoder_examples_need_none(monkeypatch):
    monkeypatch.setattr("weightloom.conditioning.text.reads_text", lambda: False)
    spec = parse_architecture("cnn(depth=3,width=16)")
    assert default_generators(None, None, spec, classes=5) == (OTHER,)


def test_the_one_that_answers_left_out_examples_better_is_chosen(call, text_encoder):
    asked = ("generate", "--task", "digits", "--arch", "cnn(depth=3,width=16)", "--samples", "1")
    found = call(*asked, "--no-compare", "--json").json
    losses = found["generators_compared"]
    assert set(losses) == {FIRST, OTHER}
    assert found["generator"] == min(losses, key=losses.get) == OTHER  # whose zoo has these digits
    one = call(*asked, "--shots", "1", "--no-compare", "--json").json
    assert one["generators_compared"] is None and one["generator"] == FIRST
