"""Updates that follow the input: neutral at the start, the weights written out, causal where said."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from weightloom.errors import InputError, UnknownNameError
from weightloom.nn import DynamicLinear

SUMMARIES = ["causal", "mean", "position", "given"]


def moved(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def make(summary, **options):
    torch.manual_seed(0)
    if summary == "given":
        options["condition_size"] = 3
    return moved(DynamicLinear(6, 5, rank=2, hidden_size=4, summary=summary, **options))


def call(layer, x):
    return layer(x, torch.randn(len(x), 3)) if layer.summary == "given" else layer(x)


@pytest.mark.parametrize("summary", SUMMARIES)
def test_it_starts_as_the_linear_layer(summary):
    linear = nn.Linear(6, 5)
    options = {"condition_size": 3} if summary == "given" else {}
    layer, x = DynamicLinear.from_linear(linear, rank=2, summary=summary, **options), torch.randn(2, 7, 6)
    assert torch.equal(call(layer, x), linear(x))
    assert layer.weight is not linear.weight


def test_it_is_the_weight_written_out():
    layer, x = make("causal").double(), torch.randn(2, 7, 6, dtype=torch.float64)
    output = layer(x)
    for b in range(2):
        for t in range(7):
            weight = layer.weight_for(x[b, : t + 1].mean(0))
            assert torch.allclose(output[b, t], weight @ x[b, t] + layer.bias, atol=1e-12)
    layer = make("given").double()
    condition = torch.randn(2, 3, dtype=torch.float64)
    output = layer(x, condition)
    for b in range(2):
        assert torch.allclose(output[b], x[b] @ layer.weight_for(condition[b]).T + layer.bias, atol=1e-12)
    by_position = torch.randn(2, 7, 3, dtype=torch.float64)
    wanted = layer.weight_for(by_position[1, 4]) @ x[1, 4] + layer.bias
    assert torch.allclose(layer(x, by_position)[1, 4], wanted, atol=1e-12)


@pytest.mark.parametrize("summary", ["causal", "position"])
def test_nothing_is_seen_before_its_time(summary):
    layer, x = make(summary), torch.randn(2, 7, 6)
    y = x.clone()
    y[:, 4:] = torch.randn(2, 3, 6)
    assert torch.equal(layer(x)[:, :4], layer(y)[:, :4])
    assert not torch.allclose(layer(x)[:, 4:], layer(y)[:, 4:])


def test_a_causal_update_depends_on_what_came_before():
    layer, x = make("causal"), torch.randn(1, 7, 6)
    y = x.clone()
    y[:, 0] += 3
    assert not torch.allclose(layer(x)[:, 1:], layer(y)[:, 1:], atol=1e-4)


def test_padding_does_not_count():
    layer, x = make("mean"), torch.randn(3, 7, 6)
    lengths = torch.tensor([7, 3, 1])
    padded = x.clone()
    for n, length in enumerate(lengths.tolist()):
        padded[n, length:] = torch.nan
    output = layer(padded, lengths=lengths)
    for n, length in enumerate(lengths.tolist()):
        assert torch.allclose(output[n, :length], layer(x[n, :length]), atol=1e-6)


@pytest.mark.parametrize("summary", SUMMARIES)
def test_a_batch_equals_its_singles_and_gradients_reach_everything(summary):
    layer, x = make(summary), torch.randn(3, 7, 6)
    given = (torch.randn(3, 3),) if summary == "given" else ()
    output = layer(x, *given)
    for n in range(3):
        assert torch.allclose(layer(x[n], *(part[n] for part in given)), output[n], atol=1e-6)
    output.square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name


def test_gradcheck():
    layer = make("causal").double()
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *layer.parameters()))


def test_it_learns_what_no_fixed_weight_can():
    """Each sequence is turned by its own sign, told by its first position."""
    torch.manual_seed(0)
    layer = DynamicLinear(4, 4, rank=4, summary="causal")
    optimiser = torch.optim.Adam(layer.parameters(), lr=1e-2)
    for _ in range(200):
        x = torch.randn(64, 5, 4)
        sign = torch.randint(2, (64, 1, 1)) * 2.0 - 1
        x[:, :1] = 5 * sign
        loss = (layer(x)[:, 1:] - sign * x[:, 1:]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.3  # a fixed weight stays at 1


def test_compile_export_and_copies():
    layer, x = make("causal"), torch.randn(2, 7, 6)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x), layer(x), atol=1e-6)
    assert torch.allclose(torch.export.export(layer, (x,)).module()(x), layer(x), atol=1e-6)
    other = make("causal")
    other.load_state_dict(copy.deepcopy(layer).state_dict())
    assert torch.equal(other(x), layer(x))


def test_what_makes_no_sense_is_refused():
    for options, words in [
        ({"rank": 0}, "rank"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"summary": "given"}, "condition_size"),
        ({"condition_size": 4}, "condition_size"),
    ]:
        with pytest.raises(InputError, match=words):
            DynamicLinear(6, 5, **options)
    with pytest.raises(UnknownNameError, match="mean"):
        DynamicLinear(6, 5, summary="means")
    x = torch.randn(2, 7, 6)
    for layer, arguments, options, words in [
        (make("causal"), (torch.zeros(2, 7, 9),), {}, r"6 features, not \(2, 7, 9\)"),
        (make("causal"), (torch.zeros(6),), {}, "needs sequences"),
        (make("mean"), (torch.zeros(2, 0, 6),), {}, "needs sequences"),
        (make("causal"), (x, torch.zeros(2, 3)), {}, "summary='given'"),
        (make("causal"), (x,), {"lengths": torch.tensor([1, 2])}, "summary='mean'"),
        (make("mean"), (x,), {"lengths": torch.tensor([1])}, r"shape \(2,\), not \(1,\)"),
        (make("given"), (x,), {}, "needed there"),
        (make("given"), (x, torch.zeros(2, 4)), {}, r"3 features, not \(2, 4\)"),
        (make("given"), (x, torch.zeros(5, 3)), {}, r"\(5, 1, 3\) does not fit the input \(2, 7, 6\)"),
    ]:
        with pytest.raises(InputError, match=words):
            layer(*arguments, **options)
