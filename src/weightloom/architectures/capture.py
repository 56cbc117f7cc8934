"""From any ``nn.Module`` to its :class:`~weightloom.architectures.graph.ModuleGraph`, without running it.

What happens to a picture in it (:mod:`~weightloom.architectures.tracing`) is read call by call.
Operations without weights that only reshape or transform one signal are no nodes: they hand on what they
read. Knows nothing of what is done with a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from weightloom.architectures.copying import copy_module, hooked_layers, is_compiled, made_from
from weightloom.architectures.graph import GraphNode, GraphTensor, ModuleGraph, Shape4
from weightloom.architectures.spec import ArchitectureSpec
from weightloom.architectures.statistics import STATISTICS
from weightloom.architectures.tracing import Call, Ref, Trace, trace
from weightloom.defaults import with_plain_defaults
from weightloom.errors import InputError, SpecError, UnsupportedLayerError
from weightloom.whole import whole_number

_LONGEST_SIDE = 1 << 20


@with_plain_defaults
def capture_graph(module: nn.Module, input: Sequence[int], *, partial: bool = False) -> ModuleGraph:
    """The computation graph of ``module`` for pictures of shape ``input`` (channels, height, width).

    Every parameter and running statistic that the output depends on belongs to exactly one node. A weight
    that its layer uses several times has a node at each place, and the first one owns it; one that several
    layers share cannot be predicted. A layer that the module holds under several names has the first of them,
    and names are those that the module has without ``torch.compile``.

    Args:
        module: any module whose forward pass takes one batch of pictures. It is not changed, and its hooks
            are not run.
        input: shape of one picture.
        partial: list parameters that cannot be predicted in ``kept`` instead of raising.

    Raises:
        UnsupportedLayerError: layers whose parameters no node can hold, all of them at once.
        InputError: the module cannot be traced with such a picture, or its output does not depend on it.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 2))
        >>> graph = capture_graph(net, (3, 3, 3))
        >>> [node.kind for node in graph.nodes]
        ['input', 'conv', 'bias', 'batch_norm', 'conv', 'bias']
        >>> graph.nodes[3].tensors[2].name, graph.heads
        ('1.running_mean', (4,))
    """
    shape: tuple[int, ...] = ()
    with suppress(InputError, TypeError):
        shape = tuple(whole_number(side, "a side", 1, _LONGEST_SIDE) for side in input)
    if not shape:
        raise InputError(f"the shape of a picture is whole numbers such as (3, 32, 32), not {input!r}")
    for name, tensor in module.named_parameters():
        if is_lazy(tensor):
            raise InputError(f"parameter {name!r} has no shape yet; run the module once on a picture first")
    if is_compiled(module):
        module = copy_module(module, lambda name, old, is_buffer: torch.empty_like(old, device="meta"))
    return graph_of_trace(trace(module, shape), module, partial=partial)


@lru_cache(maxsize=4096)
@with_plain_defaults
def graph_of(spec: ArchitectureSpec) -> ModuleGraph:
    """The graph of a resolved spec: its own where its family can emit one, else captured; made once.

    Raises:
        SpecError: classes or input are undecided.
    """
    emit = getattr(spec, "graph", None)
    if emit is not None:
        return emit()  # type: ignore[no-any-return]
    if spec.classes is None or spec.input is None:
        raise SpecError(f"{spec} does not say its classes and input; resolve it with a task")
    with torch.device("meta"):
        module = spec.build()
    return capture_graph(module, spec.input)


def graph_of_trace(trace: Trace, module: nn.Module, *, partial: bool = False) -> ModuleGraph:
    """The graph of what happened in ``module``; see :func:`capture_graph`."""
    parameters = dict(module.named_parameters())
    builder = GraphBuilder(
        trace,
        {name: tuple(p.shape) for name, p in parameters.items()},
        {name: tuple(b.shape) for name, b in module.named_buffers()},
    )
    loose = set(module._parameters) if any(True for _ in module.children()) else set[str]()
    for path in hooked_layers(module):
        names = (f"{path}.{name}".removeprefix(".") for name in made_from(module.get_submodule(path)))
        builder.refuse(names, "made into another tensor by a hook, and hooks are not run")
    graph = builder.build(_set_apart(module), loose)
    if not builder.reached:
        raise InputError(f"the output of {type(module).__name__} does not depend on its picture")
    if graph.kept and not partial:
        reasons = dict(graph.kept)
        layers: dict[str, tuple[str, str, str]] = {}
        for name in parameters:
            if name in reasons:
                path, _, own = name.rpartition(".")
                owner = type(module.get_submodule(path)).__name__
                layers.setdefault(path or own, (path or own, owner, reasons[name]))
        raise UnsupportedLayerError(layers.values())
    return graph


def _set_apart(module: nn.Module) -> dict[str, str]:
    """Parameters that have a place in the graph and are not to be predicted, with the reason."""
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for path, layer in module.named_modules():  # each layer once, whatever it is called
        for own, parameter in layer.named_parameters(recurse=False):  # and each of its parameters
            owners.setdefault(id(parameter), []).append((f"{path}.{own}".removeprefix("."), layer))
    reasons = {}
    for (name, layer), *rest in owners.values():
        # A block that gives a parameter of a layer inside it a name of its own is no second owner.
        others = [
            other
            for other, owner in rest
            if owner not in set(layer.modules()) and layer not in set(owner.modules())
        ]
        if others:
            reasons[name] = f"shared with {', '.join(map(repr, others))}"
    frozen = (name for name, p in module.named_parameters() if not p.requires_grad)
    reasons |= dict.fromkeys(frozen, "frozen (requires_grad=False)")
    for path, layer in module.named_modules():
        # What a parametrisation makes of a predicted weight is another weight.
        made = [n for n, _ in layer.named_parameters(path)] if isinstance(layer, ParametrizationList) else []
        made += [f"{path}.{name}".removeprefix(".") for name in made_from(layer)]
        reasons |= dict.fromkeys(made, "behind a parametrisation, such as a spectral norm")
    return reasons


# ------------------------------------------------------------------------------- from a trace to a graph


class _Value(NamedTuple):
    """What a tensor comes from: nodes, or parameters that have met no signal yet; constants have neither."""

    nodes: frozenset[int] = frozenset()
    parameters: frozenset[str] = frozenset()
    probabilities: bool = False
    """It is what a softmax gave: whatever it is multiplied with as a matrix is attended to."""


_CONSTANT = _Value()
_NORMS = {"batch_norm": "batch_norm", "group_norm": "group_norm", "instance_norm": "group_norm"}
_TableKind = Callable[[tuple[int, ...]], str]
"""The kind of node that a parameter of some shape becomes."""


class GraphBuilder:
    """Reads a trace call by call and adds a node where an operation is one."""

    def __init__(
        self,
        trace: Trace,
        parameters: Mapping[str, tuple[int, ...]],
        buffers: Mapping[str, tuple[int, ...]],
    ) -> None:
        """The shapes of all parameters and buffers by name."""
        self.trace, self.shapes, self.buffer_shapes = trace, parameters, buffers
        self.nodes: list[GraphNode] = [GraphNode("input", "input")]
        self.edges: set[tuple[int, int]] = set()
        self.values: dict[int, _Value] = {key: _Value(frozenset({0})) for key in trace.inputs}
        self.values |= {key: _Value(parameters=frozenset({name})) for key, name in trace.parameters.items()}
        self.owned: set[str] = set()
        self.refused: dict[str, str] = {}
        self.sharing: dict[int, set[int]] = {}
        self.reached = False
        """Whether the output depends on the input."""

    # -------------------------------------------------------------------- the whole

    def build(self, apart: Mapping[str, str], loose: Collection[str] = ()) -> ModuleGraph:
        """The graph; what no node can hold, and what is set ``apart`` with a reason, is in its ``kept``.

        ``loose`` parameters are the module's own: as tables of positions they have a meaning, else none.
        """
        for call in self.trace.calls:
            value = self.read(call)
            if call.in_place:  # views of the same memory have changed with it
                for ref in call.results:
                    for other in self.sharing.get(ref.memory, ()) if ref.memory else ():
                        self.values[other] = _join([self.values.get(other, _CONSTANT), value])
            for ref in call.results:
                self.values[ref.key] = value
                if ref.memory:
                    self.sharing.setdefault(ref.memory, set()).add(ref.key)
        ends = {n for key in self.trace.outputs for n in self.values.get(key, _CONSTANT).nodes}
        self.reached = bool(ends)
        for name in self.owned.intersection(apart):
            self.refused.setdefault(name, apart[name])
        return self._pruned(ends, loose)

    def _pruned(self, ends: set[int], loose: Collection[str]) -> ModuleGraph:
        """Without nodes that no output depends on; what remains keeps its order."""
        before: dict[int, list[int]] = {}
        for source, target in self.edges:
            before.setdefault(target, []).append(source)
        alive, stack = {0}, list(ends)
        while stack:
            reached = stack.pop()
            if reached not in alive:
                alive.add(reached)
                stack += before.get(reached, [])
        order = sorted(alive)
        for node in (self.nodes[old] for old in order):
            if node.kind in ("bias", "scale") and node.tensors and node.name in loose:
                self.refuse([node.name], "a parameter outside any layer")
        place = {old: new for new, old in enumerate(order)}
        nodes = []
        for old in order:
            node = self.nodes[old]
            if any(t.name in self.refused for t in node.tensors if t.role in ("weight", "bias")):
                tensors = tuple(t for t in node.tensors if t.name not in self.refused)
                node = GraphNode(node.kind, node.name, tensors, node.shape, node.transposed)
            nodes.append(node)
        held = {tensor.name for node in nodes for tensor in node.tensors}
        unused = tuple(name for name in self.shapes if name not in held and name not in self.refused)
        edges = sorted((place[s], place[t]) for s, t in self.edges if s in alive and t in alive)
        return ModuleGraph(
            tuple(nodes), tuple(edges), unused, tuple(sorted(self.refused.items())), self.trace.how
        )

    # -------------------------------------------------------------------- nodes

    def node(
        self, kind: str, name: str, sources: Iterable[int], tensors: Sequence[GraphTensor] = (),
        shape: Shape4 | None = None, transposed: bool = False,
    ) -> _Value:  # fmt: skip
        """Add a node that reads ``sources``; one that reads nothing stands beside the input."""
        index = len(self.nodes)
        self.nodes.append(GraphNode(kind, name, tuple(tensors), shape, transposed))
        self.edges |= {(source, index) for source in sources} or {(0, index)}
        return _Value(frozenset({index}))

    def plain(self, kind: str, sources: Iterable[int], tensors: Sequence[GraphTensor] = ()) -> _Value:
        return self.node(kind, f"{kind}_{len(self.nodes)}", sources, tensors)

    def own(self, role: str, name: str) -> list[GraphTensor]:
        """The tensor as its first node's own; nothing where another node has it already."""
        if name in self.owned:
            return []
        self.owned.add(name)
        return [GraphTensor(role, name, self.shapes[name])]

    def holding(self, kind: str, parameter: str, sources: Iterable[int]) -> _Value:
        """A node of ``kind`` for a vector or table."""
        shape = self.shapes[parameter]
        return self.node(kind, parameter, sources, self.own("weight", parameter), _as_table(kind, shape))

    def refuse(self, parameters: Iterable[str], why: str) -> None:
        for name in parameters:
            self.refused.setdefault(name, why)

    # -------------------------------------------------------------------- operations

    def of(self, ref: Any) -> _Value:
        if isinstance(ref, Ref):
            return self.values.get(ref.key, _CONSTANT)
        return _join([self.of(item) for item in ref]) if isinstance(ref, list) else _CONSTANT

    def read(self, call: Call) -> _Value:
        name = call.op.rstrip("_") if call.in_place else call.op
        handler = _HANDLERS.get(name)
        if handler is None and call.arguments.keys() >= set(STATISTICS.values()):
            handler = GraphBuilder.norm  # batch norm in one of its other forms
        if handler is not None:
            return handler(self, call.arguments, call)
        return self.through(call.arguments, call)

    def through(self, arguments: Mapping[str, Any], call: Call) -> _Value:
        """Any other operation hands on what it reads; a parameter cannot pass together with a signal."""
        read = [self.of(value) for value in arguments.values()]
        joined = _join(read)
        if joined.nodes and joined.parameters:
            self.refuse(joined.parameters, f"used by {call.op}")
        nodes, parameters = joined.nodes, frozenset() if joined.nodes else joined.parameters
        carriers = [value for value in read if value.nodes]
        return _Value(nodes, parameters, len(carriers) == 1 and carriers[0].probabilities)

    def weight(self, arguments: Mapping[str, Any], call: Call) -> _Value:
        """Convolutions and linear layers."""
        x, w = self.of(arguments["input"]), self.of(arguments["weight"])
        if not w.parameters or not x.nodes:
            return self.through(arguments, call)
        name, *others = sorted(w.parameters, key=lambda n: (-len(self.shapes[n]), -_numel(self.shapes[n]), n))
        shape = self.shapes[name]
        if len(shape) not in (2, 3, 4):
            return self.through(arguments, call)
        ref: Ref = arguments["weight"]
        used = ref.shape if _numel(ref.shape) == _numel(shape) and len(ref.shape) >= len(shape) else shape
        four: Shape4 = (*used[:2], *(1,) * (4 - len(used)), *used[2:])  # type: ignore[assignment]
        grouped = arguments.get("groups", 1) != 1
        dilated = any(side != 1 for side in _listed(arguments.get("dilation", 1)))
        kind = "dilated_conv" if grouped and dilated else "group_conv" if grouped else "conv"
        sources = x.nodes
        for other in others:  # a factor of the weight itself (weight standardisation with a gain)
            sources = self.holding("scale", other, sources).nodes
        made = self.node(kind, name, sources, self.own("weight", name), four)
        return self.bias(made, arguments.get("bias"))

    def bias(self, made: _Value, ref: Any) -> _Value:
        for name in sorted(self.of(ref).parameters):
            made = self.holding("bias", name, made.nodes)
        return made

    def product(self, arguments: Mapping[str, Any], call: Call) -> _Value:
        """Matrix products: attention, a projection by a raw matrix, or nothing of its own."""
        read = [self.of(value) for value in arguments.values()]
        joined = _join(read)
        if any(value.probabilities for value in read) and not joined.parameters:
            return self.plain("attention", joined.nodes)
        last = arguments.get("mat2", arguments.get("other"))
        if (
            joined.nodes
            and isinstance(last, Ref)
            and last.key in self.trace.parameters
            and len(last.shape) == 2
        ):
            name = self.trace.parameters[last.key]
            signal = frozenset[int]().union(*(v.nodes for v in read))
            made = self.node(
                "conv", name, signal, self.own("weight", name), (last.shape[1], last.shape[0], 1, 1), True
            )
            return self.bias(made, arguments.get("self") if call.op == "addmm" else None)
        return self.through(arguments, call)

    def attention(self, arguments: Mapping[str, Any], call: Call) -> _Value:
        joined = _join([self.of(value) for value in arguments.values()])
        sources = joined.nodes
        for name in sorted(joined.parameters):
            sources = self.holding("position", name, sources).nodes
        return self.plain("attention", sources)

    def norm(self, arguments: Mapping[str, Any], call: Call) -> _Value:
        x = self.of(arguments["input"])
        kind = next((kind for word, kind in _NORMS.items() if word in call.op), "layer_norm")
        tensors: list[GraphTensor] = []
        shape: Shape4 | None = None
        for role in ("weight", "bias"):
            for name in sorted(self.of(arguments.get(role)).parameters):
                shape = _as_table(kind, self.shapes[name])
                tensors += self.own(role, name)
        for role, argument in STATISTICS.items():
            buffer = self.buffer(arguments.get(argument))
            if buffer is not None and buffer not in self.owned:
                self.owned.add(buffer)
                tensors.append(GraphTensor(role, buffer, self.buffer_shapes[buffer]))
                counter = buffer.rpartition(".")[0] + ".num_batches_tracked"
                counter = counter.removeprefix(".")
                if role == "variance" and counter in self.buffer_shapes:
                    tensors.append(GraphTensor("counter", counter, ()))
        if not x.nodes:
            return self.through(arguments, call)
        name = tensors[0].name if tensors else f"{kind}_{len(self.nodes)}"
        return self.node(kind, name, x.nodes, tensors, shape)

    def buffer(self, ref: Any) -> str | None:
        """The buffer that a tensor is, or is a plain alias of."""
        if not isinstance(ref, Ref):
            return None
        name = self.trace.buffers.get(ref.key) or self.trace.memories.get(ref.memory)
        return name if name is not None and self.buffer_shapes[name] == ref.shape else None

    def add(self, arguments: Mapping[str, Any], call: Call) -> _Value:
        return self._meet(arguments, "sum", lambda shape: "bias" if _is_vector(shape) else "position")

    def multiply(self, arguments: Mapping[str, Any], call: Call) -> _Value:
        return self._meet(arguments, "gate", lambda shape: "scale")

    def _meet(self, arguments: Mapping[str, Any], kind: str, table: _TableKind) -> _Value:
        return self._combined([self.of(value) for value in arguments.values()], kind, table)

    def _combined(self, read: Sequence[_Value], kind: str, table: _TableKind) -> _Value:
        joined = _join(read)
        if not joined.nodes:
            return joined
        carriers = [value for value in read if value.nodes]
        made = _Value(joined.nodes, frozenset(), len(carriers) == 1 and carriers[0].probabilities)
        if len(carriers) > 1 and len(joined.nodes) > 1:
            made = self.plain(kind, joined.nodes)
        for name in sorted(joined.parameters):
            made = self.holding(table(self.shapes[name]), name, made.nodes)
        return made

    def scaled_sum(self, arguments: Mapping[str, Any], call: Call) -> _Value:
        """``self + tensor1 * tensor2``."""
        product = self.multiply({name: arguments[name] for name in ("tensor1", "tensor2")}, call)
        read = [self.of(arguments["self"]), product]
        return self._combined(read, "sum", lambda shape: "bias" if _is_vector(shape) else "position")

    def concat(self, arguments: Mapping[str, Any], call: Call) -> _Value:
        parts = next(iter(arguments.values()))
        read = [self.of(part) for part in parts]
        joined = _join(read)
        if not joined.nodes:
            return joined
        nodes = joined.nodes
        for name in sorted(joined.parameters):  # a class token
            nodes = nodes | self.holding("position", name, joined.nodes).nodes
        return self.plain("concat", nodes) if len(nodes) > 1 else _Value(nodes)

    def pool(self, arguments: Mapping[str, Any], call: Call) -> _Value:
        joined = _join([self.of(value) for value in arguments.values()])
        if not joined.nodes:
            return joined
        kind = "max_pool" if "max" in call.op else "avg_pool"
        if kind == "avg_pool":
            after = call.results[0].shape[2:] if call.results else ()
            if "adaptive" in call.op and all(side == 1 for side in after):
                kind = "global_avg"
        return self.plain(kind, joined.nodes)

    def mean(self, arguments: Mapping[str, Any], call: Call) -> _Value:
        ref = next(iter(arguments.values()))
        if isinstance(ref, Ref) and len(ref.shape) >= 3 and self.of(ref).nodes:
            return self.plain("global_avg", self.of(ref).nodes)
        return self.through(arguments, call)

    def softmax(self, arguments: Mapping[str, Any], call: Call) -> _Value:
        return self.through(arguments, call)._replace(probabilities=True)


