"""Many networks as one matrix: the same function as the plain module, and the true gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
import torch
from torch import nn
from torch.func import functional_call

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.architectures.spec import Whole
from weightloom.fitting import accuracy, accuracy_on, initial_flats, recalibrate, run_networks
from weightloom.tasks import parse_task
from weightloom.weights import layout_of

TINY = (
    "mlp(depth=1,width=4,norm=batch)",
    "cnn(depth=2,width=4)",
    "cnn(depth=1,width=4,norm=group)",
    "resnet(depth=8,width=2)",
    "vgg(depth=2,width=4)",
    "mobilenet(depth=3,width=4)",
    "vit(depth=1,width=8)",
)


def resolved(text, classes=3):
    return parse_architecture(text).resolve(classes=classes, input=(1, 8, 8))


def networks(spec, count=3, dtype=torch.float32):
    """Networks whose every value differs, statistics of batch norms too."""
    flats = initial_flats(spec, list(range(count))).to(dtype)
    generator = torch.Generator().manual_seed(5)
    return flats + 0.2 * torch.rand(flats.shape, generator=generator, dtype=dtype)


def by_module(spec, flat, images, training=False):
    module = spec.build().to(flat.dtype).train(training)
    module.load_state_dict(layout_of(spec).unflatten(flat))
    return module(images)


@pytest.mark.parametrize("text", TINY)
@pytest.mark.parametrize("training", [False, True])
def test_networks_equal_plain_modules(text, training):
    spec = resolved(text)
    flats = networks(spec)
    kept = flats.clone()
    own = torch.randn(3, 6, 1, 8, 8)
    logits = run_networks(spec, flats, own, training=training)
    assert logits.shape == (3, 6, 3)
    for n in range(3):
        assert torch.allclose(logits[n], by_module(spec, flats[n], own[n], training), atol=1e-5)
    shared = run_networks(spec, flats, own[0], training=training)
    for n in range(3):
        assert torch.allclose(shared[n], by_module(spec, flats[n], own[0], training), atol=1e-5)
    assert torch.equal(flats, kept), "running networks changed their weights"


@pytest.mark.parametrize("text", TINY)
def test_folding_batch_norms_is_the_same_function(text):
    """Where weights need gradients, batch norms are folded; the answers must not change."""
    spec = resolved(text)
    flats = networks(spec)
    images = torch.randn(5, 1, 8, 8)
    plain = run_networks(spec, flats, images)
    folded = run_networks(spec, flats.clone().requires_grad_(), images)
    assert torch.allclose(plain, folded, atol=2e-5)


@pytest.mark.parametrize(
    "text", ["mlp(depth=1,width=4,norm=batch)", "cnn(depth=1,width=4)", "vit(depth=1,width=8)"]
)
def test_gradients_are_those_of_finite_differences(text):
    """In double precision, of every value: batch-norm means and variances too."""
    spec = resolved(text)
    flat = networks(spec, 1, torch.float64)
    images = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    weight = torch.randn(4, 3, dtype=torch.float64)

    def value(one):
        return (run_networks(spec, one, images)[0] * weight).sum()

    given = flat.clone().requires_grad_()
    value(given).backward()
    assert given.grad is not None
    probe = torch.Generator().manual_seed(1)
    layout = layout_of(spec)
    chosen = torch.randperm(layout.size, generator=probe)[:40].tolist()
    chosen += layout.is_variance.nonzero().flatten().tolist()[:4]
    for place in chosen:
        step = torch.zeros_like(flat)
        step[0, place] = 1e-6
        wanted = float(value(flat + step) - value(flat - step)) / 2e-6
        assert float(given.grad[0, place]) == pytest.approx(wanted, abs=1e-5, rel=1e-4), place


@pytest.mark.parametrize("text", TINY)
def test_every_value_gets_a_gradient(text):
    spec = resolved(text)
    flats = networks(spec).requires_grad_()
    run_networks(spec, flats, torch.randn(8, 1, 8, 8)).square().sum().backward()
    assert flats.grad is not None and bool(torch.isfinite(flats.grad).all())
    grads = layout_of(spec).unflatten(flats.grad)
    for slot in layout_of(spec).slots:
        assert bool(grads[slot.name].abs().sum() > 0), f"no gradient reaches {slot.name}"


def test_networks_do_not_touch_each_other():
    spec = resolved("cnn(depth=2,width=4)")
    flats = networks(spec, 4)
    images = torch.randn(4, 6, 1, 8, 8)
    together = run_networks(spec, flats, images)
    for n in range(4):
        assert torch.equal(together[n], run_networks(spec, flats[n : n + 1], images[n : n + 1])[0])


def test_initialisation_is_by_seed(rng_untouched):
    spec = resolved("cnn(depth=2,width=4)")
    flats = initial_flats(spec, [3, 4, 3])
    assert torch.equal(flats[0], flats[2]) and not torch.equal(flats[0], flats[1])
    assert torch.equal(flats[1:2], initial_flats(spec, [4])) and not flats.requires_grad


@pytest.mark.parametrize("at_once", [7, 500, 1000])
def test_accuracy_on_data_is_that_on_all_of_its_pictures(at_once, monkeypatch):
    monkeypatch.setattr("weightloom.fitting.population.images_at_once", lambda spec: at_once)
    spec, data = resolved("cnn(depth=1,width=4)"), parse_task("digits[3,1,7]@8c1").data("test")
    flats = networks(spec)
    assert torch.allclose(accuracy_on(spec, flats, data), accuracy(spec, flats, *data.all()), atol=1e-6)


def test_accuracy_counts_right_answers():
    spec = resolved("cnn(depth=1,width=4)")
    flats = networks(spec, 2)
    images = torch.randn(37, 1, 8, 8).clamp(-1, 1)
    answers = torch.stack([by_module(spec, flat, images).argmax(-1) for flat in flats])
    assert accuracy(spec, flats, images, answers[0])[0] == 1
    labels = answers[0].clone()
    labels[:7] = (labels[:7] + 1) % 3
    assert torch.allclose(
        accuracy(spec, flats, images, labels, batch_size=10),
        torch.tensor([30 / 37, float((answers[1] == labels).float().mean())]),
    )


class TestRecalibrate:
    def test_statistics_become_those_of_the_images(self):
        spec = resolved("cnn(depth=2,width=4)")
        layout = layout_of(spec)
        flats = networks(spec)
        images = torch.randn(3, 64, 1, 8, 8).clamp(-1, 1)
        kept = flats.clone()
        new = recalibrate(spec, flats, images)
        assert torch.equal(flats, kept)
        buffers = torch.tensor([slot.is_buffer for slot in layout.slots])[layout.slot_of_value]
        assert torch.equal(new[:, ~buffers], flats[:, ~buffers])
        assert not torch.equal(new[:, buffers], flats[:, buffers])
        # With the statistics of exactly these images, eval and training mode give (nearly) the same:
        # only the variance is the unbiased one.
        evaluated = run_networks(spec, new, images)
        trained = run_networks(spec, new, images, training=True)
        assert float((evaluated - trained).abs().max()) < 0.05 * float(trained.std())

    def test_equals_a_plain_module_with_momentum_one(self):
        spec = resolved("mlp(depth=1,width=4,norm=batch)")
        flats = networks(spec)
        images = torch.randn(32, 1, 8, 8).clamp(-1, 1)
        module = spec.build().train()
        for child in module.modules():
            if isinstance(child, torch.nn.BatchNorm1d):
                child.momentum = 1.0
        new = recalibrate(spec, flats, images)
        for n in range(3):
            module.load_state_dict(layout_of(spec).unflatten(flats[n]))
            module(images)
            assert torch.allclose(layout_of(spec).flatten(module.state_dict()), new[n], atol=1e-6)

    def test_it_leaves_no_trace_on_later_runs(self):
        spec = resolved("cnn(depth=1,width=4)")
        flats = networks(spec)
        images = torch.randn(16, 1, 8, 8).clamp(-1, 1)
        before = run_networks(spec, flats, images, training=True)
        once = recalibrate(spec, flats, images)
        assert torch.equal(recalibrate(spec, once, images), once)
        assert torch.equal(run_networks(spec, flats, images, training=True), before)

    def test_networks_without_batch_norms_come_back_unchanged(self):
        spec = resolved("cnn(depth=1,width=4,norm=group)")
        flats = networks(spec)
        new = recalibrate(spec, flats, torch.zeros(4, 1, 8, 8))
        assert torch.equal(new, flats) and new is not flats


def test_a_batched_call_under_vmap_is_the_same():
    """What other devices do: one call under vmap; checked here against the loop."""
    from torch.func import vmap

    from weightloom.fitting.population import _template, fold_batch_norms

    spec = resolved("cnn(depth=2,width=4)")
    flats, images = networks(spec), torch.randn(3, 4, 1, 8, 8)
    module = _template(spec, False)

    def one(flat, batch):
        state = layout_of(spec).unflatten(flat)
        fold_batch_norms(module, state)
        return functional_call(module, state, (batch,))

    assert torch.allclose(vmap(one)(flats, images), run_networks(spec, flats, images), atol=1e-5)


@dataclass(frozen=True, kw_only=True)
class OwnNorms(ArchitectureSpec):
    """A family with a batch norm of its own class; it is not registered."""

    width: Annotated[int, Whole(1, 9, "odd for torch's norm")] = 4
    family = "own-norms"

    def body(self, input):
        class Own(nn.BatchNorm2d):
            def forward(self, x):
                own = self.running_mean, self.running_var, self.weight, self.bias
                return nn.functional.batch_norm(x, *own, self.training, 0.1)

        norm = nn.BatchNorm2d if self.width % 2 else Own
        layers = nn.Conv2d(input[0], 4, 3), norm(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        return nn.Sequential(*layers), 4

    @classmethod
    def example_texts(cls):
        return ()


def test_statistics_of_norms_of_ones_own_are_measured_as_torchs():
    images = torch.rand(8, 1, 8, 8)
    own, torchs = (OwnNorms(width=width, classes=3, input=(1, 8, 8)) for width in (4, 5))
    flats = networks(torchs, 2)
    found = recalibrate(own, flats, images)
    assert torch.equal(found, recalibrate(torchs, flats, images)) and not torch.equal(found, flats)
    module = torchs.build()
    module.load_state_dict(layout_of(torchs).unflatten(flats[0]))
    module.body[1].momentum = None
    module.body[1].reset_running_stats()
    module.train()(images)
    state = layout_of(own).unflatten(found[0])
    assert torch.allclose(state["body.1.running_mean"], module.body[1].running_mean, atol=1e-6)
    assert torch.allclose(state["body.1.running_var"], module.body[1].running_var, atol=1e-6)
