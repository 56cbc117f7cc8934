"""The narrow twin of a network: the same graph with a fraction of the channels.

A network whose channels are copies of its twin's, each copy next to the other, computes what the twin does if
every weight is divided by the number of copies that it reads. So a hypernetwork can make networks wider than
any that it was trained on: it predicts the twin and repeats its channels. Knows no hypernetwork.

Source: function-preserving widening, Chen et al., "Net2Net" (arXiv 1511.05641), section 2.2.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import Tensor

from weightloom.architectures.graph import NORM_KINDS, WEIGHT_KINDS, GraphNode, ModuleGraph, Shape4


@dataclass(frozen=True)
class Twin:
    """A graph whose nodes have the twin's shapes, and what it takes to come back by :func:`widened`.

    Attributes:
        graph: nodes with the twin's shapes; the tensors' own shapes are still the network's.
        shapes: what the shapes were.
        places: of each node, how many places of a map it reads flattened; 1 where it reads channels.
    """

    graph: ModuleGraph
    shapes: tuple[Shape4 | None, ...]
    places: tuple[int, ...]


def widened(value: Tensor, shape: Shape4, places: int = 1) -> Tensor:
    """The network's weight (K, O, I, ...) of ``shape`` from its twin's (K, o, i, ...): channels repeated.

    Example:
        >>> import torch
        >>> widened(torch.tensor([[[1.0, 2.0]]]), (2, 4, 1, 1)).tolist()
        [[[0.5, 0.5, 1.0, 1.0], [0.5, 0.5, 1.0, 1.0]]]
    """
    value, into = repeated(value, 1, shape[0]), value.shape[2]
    if into == shape[1]:
        return value
    # (K, O, i, ...) -> (K, O, c, places, ...) -> (K, O, C, places, ...) -> (K, O, I, ...)
    parted = repeated(value.unflatten(2, (-1, places)), 2, shape[1] // places)
    return parted.flatten(2, 3) * (into / shape[1])


def repeated(x: Tensor, dim: int, length: int) -> Tensor:
    """Each entry as often as it takes, next to each other, cut to ``length``."""
    have = x.shape[dim]
    return x if have == length else x.repeat_interleave(-(-length // have), dim).narrow(dim, 0, length)


def narrow_twin(graph: ModuleGraph, widest: int) -> Twin:
    """The twin whose first layer has at most ``widest`` channels; the network itself where it has no more.

    All channels of maps are divided by one power of two. Classes, the picture's channels and the hidden
    neurons before a head stay.

    Example:
        >>> from weightloom.architectures import parse_architecture
        >>> from weightloom.architectures.capture import graph_of
        >>> spec = parse_architecture("cnn(depth=2,width=64,classes=10,input=3x16x16)")
        >>> twin = narrow_twin(graph_of(spec), 24)
        >>> [node.shape for node in twin.graph.nodes if node.kind == "conv"]
        [(16, 3, 3, 3), (16, 16, 3, 3), (10, 64, 1, 1)]
        >>> twin.shapes[-2], twin.places[-2]
        ((10, 256, 1, 1), 4)
    """
    shapes = tuple(node.shape for node in graph.nodes)
    stem = next((node.shape[0] for node in graph.nodes if node.kind in WEIGHT_KINDS and node.shape), 1)
    factor = 1
    while stem > widest * factor:
        factor *= 2
    places = tuple(_places(graph, index) for index in range(len(graph)))
    if factor == 1:
        return Twin(graph, shapes, places)
    fixed = set(graph.heads) | _tail(graph)
    divided: list[bool] = []  # whether the channels after each node are the twin's
    nodes = []
    for index, (node, sources) in enumerate(zip(graph.nodes, graph.predecessors, strict=True)):
        before = bool(sources) and all(divided[source] for source in sources)
        after = before
        if node.kind == "position":
            node = _narrow_table(node, stem, factor)
        elif node.shape is not None:
            out, into, high, wide = node.shape
            if node.kind in WEIGHT_KINDS:
                depthwise = into == 1 < graph.channels[sources[0]]
                after = before if depthwise else index not in fixed
                if before and not depthwise:
                    into = places[index] * -(-into // places[index] // factor)
            if after:
                out = -(-out // factor)
            node = dataclasses.replace(node, shape=(out, into, high, wide))
        divided.append(after)
        nodes.append(node)
    twin = dataclasses.replace(graph, nodes=tuple(nodes))
    for name in ("predecessors", "distances", "heads", "head_biases"):  # no width changes these
        twin.__dict__[name] = getattr(graph, name)
    return Twin(twin, shapes, places)


def _narrow_table(node: GraphNode, stem: int, factor: int) -> GraphNode:
    """A table of positions with fewer channels: its rows where it lies on maps (1, C, H, W), else columns."""
    if node.shape is None or not node.tensors:
        return node
    sizes = list(node.shape)
    axis = 0 if len(node.tensors[0].shape) > 2 or sizes[1] == 1 else 1
    if sizes[axis] == stem:
        sizes[axis] = -(-stem // factor)
    return dataclasses.replace(node, shape=(sizes[0], sizes[1], sizes[2], sizes[3]))


def _places(graph: ModuleGraph, index: int) -> int:
    """Places of the map that a weight reads flattened; 1 where it reads channels, or that is not known."""
    node, sources = graph.nodes[index], graph.predecessors[index]
    if node.kind not in WEIGHT_KINDS or node.shape is None or len(sources) != 1:
        return 1
    channels, into = graph.channels[sources[0]], node.shape[1]
    return into // channels if channels and into > channels and into % channels == 0 else 1


def _tail(graph: ModuleGraph) -> set[int]:
    """Linear layers that only lead, by biases and norms, to a head or to another of them."""
    after = graph.successors
    ends, found = set(graph.heads), set[int]()
    for index in reversed(range(len(graph))):
        node = graph.nodes[index]
        leads = bool(after[index]) and all(target in ends for target in after[index])
        if leads and node.kind in ("bias", *NORM_KINDS):
            ends.add(index)
        elif leads and node.kind in WEIGHT_KINDS and node.shape and node.shape[2:] == (1, 1):
            ends.add(index)
            found.add(index)
    return found
