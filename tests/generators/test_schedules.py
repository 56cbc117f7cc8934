"""Every schedule: what it trains towards, and that a perfect denoiser walks back to where it began."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from weightloom.errors import DataUnavailableError, SpecError
from weightloom.generators.schedules import SCHEDULES, build_schedule

LIBRARY = importlib.util.find_spec("diffusers") is not None
needs_library = pytest.mark.skipif(not LIBRARY, reason="diffusers is not installed")
ALL = [name if name == "flow" else pytest.param(name, marks=needs_library) for name in SCHEDULES]


def streams(count):
    return [torch.Generator().manual_seed(index) for index in range(count)]


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ALL)
def test_the_clean_latents_follow_from_a_perfect_prediction(name):
    schedule = build_schedule(name)
    x, noise = drawn(6, 3, 4), drawn(6, 3, 4, seed=1)
    t = schedule.times(torch.linspace(0, 0.95, 6))
    assert t.shape == (6,) and bool(((t >= 0) & (t < 1)).all())
    noisy, wanted = schedule.noisy(x, noise, t)
    assert noisy.shape == wanted.shape == x.shape
    assert torch.allclose(schedule.clean(noisy, wanted, t), x, atol=1e-3)
    # Little noise at the start, almost only noise at the end.
    assert float((noisy[0] - x[0]).abs().mean()) < 0.2 < float((noisy[5] - x[5]).abs().mean())


@pytest.mark.parametrize("name", ALL)
def test_a_perfect_denoiser_walks_back(name, rng_untouched):
    """All latents are one point: what has to be predicted then follows from where one is."""
    schedule = build_schedule(name)
    target = drawn(1, 3, 4, seed=2)
    seen = []

    def predict(x, t):
        seen.append(float(t[0]))
        assert t.shape == (len(x),)
        if "flow" in name:
            return (x - target) / t[:, None, None].clamp_min(1e-4)
        kept = schedule.scheduler.alphas_cumprod[(t * 1000).round().long()][:, None, None]
        return (x - kept.sqrt() * target) / (1 - kept).sqrt()

    found = schedule.walk(predict, drawn(2, 3, 4), 12, streams(2))
    assert torch.allclose(found, target.expand(2, -1, -1), atol=0.05)
    assert len(seen) == 12 and seen == sorted(seen, reverse=True) and seen[0] > 0.85


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("mean", "spread"), [(0.0, 1.0), (1.5, 0.3), (-1.0, 0.0)])
def test_the_plain_prediction_is_the_best_for_gaussians(name, mean, spread):
    """No other line through what is seen has a smaller error."""
    schedule = build_schedule(name)
    x, noise = mean + spread * drawn(4000, 2, 2), drawn(4000, 2, 2, seed=1)
    for time in (0.1, 0.4, 0.8):
        t = schedule.times(torch.full((4000,), time))
        noisy, wanted = schedule.noisy(x, noise, t)
        given = schedule.plain(noisy, t, torch.full_like(x, mean), torch.full_like(x, spread))
        slope = ((noisy - noisy.mean()) * (wanted - wanted.mean())).mean() / noisy.var()
        line = wanted.mean() + slope * (noisy - noisy.mean())
        assert float((given - line).square().mean()) < 0.005


@pytest.mark.parametrize("name", ALL)
def test_a_walk_depends_on_its_own_stream_alone(name):
    noise = drawn(3, 2, 4)

    def predict(x, t):
        return 0.3 * x

    together = build_schedule(name).walk(predict, noise, 5, streams(3))
    again = build_schedule(name).walk(predict, noise, 5, streams(3))
    alone = build_schedule(name).walk(predict, noise[1:2], 5, streams(3)[1:2])
    assert torch.equal(together, again) and torch.allclose(together[1], alone[0], atol=1e-5)


@needs_library
def test_our_own_flow_is_the_librarys():
    """The same lines; the library's grid of times ends a thousandth before the end."""

    def predict(x, t):
        return torch.tanh(x) * (1 + t[:, None, None])

    noise = drawn(2, 3, 4)
    own, theirs = (build_schedule(name).walk(predict, noise, 200, []) for name in ("flow", "flow-diffusers"))
    assert torch.allclose(own, theirs, atol=0.02)


def test_what_there_is_not_is_refused(monkeypatch):
    with pytest.raises(SpecError, match="known: flow, ddpm"):
        build_schedule("cosine")
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(DataUnavailableError, match="pip install 'weightloom"):
        build_schedule("ddpm")
