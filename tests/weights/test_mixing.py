from __future__ import annotations

import pytest
import torch

from weightloom.architectures import parse_architecture
from weightloom.errors import SpecError
from weightloom.fitting import initial_flats
from weightloom.seeding import torch_generator
from weightloom.weights import WeightStatistics, layout_of
from weightloom.weights.mixing import add_noise, gaussian, interpolate

SPEC = parse_architecture("cnn(depth=1,width=8,classes=3,input=1x8x8)")


@pytest.fixture(scope="module")
def zoo():
    flats = initial_flats(SPEC, list(range(8)))
    return flats + 0.2 * torch.rand(flats.shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def bound(zoo):
    return WeightStatistics.measure([(layout_of(SPEC), zoo)]).bind(layout_of(SPEC))


def streams(count, what="test"):
    return [torch_generator(what, index) for index in range(count)]


def test_noise_is_as_large_as_it_says(zoo, bound):
    noisy = add_noise(bound, zoo[:1].expand(500, -1), streams(500), 0.25)
    moved = bound.normalise(noisy) - bound.normalise(zoo[0])
    assert float(moved.mean()) == pytest.approx(0, abs=0.01)
    assert torch.allclose(moved.std(0), torch.full((zoo.shape[1],), 0.25), rtol=0.2)
    assert bool((noisy[:, layout_of(SPEC).is_variance] > 0).all())
    assert torch.allclose(add_noise(bound, zoo[:2], streams(2), 0.0), zoo[:2], atol=1e-5)


def test_a_gaussian_has_the_mean_and_spread_of_every_value(zoo, bound):
    drawn = bound.normalise(gaussian(bound, zoo, streams(2000)))
    values = bound.normalise(zoo)
    assert torch.allclose(drawn.mean(0), values.mean(0), atol=0.15)
    assert torch.allclose(drawn.std(0), values.std(0, correction=0), rtol=0.15, atol=1e-3)
    # Independent: of two values that go together in the zoo, draws know nothing.
    weights = ~layout_of(SPEC).is_variance
    pair = drawn[:, weights][:, :2].T
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.1
    one = gaussian(bound, zoo[:1], streams(2))
    assert torch.allclose(one, zoo[:1].expand(2, -1), atol=1e-5)


def test_mixtures_lie_on_the_line(zoo):
    assert torch.equal(interpolate(zoo[0], zoo[1], 0.0), zoo[0])
    assert torch.equal(interpolate(zoo[0], zoo[1], 1.0), zoo[1])
    assert torch.allclose(interpolate(zoo[0], zoo[1], 0.5), (zoo[0] + zoo[1]) / 2, atol=1e-6)


@pytest.mark.parametrize("size", [-1, float("nan"), float("inf"), True, "1"])
def test_a_size_is_a_number(zoo, bound, size):
    with pytest.raises(SpecError, match="noise must be a number"):
        add_noise(bound, zoo[:1], streams(1), size)
