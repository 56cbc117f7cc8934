"""The cache changes nothing but the time; no position sees what comes after it."""

from __future__ import annotations

import pytest
import torch

from weightloom.errors import SpecError
from weightloom.nn import CausalTransformer


@pytest.fixture
def model():
    return CausalTransformer(width=16, depth=2, heads=2).eval()


@pytest.mark.parametrize("parts", [[7], [1] * 7, [3, 1, 1, 2], [1, 6], [4, 3]])
def test_the_cache_equals_the_whole(model, parts):
    x = torch.randn(2, 7, 16)
    cache = model.new_cache(batch_size=2, limit=9)
    found = torch.cat([model(part, cache) for part in x.split(parts, dim=1)], dim=1)
    assert torch.allclose(found, model(x), atol=1e-5)
    assert cache.length == 7 and cache.limit == 9


def test_a_cached_batch_equals_its_singles(model):
    x = torch.randn(3, 5, 16)
    together = model.new_cache(3, 5)
    model(x[:, :4], together)
    last = model(x[:, 4:], together)
    for n in range(3):
        alone = model.new_cache(1, 5)
        model(x[n : n + 1, :4], alone)
        assert torch.allclose(model(x[n : n + 1, 4:], alone), last[n : n + 1], atol=1e-6)


def test_nothing_is_seen_before_its_time(model):
    x = torch.randn(1, 6, 16)
    y = x.clone()
    y[:, 4:] = torch.randn(1, 2, 16)
    a, b = model(x), model(y)
    assert torch.allclose(a[:, :4], b[:, :4], atol=1e-6) and not torch.allclose(a[:, 4:], b[:, 4:], atol=1e-3)


def test_the_order_of_positions_matters(model):
    with torch.no_grad():
        for block in model.blocks:  # attention starts near nothing
            block.qkv.weight.mul_(20)
            block.attention_out.weight.mul_(20)
    x = torch.randn(1, 6, 16)
    swapped = x[:, [1, 0, 2, 3, 4, 5]]
    assert not torch.allclose(model(x)[:, 5], model(swapped)[:, 5], atol=1e-4)


def test_gradients_reach_every_parameter():
    model = CausalTransformer(width=16, depth=2, heads=2)
    model(torch.randn(2, 5, 16)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name


def test_a_full_cache_refuses_more(model):
    cache = model.new_cache(1, 3)
    model(torch.randn(1, 3, 16), cache)
    with pytest.raises(SpecError, match="cache holds 3 positions, not 4"):
        model(torch.randn(1, 1, 16), cache)


@pytest.mark.parametrize(("width", "heads"), [(15, 2), (6, 2), (16, 3)])
def test_widths_that_cannot_be_split_are_refused(width, heads):
    with pytest.raises(SpecError, match="cannot be split"):
        CausalTransformer(width=width, depth=1, heads=heads)


def test_bfloat16_runs_close_to_float32(model):
    x = torch.randn(1, 5, 16)
    wanted = model(x)
    model.bfloat16()
    cache = model.new_cache(1, 5)
    found = torch.cat([model(x.bfloat16()[:, :3], cache), model(x.bfloat16()[:, 3:], cache)], dim=1)
    assert found.dtype == torch.bfloat16 and torch.allclose(found.float(), wanted, atol=0.1)
