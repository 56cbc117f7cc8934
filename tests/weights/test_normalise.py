"""Statistics: measured over a zoo, bound to any class count, exact enough on the way back."""

from __future__ import annotations

import pytest
import torch

from weightloom.architectures import parse_architecture
from weightloom.errors import UnsupportedRequestError
from weightloom.fitting import initial_flats
from weightloom.weights import WeightStatistics, layout_of

TEXT = "cnn(depth=2,width=4)"


def resolved(text=TEXT, classes=3):
    return parse_architecture(text).resolve(classes=classes, input=(1, 8, 8))


def networks(spec, count=5, seed=0):
    flats = initial_flats(spec, [seed])
    noise = torch.rand(count, flats.shape[1], generator=torch.Generator().manual_seed(seed))
    return flats + 0.3 * noise  # variances stay above zero


@pytest.fixture(scope="module")
def measured():
    groups = [(layout_of(resolved(classes=c)), networks(resolved(classes=c), seed=c)) for c in (3, 5)]
    return WeightStatistics.measure(groups), groups


@pytest.mark.parametrize("classes", [2, 3, 5, 10])
def test_round_trip_for_any_number_of_classes(measured, classes):
    spec = resolved(classes=classes)
    bound = measured[0].bind(layout_of(spec))
    flats = networks(spec, seed=9)
    values = bound.normalise(flats)
    assert values.shape == flats.shape
    assert torch.allclose(bound.denormalise(values), flats, atol=1e-5)


def test_a_zoo_comes_out_centred_and_of_unit_spread(measured):
    statistics, groups = measured
    by_layer = {}
    for layout, flats in groups:
        values = layout.unflatten(statistics.bind(layout).normalise(flats))
        for slot in layout.slots:
            by_layer.setdefault(slot.name, []).append(values[slot.name].flatten())
    for name, parts in by_layer.items():
        assert abs(float(torch.cat(parts).square().mean().sqrt()) - 1) < 1e-3, name
    layout, flats = groups[0]
    trunk = layout.slot_of_value < len(layout.slots) - 2  # all but the head's weight and bias
    both = torch.cat([statistics.bind(one).normalise(f)[:, : int(trunk.sum())] for one, f in groups])
    assert float(both.mean(0).abs().max()) < 1e-4


def test_head_statistics_do_not_know_the_class(measured):
    layout = layout_of(resolved(classes=6))
    bound = measured[0].bind(layout)
    centre = layout.unflatten(bound.centre)["head.weight"]
    assert torch.equal(centre, centre[:1].expand_as(centre))


def test_variances_come_back_positive_whatever_a_decoder_says(measured):
    layout = layout_of(resolved())
    bound = measured[0].bind(layout)
    assert bool(bound.is_variance.any())
    for value in (-1e6, -50.0, 50.0, 1e6):
        raw = bound.denormalise(torch.full((layout.size,), value))
        assert bool((raw[layout.is_variance] > 0).all()) and bool(torch.isfinite(raw).all())
    dead = torch.zeros(1, layout.size)  # a dead channel's variance is zero
    assert bool(torch.isfinite(bound.normalise(dead)).all())


def test_denormalising_is_differentiable_and_its_gradient_finite(measured):
    layout = layout_of(resolved())
    bound = measured[0].bind(layout)
    values = torch.full((layout.size,), 200.0)  # exp of it would overflow where it is not a variance
    values.requires_grad_()
    bound.denormalise(values).sum().backward()
    assert values.grad is not None and bool(torch.isfinite(values.grad).all())
    assert torch.allclose(values.grad[~layout.is_variance], bound.scale[~layout.is_variance])


def test_one_network_has_no_spread_but_divides_safely():
    spec = resolved()
    statistics = WeightStatistics.measure([(layout_of(spec), networks(spec, 1))])
    values = statistics.bind(layout_of(spec)).normalise(networks(spec, 1))
    assert bool(torch.isfinite(values).all())


@pytest.mark.parametrize("text", ["cnn(depth=2,width=5)", "cnn(depth=3,width=4)", "mlp(depth=1,width=4)"])
def test_other_architectures_are_refused(measured, text):
    with pytest.raises(UnsupportedRequestError, match="no weight statistics fit layer"):
        measured[0].bind(layout_of(resolved(text)))


def test_tensors_round_trip_bit_for_bit(measured):
    statistics = measured[0]
    again = WeightStatistics.from_tensors(statistics.to_tensors())
    layout = layout_of(resolved(classes=4))
    a, b = statistics.bind(layout), again.bind(layout)
    assert torch.equal(a.centre, b.centre) and torch.equal(a.scale, b.scale)
