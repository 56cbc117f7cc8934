"""The computation graph of a network: what a graph hypernetwork reads and what it has to fill.

A graph holds kinds of operations, shapes of weights and names of tensors; no weights and no modules. How a
graph is made of a module is in ``capture.py``, how of a genotype in ``deepnet.py``. Knows no hypernetwork.

Shapes: N nodes, E edges.
Source: Knyazev et al., "Parameter Prediction for Unseen Deep Architectures" (arXiv 2110.13100), section 3 and
appendix A: primitives, one node for each weight, virtual edges by shortest path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

KINDS = (
    "max_pool",
    "avg_pool",
    "group_conv",
    "dilated_conv",
    "conv",
    "attention",
    "gate",
    "sum",
    "concat",
    "input",
    "bias",
    "batch_norm",
    "layer_norm",
    "position",
    "global_avg",
    "group_norm",
    "scale",
)
"""What a node does: the fifteen primitives of DeepNets-1M in their order, then two of our own.

``conv`` is a convolution or a linear layer (a 1 x 1 convolution), ``gate`` a product of two signals
(squeeze-and-excitation), ``position`` a table that is added or joined to a signal (position embeddings, class
tokens), ``scale`` a vector that a signal is multiplied by (layer scale).
"""

KIND_INDEX = {kind: index for index, kind in enumerate(KINDS)}
WEIGHT_KINDS = frozenset({"conv", "group_conv", "dilated_conv"})
NORM_KINDS = frozenset({"batch_norm", "layer_norm", "group_norm"})

ROLES = ("weight", "bias", "mean", "variance", "counter")
"""What a tensor is to its node; the last three are batch norms' statistics."""

Shape4 = tuple[int, int, int, int]


@dataclass(frozen=True)
class GraphTensor:
    """One tensor of the state dict: its role for the node, its name, its shape there."""

    role: str
    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class GraphNode:
    """One operation.

    Attributes:
        kind: one of :data:`KINDS`.
        name: what messages call it.
        tensors: the tensors that belong to it; none where it computes without any, or where another node
            that uses the same weights owns them.
        shape: (out, in, kernel height, kernel width) of its weight, None without one. ``in`` is what one
            output unit reads, so a depthwise convolution has 1 there. A table is (rows, columns, 1, 1).
        transposed: the tensor is stored as (in, out).
    """

    kind: str
    name: str
    tensors: tuple[GraphTensor, ...] = ()
    shape: Shape4 | None = None
    transposed: bool = False


