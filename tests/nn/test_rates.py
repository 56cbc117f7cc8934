"""Parameter groups: every parameter once, each at its rate."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from weightloom.errors import InputError
from weightloom.nn import HyperLSTM, HyperLSTMCell, HyperRNN, hyperize, parameter_groups


def mixed():
    convolutions = hyperize(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)), embedding_size=4)
    return nn.ModuleList([convolutions, HyperLSTM(8, 6, num_layers=2), HyperRNN(8, 6), nn.Linear(6, 2)])


def test_every_parameter_is_in_one_group():
    module = mixed()
    groups = parameter_groups(module, 0.01, embeddings=20.0, scalings=0.5)
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in module.parameters())
    names = {id(p): name for name, p in module.named_parameters()}
    for group, rate in zip(groups, (0.01, 0.2, 0.005), strict=True):
        assert group["lr"] == pytest.approx(rate)
        for p in group["params"]:
            kind = names[id(p)].rpartition(".")[2]
            found = 0.2 if kind == "embedding" else 0.005 if kind.startswith(("embed_", "spread")) else 0.01
            assert found == rate, names[id(p)]


def test_a_plain_module_is_one_group_and_a_cell_two():
    assert [len(group["params"]) for group in parameter_groups(nn.Linear(2, 2), 0.1)] == [2]
    assert [group["lr"] for group in parameter_groups(HyperLSTMCell(3, 4), 1.0)] == [1.0, 0.1]


def test_an_optimiser_takes_them_and_the_embeddings_move_most():
    module = mixed()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimiser = torch.optim.Adam(parameter_groups(module, 0.01))
    module[0](torch.randn(2, 3, 9, 9)).square().mean().backward()
    optimiser.step()
    moved = {name: float((p.detach() - before[name]).abs().max()) for name, p in module.named_parameters()}
    assert moved["0.0.embedding"] == pytest.approx(0.3, rel=0.01)
    assert moved["0.0.bias"] == pytest.approx(0.01, rel=0.01)


@pytest.mark.parametrize(
    "wrong", [{"lr": 0.0}, {"lr": 0.1, "embeddings": -1.0}, {"lr": 0.1, "scalings": float("nan")}]
)
def test_rates_are_checked(wrong):
    with pytest.raises(InputError, match="above 0"):
        parameter_groups(nn.Linear(2, 2), **wrong)
