from __future__ import annotations

import pytest
import torch
from torch import nn

from weightloom.architectures import architecture_families, parse_architecture
from weightloom.errors import UnsupportedRequestError
from weightloom.weights import layout_of, permutation_spec, permutation_spec_of

CASES = [
    "mlp(depth=2,width=8)",
    "mlp(depth=2,width=8,norm=batch,activation=tanh)",
    "mlp(depth=2,width=8,norm=layer,activation=gelu)",
    "cnn(depth=2,width=8)",
    "cnn(depth=2,width=8,norm=none,activation=silu)",
    "cnn(depth=2,width=16,norm=group)",
    "cnn(depth=2,width=8,norm=layer)",
    "resnet(depth=8,width=4)",
    "resnet(depth=14,width=4,norm=none)",
    "mobilenet(depth=6,width=4)",
    "mobilenet(depth=3,width=4,expansion=1)",
    "mobilenetv2(scale=10)",
    "efficientnet-lite(scale=10)",
    "efficientnet-lite(size=1,scale=5,ending=plain)",
    "vgg(depth=4,width=4)",
    "tinycnn(variant=small,classes=10,input=1x28x28)",
    "tinycnn(variant=medium,classes=10,input=3x32x32)",
    "vit(depth=2,width=8)",
    "vit(depth=1,width=8,pool=token,norm=none,heads=2)",
    "deepnet(split=train,index=3,width=8)",
]


def resolve(text):
    spec = parse_architecture(text)
    return spec.resolve(classes=spec.classes or 3, input=spec.input or (1, 16, 16))


def groups_of(spec, name):
    return [axis.group for axis in spec.weights[name]]


def test_every_family_is_tried():
    assert {parse_architecture(text).family for text in CASES} == set(architecture_families())


@pytest.mark.parametrize("text", CASES)
def test_axes_cover_the_whole_state_dict(text):
    spec = resolve(text)
    symmetry = permutation_spec(spec)
    for slot in layout_of(spec).slots:
        axes = symmetry.weights[slot.name]
        count = 1
        for axis in axes:
            count *= axis.size
            assert axis.size > 1
            assert axis.group is None or symmetry.sizes[axis.group] == axis.size
        assert count == slot.numel
    assert set(range(len(symmetry.sizes))) == {
        axis.group for axes in symmetry.weights.values() for axis in axes if axis.group is not None
    }


def test_hidden_layers_move_and_borders_do_not():
    symmetry = permutation_spec(resolve("mlp(depth=2,width=8)"))
    assert symmetry.sizes == (8, 8)
    assert groups_of(symmetry, "body.1.weight") == [0, None]  # pixels stay
    assert groups_of(symmetry, "body.3.weight") == [1, 0]
    assert groups_of(symmetry, "head.weight") == [None, 1]  # classes stay
    assert groups_of(symmetry, "head.bias") == [None]


def test_flattened_maps_move_by_channel():
    """What follows a flattening reads channels times places: the places stay where they are."""
    symmetry = permutation_spec(resolve("cnn(depth=1,width=8)"))
    sizes = [(axis.size, axis.group) for axis in symmetry.weights["head.weight"]]
    assert sizes == [(3, None), (8, 0), (4, None)]


def test_a_residual_stream_is_one_group():
    symmetry = permutation_spec(resolve("resnet(depth=14,width=4)"))
    stream = groups_of(symmetry, "body.0.conv.weight")[0]
    for name in ("body.1.second.conv.weight", "body.2.second.conv.weight"):
        assert groups_of(symmetry, name)[0] == stream
    for name in ("body.1.first.conv.weight", "body.2.first.conv.weight", "body.3.shortcut.conv.weight"):
        assert groups_of(symmetry, name)[1] == stream
    inner = groups_of(symmetry, "body.1.first.conv.weight")[0]
    assert inner != stream and groups_of(symmetry, "body.1.second.conv.weight")[1] == inner
    for statistic in ("weight", "bias", "running_mean", "running_var"):
        assert groups_of(symmetry, f"body.1.second.norm.{statistic}") == [stream]


def test_a_depthwise_convolution_carries_the_order_through():
    symmetry = permutation_spec(resolve("mobilenet(depth=3,width=4)"))
    inner = groups_of(symmetry, "body.1.widen.conv.weight")[0]
    assert groups_of(symmetry, "body.1.depthwise.conv.weight") == [inner, None]
    assert groups_of(symmetry, "body.1.narrow.conv.weight")[1] == inner


def test_heads_of_attention_move_as_wholes():
    symmetry = permutation_spec(resolve("vit(depth=1,width=8,heads=2)"))
    query, key = (groups_of(symmetry, f"body.1.attention.{name}.weight") for name in ("query", "key"))
    value, out = (groups_of(symmetry, f"body.1.attention.{name}.weight") for name in ("value", "out"))
    heads, inner, stream = query
    assert symmetry.sizes[heads] == 2 and symmetry.sizes[inner] == 4 and symmetry.sizes[stream] == 8
    assert key == query  # query and key meet in a product: one order
    assert value[0] == heads and value[1] not in query and value[2] == stream
    assert out == [stream, heads, value[1]]
    assert groups_of(symmetry, "body.0.position")[1] == stream
    assert groups_of(symmetry, "body.0.position")[0] is None


def test_groups_of_a_norm_move_as_wholes():
    symmetry = permutation_spec(resolve("cnn(depth=1,width=32,norm=group)"))
    assert symmetry.sizes == (8, 4)
    assert groups_of(symmetry, "body.0.norm.weight") == [0, 1]


class Stranger(nn.Module):
    """An operation that the rules do not know stands in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.third(self.second(torch.cumsum(self.first(x), dim=1)).relu())


def test_an_unknown_operation_ties_what_it_touches_and_nothing_else():
    symmetry = permutation_spec_of(Stranger().eval(), torch.zeros(16, 4))
    assert symmetry.sizes == (6,)
    assert groups_of(symmetry, "first.weight") == [None]
    assert groups_of(symmetry, "second.weight") == [0, None]
    assert groups_of(symmetry, "third.weight") == [None, 0]


def test_hooks_of_the_module_are_not_run():
    got, net = [], Stranger().eval()
    net.first.register_forward_hook(lambda layer, given, y: got.append(y))
    assert permutation_spec_of(net, torch.zeros(16, 4)).sizes == (6,) and not got


class Branches(nn.Module):
    def forward(self, x):
        return x + 1 if float(x.sum()) > 0 else x - 1


def test_what_cannot_be_captured_is_refused():
    with pytest.raises(UnsupportedRequestError, match="cannot be captured as one graph"):
        permutation_spec_of(Branches(), torch.zeros(16, 2))


def test_the_graph_computes_what_the_module_does():
    spec = resolve("resnet(depth=8,width=4)")
    module = spec.initialise(0).eval()
    images = torch.randn(21, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    symmetry = permutation_spec(spec)
    seen = {}
    module.body[0].norm.register_forward_hook(lambda m, i, o: seen.update(norm=o))
    module(images)
    answers = symmetry.run(module.state_dict(), images)
    assert all(len(value) == 21 for value in answers.values())
    assert any(
        value.shape == seen["norm"].shape and torch.allclose(value, seen["norm"], atol=1e-5)
        for value in answers.values()
    )
