"""Networks over graphs: the same as the paper's node after node, and blind to what else is in the batch."""

from __future__ import annotations

import pytest
import torch

from weightloom.architectures.deepnet import DeepNetSpec
from weightloom.architectures.graph import GraphNode, ModuleGraph
from weightloom.errors import SpecError
from weightloom.nn import GatedGraphNetwork, GraphBatch, GraphTransformer, NodeEncoder


def graphs(count=3, split="test"):
    return [DeepNetSpec(split=split, index=i, classes=10, input=(3, 16, 16)).graph() for i in range(count)]


def slowly(model, x, graph):
    """Equation 4, one node after another, in place."""
    x, distance = list(x), torch.from_numpy(graph.distances).long()
    for table, nodes in ((distance.T, range(len(x))), (distance, reversed(range(len(x))))):
        for v in nodes:
            heard = torch.zeros_like(x[v])
            for u in range(len(x)):
                if table[v, u] == 1:
                    heard = heard + model.near(x[u])
                elif 1 < table[v, u] <= model.virtual_edges:
                    heard = heard + model.far(x[u]) / table[v, u]
            x[v] = model.cell(heard[None], x[v][None])[0]
    return torch.stack(x)


@pytest.mark.parametrize("virtual_edges", [1, 3, 50])
def test_the_gated_network_is_that_of_the_paper(virtual_edges):
    model = GatedGraphNetwork(8, virtual_edges=virtual_edges).double()
    for graph in graphs(2):
        x = torch.randn(len(graph), 8, dtype=torch.double)
        batch = GraphBatch([graph])
        orders = batch.orders(virtual_edges)
        for order in orders:
            object.__setattr__(order, "real", order.real.double())
            object.__setattr__(order, "virtual", order.virtual.double())
        batch.orders = lambda longest, orders=orders: orders
        # The distances' inverses are kept in single precision.
        assert torch.allclose(model(x, batch), slowly(model, x, graph), atol=1e-6)


@pytest.mark.parametrize(
    "make", [lambda: GatedGraphNetwork(16, passes=2), lambda: GraphTransformer(16, depth=2, heads=4)]
)
def test_a_batch_equals_its_singles(make):
    model, encode, found = make(), NodeEncoder(16), graphs(4, "dense")
    batch = GraphBatch(found)
    together = model(encode(batch), batch)
    parts = [model(encode(one), one) for one in (GraphBatch([graph]) for graph in found)]
    assert torch.allclose(together, torch.cat(parts), atol=1e-5)


@pytest.mark.parametrize("make", [GatedGraphNetwork, lambda d: GraphTransformer(d, depth=2, heads=2)])
def test_gradients_reach_every_parameter(make):
    model, encode, batch = make(16), NodeEncoder(16), GraphBatch(graphs())
    model(encode(batch), batch).square().sum().backward()
    for name, parameter in [*model.named_parameters(), *encode.named_parameters()]:
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name


def test_an_edge_more_is_seen_and_far_nodes_only_through_virtual_edges():
    nodes = tuple(GraphNode("input" if i == 0 else "max_pool", str(i)) for i in range(5))
    chain = tuple((i, i + 1) for i in range(4))
    plain, more = ModuleGraph(nodes, chain), ModuleGraph(nodes, (*chain, (0, 4)))
    for model in (GatedGraphNetwork(8), GraphTransformer(8, depth=1, heads=2)):
        x = torch.randn(5, 8)
        assert not torch.allclose(model(x, GraphBatch([plain])), model(x, GraphBatch([more])), atol=1e-3)


def test_features_tell_kinds_and_widths_apart():
    def node(kind, *shape):
        return GraphNode(kind, "x", shape=shape or None)

    odd = ModuleGraph(
        (node("input"), node("conv", 20, 3, 3, 3), node("conv", 21, 3, 3, 3), node("conv", 20, 3, 5, 3),
         node("bias", 20, 1, 1, 1), node("conv", 9000, 3, 99, 3)), tuple((i, i + 1) for i in range(5)),
    )  # fmt: skip
    features = NodeEncoder(8)(GraphBatch([odd]))
    assert len({tuple(row.tolist()) for row in features}) == 6
    assert torch.equal(NodeEncoder(8, shapes=False)(GraphBatch([odd]))[1:4].std(0), torch.zeros(8))


def test_bad_sizes_are_refused():
    with pytest.raises(SpecError, match="multiple of 4"):
        NodeEncoder(6)
    with pytest.raises(SpecError, match="heads"):
        GraphTransformer(8, depth=1, heads=3)
