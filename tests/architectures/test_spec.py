"""The common part of every family: text, JSON, resolving, bad input, building, counting, seeding."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

from weightloom.architectures import (
    ArchitectureSpec,
    architecture_families,
    architecture_from_json,
    architectures,
    parse_architecture,
)
from weightloom.architectures.spec import MAX_PARAMETERS, Choice, Shape, Whole, option_rules
from weightloom.errors import InputError, SpecError, UnknownNameError

FAMILIES = architecture_families()
PUBLISHED = ("efficientnet-lite", "mobilenetv2")  # made for photographs, with fixed activations


def resolved(text: str) -> ArchitectureSpec:
    spec = parse_architecture(text)
    return spec.resolve(classes=spec.classes or 10, input=spec.input or (3, 16, 16))


EXAMPLES = [text for family in FAMILIES for text in architectures.get(family).example_texts()]


def value_strategy(rule: object) -> st.SearchStrategy[Any]:
    if isinstance(rule, Whole):
        numbers = st.integers(rule.low, rule.high)
        return numbers.map(lambda n: n if n % 2 else max(n - 1, rule.low)) if rule.odd else numbers
    if isinstance(rule, Choice):
        return st.sampled_from(rule.names)
    assert isinstance(rule, Shape)
    return st.tuples(st.integers(1, rule.channels), *[st.integers(1, rule.side)] * 2)


@st.composite
def specs(draw: st.DrawFn) -> ArchitectureSpec:
    """Any valid spec of any family, each option left out, at its default or anywhere in its bounds."""
    family = draw(st.sampled_from(FAMILIES))
    cls = architectures.get(family)
    values: dict[str, Any] = {}
    for name, rule, default in option_rules(cls):
        if draw(st.booleans()):
            values[name] = draw(st.just(default) | value_strategy(rule))
    # The combinations that the families forbid.
    if "depth" in values and family == "resnet":
        values["depth"] = values["depth"] // 6 * 6 + 2
    if family == "vit":
        values["heads"] = draw(st.sampled_from([1, 2, 4]))
        values["width"] = values["heads"] * draw(st.integers(2, 100))
        values["patch"] = draw(st.integers(1, 64))
    if values.get("input") is not None:
        channels, *sides = values["input"]
        step = values["patch"] if family == "vit" else 1
        high, wide = (max(side // step, 1) * step for side in sides)
        least = 22 if family == "tinycnn" else 1
        if family in PUBLISHED:
            channels = 1 if channels < 512 else 3
        values["input"] = (channels, max(high, least), max(wide, least))
    return cls(**values)


@given(spec=specs())
def test_text_and_json_round_trip(spec: ArchitectureSpec) -> None:
    assert parse_architecture(str(spec)) == spec
    assert parse_architecture(spec.full_text()) == spec
    assert parse_architecture(spec.full_text().upper().replace(",", " ,\n ").replace("=", " = ")) == spec
    assert architecture_from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert len(spec.full_text()) < 200


@given(spec=specs())
def test_short_text_is_canonical(spec: ArchitectureSpec) -> None:
    short, full = str(spec), spec.full_text()
    assert str(parse_architecture(full)) == short
    parts = short.removeprefix(spec.family).strip("()").split(",")
    order = [part for part in full.removeprefix(spec.family).strip("()").split(",") if part in parts]
    assert order == [part for part in parts if part]
    defaults = {f"{option.name}={option.default}" for option in spec.options()}
    assert not defaults & set(parts)


@given(text=st.text(max_size=60) | st.text("cnvgmlp(),=dethwi0123456789x-. ", max_size=60))
@settings(max_examples=300)
def test_any_text_is_a_spec_or_one_clear_sentence(text: str) -> None:
    try:
        parse_architecture(text)
    except (SpecError, UnknownNameError) as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) < 500


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(
    data=JSON
    | st.fixed_dictionaries(
        {"family": st.sampled_from(FAMILIES)},
        optional={"depth": JSON, "width": JSON, "norm": JSON, "classes": JSON, "input": JSON},
    )
)
@settings(max_examples=300)
def test_any_json_is_a_spec_or_one_clear_sentence(data: Any) -> None:
    try:
        architecture_from_json(data)
    except (SpecError, UnknownNameError) as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) < 500


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "nothing where a family's name belongs"),
        ("cnm(depth=3)", "did you mean 'cnn'"),
        ("cnn(dept=3)", "did you mean 'depth'"),
        ("cnn(norm=bach)", "did you mean 'batch'"),
        ("cnn(activation=mish)", "one of relu, leaky_relu, gelu, silu, tanh"),
        ("cnn(depth=3", "nothing where ',' or ')' belongs"),
        ("cnn(depth=3))", "')' where the end belongs"),
        ("cnn(depth=(3))", "'(' where a value of depth belongs"),
        ("cnn(depth=3,)", "')' where an option's name belongs"),
        ("cnn(depth)", "')' where '=' after depth belongs"),
        ("cnn depth=3", "'depth' where '(' belongs"),
        ("cnn" + "(" * 900, "'(' where an option's name belongs"),
        ("cnn(depth=3,depth=4)", "gives depth twice"),
        ("cnn(depth=-1)", "a whole number from 1 to 200, got -1"),
        ("cnn(depth=0)", "got 0"),
        ("cnn(depth=3.5)", "got '3.5'"),
        ("cnn(depth=1e3)", "got '1e3'"),
        ("cnn(depth=nan)", "got 'nan'"),
        ("cnn(depth=inf)", "got 'inf'"),
        ("cnn(depth=three)", "got 'three'"),
        ("cnn(depth=auto)", "got 'auto'"),
        ("cnn(width=" + "9" * 500 + ")", "width must be a whole number from 2 to 4096"),
        ("cnn(width=999999999999)", "got 999999999999"),
        ("cnn(kernel=4)", "an odd number from 1 to 11"),
        ("cnn(input=16x16)", "such as 3x16x16"),
        ("cnn(input=3x16x0)", "such as 3x16x16"),
        ("cnn(classes=1)", "from 2 to 100000"),
        ("__import__('os').system('true')", 'stray "\'"'),
        ("cnn(depth=3); cnn", "stray ';'"),
        ("cnn(depth=\N{FULLWIDTH DIGIT THREE})", "stray"),
        ("c" * 100_000, "at most 1,000 characters, this has 100,000"),
    ],
)
def test_bad_text_is_one_clear_sentence(text: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_architecture(text)
    assert isinstance(caught.value, (SpecError, UnknownNameError))
    assert words in str(caught.value)
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [None, 3, b"cnn", ["cnn"], {"family": "cnn"}])
def test_what_is_not_a_text(text: Any) -> None:
    with pytest.raises(SpecError, match="an architecture is a text, not"):
        parse_architecture(text)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "is an object, not NoneType"),
        ([], "is an object, not list"),
        ({}, 'needs a "family"'),
        ({"family": 3}, 'needs a "family"'),
        ({"family": "rsenet"}, "did you mean 'resnet'"),
        ({"family": "cnn", "widht": 3}, "did you mean 'width'"),
        ({"family": "cnn", "depth": "3"}, "got '3'"),
        ({"family": "cnn", "depth": 3.0}, "got 3.0"),
        ({"family": "cnn", "depth": True}, "got True"),
        ({"family": "cnn", "depth": None}, "got None"),
        ({"family": "cnn", "depth": float("nan")}, "got nan"),
        ({"family": "cnn", "depth": 10**5000}, "more than 60 digits"),
        ({"family": "cnn", "depth": [10**5000]}, "too long to show"),
        ({"family": "cnn", "norm": 1}, "norm must be one of"),
        ({"family": "cnn", "input": [3, 16]}, "such as 3x16x16"),
        ({"family": "cnn", "input": "3x16x16"}, "such as 3x16x16"),
    ],
)
def test_bad_json_is_one_clear_sentence(data: Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        architecture_from_json(data)
    assert words in str(caught.value) and len(str(caught.value)) < 300


def test_empty_brackets_and_numpy_numbers() -> None:
    assert parse_architecture("cnn()") == parse_architecture("cnn")
    values: dict[str, Any] = {"depth": np.int64(2), "input": torch.Size([3, 8, 8])}
    spec = architectures.get("cnn")(**values)
    assert json.dumps(spec.to_json()) and str(spec) == "cnn(depth=2,input=3x8x8)"


def test_resolve_fills_in_and_refuses_conflicts() -> None:
    spec = parse_architecture("cnn(depth=2)")
    assert not spec.resolved
    half = spec.resolve(classes=4)
    assert (half.classes, half.input, half.resolved) == (4, None, False)
    full = half.resolve(classes=4, input=(3, 16, 16))
    assert full.resolved and full.resolve() == full
    assert spec.classes is None  # the caller's spec is left alone
    with pytest.raises(SpecError, match=r"is for 4 classes, but 10 are asked for"):
        full.resolve(classes=10)
    with pytest.raises(SpecError, match=r"is for pictures of 3x16x16, but 1x28x28 is asked for"):
        full.resolve(input=(1, 28, 28))
    with pytest.raises(SpecError, match="classes must be"):
        spec.resolve(classes=-1)


def test_an_undecided_spec_cannot_be_built() -> None:
    spec = parse_architecture("cnn")
    for ask in (spec.build, spec.num_parameters, lambda: spec.initialise(0)):
        with pytest.raises(SpecError, match="does not say its classes and input"):
            ask()
    with pytest.raises(SpecError, match="does not say its input"):
        spec.resolve(classes=3).build()


def test_a_network_of_terabytes_is_counted_but_not_built() -> None:
    spec = resolved("resnet(depth=200,width=4096)")
    assert spec.num_parameters() > MAX_PARAMETERS
    with pytest.raises(SpecError, match="parameters; at most"):
        spec.build()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_describes_itself(family: str) -> None:
    cls = architectures.get(family)
    assert 1 <= len(cls.example_texts()) <= 3
    assert cls().family == family and str(cls()) == family
    assert cls().head_name == "head"
    options = cls.options()
    assert [option.name for option in options[-2:]] == ["classes", "input"]
    assert all(option.help and option.allowed for option in options)
    assert {"scale" if family in PUBLISHED else "activation"} <= {option.name for option in options}


@pytest.mark.parametrize("text", EXAMPLES)
def test_every_family_builds_on_meta_and_on_the_cpu(text: str) -> None:
    spec = resolved(text)
    assert spec.input is not None and spec.classes is not None
    with torch.device("meta"):
        ghost = spec.build()
    assert all(tensor.is_meta for tensor in ghost.state_dict().values())
    module = spec.build()
    assert {name: tensor.shape for name, tensor in ghost.state_dict().items()} == {
        name: tensor.shape for name, tensor in module.state_dict().items()
    }
    assert sum(parameter.numel() for parameter in module.parameters()) == spec.num_parameters()
    assert not any(isinstance(part, nn.Dropout) for part in module.modules())

    x = torch.randn(3, *spec.input)
    before = x.clone()
    logits = module(x)
    assert torch.equal(x, before)
    assert logits.shape == (3, spec.classes)
    assert isinstance(module.head, nn.Linear) and module.head.out_features == spec.classes
    assert module.features(x).shape == (3, module.head.in_features)
    # The head is the last linear layer and the last of the state dict.
    assert [name for name, part in module.named_modules() if isinstance(part, nn.Linear)][-1] == "head"
    assert list(module.state_dict())[-2:] == ["head.weight", "head.bias"]


@pytest.mark.parametrize("text", EXAMPLES)
def test_gradients_reach_every_parameter_alone_and_in_a_population(text: str) -> None:
    spec = resolved(text)
    assert spec.input is not None and spec.classes is not None
    # float64: a batch of four through batch norm amplifies rounding, and this test is about wiring.
    modules = [spec.initialise(seed).double() for seed in range(2)]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, *spec.input, generator=generator, dtype=torch.float64)
    y = torch.randint(spec.classes, (2, 4), generator=generator)
    parameters, buffers = stack_module_state(modules)

    def loss(p: dict[str, Any], b: dict[str, Any], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(functional_call(modules[0], (p, b), (x,)), y)

    together = vmap(grad(loss))(parameters, buffers, x, y)
    for index, module in enumerate(modules):
        nn.functional.cross_entropy(module(x[index]), y[index]).backward()
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(together[name][index], parameter.grad)

    # In eval mode, because a batch norm cancels what the layer before it adds to a whole channel.
    module = modules[0].eval()
    module.zero_grad()
    nn.functional.cross_entropy(module(x[0]), y[0]).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-12, name


@pytest.mark.parametrize("family", FAMILIES)
def test_initialise_depends_on_the_seed_alone_and_leaves_the_global_state(family: str) -> None:
    spec = resolved(architectures.get(family).example_texts()[0])
    state = torch.get_rng_state()
    first = spec.initialise(7).state_dict()
    spec.num_parameters()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    with torch.device("meta"):  # always real weights, wherever the caller is
        second = spec.initialise(7).state_dict()
    other = spec.initialise(8).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


@pytest.mark.parametrize("family", FAMILIES)
def test_specs_that_differ_in_classes_share_the_body(family: str) -> None:
    spec = resolved(architectures.get(family).example_texts()[0])
    ten, four = (
        architecture_from_json({**spec.to_json(), "classes": classes}).initialise(0) for classes in (10, 4)
    )
    small = four.body.state_dict()
    assert all(torch.equal(tensor, small[name]) for name, tensor in ten.body.state_dict().items())