_HANDLERS: dict[str, Callable[[GraphBuilder, Mapping[str, Any], Call], _Value]] = {
    **dict.fromkeys(("conv1d", "conv2d", "linear"), GraphBuilder.weight),
    **dict.fromkeys(("addmm", "mm", "matmul", "bmm", "baddbmm", "einsum"), GraphBuilder.product),
    **dict.fromkeys(
        ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"), GraphBuilder.norm
    ),
    **dict.fromkeys(("add", "sub"), GraphBuilder.add),
    **dict.fromkeys(("mul", "div"), GraphBuilder.multiply),
    "addcmul": GraphBuilder.scaled_sum,
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), GraphBuilder.concat),
    **dict.fromkeys(
        (
            *(f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for n in (1, 2)),
            *(f"max_pool{n}d_with_indices" for n in (1, 2)),
        ),
        GraphBuilder.pool,
    ),
    **dict.fromkeys(("mean",), GraphBuilder.mean),
    **dict.fromkeys(("softmax", "_softmax"), GraphBuilder.softmax),
    **dict.fromkeys(("scaled_dot_product_attention",), GraphBuilder.attention),
}


def _join(values: Iterable[_Value]) -> _Value:
    nodes: frozenset[int] = frozenset()
    parameters: frozenset[str] = frozenset()
    for value in values:
        nodes, parameters = nodes | value.nodes, parameters | value.parameters
    return _Value(nodes, parameters)


def _numel(shape: Sequence[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


def _listed(value: Any) -> Sequence[int]:
    return value if isinstance(value, (list, tuple)) else (value,)


def _is_vector(shape: tuple[int, ...]) -> bool:
    return sum(side != 1 for side in shape) <= 1


def _as_table(kind: str, shape: tuple[int, ...]) -> Shape4:
    """(rows, columns, 1, 1) of a position table, (values, 1, 1, 1) of anything else."""
    count = _numel(shape)
    if kind != "position" or len(shape) < 2:
        return (count, 1, 1, 1)
    columns = shape[-1] if len(shape) < 4 else _numel(shape[-2:])
    return (count // max(columns, 1), columns, 1, 1)
