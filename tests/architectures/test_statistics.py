"""Running statistics are those that torch's own training keeps, bit for bit, whoever holds them."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from weightloom.architectures.statistics import StatisticsRecorder, measure_statistics

IMAGES = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
BATCHES = IMAGES.split(8)


class Own(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.register_buffer("running_mean", torch.full((channels,), 0.3))
        self.register_buffer("running_var", torch.full((channels,), 2.0))

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, None, None, self.training)


def names_of(net):
    return [name for name, buffer in net.named_buffers() if buffer.is_floating_point()]


def in_training(net, parts):
    """What torch's own norms keep in training, as the plain mean over batches."""
    net = copy.deepcopy(net)
    norms = [part for part in net.modules() if isinstance(part, nn.modules.batchnorm._NormBase)]
    for number, images in enumerate(parts):
        for norm in norms:
            norm.train()
            norm.momentum = 1 / (number + 1)
        with torch.no_grad():
            net(images)
    return dict(net.named_buffers())


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d,
        nn.SyncBatchNorm,
        lambda c: nn.BatchNorm2d(c, affine=False, momentum=None),
        lambda c: nn.InstanceNorm2d(c, track_running_stats=True),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_they_are_torchs(norm, dtype):
    net = nn.Sequential(nn.Conv2d(3, 5, 3), norm(5), nn.Dropout(), nn.ReLU(), nn.Conv2d(5, 4, 3), norm(4))
    net = net.to(dtype).eval()
    before = copy.deepcopy(net.state_dict())
    parts = [part.to(dtype) for part in BATCHES]
    found = measure_statistics(net, names_of(net), parts)
    wanted = in_training(net, parts)
    assert found.values.keys() == set(names_of(net)) and set(found.batches.values()) == {3}
    assert all(torch.equal(value, wanted[name]) for name, value in found.values.items())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_only_what_is_asked_for_and_met_has_a_result():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.never = Own(3), Own(3), Own(3)

        def forward(self, x):
            return self.second(self.first(x)) if len(x) else self.never(x)

    net = Branches().eval()
    found = measure_statistics(net, [n for n in names_of(net) if "second" not in n], BATCHES)
    assert found.values.keys() == {"first.running_mean", "first.running_var"}
    assert float(net.first.running_mean[0]) == pytest.approx(0.3)


def test_nothing_of_the_module_is_written():
    class Moving(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.seen = Own(3), []
            self.register_buffer("peak", torch.zeros(1))

        def forward(self, x):
            self.peak.copy_(x.max())
            self.seen.append(x)
            return self.norm(x)

    net = Moving().eval()
    measure_statistics(net, ["norm.running_mean", "norm.running_var"], BATCHES)
    assert net.peak == 0 and net.seen == [] and float(net.norm.running_var[0]) == 2.0


def test_a_norm_that_is_met_twice_has_the_mean_of_both():
    norm = Own(3).eval()
    net = nn.Sequential(norm, nn.ReLU(), norm)
    found = measure_statistics(net, ["0.running_mean", "0.running_var"], [IMAGES])
    first = (IMAGES - IMAGES.mean((0, 2, 3), keepdim=True)) / (
        IMAGES.var((0, 2, 3), correction=0, keepdim=True) + 1e-5
    ).sqrt()
    wanted = (IMAGES.mean((0, 2, 3)) + first.relu().mean((0, 2, 3))) / 2
    assert torch.allclose(found.values["0.running_mean"], wanted, atol=1e-5)
    assert found.batches["0.running_mean"] == 2


def test_forms_that_know_no_training_are_measured_too():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    program = torch.export.export(net, (BATCHES[0],))
    with warnings.catch_warnings(action="ignore"):  # torch's own, of its own classes
        forms = program.module(), program.run_decompositions().module()
    wanted = measure_statistics(net, names_of(net), BATCHES).values
    for made in forms:
        found = measure_statistics(made, names_of(net), BATCHES).values
        assert all(torch.allclose(found[name], wanted[name], rtol=1e-5) for name in wanted)


def test_other_operations_pass():
    kept = {"scale": torch.ones(3)}
    with torch.inference_mode(), StatisticsRecorder(kept) as recorder:
        y = F.batch_norm(IMAGES, torch.zeros(3), torch.ones(3))
        z = F.layer_norm(IMAGES, (8,))
    assert torch.equal(y, F.batch_norm(IMAGES, torch.zeros(3), torch.ones(3)))
    assert torch.equal(z, F.layer_norm(IMAGES, (8,))) and not recorder.measured().values
