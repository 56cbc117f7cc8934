"""Copies share nothing with the caller's module, whatever it keeps, and run none of its hooks on request."""

from __future__ import annotations

import threading
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import prune

from weightloom.architectures.copying import copy_module, hooked_layers
from weightloom.errors import InputError


def convnet():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())


def ones(name, old, is_buffer):
    return torch.ones_like(old)


X = torch.randn(2, 3, 6, 6)


def test_what_has_a_history_is_copied_without_it():
    net = convnet()
    net.kept = {"all": [net(X)], "leaf": torch.ones(2, requires_grad=True)}
    with warnings.catch_warnings(action="ignore"):
        net[0] = prune.random_unstructured(nn.utils.weight_norm(net[0]), "bias", 0.5)
    net(X)
    twin = copy_module(net)
    assert not twin.kept["all"][0].requires_grad and torch.equal(twin.kept["all"][0], net.kept["all"][0])
    assert twin.kept["leaf"].requires_grad and twin.kept["leaf"] is not net.kept["leaf"]
    assert net.kept["all"][0].grad_fn is not None
    assert torch.equal(twin.eval()(X), net.eval()(X))
    assert torch.nn.utils.remove_weight_norm(twin[0]).weight is not net[0].weight


def test_views_of_one_memory_stay_so():
    net = nn.Module()
    net.register_buffer("all", torch.zeros(4))
    net.first = net.all[:2]
    twin = copy_module(net)
    twin.all.fill_(1)
    assert twin.first.tolist() == [1, 1] and net.first.tolist() == [0, 0]


def test_new_tensors_are_asked_for_by_plain_names_and_once():
    asked = []

    def tensors(name, old, is_buffer):
        asked.append(name)
        return None if name == "1.bias" else torch.full_like(old, 7)

    net = convnet()
    net.add_module("again", net[0])
    with warnings.catch_warnings(action="ignore"):
        twin = copy_module(torch.compile(net), tensors)
    assert sorted(asked) == sorted(name for name in net.state_dict() if "again" not in name)
    assert type(twin) is nn.Sequential and twin.again is twin[0] and bool((twin[0].weight == 7).all())
    assert torch.equal(twin[1].bias, net[1].bias) and twin[1].bias is not net[1].bias
    assert isinstance(twin[0].weight, nn.Parameter) and list(twin.state_dict()) == list(net.state_dict())


def test_compiled_parts_are_plain():
    net = convnet()
    with warnings.catch_warnings(action="ignore"):
        net[1] = torch.compile(net[1])
        net.compile()
        whole = torch.compile(net)
    assert [type(part).__name__ for part in copy_module(whole)] == ["Conv2d", "BatchNorm2d", "ReLU"]
    assert type(net[1]).__name__ == "OptimizedModule"


class Gatherer:
    def __init__(self):
        self.got = []

    def hook(self, layer, given, output):
        self.got.append(output)


def test_hooks_are_copied_with_what_they_are_bound_to():
    net, plain, bound, locked = convnet(), [], Gatherer(), Gatherer()
    locked.lock = threading.Lock()
    net[0].register_forward_hook(bound.hook)
    net[0].register_forward_hook(locked.hook)  # cannot be copied
    net[1].register_forward_pre_hook(lambda layer, given: (given[0] * 0,))
    net[2].register_forward_hook(lambda layer, given, y: plain.append(y))
    net.register_state_dict_post_hook(lambda module, state, prefix, meta: state.update(version=torch.ones(1)))
    hooks = list(net[0]._forward_hooks.values())
    twin = copy_module(net)
    assert hooked_layers(twin) == hooked_layers(net) == ["0", "1", "2"]
    assert list(net[0]._forward_hooks.values()) == hooks and "version" in twin.state_dict()
    assert torch.equal(twin.eval()(X), net.eval()(X))
    assert (len(bound.got), len(locked.got), len(plain)) == (1, 2, 2), "a copied hook gathers apart"


def test_a_copy_for_us_runs_no_hooks_but_those_that_make_weights():
    got = []
    with warnings.catch_warnings(action="ignore"):
        net = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 4, 3)), nn.ReLU())
    net.hidden = [nn.ReLU()]
    everything = (*net, net.hidden[0], net)
    for layer in everything:
        layer.register_forward_hook(lambda *_: got.append(1))
        layer.register_forward_pre_hook(lambda *_: got.append(1))
        layer.register_full_backward_hook(lambda *_: got.append(1))
    running = []
    everywhere = register_module_forward_hook(lambda *_: got.append(1))
    try:
        twin = copy_module(net, running=running)
        output = twin.hidden[0](twin(X))
        output.sum().backward()
    finally:
        everywhere.remove()
    assert not got and running == [] and bool(output.any())
    assert torch.equal(output, nn.functional.conv2d(X, net[0].weight, net[0].bias).relu())
    assert twin[0].weight_g.grad is not None and net[0].weight_g.grad is None
    with pytest.raises(RuntimeError):
        twin(X[:, :1])
    assert running == ["", "0"]