@dataclass(frozen=True)
class ModuleGraph:
    """The operations of one network in an order in which each comes after all that it reads.

    Attributes:
        nodes: N nodes; the first is the input.
        edges: E pairs (from, to) without repetition, sorted.
        unused: parameters that the forward pass in eval mode never uses (auxiliary heads).
        kept: parameters that cannot be predicted, with the reason; only with ``partial=True``.
        how: the way it was captured.

    Example:
        >>> graph = ModuleGraph(
        ...     nodes=(GraphNode("input", "input"), GraphNode("max_pool", "pool"), GraphNode("sum", "sum")),
        ...     edges=((0, 1), (0, 2), (1, 2)),
        ... )
        >>> graph.distances.tolist()
        [[0, 1, 1], [0, 0, 1], [0, 0, 0]]
    """

    nodes: tuple[GraphNode, ...]
    edges: tuple[tuple[int, int], ...]
    unused: tuple[str, ...] = ()
    kept: tuple[tuple[str, str], ...] = ()
    how: str = "genotype"

    def __len__(self) -> int:
        """N."""
        return len(self.nodes)

    @cached_property
    def owner(self) -> dict[str, int]:
        """The node of every tensor, by the tensor's name in the state dict."""
        return {tensor.name: index for index, node in enumerate(self.nodes) for tensor in node.tensors}

    @cached_property
    def predecessors(self) -> tuple[tuple[int, ...], ...]:
        """For each node the nodes that it reads."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for source, target in self.edges:
            found[target].append(source)
        return tuple(map(tuple, found))

    @cached_property
    def successors(self) -> tuple[tuple[int, ...], ...]:
        """For each node the nodes that read it."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for source, target in self.edges:
            found[source].append(target)
        return tuple(map(tuple, found))

    @cached_property
    def distances(self) -> np.ndarray:
        """(N, N) int16: edges on the shortest directed path from row to column; 0 where there is none."""
        count = len(self.nodes)
        far = np.int32(2**14)
        table = np.full((count, count), far, dtype=np.int32)  # table[v] holds the distances *to* v
        for target, sources in enumerate(self.predecessors):
            if sources:
                table[target] = table[list(sources)].min(0) + 1
            table[target, target] = 0
        table[table >= far] = 0
        return np.ascontiguousarray(table.T).astype(np.int16)

    @cached_property
    def heads(self) -> tuple[int, ...]:
        """Weights after which no other weight comes: the layers whose rows are the classes."""
        weighted = np.array([node.kind in WEIGHT_KINDS for node in self.nodes])
        followed = (self.distances[:, weighted] > 0).any(1)
        return tuple(int(i) for i in np.flatnonzero(weighted & ~followed))

    @cached_property
    def head_biases(self) -> tuple[int, ...]:
        """Biases that are added to what a head gives."""
        heads = set(self.heads)
        return tuple(
            i
            for i, node in enumerate(self.nodes)
            if node.kind == "bias" and any(source in heads for source in self.predecessors[i])
        )

    @cached_property
    def normed_ends(self) -> frozenset[int]:
        """Those of :attr:`heads` behind which a norm comes: the last layers of a trunk that has no head."""
        norms = np.array([node.kind in NORM_KINDS for node in self.nodes])
        return frozenset(index for index in self.heads if (self.distances[index, norms] > 0).any())

    @cached_property
    def channels(self) -> tuple[int, ...]:
        """How many channels the signal has after each node; 0 where that is not known.

        A weight that reads more than these reads a map that was flattened, channel after channel.
        """
        found: list[int] = []
        for node, sources in zip(self.nodes, self.predecessors, strict=True):
            before = [found[source] for source in sources]
            if node.shape is not None and (node.kind in WEIGHT_KINDS or node.kind in NORM_KINDS):
                found.append(node.shape[0])
            elif node.kind == "concat":
                found.append(sum(before) if all(before) else 0)
            else:
                found.append(max(before, default=0))
        return tuple(found)

    def without_idle_biases(self) -> tuple[ModuleGraph, tuple[GraphTensor, ...]]:
        """The graph without biases that only batch norms read, and their tensors: a batch norm undoes them.

        Example:
            >>> node = lambda kind, shape=None: GraphNode(kind, kind, shape=shape)
            >>> kinds = ("input", "conv", "bias", "batch_norm")
            >>> graph = ModuleGraph(tuple(node(kind) for kind in kinds), ((0, 1), (1, 2), (2, 3)))
            >>> reduced, _ = graph.without_idle_biases()
            >>> [one.kind for one in reduced.nodes], reduced.edges
            (['input', 'conv', 'batch_norm'], ((0, 1), (1, 2)))
        """
        after = self.successors
        idle = {
            index
            for index, node in enumerate(self.nodes)
            if node.kind == "bias"
            and len(self.predecessors[index]) == 1
            and after[index]
            and all(self.nodes[target].kind == "batch_norm" for target in after[index])
        }
        if not idle:
            return self, ()
        place = {old: new for new, old in enumerate(i for i in range(len(self.nodes)) if i not in idle)}
        edges = {
            (place[self.predecessors[source][0] if source in idle else source], place[target])
            for source, target in self.edges
            if target not in idle
        }
        nodes = tuple(node for index, node in enumerate(self.nodes) if index not in idle)
        tensors = tuple(tensor for index in sorted(idle) for tensor in self.nodes[index].tensors)
        return replace(self, nodes=nodes, edges=tuple(sorted(edges))), tensors

    @cached_property
    def structure(self) -> str:
        """A hash that is equal for graphs of the same shape of connections, whatever their widths and names.

        Each node is described by its kind, its kernel and its neighbours' descriptions, from the input on and
        from the output back; the graph is the set of these. Graphs that can be mapped onto each other always
        agree. Graphs that cannot may agree in rare cases, so a split that is made by this hash never puts
        equal networks on both sides.
        """
        return _hash_of(
            [(node.kind, () if node.shape is None else node.shape[2:]) for node in self.nodes],
            self.edges,
        )


def _digest(*parts: object) -> bytes:
    return hashlib.blake2b(repr(parts).encode(), digest_size=12).digest()


def _hash_of(labels: Sequence[tuple[object, ...]], edges: Iterable[tuple[int, int]]) -> str:
    count = len(labels)
    before: list[list[int]] = [[] for _ in labels]
    after: list[list[int]] = [[] for _ in labels]
    for source, target in edges:
        before[target].append(source)
        after[source].append(target)
    down: list[bytes] = [b""] * count
    up: list[bytes] = [b""] * count
    for v in range(count):
        down[v] = _digest(labels[v], sorted(down[u] for u in before[v]))
    for v in reversed(range(count)):
        up[v] = _digest(down[v], sorted(up[u] for u in after[v]))
    return _digest(sorted(up)).hex()
