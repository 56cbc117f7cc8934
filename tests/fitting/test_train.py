"""Populations learn real digits, the same way twice, and say so when they cannot."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from weightloom.architectures import parse_architecture
from weightloom.errors import SpecError, TrainingError
from weightloom.fitting import FitSettings, fit_population, initial_flats, run_networks
from weightloom.fitting.train import draw_batch
from weightloom.seeding import torch_generator
from weightloom.tasks import parse_task
from weightloom.weights import layout_of

TASKS = ("digits[3,1,7]@8c1", "digits[0,2,4]+rot90@8c1")


@pytest.fixture(scope="module")
def data():
    return [parse_task(text).data("train") for text in TASKS]


def resolved(text="cnn(depth=1,width=4)"):
    return parse_architecture(text).resolve(classes=3, input=(1, 8, 8))


def fit(spec, flats, data, settings, seed=0):
    return list(fit_population(spec, flats, data, settings, seed=seed))


@pytest.mark.parametrize("text", ["mlp(depth=1,width=8)", "cnn(depth=1,width=4)"])
def test_networks_learn(data, text, rng_untouched):
    spec = resolved(text)
    flats = initial_flats(spec, [0, 1])
    kept = flats.clone()
    settings = FitSettings(steps=60, batch_size=32, learning_rate=2e-2, snapshots=(1, 20))
    found = fit(spec, flats, data, settings)
    assert [one.step for one in found] == [1, 20, 60]
    assert torch.equal(flats, kept), "the starting points were changed"
    for n, task in enumerate(data):
        images, labels = task.all()
        before, after = (
            F.cross_entropy(run_networks(spec, one[n : n + 1], images)[0], labels)
            for one in (kept, found[-1].flats)
        )
        assert after < 0.6 * before
        assert found[-1].loss[n] < found[0].loss[n]
    assert not found[-1].flats.requires_grad and bool(torch.isfinite(found[-1].flats).all())


def test_the_same_seed_gives_the_same_networks_another_one_others(data):
    spec = resolved()
    flats = initial_flats(spec, [0, 1])
    settings = FitSettings(steps=5, batch_size=8)
    a, b, c = (fit(spec, flats, data, settings, seed)[-1].flats for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_snapshots_are_handed_out_in_order(data):
    spec = resolved("cnn(depth=1,width=4,norm=group)")
    flats = initial_flats(spec, [0, 1])
    first, last = fit(spec, flats, data, FitSettings(steps=6, batch_size=8, snapshots=(3,)))
    assert (first.step, last.step) == (3, 6) and not torch.equal(first.flats, last.flats)
    again = fit(spec, flats, data, FitSettings(steps=6, batch_size=8, snapshots=(3, 6)))
    assert len(again) == 2 and torch.equal(first.flats, again[0].flats)


def test_a_snapshot_does_not_change_the_road(data):
    spec = resolved()
    flats = initial_flats(spec, [0, 1])
    with_one = fit(spec, flats, data, FitSettings(steps=6, batch_size=8, snapshots=(3,)))[-1]
    without = fit(spec, flats, data, FitSettings(steps=6, batch_size=8))[-1]
    assert torch.equal(with_one.loss, without.loss) and torch.equal(with_one.flats, without.flats)


def test_tied_steps_keep_trunks_equal_and_heads_apart(data):
    spec = resolved()
    layout = layout_of(spec)
    flats = initial_flats(spec, [0]).repeat(2, 1)
    settings = FitSettings(steps=6, batch_size=8, learning_rate=1e-2, tied_steps=4, snapshots=(4,))
    tied, free = fit(spec, flats, data, settings)
    start = layout.unflatten(flats)
    for slot in layout.slots:
        a, b = (layout.unflatten(one.flats)[slot.name] for one in (tied, free))
        if slot.is_buffer:
            continue
        if slot.name.startswith("head"):
            assert not torch.equal(a[0], a[1])
        else:
            assert torch.equal(a[0], a[1]), f"{slot.name} differs after tied steps"
            assert not torch.equal(a[0], start[slot.name][0])
            assert not torch.equal(b[0], b[1]), f"{slot.name} stays equal after the tied steps"


def test_a_higher_head_rate_moves_the_trunk_less(data):
    spec = resolved("cnn(depth=1,width=4,norm=group)")
    layout = layout_of(spec)
    flats = initial_flats(spec, [0]).repeat(2, 1)
    head = torch.cat(
        [torch.full((layer.rows * layer.cols,), layer.kind == "head") for layer in layout.layers]
    )
    share = []
    for rate in (1.0, 20.0):
        settings = FitSettings(steps=5, batch_size=8, learning_rate=1e-3, head_rate=rate)
        moved = (fit(spec, flats, data, settings)[-1].flats - flats).abs()
        share.append(float(moved[:, head].mean() / moved[:, ~head].mean()))
    assert share[1] > 5 * share[0]


def test_decay_leaves_batch_norm_statistics_alone(data):
    """Statistics are measured, not trained: a huge decay must not pull at them."""
    spec = resolved()
    layout = layout_of(spec)
    buffers = torch.tensor([slot.is_buffer for slot in layout.slots])[layout.slot_of_value]
    flats = initial_flats(spec, [0, 1])
    settings = FitSettings(steps=30, batch_size=8, learning_rate=1e-2, weight_decay=1.0)
    last = fit(spec, flats, data, settings)[-1].flats
    assert bool((last[:, layout.is_variance] > 0).all())
    images = torch.stack([task.batch(range(200))[0] for task in data])
    answers = run_networks(spec, last, images)
    trained = run_networks(spec, last, images, training=True)
    assert float((answers - trained).abs().mean()) < 0.2 * float(trained.std())
    assert bool(torch.isfinite(last[:, buffers]).all())


def test_a_loss_that_is_not_finite_names_step_and_network(data):
    spec = resolved()
    flats = initial_flats(spec, [0, 1])
    flats[1, 0] = float("nan")
    with pytest.raises(TrainingError, match=r"the loss of network 1 of cnn.* is not finite at step 1"):
        fit(spec, flats, data, FitSettings(steps=2, batch_size=4))


def test_progress_is_told_each_step(data):
    spec, steps = resolved(), []
    list(fit_population(spec, initial_flats(spec, [0, 1]), data, FitSettings(steps=3), on_step=steps.append))
    assert steps == [1, 2, 3]


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0},
        {"batch_size": 1},
        {"learning_rate": 0.0},
        {"head_rate": -1.0},
        {"steps": 5, "snapshots": (6,)},
        {"snapshots": (0,)},
    ],
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(SpecError):
        FitSettings(**bad)


def test_each_network_draws_from_its_own_task(data):
    images, labels = draw_batch(data, 20, torch_generator("test"))
    assert images.shape == (2, 20, 1, 8, 8) and labels.shape == (2, 20)
    again, _ = draw_batch(data, 20, torch_generator("test"))
    assert torch.equal(images, again)
    for n, task in enumerate(data):
        everything = {bytes(x.numpy().tobytes()) for x in task.all()[0]}
        assert all(bytes(x.numpy().tobytes()) in everything for x in images[n])


def test_a_schedule_that_follows_the_clock():
    task = parse_task("digits[3,1]@8c1")
    spec = parse_architecture("mlp(depth=1,width=4,classes=2,input=1x8x8)")
    start, data = initial_flats(spec, [0]), [task.data("train")]
    settings = FitSettings(steps=50, batch_size=16, snapshots=(3,))
    by_steps = [s.step for s in fit_population(spec, start, data, settings, pace=lambda step: step / 10)]
    assert by_steps == [3, 10], "it ends where the pace says so, not at the settings' steps"
    whole = list(fit_population(spec, start, data, settings, pace=lambda step: step / 1000))
    assert [s.step for s in whole] == [3, 50]
    (*_, still) = fit_population(spec, start, data, settings, pace=lambda step: 0.9999)
    assert torch.allclose(still.flats, start, atol=1e-4), "at the end of a schedule steps are small"
