"""Random cell networks: the same at the same address, apart between splits, and graphs that need no trace."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from weightloom.architectures import parse_architecture
from weightloom.architectures.capture import capture_graph
from weightloom.architectures.deepnet import DeepNetSpec, genotype_of, plan_of, side_of
from weightloom.architectures.genotype import OPERATIONS, SPACES, SPLITS, draw_genotype
from weightloom.errors import SpecError


def spec_of(split="train", index=0, space="tiny", **options):
    options = {"classes": 10, "input": (3, 16, 16), **options}
    return DeepNetSpec(space=space, split=split, index=index, **options)


@pytest.mark.parametrize("split", SPLITS)
def test_the_graph_of_the_genotype_is_the_graph_of_the_trace(split):
    specs = [spec_of(split, index) for index in range(12)] + [
        spec_of(split, 0, "deepnets", input=(3, 32, 32))
    ]
    for spec in specs:
        with torch.device("meta"):
            traced = capture_graph(spec.build(), spec.input)
        graph = spec.graph()
        assert graph.how == "genotype" and (graph.nodes, graph.edges) == (traced.nodes, traced.edges), spec
        assert not graph.unused and not graph.kept


def test_no_structure_is_on_two_sides():
    """Whatever the index: a structure's hash decides its side, and equal networks have equal hashes."""
    sides = {
        side: {spec_of(split, i).graph().structure for split in splits for i in range(40)}
        for side, splits in {
            "train": ["train"],
            "val": ["val"],
            "test": ["test", "deep", "dense", "wide"],
        }.items()
    }
    assert len(sides["train"]) > 30, "networks differ"
    assert not sides["train"] & sides["val"] and not sides["train"] & sides["test"]
    assert not sides["val"] & sides["test"]
    for split in SPLITS:
        wanted = split if split in ("train", "val") else "test"
        assert {side_of(genotype_of("tiny", split, i)) for i in range(10)} == {wanted}


def test_width_and_input_do_not_move_a_network_to_another_side():
    for index in range(8):
        structures = {
            spec_of(index=index, width=width, input=shape).graph().structure
            for width in (6, 32)
            for shape in ((3, 16, 16), (1, 32, 32))
        }
        assert structures == {spec_of(index=index).graph().structure}


def test_an_address_gives_one_network_and_moves_no_global_stream():
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    genotype_of.cache_clear()
    first = [genotype_of("tiny", "train", i) for i in range(10)]
    genotype_of.cache_clear()
    assert first[::-1] == [genotype_of("tiny", "train", i) for i in reversed(range(10))]
    assert first != [genotype_of("tiny", "train", i, salt=1) for i in range(10)]
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
    assert np.array_equal(before[2], np.random.get_state()[1])


@pytest.mark.parametrize("space", sorted(SPACES))
def test_draws_keep_to_their_ranges(space):
    seen = set()
    for split, limits in SPACES[space].items():
        for attempt in range(60):
            genotype = draw_genotype(space, split, 0, attempt)
            if genotype is None:
                continue
            assert limits.cells[0] <= genotype.cells <= limits.cells[1]
            steps = len(genotype.normal.steps)
            assert min(limits.steps[0], limits.deep_steps[0]) <= steps <= limits.steps[1]
            assert genotype.width in limits.widths and genotype.stem in limits.stems
            assert limits.norm is None or genotype.norm == limits.norm
            edges = [edge for step in genotype.normal.steps for edge in step]
            assert all(0 <= edge.reads < steps + 1 for edge in edges)
            seen |= {edge.operation for edge in edges}
    assert seen == set(OPERATIONS)


def test_splits_are_what_they_are_called():
    assert all(spec_of("wide", i).genotype.width >= 32 for i in range(8))
    assert all(spec_of("deep", i).genotype.cells >= 5 for i in range(8))
    assert all(len(spec_of("dense", i).genotype.normal.steps) >= 3 for i in range(8))
    for i in range(8):
        assert "batch_norm" not in {node.kind for node in spec_of("bn-free", i).graph().nodes}


def test_networks_run_on_pictures_and_learn():
    for index in range(6):
        spec = spec_of("dense", index, width=6)
        module = spec.initialise(0)
        loss = torch.nn.functional.cross_entropy(module(torch.randn(4, 3, 16, 16)), torch.arange(4))
        loss.backward()
        assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in module.parameters())


def test_shapes_of_a_plan_are_those_of_the_tensors():
    for index in range(6):
        spec = spec_of("test", index, input=(1, 13, 13))
        plan, module = plan_of(spec.genotype, spec.input), spec.build().eval()
        given = {}
        parts = [(name, part) for name, part in module.body.named_children() if name != "activation"]
        for name, part in parts:
            part.register_forward_hook(
                lambda m, x, out, name=name, given=given: given.update({name: tuple(out.shape[1:])})
            )
        module(torch.randn(2, 1, 13, 13))
        planned = {f"{step.op}{number}": step.shape for number, step in enumerate(plan)}
        assert given and given == {name: planned[name] for name in given}


def test_its_text_is_its_address():
    spec = spec_of("test", 3)
    assert str(spec) == "deepnet(split=test,index=3,classes=10,input=3x16x16)"
    assert parse_architecture(str(spec)) == spec
    with pytest.raises(SpecError, match="one of"):
        parse_architecture("deepnet(split=tests)")
    with pytest.raises(SpecError, match="classes and input"):
        parse_architecture("deepnet(index=1)").graph()
