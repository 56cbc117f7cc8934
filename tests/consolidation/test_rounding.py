from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from tests.consolidation.conftest import small_forward, small_inputs, small_state

from weightloom.consolidation.compress import make_parts, outputs, relative_error
from weightloom.consolidation.rounding import Codes, Rounding, exponents_of, factors, round_plain, step_of
from weightloom.consolidation.sensitivity import measure


def error_of(constant: float, how: Rounding) -> tuple[float, dict[str, Codes]]:
    state = small_state()
    seen, other = (small_inputs(part, 256, None, {}) for part in ("calibration", "evaluation"))
    layers, size = measure(small_forward, state, seen)
    assert size == pytest.approx(float(outputs(small_forward, state, seen).square().sum(1).mean()), rel=1e-4)
    parts = make_parts(state, layers, constant, how=how)
    codes = {name: part for name, part in parts.parts.items() if isinstance(part, Codes)}
    true = outputs(small_forward, state, other)
    return relative_error(outputs(small_forward, parts.state(), other), true), codes


def test_errors_that_are_passed_on_cost_less_on_inputs_never_seen() -> None:
    constant = 0.01
    nearest, _ = error_of(constant, Rounding(feedback=False))
    columns, _ = error_of(constant, Rounding())
    both, codes = error_of(constant, Rounding(both=True))
    assert columns < 0.8 * nearest, (columns, nearest)
    assert both < nearest, (both, nearest)
    assert set(codes) == {"first.weight", "depthwise.weight", "hidden.weight", "last.weight"}


def test_half_the_step_is_half_the_error() -> None:
    whole, half = error_of(0.01, Rounding())[0], error_of(0.005, Rounding())[0]
    assert 0.35 < half / whole < 0.7


def test_factors_are_those_of_the_inverse() -> None:
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.arange(1.0, 13))
    moments = (x.T @ x / 200)[None]
    upper, pivots = factors(moments, 0.0)
    again = upper[0].T @ torch.diag(1 / pivots[0]) @ upper[0]
    assert torch.allclose(again @ moments[0], torch.eye(12), atol=1e-2)
    assert torch.equal(upper[0].diagonal(), torch.ones(12))
    assert torch.equal(upper[0].tril(-1), torch.zeros(12, 12))


def test_plain_rounding_is_within_half_a_step() -> None:
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    codes = round_plain(weight, torch.full((5,), 0.1))
    step = float(step_of(codes.rows)[0])
    assert step == pytest.approx(0.1, rel=0.1)
    assert float((codes.matrix() - weight).abs().max()) <= step / 2 * 1.0001
    assert torch.equal(exponents_of(step_of(torch.arange(-40, 40))), torch.arange(-40, 40).int())


def test_a_layer_before_a_layer_norm_is_no_silent_one() -> None:
    """There the gradients of all units add up to zero, and so do all entries of their moments."""
    generator = torch.Generator().manual_seed(3)
    tall = {"in": torch.randn(16, 6, generator=generator), "out": torch.randn(4, 16, generator=generator)}

    def taller(w: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return F.linear(F.layer_norm(F.linear(x, w["in"]), (16,)), w["out"])

    layers, _ = measure(taller, tall, torch.randn(40, 6, generator=generator))
    assert abs(float(layers["in"].gradient.sum())) < 1e-3 * layers["in"].energy
    fine = make_parts(tall, layers, 1e-5).state()
    assert all(relative_error(fine[name], tall[name]) < 1e-3 for name in tall)
