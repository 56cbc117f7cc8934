from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from weightloom.zoo.contents import StoredTensor
from weightloom.zoo.folding import folded_entries, unfolded


def folded(state):
    entries = folded_entries({name: StoredTensor(tuple(v.shape), v.dtype) for name, v in state.items()})
    return {name: entry.value(state) for name, entry in entries.items()}


LAYERS = (
    lambda: nn.Linear(3, 4), lambda: nn.Conv2d(3, 4, 3), lambda: nn.Linear(1, 4), lambda: nn.Linear(4, 1),
    lambda: nn.ConvTranspose2d(2, 3, 2),
)  # fmt: skip


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("new", [True, False])
def test_weight_norm_has_the_bits_of_the_module(make, dim, new):
    layer = make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        wrapped = (parametrizations.weight_norm if new else nn.utils.weight_norm)(layer, dim=dim)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            parameter.mul_(1.5)  # the lengths are none of the directions' any more
    wrapped(torch.zeros(2, *_input(layer)))  # which is when older releases compute the weight
    read = folded(wrapped.state_dict())
    assert set(read) == {"weight", "bias"} and torch.equal(read["weight"], wrapped.weight)


def _input(layer):
    return (layer.in_features,) if isinstance(layer, nn.Linear) else (layer.in_channels, 5, 5)


def test_pruning_of_a_weight_norm():
    layer = nn.Linear(9, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        layer = nn.utils.weight_norm(layer)
    prune.random_unstructured(layer, "weight_v", amount=0.3)
    layer(torch.zeros(1, 9))
    read = folded(layer.state_dict())
    assert set(read) == {"weight", "bias"} and torch.equal(read["weight"], layer.weight)
    assert bool((read["weight"] == 0).any())


def test_wrappers_inside_names():
    state = {
        "a._orig_mod.b.weight": torch.ones(1),
        "_fsdp_wrapped_module.c._checkpoint_wrapped_module.d": torch.ones(2),
        "my_orig_mod.e": torch.ones(3),
        "_orig_mod.f": torch.ones(4),
        "f": torch.zeros(4),
    }
    read = folded(state)
    assert set(read) == {"a.b.weight", "c.d", "my_orig_mod.e", "_orig_mod.f", "f"}
    assert torch.equal(read["f"], torch.zeros(4)), "a name that is taken is nobody else's"


@pytest.mark.parametrize(
    "state",
    [
        {"w_v": torch.ones(2, 3), "w_g": torch.ones(2, 3)},
        {"w_v": torch.ones(2, 3), "w_g": torch.ones(3, 1)},
        {"w_v": torch.ones(2, 3), "w_g": torch.ones(1, 1)},
        {"w_v": torch.ones(2, 3), "w_g": torch.ones(2)},
        {"w_v": torch.ones(2, 3), "w_g": torch.ones(2, 1), "w": torch.ones(1)},
        {"w_orig": torch.ones(2, 3), "w_mask": torch.ones(2)},
        {"w_orig": torch.ones(2, 3), "w_u": torch.ones(2), "w_v": torch.ones(3)},
        {"parametrizations.w.original0": torch.ones(2, 3), "parametrizations.w.original1": torch.ones(3, 2)},
        {"parametrizations.w.original": torch.ones(2, 3), "parametrizations.w.0._u": torch.ones(2)},
        {"parametrizations.w.original0": torch.ones(2, 1), "parametrizations.w.original1": torch.ones(2, 3),
         "parametrizations.w.1.base": torch.ones(2)},
    ],
)  # fmt: skip
def test_what_is_no_weight_norm_stays_as_it_is(state):
    assert set(folded(state)) == set(state)


def test_what_cannot_be_folded_is_named():
    layer = parametrizations.spectral_norm(nn.Linear(3, 2))
    read = folded(layer.state_dict())
    assert "weight" not in read and unfolded(list(read)) == "parametrizations.weight.original"
    assert unfolded(["body.weight"]) == ""
