"""Which units of a network may change places: derived from its computation graph, never written by hand.

Every dimension of every tensor in the graph is a product of *factors* (after a flattening, channels times
places; in attention, heads times the size of a head). An operation says which factors have to move together;
what no operation ties to something immovable (pixels, classes, positions) is a group of units that may be
permuted. An operation that is not known here ties all that it touches, which loses symmetry but never
soundness. Knows nothing of matching; scalings and sign changes are no permutations and are left alone.

Shapes: B images. Letters in comments: C channels, H height, W width, K kernel.
Source: permutation symmetries of hidden units, Hecht-Nielsen (1990); their use for merging networks, Git
Re-Basin (arXiv 2209.04836), section 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx, nn

from weightloom.architectures import ArchitectureSpec
from weightloom.architectures.tracing import exported_copy
from weightloom.defaults import with_plain_defaults
from weightloom.errors import UnsupportedRequestError


@dataclass(frozen=True)
class Axis:
    """One factor of a tensor's dimensions: its size, and the group it belongs to (None: it cannot move)."""

    size: int
    group: int | None


@dataclass(frozen=True)
class PermutationSpec:
    """The permutation symmetry of one network.

    Attributes:
        sizes: how many units every group has, groups in the order of the graph.
        weights: axes of every floating-point tensor of the state dict, row-major; their sizes multiply to
            the tensor's number of values.
        activations: the same of the results of operations that own weights, by the graph's name of them.
        graph: the graph itself; :meth:`run` is what it is kept for.
        inputs: names in the order of the graph's placeholders, None for the images.

    Example:
        >>> from weightloom.architectures import parse_architecture
        >>> spec = permutation_spec(parse_architecture("mlp(depth=2,width=8,classes=3,input=1x4x4)"))
        >>> spec.sizes
        (8, 8)
        >>> [axis.group for axis in spec.weights["head.weight"]]
        [None, 1]
    """

    sizes: tuple[int, ...]
    weights: Mapping[str, tuple[Axis, ...]]
    activations: Mapping[str, tuple[Axis, ...]]
    graph: fx.GraphModule
    inputs: tuple[str | None, ...]

    @torch.no_grad()
    def run(self, state: Mapping[str, Tensor], images: Tensor) -> dict[str, Tensor]:
        """Activations of one network on images (B, channels, height, width), shaped by their axes.

        The graph has a fixed batch size; the first axis of every activation is that of all images.
        """
        wanted, size = set(self.activations), _BATCH
        found: dict[str, list[Tensor]] = {name: [] for name in self.activations}

        class Recorder(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                result = super().run_node(n)
                if n.name in wanted:
                    found[n.name].append(result)
                return result

        rest = len(images) % size
        padded = images if rest == 0 else torch.cat([images, images[-1:].expand(size - rest, -1, -1, -1)])
        recorder = Recorder(self.graph)
        for part in padded.split(size):
            recorder.run(*(part if name is None else state[name] for name in self.inputs))
        result = {}
        for name, parts in found.items():
            inner = [axis.size for axis in self.activations[name]]
            assert inner[0] == size
            # Parts (size, ...) together (B, ...), with factored dimensions: (B, *factors).
            result[name] = torch.cat(parts)[: len(images)].reshape(len(images), *inner[1:])
        return result


_BATCH = 16
"""Images that the captured graph runs at once."""


@lru_cache(maxsize=64)
@with_plain_defaults
def permutation_spec(architecture: ArchitectureSpec) -> PermutationSpec:
    """The permutation symmetry of a resolved architecture.

    Raises:
        UnsupportedRequestError: the network cannot be captured as one graph.
    """
    assert architecture.input is not None
    with torch.device("meta"):
        module = architecture.build().eval()
        images = torch.zeros(_BATCH, *architecture.input)
    return permutation_spec_of(module, images)


def permutation_spec_of(module: nn.Module, images: Tensor) -> PermutationSpec:
    """The permutation symmetry of any module in eval mode that maps ``images`` to one tensor.

    Raises:
        UnsupportedRequestError: the module cannot be captured as one graph.
    """
    graph, inputs = _capture(module, images)
    walk = _Walk()
    parameters: dict[str, list[_Factors]] = {}
    names = iter(inputs)
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            name = next(names)
            value = node.meta["val"]
            walk.axes[node] = [_fresh(int(size), fixed=name is None) for size in value.shape]
            if name is not None and value.is_floating_point():
                parameters[name] = walk.axes[node]
        elif node.op == "call_function":
            walk.visit(node)
        elif node.op == "output":
            for result in node.all_input_nodes:
                walk.fix(walk.axes[result])
    return walk.spec(graph, inputs, parameters)


def _capture(module: nn.Module, images: Tensor) -> tuple[fx.GraphModule, tuple[str | None, ...]]:
    """The module as a graph of ATen operations; the state dict's name of every placeholder, None for images.

    The only function here that knows where graphs come from.
    """
    try:
        program = exported_copy(module, (images,))
    except Exception as error:  # export raises a dozen unrelated kinds
        raise UnsupportedRequestError(
            f"{type(module).__name__} cannot be captured as one graph, so its symmetries are not known "
            f"({type(error).__name__})"
        ) from None
    signature = program.graph_signature
    held = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    placeholders = [node.name for node in program.graph.nodes if node.op == "placeholder"]
    return program.graph_module, tuple(held.get(name) for name in placeholders)


# ------------------------------------------------------------------------------------- factors


class _Label:
    """A factor while the graph is walked: may be merged with another one, or split into a product."""

    def __init__(self, size: int, *, fixed: bool) -> None:
        self.size, self.fixed = size, fixed
        self.same: _Label | None = None
        self.parts: tuple[_Label, _Label] | None = None

    def root(self) -> _Label:
        return self if self.same is None else self.same.root()

    def leaves(self) -> list[_Label]:
        root = self.root()
        return [root] if root.parts is None else [leaf for part in root.parts for leaf in part.leaves()]

    def split(self, major: int) -> None:
        """Into ``major`` times the rest; only of a leaf whose size ``major`` divides."""
        self.parts = (
            _Label(major, fixed=self.fixed),
            _Label(self.size // major, fixed=self.fixed),
        )


_Factors = list[_Label]


def _fresh(size: int, *, fixed: bool) -> _Factors:
    return [] if size == 1 else [_Label(size, fixed=fixed)]


def _leaves(factors: _Factors) -> _Factors:
    return [leaf for label in factors for leaf in label.leaves()]


class _Walk:
    """Axes of every node of a graph, as operations tie them together."""

    def __init__(self) -> None:
        self.axes: dict[fx.Node, list[_Factors]] = {}
        self.owners: list[fx.Node] = []
        """Nodes of operations that own weights."""

    def fix(self, dims: Sequence[_Factors]) -> None:
        """What stands here cannot move."""
        for factors in dims:
            for leaf in _leaves(factors):
                leaf.fixed = True

    def tie(self, one: _Factors, other: _Factors) -> None:
        """The two dimensions move together."""
        a, b = _leaves(one), _leaves(other)
        while a and b:
            if a[0] is b[0]:
                a, b = a[1:], b[1:]
            elif a[0].size == b[0].size:
                b[0].fixed = a[0].fixed or b[0].fixed
                a[0].same = b[0]
                a, b = _leaves(a[1:]), _leaves(b[1:])
            else:
                small, large = sorted((a[0], b[0]), key=lambda label: label.size)
                if large.size % small.size:
                    break
                large.split(small.size)
                a, b = _leaves(a), _leaves(b)
        self.fix([a, b])  # empty, unless the two have no common factors

    def regroup(self, factors: _Factors, shape: Sequence[int]) -> list[_Factors]:
        """The factors of all dimensions together, cut anew into dimensions of ``shape``."""
        rest = _leaves(factors)
        result: list[_Factors] = []
        for size in shape:
            own: _Factors = []
            wanted = size
            while wanted > 1:
                first = rest[0]
                if first.size > wanted and first.size % wanted == 0:
                    first.split(wanted)
                    rest = _leaves(rest)
                    continue
                if wanted % first.size:
                    self.fix([factors])
                    return [_fresh(size, fixed=True) for size in shape]
                own.append(first)
                wanted //= first.size
                rest = rest[1:]
            result.append(own)
        return result

    def visit(self, node: fx.Node) -> None:
        """Axes of a call's result, and what the call ties."""
        target = node.target
        name = target.overloadpacket._qualified_op_name if isinstance(target, torch._ops.OpOverload) else ""
        rule = _RULES.get(name.removeprefix("aten::"))
        value = node.meta["val"]
        if rule is None or not isinstance(value, Tensor):
            for argument in node.all_input_nodes:
                self.fix(self.axes.get(argument, []))
            shape = value.shape if isinstance(value, Tensor) else ()
            self.axes[node] = [_fresh(int(size), fixed=True) for size in shape]
            return
        self.axes[node] = rule(self, node)
        if name.removeprefix("aten::") in _OWNERS:
            self.owners.append(node)

    def of(self, argument: Any) -> list[_Factors] | None:
        """Axes of a call's argument, None where it is no tensor."""
        return self.axes[argument] if isinstance(argument, fx.Node) else None

    def spec(
        self,
        graph: fx.GraphModule,
        inputs: tuple[str | None, ...],
        parameters: Mapping[str, list[_Factors]],
    ) -> PermutationSpec:
        """Number the groups that are left."""
        numbers: dict[_Label, int] = {}
        sizes: list[int] = []

        def axes(dims: Sequence[_Factors]) -> tuple[Axis, ...]:
            result = []
            for leaf in (leaf for factors in dims for leaf in _leaves(factors)):
                if not leaf.fixed and leaf not in numbers:
                    numbers[leaf] = len(sizes)
                    sizes.append(leaf.size)
                result.append(Axis(leaf.size, None if leaf.fixed else numbers[leaf]))
            return tuple(result)

        seen = {node.name: axes(self.axes[node]) for node in self.owners}
        activations = {n: a for n, a in seen.items() if any(axis.group is not None for axis in a)}
        weights = {name: _joined(axes(dims)) for name, dims in parameters.items()}
        return PermutationSpec(tuple(sizes), weights, activations, graph, inputs)


def _joined(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """Neighbouring axes that cannot move, as one."""
    result: list[Axis] = []
    for axis in axes:
        if result and result[-1].group is axis.group is None:
            axis = Axis(result.pop().size * axis.size, None)
        result.append(axis)
    return tuple(result)


# ------------------------------------------------------------------------------------- rules

_Rule = Callable[[_Walk, fx.Node], list[_Factors]]
_RULES: dict[str, _Rule] = {}
_OWNERS = {"conv1d", "conv2d", "linear", "batch_norm", "layer_norm", "group_norm"}


def _rule(*names: str) -> Callable[[_Rule], _Rule]:
    def file(rule: _Rule) -> _Rule:
        _RULES.update(dict.fromkeys(names, rule))
        return rule

    return file


def _argument(node: fx.Node, index: int, default: Any = None) -> Any:
    return node.args[index] if index < len(node.args) else default


def _sizes(node: fx.Node) -> list[int]:
    return [int(size) for size in node.meta["val"].shape]


@_rule("relu", "gelu", "silu", "tanh", "sigmoid", "leaky_relu", "elu", "softplus", "hardtanh", "hardswish")
@_rule("dropout", "clone", "contiguous", "alias", "detach", "neg", "exp", "sqrt", "rsqrt", "to", "_to_copy")
@_rule("softmax", "log_softmax", "_softmax", "_log_softmax", "pow", "abs", "relu6", "mish")
def _same(walk: _Walk, node: fx.Node) -> list[_Factors]:
    # Softmax along a permuted dimension is the permuted softmax, so it is one of these too.
    if len(node.all_input_nodes) != 1:
        return _broadcast(walk, node)
    return list(walk.axes[node.all_input_nodes[0]])


@_rule("add", "sub", "mul", "div", "maximum", "minimum", "add_", "mul_")
def _broadcast(walk: _Walk, node: fx.Node) -> list[_Factors]:
    result: list[_Factors] = [[] for _ in _sizes(node)]
    for argument in node.all_input_nodes:
        dims = walk.axes[argument]
        for place, factors in enumerate(reversed(dims), 1):
            if result[-place] and factors:
                walk.tie(result[-place], factors)
            elif factors:
                result[-place] = factors
    return result


@_rule("conv1d", "conv2d")
def _conv(walk: _Walk, node: fx.Node) -> list[_Factors]:
    x, weight, bias = walk.axes[node.args[0]], walk.axes[node.args[1]], walk.of(_argument(node, 2))  # type: ignore[index]
    groups = int(_argument(node, 6, 1))
    walk.fix(weight[2:])  # the kernel's places
    own = _fresh(groups, fixed=False)
    inner = _fresh(math.prod(leaf.size for leaf in _leaves(weight[1])), fixed=False)
    walk.tie(x[1], own + inner)  # channels: groups x channels of a group
    walk.tie(weight[1], inner)
    outer = _fresh(math.prod(leaf.size for leaf in _leaves(weight[0])) // groups, fixed=False)
    walk.tie(weight[0], own + outer)
    if bias is not None:
        walk.tie(bias[0], weight[0])
    return [x[0], weight[0], *(_fresh(size, fixed=True) for size in _sizes(node)[2:])]


@_rule("linear")
def _linear(walk: _Walk, node: fx.Node) -> list[_Factors]:
    x, weight, bias = walk.axes[node.args[0]], walk.axes[node.args[1]], walk.of(_argument(node, 2))  # type: ignore[index]
    walk.tie(x[-1], weight[1])
    if bias is not None:
        walk.tie(bias[0], weight[0])
    return [*x[:-1], weight[0]]


@_rule("batch_norm")
def _batch_norm(walk: _Walk, node: fx.Node) -> list[_Factors]:
    x = walk.axes[node.args[0]]  # type: ignore[index]
    for argument in node.args[1:5]:  # weight, bias, running mean, running variance
        held = walk.of(argument)
        if held is not None:
            walk.tie(held[0], x[1])
    return list(x)


@_rule("layer_norm")
def _layer_norm(walk: _Walk, node: fx.Node) -> list[_Factors]:
    x = walk.axes[node.args[0]]  # type: ignore[index]
    for argument in node.args[2:4]:
        for factors, place in zip(reversed(walk.of(argument) or []), reversed(x), strict=False):
            walk.tie(factors, place)
    return list(x)


@_rule("group_norm")
def _group_norm(walk: _Walk, node: fx.Node) -> list[_Factors]:
    x, groups = walk.axes[node.args[0]], int(str(node.args[1]))  # type: ignore[index]
    count = math.prod(leaf.size for leaf in _leaves(x[1]))
    walk.tie(x[1], _fresh(groups, fixed=False) + _fresh(count // groups, fixed=False))
    for argument in node.args[2:4]:
        held = walk.of(argument)
        if held is not None:
            walk.tie(held[0], x[1])
    return list(x)


@_rule("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "max_pool1d", "avg_pool1d")
def _pool(walk: _Walk, node: fx.Node) -> list[_Factors]:
    x, sizes = walk.axes[node.args[0]], _sizes(node)  # type: ignore[index]
    places = 2 if "2d" in str(node.target) else 1
    walk.fix(x[-places:])
    return [*x[:-places], *(_fresh(size, fixed=True) for size in sizes[-places:])]


@_rule("mean", "sum", "amax", "amin")
def _reduce(walk: _Walk, node: fx.Node) -> list[_Factors]:
    # A reduction over permuted units is the same number: nothing has to be tied.
    x = walk.axes[node.args[0]]  # type: ignore[index]
    dims = _argument(node, 1)
    if dims is None or isinstance(dims, torch.dtype):
        return [[] for _ in _sizes(node)]
    chosen = {int(d) % len(x) for d in (dims if isinstance(dims, Sequence) else [dims])} or set(range(len(x)))
    keeps = len(_sizes(node)) == len(x)
    return [[] if d in chosen else f for d, f in enumerate(x) if keeps or d not in chosen]


@_rule("flatten", "reshape", "view", "_unsafe_view", "unflatten", "unsqueeze", "squeeze")
def _reshape(walk: _Walk, node: fx.Node) -> list[_Factors]:
    x = walk.axes[node.args[0]]  # type: ignore[index]
    return walk.regroup([label for factors in x for label in factors], _sizes(node))


@_rule("permute")
def _permute(walk: _Walk, node: fx.Node) -> list[_Factors]:
    x = walk.axes[node.args[0]]  # type: ignore[index]
    return [x[int(d)] for d in node.args[1]]  # type: ignore[union-attr, arg-type]


@_rule("transpose")
def _transpose(walk: _Walk, node: fx.Node) -> list[_Factors]:
    x = list(walk.axes[node.args[0]])  # type: ignore[index]
    one, other = int(node.args[1]), int(node.args[2])  # type: ignore[arg-type]
    x[one], x[other] = x[other], x[one]
    return x


@_rule("t")
def _t(walk: _Walk, node: fx.Node) -> list[_Factors]:
    return list(reversed(walk.axes[node.args[0]]))  # type: ignore[index]


@_rule("expand")
def _expand(walk: _Walk, node: fx.Node) -> list[_Factors]:
    x, sizes = walk.axes[node.args[0]], _sizes(node)  # type: ignore[index]
    x = [[] for _ in range(len(sizes) - len(x))] + list(x)
    return [factors or _fresh(size, fixed=True) for factors, size in zip(x, sizes, strict=True)]


@_rule("matmul", "bmm", "mm")
def _matmul(walk: _Walk, node: fx.Node) -> list[_Factors]:
    a, b = walk.axes[node.args[0]], walk.axes[node.args[1]]  # type: ignore[index]
    if min(len(a), len(b)) < 2:
        walk.fix([*a, *b])
        return [_fresh(size, fixed=True) for size in _sizes(node)]
    walk.tie(a[-1], b[-2])
    result: list[_Factors] = [[] for _ in _sizes(node)[:-2]] + [a[-2], b[-1]]
    for dims in (a[:-2], b[:-2]):
        for place, factors in enumerate(reversed(dims), 3):
            if result[-place] and factors:
                walk.tie(result[-place], factors)
            elif factors:
                result[-place] = factors
    return result


@_rule("scaled_dot_product_attention")
def _attention(walk: _Walk, node: fx.Node) -> list[_Factors]:
    q, k, v = (walk.axes[argument] for argument in node.args[:3])  # type: ignore[index]
    if len(node.all_input_nodes) > 3 or not len(q) == len(k) == len(v):
        walk.fix([*q, *k, *v, *(f for n in node.all_input_nodes[3:] for f in walk.axes[n])])
        return [_fresh(size, fixed=True) for size in _sizes(node)]
    for one, two, three in zip(q[:-2], k[:-2], v[:-2], strict=True):
        walk.tie(one, two)
        walk.tie(two, three)
    walk.tie(q[-1], k[-1])
    walk.tie(k[-2], v[-2])
    return [*q[:-1], v[-1]]


@_rule("cat")
def _cat(walk: _Walk, node: fx.Node) -> list[_Factors]:
    parts = [walk.axes[argument] for argument in node.args[0]]  # type: ignore[union-attr, index]
    along = int(_argument(node, 1, 0)) % len(parts[0])
    walk.fix([part[along] for part in parts])  # parts of one dimension cannot trade places
    for part in parts[1:]:
        for d, factors in enumerate(part):
            if d != along:
                walk.tie(parts[0][d], factors)
    sizes = _sizes(node)
    return [_fresh(sizes[d], fixed=True) if d == along else f for d, f in enumerate(parts[0])]


@_rule("select", "slice")
def _select(walk: _Walk, node: fx.Node) -> list[_Factors]:
    x, sizes = walk.axes[node.args[0]], _sizes(node)  # type: ignore[index]
    along = int(_argument(node, 1, 0)) % len(x)
    if len(sizes) == len(x):
        whole = sizes[along] == math.prod(leaf.size for leaf in _leaves(x[along]))
        if not whole:
            walk.fix([x[along]])
        return [f if d != along or whole else _fresh(sizes[d], fixed=True) for d, f in enumerate(x)]
    walk.fix([x[along]])
    return [f for d, f in enumerate(x) if d != along]