def test_what_cannot_be_copied_is_named():
    net = convnet()
    net[1].lock = threading.Lock()
    with pytest.raises(InputError, match=r"attribute 'lock' of layer '1' \(BatchNorm2d\) cannot be copied"):
        copy_module(net)
    with warnings.catch_warnings(action="ignore"):
        scripted = nn.Sequential(torch.jit.script(nn.Linear(2, 2)))
    assert torch.equal(copy_module(scripted)(torch.ones(1, 2)), scripted(torch.ones(1, 2)))
    with pytest.raises(InputError, match=r"layer '0' .* is TorchScript"):
        copy_module(scripted, ones)
    with warnings.catch_warnings(action="ignore"):
        mixed = nn.Sequential(nn.Linear(2, 2), torch.jit.script(nn.ReLU()))
    assert bool((copy_module(mixed, ones, running=[])(torch.ones(1, 2)) == 3).all())


def test_functions_of_torchscript_are_shared():
    with warnings.catch_warnings(action="ignore"):
        net = nn.Sequential(nn.ReLU())
        net.inside = {"all": [torch.jit.script(nn.functional.relu6)]}
    assert copy_module(net).inside["all"][0] is net.inside["all"][0]


def test_weak_references_are_to_the_copy():
    net = convnet()
    net[2].owner = weakref.ref(net)
    twin = copy_module(net)
    assert twin[2].owner() is twin and net[2].owner() is net


class Itself(nn.Linear):
    def __deepcopy__(self, memo):
        return self


class Anew(nn.Linear):
    def __deepcopy__(self, memo):
        new = Anew(self.in_features, self.out_features)
        new.load_state_dict(self.state_dict())
        return new


class Without(nn.Sequential):
    def __deepcopy__(self, memo):
        return Without()


def test_classes_that_copy_themselves_get_the_new_tensors_or_a_sentence():
    net = nn.Sequential(Anew(2, 2))
    before = net[0].weight.clone()
    assert bool((copy_module(net, ones)[0].weight == 1).all()) and torch.equal(net[0].weight, before)
    for tensors in (None, ones):
        with pytest.raises(
            InputError, match=r"'0' \(Itself\) cannot be copied: what it gives as its copy is itself"
        ):
            copy_module(nn.Sequential(Itself(2, 2)), tensors)
    with pytest.raises(InputError, match="not part of what its owner copies itself to"):
        copy_module(nn.Sequential(Without(nn.Linear(2, 2))), ones)


def test_layers_without_a_shape_are_copied_as_such():
    with warnings.catch_warnings(action="ignore"):
        net = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d())
        twin = copy_module(net)
        assert twin(X).shape == (2, 4, 4, 4) and type(net[0]) is nn.LazyConv2d


def test_functions_that_were_put_in_mean_the_copy():
    net, got = convnet(), []
    plain, whole = net.forward, net[1].forward

    def forward(x, *, factor=2.0):
        got.append(x)
        return plain(x * factor)

    net.forward = forward
    net[1].forward = lambda x: inner(x)

    def inner(x):
        return whole(x) + net[0].bias.view(1, -1, 1, 1)

    net[2].register_forward_hook(lambda layer, given, y: y + net[0].bias.view(1, -1, 1, 1))
    twin = copy_module(net, lambda name, old, is_buffer: torch.zeros_like(old))
    assert not twin(X).any() and net(X).any() and len(got) == 2


GLOBAL = convnet()
GLOBAL_FORWARD = GLOBAL.forward


def test_a_function_that_means_the_module_by_a_global_name_is_refused():
    GLOBAL.forward = lambda x: GLOBAL_FORWARD(x)
    with pytest.raises(InputError, match=r"'forward' of a Sequential uses .* global name 'GLOBAL_FORWARD'"):
        copy_module(GLOBAL)
    del GLOBAL.forward
    GLOBAL.pool = lambda x: nn.functional.max_pool2d(x, 2)
    assert copy_module(GLOBAL).pool(X).shape == (2, 3, 3, 3)
