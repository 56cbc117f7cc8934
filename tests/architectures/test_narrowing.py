"""Narrow twins: a network made of its twin's weights computes what the twin computes."""

from __future__ import annotations

import pytest
import torch

from weightloom.architectures import parse_architecture
from weightloom.architectures.capture import graph_of
from weightloom.architectures.deepnet import DeepNetSpec
from weightloom.architectures.narrowing import narrow_twin, repeated, widened
from weightloom.fitting import recalibrate, run_networks
from weightloom.generators.ghn import GHN, GHNConfig, make_validity
from weightloom.weights import layout_of

SHAPE = {"classes": 10, "input": (3, 16, 16)}


def make(**changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        config = GHNConfig(classes=10, width=8, block=8, kernel=5, widest=16, **changes)
        return GHN(config, make_validity((3, 16, 16))).eval()


@pytest.mark.parametrize("decoder", ["tiling", "coordinate"])
@pytest.mark.parametrize("text", ["cnn(depth=2,", "resnet(depth=8,", "vgg(depth=3,", "mobilenet(depth=3,"])
def test_four_times_as_wide_a_network_computes_the_same(text, decoder):
    model, images = make(decoder=decoder), torch.randn(32, 3, 16, 16).clamp(-1, 1)
    logits = []
    for width in (16, 64):
        spec = parse_architecture(f"{text}width={width})").resolve(**SHAPE)
        flat = recalibrate(spec, model.generate_many(spec)[0].flat[None], images)
        logits.append(run_networks(spec, flat, images)[0])
    assert logits[0].std() > 1e-3
    assert torch.allclose(*logits, atol=1e-3 * float(logits[0].abs().max()))


def test_a_network_that_is_narrow_enough_is_its_own_twin():
    graph = graph_of(parse_architecture("resnet(depth=8,width=16)").resolve(**SHAPE))
    twin = narrow_twin(graph, 16)
    assert twin.graph is graph and twin.shapes == tuple(node.shape for node in graph.nodes)


@pytest.mark.parametrize("index", range(8))
def test_any_wide_network_has_a_twin_whose_channels_are_repeated(index):
    """Every layer reads as many channels as the twin has there, and copies stand next to each other."""
    spec = DeepNetSpec(space="tiny", split="wide", index=index, **SHAPE)
    twin = narrow_twin(graph_of(spec), 16)
    stem = next(node for node in twin.graph.nodes if node.kind == "conv")
    assert stem.shape is not None and 8 < stem.shape[0] <= 16 and stem.shape[1] == 3
    kinds = [node.kind for node in twin.graph.nodes]
    for index, (node, sources) in enumerate(zip(twin.graph.nodes, twin.graph.predecessors, strict=True)):
        if node.kind == "conv" and node.shape and kinds[sources[0]] not in ("input", "attention"):
            assert node.shape[1] == twin.graph.channels[sources[0]] * twin.places[index], node
    state = layout_of(spec).unflatten(make().generate_many(spec)[0].flat)
    first = state[stem.tensors[0].name]
    assert torch.equal(first[0::2], first[1::2]) and not torch.equal(first[0], first[-1])


def test_copies_share_what_they_read():
    weight = torch.randn(2, 3, 4, 3, 3)  # (K, o, i, 3, 3)
    wide = widened(weight, (6, 8, 3, 3))
    assert wide.shape == (2, 6, 8, 3, 3) and torch.equal(wide[:, 0::2, 0::2] * 2, weight)
    flat = widened(torch.arange(4.0).reshape(1, 1, 4), (1, 8, 1, 1), places=2)  # channels 0 1 | 2 3
    assert flat.tolist() == [[[0.0, 0.5, 0.0, 0.5, 1.0, 1.5, 1.0, 1.5]]]
    assert repeated(torch.arange(3), 0, 5).tolist() == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("pool", ["mean", "token"])
def test_tables_of_positions_are_repeated_too(pool):
    spec = parse_architecture(f"vit(depth=1,width=64,pool={pool})").resolve(**SHAPE)
    state = layout_of(spec).unflatten(make().generate_many(spec)[0].flat)
    tables = [value for name, value in state.items() if "position" in name or "token" in name]
    assert len(tables) == (1 if pool == "mean" else 2)
    for table in tables:
        assert torch.equal(table[..., 0::4], table[..., 3::4]) and table[..., ::4].unique().numel() >= 8
