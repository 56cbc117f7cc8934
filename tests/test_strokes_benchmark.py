"""benchmarks/strokes.py: its density, what is drawn from it, and characters as steps and back."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def strokes():
    sys.path.insert(0, str(FOLDER))  # the script takes its neighbour from there, as when it is run
    try:
        spec = importlib.util.spec_from_file_location("benchmark_strokes", FOLDER / "strokes.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(FOLDER))


def raw_numbers(strokes, *shape, seed=0):
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, 6 * strokes.NORMALS + 3, generator=stream, dtype=torch.float64)


def test_the_density_is_that_of_torch(strokes):
    raw = raw_numbers(strokes, 7, 3)
    stream = torch.Generator().manual_seed(1)
    offsets = torch.randn(7, 3, 2, generator=stream, dtype=torch.float64)
    pen = torch.randint(3, (7, 3, 1), generator=stream)
    share, x, y, scale_x, scale_y, slant = raw[..., :-3].chunk(6, -1)
    scales = torch.stack([scale_x, scale_y], -1).exp() + strokes.FLOOR
    slant = strokes.MOST_CORRELATION * slant.tanh()
    correlation = torch.stack([torch.ones_like(slant), slant, slant, torch.ones_like(slant)], -1)
    covariance = correlation.unflatten(-1, (2, 2)) * scales[..., None] * scales[..., None, :]
    normals = MultivariateNormal(torch.stack([x, y], -1), covariance)
    expected = MixtureSameFamily(Categorical(logits=share), normals).log_prob(offsets)
    expected += Categorical(logits=raw[..., -3:]).log_prob(pen[..., 0])
    found = strokes.log_density(raw, torch.cat([offsets, pen.double()], -1))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_what_is_drawn_has_the_moments_of_the_density(strokes, temperature):
    raw = raw_numbers(strokes, 1, seed=2) * 0.7
    share, mean, scale, slant, pen = (part[0] for part in strokes.mixture(raw))
    share, scale = (share / temperature).softmax(-1), scale * temperature**0.5
    centre = share @ mean
    crossed = slant * scale.prod(-1)
    inside = torch.stack([scale[:, 0] ** 2, crossed, crossed, scale[:, 1] ** 2], -1).unflatten(-1, (2, 2))
    away = mean - centre
    spread = (share[:, None, None] * (inside + away[:, :, None] * away[:, None, :])).sum(0)
    drawn = strokes.draw_step(raw.expand(200_000, -1), temperature, torch.Generator().manual_seed(3))
    torch.testing.assert_close(drawn[:, :2].mean(0), centre, rtol=0, atol=0.02)
    torch.testing.assert_close(drawn[:, :2].T.cov(), spread, rtol=0.03, atol=0.02)
    states = drawn[:, 2].long().bincount(minlength=3) / len(drawn)
    torch.testing.assert_close(states.double(), (pen / temperature).softmax(-1), rtol=0, atol=0.01)


def test_a_character_as_steps_and_back(strokes):
    across = strokes.curve("M10,20c30,0,60,0,90,0")
    down = strokes.curve("M50.5,10C50.5,40-1,60,20,100s5,5.5-.5,6")
    assert across[0].tolist() == [10, 20] and across[-1].tolist() == [100, 20]
    assert down[16].tolist() == [20, 100] and down[-1].tolist() == [19.5, 106]
    straight = strokes.simplify(across, 1.0)
    assert straight.tolist() == [[10, 20], [100, 20]]
    bent = strokes.simplify(down, 1.0)
    assert 2 < len(bent) < len(down)
    steps = strokes.steps_of([straight, bent])
    assert steps[:, 2].tolist() == [
        *(strokes.DOWN, strokes.LIFT),
        *[strokes.DOWN] * (len(bent) - 1),
        strokes.END,
    ]
    back = strokes.strokes_of(np.concatenate([steps, [[1.0, 1.0, strokes.LIFT]]]))
    assert len(back) == 2
    np.testing.assert_allclose(back[0], straight)
    np.testing.assert_allclose(back[1], bent)
    for wrong in ("10,20c1,1,1,1,1,1", "M1,1L2,2", "M1,1M2,2", "M1,1c2,2,3,3,4,4z"):
        with pytest.raises(ValueError, match="path"):
            strokes.curve(wrong)


def test_a_step_is_not_seen_before_it_is_foretold_and_padding_does_not_count(strokes):
    stream = torch.Generator().manual_seed(4)
    drawings = []
    for length in (5, 9):
        pen = torch.randint(2, (length, 1), generator=stream).float()
        drawings.append(torch.cat([torch.randn(length, 2, generator=stream), pen], -1))
    x, targets, real = strokes.pad(drawings)
    assert x.shape == (9, 2, 5) and real.sum(0).tolist() == [5, 9]
    assert not x[0].any()
    torch.testing.assert_close(x[1:, :, :2], targets[:-1, :, :2])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = strokes.StrokeModel("LSTM", 8)
    alone = [strokes.nats(model, [steps]) for steps in drawings]
    assert strokes.nats(model, drawings) == pytest.approx((5 * alone[0] + 9 * alone[1]) / 14, rel=1e-5)


@pytest.mark.parametrize("core", ["LSTM", "HyperLSTM", "LayerNorm LSTM", "LayerNorm HyperLSTM"])
def test_every_core_fits_its_budget_and_writes(strokes, core):
    hidden = strokes.of_size(core, 20_000)
    assert strokes.count(strokes.StrokeModel(core, hidden)) <= 20_000
    assert strokes.count(strokes.StrokeModel(core, hidden + 1)) > 20_000
    made = strokes.write(strokes.StrokeModel(core, 8), 2, 0.5, torch.Generator().manual_seed(0))
    assert [tuple(steps.shape) for steps in made] == [(strokes.LONGEST, 3)] * 2
    assert set(torch.stack(made)[..., 2].flatten().tolist()) <= {0.0, 1.0, 2.0}
