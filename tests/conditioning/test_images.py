"""Support sets to class vectors: order kept, batches alike, learnable."""

from __future__ import annotations

import pytest
import torch

from weightloom.conditioning import SupportEncoder
from weightloom.conditioning.images import prototype_loss
from weightloom.errors import InputError, SpecError
from weightloom.tasks import parse_task


@pytest.fixture(scope="module")
def encoder():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return SupportEncoder(channels=1, features=16, width=8).eval()


def test_description_is_mean_and_spread_of_each_class(encoder):
    support = torch.randn(3, 5, 1, 8, 8)
    found = encoder.describe(support)
    assert found.shape == (3, 32)
    for c in range(3):
        features = encoder(support[c])
        assert torch.allclose(found[c, :16], features.mean(0), atol=1e-5)
        assert torch.allclose(found[c, 16:], features.std(0, correction=0), atol=1e-5)


def test_labels_are_told_by_order_and_examples_are_not(encoder):
    support = torch.randn(4, 5, 1, 8, 8)
    found = encoder.describe(support)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(encoder.describe(support[order]), found[order], atol=1e-5)
    shuffled = support[:, torch.tensor([4, 2, 0, 1, 3])]
    assert torch.allclose(encoder.describe(shuffled), found, atol=1e-5)


def test_leading_dimensions_and_one_shot(encoder):
    support = torch.randn(2, 3, 4, 1, 1, 8, 8)  # (2, 3) support sets of 4 classes with one example
    found = encoder.describe(support)
    assert found.shape == (2, 3, 4, 32) and bool((found[..., 16:] == 0).all())
    assert torch.allclose(found[1, 2], encoder.describe(support[1, 2]), atol=1e-5)


@pytest.mark.parametrize("size", [8, 16, 28, 33])
def test_any_picture_size_from_8(encoder, size):
    assert encoder(torch.randn(2, 1, size, size)).shape == (2, 16)


@pytest.mark.parametrize("shape", [(4, 1, 8, 8), (3, 0, 1, 8, 8), (3, 5, 3, 8, 8)])
def test_other_shapes_are_refused(encoder, shape):
    with pytest.raises(InputError):
        encoder.describe(torch.zeros(shape))


def test_gradients_reach_every_parameter_and_digits_can_be_learned():
    encoder = SupportEncoder(channels=1, features=16, width=8)
    task = parse_task("digits[3,1,7]@8c1")
    images, labels = task.data("train").batch(range(60))
    support = task.support(4).images
    first, before = prototype_loss(encoder, support, images, labels)
    first.backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name
    optimiser = torch.optim.Adam(encoder.parameters(), 3e-3)
    for _ in range(12):
        optimiser.zero_grad()
        loss, right = prototype_loss(encoder, support, images, labels)
        loss.backward()
        optimiser.step()
    assert loss < 0.8 * first and right >= before


@pytest.mark.parametrize(
    "sizes", [{"width": 7}, {"width": 0}, {"channels": 0}, {"features": 2.5}, {"features": True}]
)
def test_sizes_that_make_no_encoder(sizes):
    with pytest.raises(SpecError, match="multiple of 8"):
        SupportEncoder(**sizes)
