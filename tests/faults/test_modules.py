"""Odd modules through the graph hypernetwork: every running statistic is that of a network measured by hand,
or what it was, and the report says which; nothing of the caller's is changed or run.

The quick size has about a third of the modules.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.faults.conftest import FULL
from tests.faults.odd_modules import ODD, Odd
from tests.faults.odd_parts import GATHERED
from torch import Tensor, nn

from weightloom.architectures.tracing import tensors_in
from weightloom.generators.load import load_generator
from weightloom.io import load_tensors

CHOSEN = [name for name, odd in ODD.items() if FULL or odd.quick]
MEAN, VARIANCE = 0.3, 2.0
"""What statistics are before anything is done; no reset gives these."""

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"
)


@pytest.fixture(scope="module")
def ghn():
    return load_generator("ghn-cifar10-tiny")


def pictures(odd: Odd) -> Tensor:
    return torch.rand(odd.images, *odd.input, generator=torch.Generator().manual_seed(1)) * 2 - 1


def build(odd: Odd, norm: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = odd.make(norm)
    with torch.no_grad():
        for name, buffer in net.named_buffers():
            if buffer.is_floating_point() and buffer.ndim:
                buffer.fill_(MEAN if "mean" in name else VARIANCE)
    return net


def own(odd: Odd) -> nn.Module:
    return odd.wrap(build(odd, odd.norm))


def by_hand(odd: Odd, state: dict[str, Tensor], images: Tensor) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Statistics of the network with these weights in plain arithmetic, and how often each norm ran."""
    reference = build(odd, odd.by_hand).eval()
    with torch.no_grad():
        for buffer in reference.buffers():
            buffer.zero_()
        weights = {name: value for name, value in state.items() if "running" not in name}
        reference.load_state_dict(weights, strict=False)
        for part in images.tensor_split(-(-len(images) // odd.batch)):
            reference(part.to(next(reference.parameters()).dtype))
    found = dict(reference.named_buffers())
    for before, after in odd.renamed:
        found = {name.replace(before, after): value for name, value in found.items()}
    return found, {path: norm.calls for path, norm in reference.named_modules() if hasattr(norm, "calls")}


def kept_tensors(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, layer in net.named_modules(remove_duplicate=False):
        for name, value in vars(layer).items():
            if name != "_modules":
                for number, tensor in enumerate(tensors_in(value)):
                    yield f"{path}.{name}.{number}", tensor


def describe(net: nn.Module) -> dict[str, Any]:
    """All that must be as it was: tensors by identity and value, modes, hooks, gradients' switches."""
    found: dict[str, Any] = {}
    for name, tensor in kept_tensors(net):
        value = None if tensor.is_meta else tensor.detach().clone().nan_to_num()
        found[name] = (id(tensor), str(tensor.device), tensor.requires_grad, value)
    for path, layer in net.named_modules():
        hooks = {n: list(v.items()) for n, v in vars(layer).items() if n.endswith("_hooks") and v}
        found[f"{path} itself"] = (id(layer), layer.training, sorted(vars(layer)), hooks)
    return found


def same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


def hooked(net: nn.Module) -> list[str]:
    found = []
    for path, layer in net.named_modules():
        hooks = [*layer._forward_hooks.values(), *layer._forward_pre_hooks.values()]
        if any("torch" not in str(getattr(hook, "__module__", "torch")) for hook in hooks):
            found.append(path)
    return found


@pytest.mark.parametrize("name", CHOSEN)
def test_no_statistic_is_reset_and_nothing_is_touched(name, ghn, tmp_path, record_property, capfd):
    odd = ODD[name]
    GATHERED.clear()
    images = pictures(odd)
    net = own(odd)
    before = describe(net)
    statistics_before = {n: b.detach().clone() for n, b in build(odd, odd.norm).named_buffers()}
    capfd.readouterr()
    sample = ghn.generate(net, input=odd.input, images=images, partial=True)
    assert capfd.readouterr() == ("", "")

    # The caller's module.
    after = describe(net)
    assert before.keys() == after.keys() and all(same(before[key], after[key]) for key in before)
    assert not any(GATHERED), "a hook was run"
    assert not {id(t) for _, t in kept_tensors(net)} & {id(t) for _, t in kept_tensors(sample.module)}

    # The statistics.
    outcome = {name: how for how, names in sample.report["statistics"].items() for name in names}
    buffers = {n: b for n, b in sample.module.named_buffers() if b.is_floating_point()}
    assert outcome.keys() == buffers.keys()
    reference, calls = by_hand(odd, sample.state_dict, images)
    counters = dict(sample.module.named_buffers())
    measured = 0
    for buffer, value in buffers.items():
        if buffer.startswith(odd.left) and odd.left:
            assert outcome[buffer] == "left as they were"
            assert torch.equal(value, statistics_before[buffer])
        elif (buffer in reference and "running" in buffer) or "moving" in buffer:
            assert outcome[buffer] == "re-estimated on images", buffer
            assert torch.allclose(value, reference[buffer].to(value.dtype), rtol=1e-3, atol=1e-4), buffer
            measured += 1
            path = buffer.rpartition(".")[0]
            counter = counters.get(f"{path}.num_batches_tracked")
            assert counter is None or counter == calls[path]
        else:
            assert outcome[buffer] == "left as they were"
    assert (
        sample.report["batch_norm"] == ("re-estimated on images" if measured else "left as they were")
        or not buffers
    )
    record_property("measured", measured)

    assert sample.report["hooks_not_run"] == hooked(net)

    # Without images a reset is said, and all else is as it was.
    GATHERED.clear()
    fresh = ghn.generate(net, input=odd.input, partial=True)
    words = {n: how for how, names in fresh.report["statistics"].items() for n in names}
    for buffer, value in fresh.module.named_buffers():
        if words.get(buffer) == "generated":
            assert not value.sub(0 if "mean" in buffer else 1).any()
        elif value.is_floating_point():
            assert words[buffer] == "left as they were" and torch.equal(value, statistics_before[buffer])
    assert not any(GATHERED)

    # What is kept, and a file that is loaded in the documented way.
    assert len(sample.report["kept"]) == odd.kept
    path = sample.save(tmp_path / "net.safetensors")
    again = build(odd, odd.norm)
    again.load_state_dict(load_tensors(path)[0])
    seen = images[:16].to(next(again.parameters()).dtype)
    with torch.no_grad():
        outputs = [tensors_in(made(seen))[0] for made in (again.train(odd.train), sample.module)]
    assert torch.allclose(*outputs, rtol=1e-4, atol=1e-5) and bool(outputs[0].isfinite().all())
    warnings.resetwarnings()


def test_there_are_enough_of_them(full):
    assert len(ODD) >= 60 and (full or len(CHOSEN) >= 20)
