"""Not a test: the forms of checkpoints.py that are about the tensors: types, views, parametrizations."""

from __future__ import annotations

import copy
import warnings

import safetensors.torch
import torch
from tests.faults.checkpoints import Form, State, form, saved, simple, state_of, under
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

# -- tensors -----------------------------------------------------------------------------------

for _dtype in (torch.float16, torch.bfloat16, torch.float64):
    for _file in ("x.pt", "x.safetensors"):
        simple(
            f"{str(_dtype).removeprefix('torch.')} in {_file}",
            lambda s, dtype=_dtype: {k: v.to(dtype) if v.is_floating_point() else v for k, v in s.items()},
            _file, dtype=_dtype,
        )  # fmt: skip


@form("parameters that ask for gradients")
def _(net, folder):
    return Form(saved(folder, {**dict(net.named_parameters()), **dict(net.named_buffers())}))


@form("without counters")
def _(net, folder):
    return Form(saved(folder, {k: v for k, v in state_of(net).items() if v.is_floating_point()}))


@form("parts of one vector")
def _(net, folder):
    state = state_of(net)
    flat = torch.cat([value.flatten().float() for value in state.values()])
    parts = flat.split([value.numel() for value in state.values()])
    views = {name: part.view(value.shape) for (name, value), part in zip(state.items(), parts, strict=True)}
    return Form(saved(folder, {k: v for k, v in views.items() if state[k].is_floating_point()}))


@form("strided tensors")
def _(net, folder):
    def strided(value: Tensor) -> Tensor:
        wide = torch.zeros(*value.shape, 3, dtype=value.dtype)
        wide[..., 1] = value
        return wide[..., 1]

    return Form(saved(folder, {name: strided(value) for name, value in state_of(net).items()}))


@form("tensors with attributes")
def _(net, folder):
    state = state_of(net)
    for value in state.values():
        value.tag = {"group": 1}
    return Form(saved(folder, state))


@form("operations counted by thop")
def _(net, folder):
    net = copy.deepcopy(net)
    for child in net.modules():
        child.register_buffer("total_ops", torch.zeros(1, dtype=torch.float64))
        child.register_buffer("total_params", torch.zeros(1, dtype=torch.float64))
    return Form(saved(folder, net.state_dict()))


simple("a step beside", lambda s: {**s, "step": torch.tensor(3)}, "x.safetensors")
simple("a best loss that is infinite", lambda s: {**s, "best_loss": torch.tensor(torch.inf)}, "x.safetensors")
simple("a loss with weights", lambda s: {**s, "criterion.weight": torch.ones(3)})


def _layers(net: nn.Module) -> list[nn.Module]:
    return [child for child in net.modules() if isinstance(child, nn.Conv2d | nn.Linear)]


def _computed(net: nn.Module, wrapped: nn.Module) -> State:
    """The state of ``net`` with the weights that ``wrapped`` computes with."""
    state = state_of(net)
    for (name, _), child in zip(
        [(n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)], _layers(wrapped),
        strict=True,
    ):  # fmt: skip
        state[f"{name}.weight"] = child.weight.detach().clone()
    return state


@form("weight norm")
def _(net, folder):
    wrapped = copy.deepcopy(net)
    for child in _layers(wrapped):
        parametrizations.weight_norm(child)
    assert any(name.endswith("original0") for name in wrapped.state_dict())
    return Form(saved(folder, under("module.", wrapped.state_dict())), weights=_computed(net, wrapped))


@form("weight norm along other dimensions")
def _(net, folder):
    wrapped = copy.deepcopy(net)
    for number, child in enumerate(_layers(wrapped)):
        parametrizations.weight_norm(child, dim=(1, None, 0)[number % 3])
    return Form(saved(folder, wrapped.state_dict()), weights=_computed(net, wrapped))


@form("weight norm of older releases")
def _(net, folder):
    wrapped = copy.deepcopy(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        for child in _layers(wrapped):
            nn.utils.weight_norm(child)
    safetensors.torch.save_file(
        {k: v.contiguous() for k, v in wrapped.state_dict().items()}, folder / "x.safetensors"
    )
    return Form(folder / "x.safetensors", weights=_computed(net, wrapped))


@form("pruning")
def _(net, folder):
    wrapped = copy.deepcopy(net)
    for child in _layers(wrapped):
        prune.random_unstructured(child, "weight", amount=0.5)
    return Form(saved(folder, {"state_dict": wrapped.state_dict()}), weights=_computed(net, wrapped))
