"""Which bundled generator answers where none is named."""

from __future__ import annotations

import pytest

from weightloom.architectures import parse_architecture
from weightloom.cli.naming import FIRST, OTHER, default_generator


@pytest.mark.parametrize(
    ("arch", "options", "wanted"),
    [
        ("cnn(depth=3,width=16)", {"examples": True}, FIRST),
        ("cnn(depth=4,width=24)", {"examples": True, "dataset": "cifar10"}, FIRST),
        ("cnn(depth=3,width=8)", {"examples": True}, OTHER),
        ("cnn(depth=3,width=16)", {"examples": True, "dataset": "digits"}, OTHER),
        ("cnn(depth=3,width=16)", {"examples": True, "dataset": "mnist"}, FIRST),
        ("cnn(depth=3,width=16,classes=5)", {"examples": True}, FIRST),
        ("cnn(depth=3,width=16)", {"names": ("cat", "dog"), "examples": False}, FIRST),
        ("cnn(depth=3,width=16)", {"instruction": "Tell cats from dogs", "examples": False}, FIRST),
        ("cnn(depth=3,width=8)", {"instruction": "Tell cats from dogs", "examples": False}, OTHER),
        ("cnn(depth=3,width=16)", {"instruction": "Sort photos", "examples": False}, OTHER),
        ("cnn(depth=3,width=16)", {"examples": False}, OTHER),
    ],
)
def test_which_one_answers(arch, options, wanted, text_encoder):
    given = {"names": None, "instruction": None, **options}
    assert default_generator(spec=parse_architecture(arch), **given) == wanted


def test_without_a_sentence_encoder_examples_need_none(monkeypatch):
    monkeypatch.setattr("weightloom.conditioning.text.reads_text", lambda: False)
    spec = parse_architecture("cnn(depth=3,width=16)")
    assert default_generator(None, None, spec, examples=True) == OTHER
