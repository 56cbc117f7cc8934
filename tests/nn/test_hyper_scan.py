"""A sequence as one function is the same as its steps one by one, gradients included."""

from __future__ import annotations

import pytest
import torch

from weightloom.errors import InputError
from weightloom.nn import HyperLSTM


def moved(**options):
    torch.manual_seed(0)
    model = HyperLSTM(4, 5, hyper_size=7, embedding_size=2, **options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("options", [{}, {"recurrent_dropout": 0.4, "forget_bias": 0.0}])
def test_both_roads_agree(options, layer_norm):
    model = moved(layer_norm=layer_norm, **options)
    x = torch.randn(6, 3, 4, dtype=torch.float64, requires_grad=True)
    state = [torch.randn(1, 3, width, dtype=torch.float64, requires_grad=True) for width in (5, 5 + 14)]
    wanted = [x, *state, *model.parameters()]
    found = []
    for scales in (False, True):  # the scalings are made step by step alone
        torch.manual_seed(1)  # the same is dropped
        output, last, *_ = model(x, state, return_scales=scales)
        loss = output.sin().sum() + sum((part * part.cos()).sum() for part in last)
        found.append((output, *last, *torch.autograd.grad(loss, wanted)))
    for fast, slow in zip(*found, strict=True):
        assert torch.allclose(fast, slow, rtol=1e-9, atol=1e-11)


def test_gradients_may_be_asked_for_twice_and_of_the_last_state_alone():
    model, x = moved(), torch.randn(6, 3, 4, dtype=torch.float64)
    _, (_, c) = model(x)
    once = torch.autograd.grad(c.sum(), model.cells[0].spread, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(c.sum(), model.cells[0].spread)[0], once)
    assert bool(once.any())


def test_second_derivatives_are_had_step_by_step_and_else_refused():
    model, x = moved(), torch.randn(4, 2, 4, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(model(x, return_scales=True)[0].sum(), x, create_graph=True)[0]
    assert bool(torch.autograd.grad(slope.square().sum(), x)[0].any())
    with pytest.raises(InputError, match="return_scales=True"):
        torch.autograd.grad(model(x)[0].sum(), x, create_graph=True)


def test_mixed_and_half_precision():
    model, x = moved().float(), torch.randn(6, 3, 4)
    wanted = model(x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(x)[0]
    half = model.bfloat16()(x.bfloat16())[0]
    for found in (mixed, half):
        assert torch.allclose(found.float(), wanted, atol=0.05)
