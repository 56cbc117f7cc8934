"""Networks over computation graphs: node features, a gated graph network, a graph transformer.

Several graphs are one batch: their nodes stand one after another and know nothing of each other's. Knows no
weights and no decoder.

Shapes: G graphs, N nodes of all graphs together, M nodes of the largest, D width, H heads.
Sources: GHN-2, Knyazev et al. (arXiv 2110.13100), equations 3 and 4 and appendix A; GHN-3, Knyazev et al.
(arXiv 2303.04143), section 3; edge bias after Graphormer, Ying et al. (arXiv 2106.05234).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from weightloom.architectures.graph import KIND_INDEX, KINDS, ModuleGraph
from weightloom.errors import SpecError

# Every size up to 32, where small networks differ, then the bins of the paper.
_CHANNELS = np.array([*range(1, 33), 40, 48, 56, *range(64, 4081, 16), *range(4096, 8193, 32)])
_KERNEL = 16
_PLACES = (100, 100, 1000, 1000, 1000, 1000)
"""What the numbers of a node's place are cut at: two degrees, two distances, and two counts of nodes."""


@dataclass(frozen=True)
class Order:
    """The nodes in groups that can be updated at once, each after all that it hears of.

    Attributes:
        nodes: (N,) permutation of the nodes.
        back: (N,) the permutation that undoes it.
        bounds: where each group starts and stops.
        real: (N, N) permuted: 1 where the column is read by the row.
        virtual: (N, N) permuted: 1 / distance where the path from column to row has 2 to s_max edges.
    """

    nodes: Tensor
    back: Tensor
    bounds: tuple[tuple[int, int], ...]
    real: Tensor
    virtual: Tensor


class GraphBatch:
    """Arrays of a few graphs, made once and used in every pass.

    Example:
        >>> from weightloom.architectures import parse_architecture
        >>> from weightloom.architectures.capture import graph_of
        >>> spec = parse_architecture("mlp(depth=1,width=4,classes=2,input=1x2x2)")
        >>> batch = GraphBatch([graph_of(spec), graph_of(spec)])
        >>> batch.kinds.shape, batch.starts
        (torch.Size([10]), (0, 5))
    """

    def __init__(self, graphs: Sequence[ModuleGraph], *, device: torch.device | str = "cpu") -> None:
        self.graphs, self.device = tuple(graphs), torch.device(device)
        sizes = [len(graph) for graph in graphs]
        self.starts = tuple(int(n) for n in np.cumsum([0, *sizes[:-1]]))
        self.size = sum(sizes)
        nodes = [node for graph in graphs for node in graph.nodes]
        self.kinds = torch.tensor([KIND_INDEX[node.kind] for node in nodes], device=self.device)
        shapes = np.array([node.shape or (0, 0, 0, 0) for node in nodes])  # (N, 4)
        self.bins = torch.from_numpy(_bins(shapes)).to(self.device)

    def orders(self, longest: int) -> tuple[Order, Order]:
        """From the inputs on, and from the outputs back; paths longer than ``longest`` are not heard."""
        distance = np.zeros((self.size, self.size), dtype=np.int32)
        levels = np.zeros(self.size, dtype=np.int64), np.zeros(self.size, dtype=np.int64)
        for start, graph in zip(self.starts, self.graphs, strict=True):
            stop = start + len(graph)
            distance[start:stop, start:stop] = graph.distances
            for source, target in graph.edges:
                levels[0][start + target] = max(levels[0][start + target], levels[0][start + source] + 1)
            for source, target in sorted(graph.edges, reverse=True):
                levels[1][start + source] = max(levels[1][start + source], levels[1][start + target] + 1)
        # distance[u, v] is from u to v: forward, v hears u; backward, u hears v.
        return (
            self._order(levels[0], distance.T, longest),
            self._order(levels[1], distance, longest),
        )

    def _order(self, levels: np.ndarray, hears: np.ndarray, longest: int) -> Order:
        nodes = np.argsort(levels, kind="stable")
        ends = np.cumsum(np.bincount(levels))
        near = hears[np.ix_(nodes, nodes)]
        with np.errstate(divide="ignore"):
            virtual = np.where((near > 1) & (near <= longest), 1.0 / near, 0.0)
        return Order(
            nodes=torch.from_numpy(nodes).to(self.device),
            back=torch.from_numpy(np.argsort(nodes)).to(self.device),
            bounds=tuple(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)),
            real=torch.from_numpy((near == 1).astype(np.float32)).to(self.device),
            virtual=torch.from_numpy(virtual.astype(np.float32)).to(self.device),
        )

    @cached_property
    def padded(self) -> tuple[Tensor, Tensor]:
        """(G, M) row of each node, -1 where a graph has none, and (G, M, M) distances."""
        most = max(len(graph) for graph in self.graphs)
        rows = np.full((len(self.graphs), most), -1)
        table = np.zeros((len(self.graphs), most, most), dtype=np.int64)
        for g, (start, graph) in enumerate(zip(self.starts, self.graphs, strict=True)):
            count = len(graph)
            rows[g, :count] = np.arange(start, start + count)
            table[g, :count, :count] = graph.distances
        return torch.from_numpy(rows).to(self.device), torch.from_numpy(table).to(self.device)

    @cached_property
    def places(self) -> Tensor:
        """(N, 6) of each node: how many it reads and how many read it, edges from the input and to the last
        node, and how many come before it and after it.
        """
        found = np.zeros((self.size, len(_PLACES)), dtype=np.int64)
        for start, graph in zip(self.starts, self.graphs, strict=True):
            for source, target in graph.edges:
                found[start + target, 0] += 1
                found[start + source, 1] += 1
            rows, distances = slice(start, start + len(graph)), graph.distances
            found[rows, 2], found[rows, 3] = distances[0], distances[:, -1]
            found[rows, 4], found[rows, 5] = (distances > 0).sum(0), (distances > 0).sum(1)
        return torch.from_numpy(np.minimum(found, _PLACES)).to(self.device)


