"""State dict to vector and back, exactly, for every family; what a layout says of a network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from weightloom.architectures import architecture_families, architectures, parse_architecture
from weightloom.errors import InputError
from weightloom.weights import Layout, layout_of
from weightloom.weights.layout import KINDS

EXAMPLES = [text for family in architecture_families() for text in architectures.get(family).example_texts()]


def resolved(text, classes=10):
    spec = parse_architecture(text)
    return spec.resolve(classes=spec.classes or classes, input=spec.input or (3, 16, 16))


@pytest.mark.parametrize("text", EXAMPLES)
def test_round_trip_is_exact(text):
    spec = resolved(text)
    layout = layout_of(spec)
    state = spec.initialise(0).state_dict()
    # Any bit pattern that is a number has to survive, not only what an initialisation gives.
    state = {k: v + torch.randn_like(v) if v.is_floating_point() else v for k, v in state.items()}
    flat = layout.flatten(state)
    assert flat.shape == (layout.size,)
    back = layout.unflatten(flat)
    assert back.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(back[name], value), name
        assert back[name].dtype == value.dtype
    assert torch.equal(layout.flatten(back), flat)
    spec.build().load_state_dict(back, strict=True)


@pytest.mark.parametrize("text", EXAMPLES)
def test_a_layout_covers_the_network(text):
    spec = resolved(text)
    layout = layout_of(spec)
    module = spec.initialise(0)
    assert layout.num_parameters == spec.num_parameters() == sum(p.numel() for p in module.parameters())
    buffers = sum(b.numel() for b in module.buffers() if b.is_floating_point())
    assert layout.size == layout.num_parameters + buffers == sum(slot.numel for slot in layout.slots)
    assert len({slot.name for slot in layout.slots}) == len(layout.slots)
    assert {layer.kind for layer in layout.layers} <= set(KINDS)
    heads = [layer for layer in layout.layers if layer.kind == "head"]
    assert [head.name for head in heads] == [spec.head_name]
    assert heads[0].rows == spec.classes and layout.layers[-1] == heads[0]
    # Every value belongs to the slot that it comes back in.
    marked = layout.unflatten(layout.slot_of_value.double())
    for number, slot in enumerate(layout.slots):
        assert bool((marked[slot.name] == number).all())
        assert slot.is_variance == slot.name.endswith("running_var")
    variances = layout.unflatten(layout.is_variance.double())
    for slot in layout.slots:
        assert bool((variances[slot.name] == slot.is_variance).all())


@pytest.mark.parametrize("lead", [(3,), (2, 3), (0,)])
def test_leading_dimensions_are_kept(lead):
    layout = layout_of(resolved("cnn(depth=1,width=4)", classes=3))
    flats = torch.randn(*lead, layout.size)
    state = layout.unflatten(flats)
    for slot in layout.slots:
        assert state[slot.name].shape == (*lead, *slot.shape)
    for counter in layout.counters:
        assert state[counter.name].shape == lead and state[counter.name].dtype == torch.long
    if 0 not in lead:
        assert torch.equal(layout.flatten(state), flats)
        index = tuple(n - 1 for n in lead)
        assert torch.equal(layout.flatten({k: v[index] for k, v in state.items()}), flats[index])


def test_both_ways_carry_gradients():
    layout = layout_of(resolved("cnn(depth=1,width=4)", classes=3))
    flat = torch.randn(layout.size, requires_grad=True)
    weight = torch.randn(layout.size)
    (layout.flatten(layout.unflatten(flat)) * weight).sum().backward()
    assert flat.grad is not None and torch.equal(flat.grad, weight)


def test_a_row_of_a_layer_is_one_unit_with_its_bias():
    layout = layout_of(parse_architecture("mlp(depth=1,width=2,classes=2,input=1x1x3)"))
    state = {
        "body.1.weight": torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
        "body.1.bias": torch.tensor([7.0, 8.0]),
        "head.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        "head.bias": torch.tensor([5.0, 6.0]),
    }
    names = {slot.name for slot in layout.slots}
    if set(state) != names:  # the family may call its first layer otherwise
        first = sorted(names - set(state))
        state[first[1]], state[first[0]] = state.pop("body.1.weight"), state.pop("body.1.bias")
    expected = [1, 2, 3, 7, 4, 5, 6, 8, 1, 2, 5, 3, 4, 6]
    assert layout.flatten(state).tolist() == expected


def test_kinds():
    kinds = {
        layer.name: layer.kind
        for layer in layout_of(resolved("mobilenet(depth=3,width=4)", classes=3)).layers
    }
    assert set(kinds.values()) == {"conv", "depthwise", "norm", "head"}
    assert "table" in {layer.kind for layer in layout_of(resolved("vit(depth=1,width=8)")).layers}


def test_modules_with_scalars_and_shared_children():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))
            self.body = nn.Linear(3, 2, bias=False)
            self.head = nn.Linear(2, 2)
            self.register_buffer("forgotten", torch.zeros(5), persistent=False)

    module = Scaled()
    layout = Layout.from_module(module)
    assert layout.size == 1 + 6 + 6  # what the state dict does not hold is no slot
    assert all(
        torch.equal(layout.unflatten(layout.flatten(module.state_dict()))[name], value)
        for name, value in module.state_dict().items()
    )


class TestCheck:
    layout = layout_of(resolved("cnn(depth=1,width=4)", classes=3))

    def state(self):
        return self.layout.unflatten(torch.zeros(self.layout.size))

    def test_the_layouts_own_state_passes(self):
        self.layout.check(self.state())
        state = self.state()
        for counter in self.layout.counters:  # older files do not have them
            del state[counter.name]
        self.layout.check(state)

    def test_missing_extra_and_misshapen_tensors_are_named(self):
        state = self.state()
        del state["head.bias"]
        with pytest.raises(InputError, match=r"checkpoint 3: tensor 'head.bias' is missing"):
            self.layout.check(state, "checkpoint 3")
        with pytest.raises(InputError, match=r"'extra' does not belong"):
            self.layout.check(self.state() | {"extra": torch.zeros(1)})
        with pytest.raises(InputError, match=r"'head.bias' has shape \(4,\), wanted \(3,\)"):
            self.layout.check(self.state() | {"head.bias": torch.zeros(4)})


def test_layouts_are_made_once_and_allocate_nothing(memory_growth):
    spec = resolved("mlp(depth=1,width=4096)")
    with memory_growth(300):
        assert layout_of(spec).num_parameters == spec.num_parameters() > 3_000_000
    assert layout_of(spec) is layout_of(resolved("mlp(depth=1,width=4096)"))