def _bins(shapes: np.ndarray) -> np.ndarray:
    """(N, 4) sizes to indices of embeddings; 0 where a node has no weight."""
    channels = np.searchsorted(_CHANNELS, shapes[:, :2]).clip(max=len(_CHANNELS) - 1)
    below = (channels - 1).clip(min=0)
    nearer = shapes[:, :2] - _CHANNELS[below] < _CHANNELS[channels] - shapes[:, :2]
    channels = np.where(nearer, below, channels) + 1
    kernels = shapes[:, 2:].clip(max=_KERNEL)
    return np.concatenate([np.where(shapes[:, :2] > 0, channels, 0), kernels], axis=1)


class NodeEncoder(nn.Module):
    """Kind and shape of each node: a graph batch to (N, D).

    ``shapes=False`` leaves the shape out (an ablation of the paper).
    """

    def __init__(self, width: int, *, shapes: bool = True) -> None:
        super().__init__()
        if width % 4:
            raise SpecError(f"a node's width must be a multiple of 4, not {width}")
        self.kinds = nn.Embedding(len(KINDS), width)
        self.channels = nn.Embedding(len(_CHANNELS) + 1, width // 4) if shapes else None
        self.kernels = nn.Embedding(_KERNEL + 1, width // 4) if shapes else None

    def forward(self, batch: GraphBatch) -> Tensor:
        """(N, D) features."""
        x: Tensor = self.kinds(batch.kinds)
        if self.channels is not None and self.kernels is not None:
            parts = [self.channels(batch.bins[:, :2]), self.kernels(batch.bins[:, 2:])]  # (N, 2, D / 4) each
            x = x + torch.cat(parts, 1).flatten(1)  # (N, 4, D / 4) -> (N, D)
        return x


def _message(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, width), nn.ReLU())


class GatedGraphNetwork(nn.Module):
    """GHN-2's backbone: each node in turn hears those before it, then those behind it.

    ``m_v = sum over real edges MLP(h_u) + sum over virtual edges MLP_sp(h_u) / s_uv``, then
    ``h_v = GRU(m_v, h_v)`` (equation 4). Nodes of the same depth cannot hear each other in one pass, so they
    are updated together: the result is that of one node after another. As in the paper, and unlike its public
    code, a real edge is not a virtual one as well.

    Args:
        width: D.
        passes: how many times forward and backward.
        virtual_edges: length of the longest path that is heard; 1 for none.
    """

    def __init__(self, width: int, *, passes: int = 1, virtual_edges: int = 50) -> None:
        super().__init__()
        self.passes, self.virtual_edges = passes, virtual_edges
        self.near = _message(width)
        self.far = _message(width) if virtual_edges > 1 else None
        self.cell = nn.GRUCell(width, width)

    def forward(self, x: Tensor, batch: GraphBatch) -> Tensor:
        """(N, D) features to (N, D) states."""
        orders = batch.orders(self.virtual_edges)
        for _ in range(self.passes):
            for order in orders:
                x = self._sweep(x, order)
        return x

    def _sweep(self, x: Tensor, order: Order) -> Tensor:
        x = x[order.nodes]
        done: list[Tensor] = []
        near: list[Tensor] = []
        far: list[Tensor] = []
        for start, stop in order.bounds:
            heard = torch.zeros_like(x[start:stop])
            if start:
                heard = order.real[start:stop, :start] @ torch.cat(near)
                if self.far is not None:
                    heard = heard + order.virtual[start:stop, :start] @ torch.cat(far)
            state = self.cell(heard, x[start:stop])
            done.append(state)
            near.append(self.near(state))
            if self.far is not None:
                far.append(self.far(state))
        return torch.cat(done)[order.back]


class GraphTransformer(nn.Module):
    """GHN-3's backbone: attention among all nodes of a graph, biased by their distances.

    Args:
        width: D.
        depth: number of layers.
        heads: H, a divisor of D.
        virtual_edges: distances beyond are one distance.
    """

    def __init__(self, width: int, *, depth: int, heads: int, virtual_edges: int = 50) -> None:
        super().__init__()
        if width % heads:
            raise SpecError(f"a width of {width} cannot be split into {heads} heads")
        self.virtual_edges = virtual_edges
        # As large as the embeddings of kinds: smaller ones leave the states of all layers alike.
        self.places = nn.ModuleList(nn.Embedding(count + 1, width) for count in _PLACES)
        self.distance = nn.Embedding(virtual_edges + 2, width)
        self.bias = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, heads))
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(depth))

    def forward(self, x: Tensor, batch: GraphBatch) -> Tensor:
        """(N, D) features to (N, D) states."""
        for number, table in enumerate(self.places):
            x = x + table(batch.places[:, number])
        rows, distance = batch.padded
        near = self.distance(distance.clamp(max=self.virtual_edges + 1))  # (G, M, M, D)
        bias = self.bias(torch.cat([near, near.transpose(1, 2)], -1)).permute(0, 3, 1, 2)  # (G, H, M, M)
        bias = bias.masked_fill((rows < 0)[:, None, None, :], -1e9)
        x = x[rows.clamp(min=0)]  # (G, M, D)
        for layer in self.layers:
            x = layer(x, bias)
        return x[rows >= 0]  # graph after graph, node after node: (N, D)


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.feed_norm = nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        g, m, d = x.shape
        qkv = self.qkv(self.attention_norm(x)).reshape(g, m, 3, self.heads, d // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (G, H, M, D / H)
        y = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        x = x + self.out(y.transpose(1, 2).reshape(g, m, d))  # (G, H, M, D / H) -> (G, M, D)
        x = x + self.feed(self.feed_norm(x))
        return x
