"""``deepnet``: random cell networks in the spirit of DeepNets-1M, one for each (salt, split, index).

A genotype (``genotype.py``) becomes a *plan*, a list of primitive instructions. The module executes the plan
and the graph is read off the same plan, so that a million graphs cost neither a file nor a trace. Splits are
apart by construction: a network belongs to training, validation or test by the hash of its structure, and
draws of the wrong side are drawn again.

Source: Knyazev et al. (arXiv 2110.13100), section 4 and appendix B.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightloom.architectures.blocks import Activation, activation
from weightloom.architectures.capture import GraphBuilder
from weightloom.architectures.genotype import (
    SPACES,
    SPLITS,
    Cell,
    Genotype,
    draw_genotype,
)
from weightloom.architectures.graph import ModuleGraph
from weightloom.architectures.spec import ArchitectureSpec, Choice, Whole, architecture
from weightloom.architectures.tracing import Call, Ref, Trace
from weightloom.errors import SpecError

MAX_ATTEMPTS = 10_000
SIDES = 8
"""Structures are dealt into so many heaps by their hash: one for test splits, one for validation."""


# ------------------------------------------------------------------------------- plans


@dataclass(frozen=True)
class Instruction:
    """One primitive: what it does, the states that it reads, and what it is made with.

    Attributes:
        op: ``conv``, ``linear``, ``batch_norm``, ``layer_norm``, ``position``, ``relu`` (the activation),
            ``max_pool``, ``avg_pool``, ``sum``, ``concat``, ``gate``, ``attend``, ``global_avg`` (keeps
            the map), or ``flatten``.
        reads: indices of states; state 0 is the picture, state i + 1 is what instruction i gives.
        shape: (channels, height, width) of what it gives; (features,) after ``flatten``.
        options: sizes of the primitive.
    """

    op: str
    reads: tuple[int, ...]
    shape: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)


class _Planner:
    def __init__(self, genotype: Genotype, input: tuple[int, int, int]) -> None:
        self.genotype = genotype
        self.steps: list[Instruction] = []
        self.shapes: list[tuple[int, ...]] = [input]

    def do(self, op: str, *reads: int, shape: tuple[int, ...] | None = None, **options: Any) -> int:
        shape = self.shapes[reads[0]] if shape is None else shape
        self.steps.append(Instruction(op, reads, shape, options))
        self.shapes.append(shape)
        return len(self.steps)

    def conv(
        self, x: int, out: int, kernel: tuple[int, int] = (1, 1), *, stride: int = 1, dilation: int = 1,
        depthwise: bool = False, bias: bool = False,
    ) -> int:  # fmt: skip
        channels, high, wide = self.shapes[x]
        shape = (out, -(-high // stride), -(-wide // stride))
        return self.do(
            "conv", x, shape=shape, into=channels, out=out, kernel=kernel, stride=stride,
            dilation=dilation, groups=channels if depthwise else 1, bias=bias,
        )  # fmt: skip

    def normed(self, x: int, out: int, kernel: tuple[int, int] = (1, 1), **options: Any) -> int:
        """Convolution and batch norm, or convolution with a bias."""
        if not self.genotype.norm:
            return self.conv(x, out, kernel, bias=True, **options)
        return self.do("batch_norm", self.conv(x, out, kernel, **options))

    def pool(self, op: str, x: int, stride: int) -> int:
        channels, high, wide = self.shapes[x]
        return self.do(op, x, shape=(channels, -(-high // stride), -(-wide // stride)), stride=stride)

    def edge(self, operation: str, x: int, width: int, stride: int) -> int:
        """One operation of a cell, to ``width`` channels."""
        channels = self.shapes[x][0]
        if operation in ("max_pool", "avg_pool"):
            x = self.pool(operation, x, stride)
            return x if channels == width else self.normed(x, width)
        if operation == "skip":
            if stride == 1 and channels == width:
                return x
            return self.normed(self.do("relu", x), width, stride=stride)
        if operation in ("attention", "gate"):
            if stride > 1 or channels != width:
                x = self.normed(self.do("relu", x), width, stride=stride)
            return self.attention(x, width) if operation == "attention" else self.gate(x, width)
        kind, _, size = operation.rpartition("_")
        if operation == "conv_7x1":
            y = self.conv(self.do("relu", x), width, (1, 7), stride=stride)
            return self.normed(y, width, (7, 1))
        side = int(size)
        if kind == "conv":
            return self.normed(self.do("relu", x), width, (side, side), stride=stride)
        if kind == "dil_conv":
            y = self.conv(
                self.do("relu", x), channels, (side, side), stride=stride, dilation=2, depthwise=True
            )
            return self.normed(y, width)
        assert kind == "sep_conv", operation
        y = self.conv(self.do("relu", x), channels, (side, side), stride=stride, depthwise=True)
        y = self.do("relu", self.normed(y, channels))
        return self.normed(self.conv(y, channels, (side, side), depthwise=True), width)

    def gate(self, x: int, width: int) -> int:
        """Squeeze-and-excitation (arXiv 1709.01507), a quarter of the channels inside."""
        mean = self.do("global_avg", x, shape=(width, 1, 1))
        inside = self.do("relu", self.conv(mean, max(width // 4, 2), bias=True))
        return self.do("gate", x, self.conv(inside, width, bias=True))

    def attention(self, x: int, width: int) -> int:
        """A pre-norm transformer block over the places of the map."""
        keys = self.conv(self.do("layer_norm", x), 3 * width)
        heads = next(n for n in (4, 2, 1) if width % n == 0)
        mixed = self.do("attend", keys, shape=self.shapes[x], heads=heads)
        x = self.do("sum", x, self.conv(mixed, width, bias=True))
        inside = self.do("relu", self.conv(self.do("layer_norm", x), 2 * width, bias=True))
        return self.do("sum", x, self.conv(inside, width, bias=True))

    def cell(self, cell: Cell, before: int, last: int, width: int, stride: int) -> int:
        """The two states before it to the joined states of the cell."""
        states = [self.fitted(before, width, self.shapes[last][1]), self.fitted(last, width)]
        for step in cell.steps:
            parts = [
                self.edge(edge.operation, states[edge.reads], width, stride if edge.reads < 2 else 1)
                for edge in step
                if edge.operation != "none"
            ]
            states.append(self.do("sum", *parts) if len(parts) > 1 else parts[0])
        joined = [states[i] for i in cell.joined]
        if len(joined) == 1:
            return joined[0]
        channels, *sides = self.shapes[joined[0]]
        return self.do("concat", *joined, shape=(channels * len(joined), *sides))

    def fitted(self, x: int, width: int, side: int | None = None) -> int:
        """A state with the cell's channels and map."""
        channels, high, _ = self.shapes[x]
        stride = 1 if side is None or high == side else 2
        if stride == 1 and channels == width and not self.genotype.preprocess:
            return x
        return self.normed(self.do("relu", x), width, stride=stride)


def plan_of(genotype: Genotype, input: tuple[int, int, int]) -> tuple[Instruction, ...]:
    """The network's instructions without its head; those that nothing depends on are left out."""
    make, width = _Planner(genotype, input), genotype.width
    kernel = (genotype.kernel, genotype.kernel)
    first = make.normed(0, width, kernel, stride=2 if genotype.stem == "deep" else 1)
    if genotype.stem == "pooled":
        first = make.pool("max_pool", first, 2)
    if genotype.attends:
        first = make.do("position", first)
    before = last = first
    for number in range(genotype.cells):
        reduces = number in genotype.reductions and min(make.shapes[last][1:]) > 1
        if reduces:
            width *= genotype.growth
        cell = genotype.reduction if reduces else genotype.normal
        before, last = last, make.cell(cell, before, last, width, 2 if reduces else 1)
    channels = make.shapes[last][0]
    if genotype.global_average:
        last = make.do("global_avg", last, shape=(channels, 1, 1))
    features = 1
    for side in make.shapes[last]:
        features *= side
    last = make.do("flatten", last, shape=(features,))
    for hidden in genotype.hidden:
        last = make.do("linear", last, shape=(hidden,), into=features, out=hidden)
        last, features = make.do("relu", last), hidden
    return _reachable(make.steps, last)


def _reachable(steps: list[Instruction], last: int) -> tuple[Instruction, ...]:
    needed, stack = {0}, [last]
    while stack:
        state = stack.pop()
        if state not in needed:
            needed.add(state)
            stack += steps[state - 1].reads
    place = {old: new for new, old in enumerate(sorted(needed))}
    return tuple(
        dataclasses.replace(step, reads=tuple(place[r] for r in step.reads))
        for state, step in enumerate(steps, 1)
        if state in needed
    )


# ------------------------------------------------------------------------------- modules


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of a map."""

    def forward(self, input: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same."""
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class Position(nn.Module):
    """A learned map that is added to every map."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(1, *shape))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same."""
        return x + self.table


def _module(step: Instruction) -> nn.Module | None:
    """The learned part of an instruction."""
    o = step.options
    if step.op == "conv":
        padding = tuple(o["dilation"] * (side // 2) for side in o["kernel"])
        return nn.Conv2d(
            o["into"], o["out"], o["kernel"], o["stride"], padding, o["dilation"], o["groups"], bias=o["bias"]
        )
    if step.op == "linear":
        return nn.Linear(o["into"], o["out"])
    if step.op == "batch_norm":
        return nn.BatchNorm2d(step.shape[0])
    if step.op == "layer_norm":
        return ChannelNorm(step.shape[0])
    return Position(step.shape) if step.op == "position" else None


class PlanNetwork(nn.Module):
    """Executes a plan: pictures ``(B, C, H, W)`` to features ``(B, F)``."""

    def __init__(self, plan: tuple[Instruction, ...], activation_name: str = "relu") -> None:
        super().__init__()
        self.plan = plan
        self.activation = activation(activation_name)
        last = {read: number for number, step in enumerate(plan) for read in step.reads}
        self.spent = [[read for read in last if last[read] == number] for number in range(len(plan))]
        for name, step in _named(plan):
            module = _module(step)
            if module is not None:
                self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures to features."""
        states = {0: x}
        for number, (name, step) in enumerate(_named(self.plan)):
            read = [states[i] for i in step.reads]
            for index in self.spent[number]:  # without gradients, a map that nobody reads again is given back
                del states[index]
            if name in self._modules:
                states[number + 1] = self._modules[name](*read)  # type: ignore[misc]
            elif step.op == "relu":
                states[number + 1] = self.activation(read[0])
            else:
                states[number + 1] = _apply(step, read)
        return states[len(self.plan)]


def _named(plan: tuple[Instruction, ...]) -> Iterator[tuple[str, Instruction]]:
    for number, step in enumerate(plan):
        yield f"{step.op}{number}", step


def _apply(step: Instruction, read: list[Tensor]) -> Tensor:
    """What an instruction without weights gives."""
    x = read[0]
    if step.op == "max_pool":
        return F.max_pool2d(x, 3, step.options["stride"], 1)
    if step.op == "avg_pool":
        return F.avg_pool2d(x, 3, step.options["stride"], 1)
    if step.op == "sum":
        return x + read[1]
    if step.op == "concat":
        return torch.cat(read, 1)
    if step.op == "gate":
        return x * torch.sigmoid(read[1])
    if step.op == "global_avg":
        return x.mean((2, 3), keepdim=True)
    if step.op == "flatten":
        return x.flatten(1)  # (B, C, H, W) -> (B, C * H * W)
    assert step.op == "attend", step.op
    heads, (batch, channels, high, wide) = step.options["heads"], x.shape
    # (B, 3C, H, W) -> (B, 3, heads, C / heads, H * W) -> three of (B, heads, H * W, C / heads)
    query, key, value = x.reshape(batch, 3, heads, -1, high * wide).transpose(-1, -2).unbind(1)
    weights = torch.softmax(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5, dim=-1)
    # (B, heads, H * W, C / heads) -> (B, C, H, W)
    return (weights @ value).transpose(-1, -2).reshape(batch, channels // 3, high, wide)


# ------------------------------------------------------------------------------- graphs


def graph_of_plan(plan: tuple[Instruction, ...], classes: int, body: str = "body.") -> ModuleGraph:
    """The graph of the plan's network with a head: what tracing its module gives, without a module."""
    parameters: dict[str, tuple[int, ...]] = {}
    buffers: dict[str, tuple[int, ...]] = {}
    named: dict[int, str] = {}
    held: dict[int, str] = {}
    calls: list[Call] = []

    def parameter(name: str, *shape: int) -> Ref:
        parameters[name] = shape
        key = -1 - len(named) - len(held)
        named[key] = name
        return Ref(key, shape)

    def buffer(name: str, *shape: int) -> Ref:
        buffers[name] = shape
        key = -1 - len(named) - len(held)
        held[key] = name
        return Ref(key, shape)

    def emit(name: str, step: Instruction, read: list[Ref]) -> dict[str, Any]:
        o, width = step.options, step.shape[0]
        given: dict[str, Any] = {"input": read[0]}
        if step.op in ("conv", "linear"):
            sides = (o["into"] // o.get("groups", 1), *o.get("kernel", ()))
            given["weight"] = parameter(f"{name}.weight", o["out"], *sides)
            if o.get("bias", True):
                given["bias"] = parameter(f"{name}.bias", o["out"])
            return given | {"groups": o.get("groups", 1), "dilation": o.get("dilation", 1)}
        if step.op in ("batch_norm", "layer_norm"):
            given |= {role: parameter(f"{name}.{role}", width) for role in ("weight", "bias")}
        if step.op == "batch_norm":
            given |= {role: buffer(f"{name}.{role}", width) for role in ("running_mean", "running_var")}
            buffers[f"{name}.num_batches_tracked"] = ()
        if step.op == "position":
            given["other"] = parameter(f"{name}.table", 1, *step.shape)
        if step.op in ("sum", "gate"):
            given["other"] = read[1]
        return {"tensors": read} if step.op == "concat" else given

    head = Instruction("linear", (len(plan),), (classes,), {"into": plan[-1].shape[0], "out": classes})
    states = [Ref(1, ())]
    for name, step in [*((body + name, step) for name, step in _named(plan)), ("head", head)]:
        result = Ref(1 + len(states), step.shape)
        arguments = emit(name, step, [states[i] for i in step.reads])
        calls.append(Call(_ATEN.get(step.op, step.op), arguments, (result,), False))
        states.append(result)
    trace = Trace(calls, named, held, {1}, [states[-1].key], "genotype")
    return GraphBuilder(trace, parameters, buffers).build({})


_ATEN = {
    "conv": "conv2d",
    "max_pool": "max_pool2d",
    "avg_pool": "avg_pool2d",
    "global_avg": "adaptive_avg_pool2d",
    "sum": "add",
    "gate": "mul",
    "concat": "cat",
    "position": "add",
    "attend": "scaled_dot_product_attention",
}
"""The operation that a trace would show; the others have their own name or are no nodes."""


# ------------------------------------------------------------------------------- the family

_REFERENCE = (3, 16, 16)
"""Input for which a structure is hashed: the same side of a split whatever a network's pictures are."""


@lru_cache(maxsize=65536)
def genotype_of(space: str, split: str, index: int, salt: int = 0) -> Genotype:
    """The genotype at an address: the first draw that the rules allow and that is of the split's own side."""
    for attempt in range(MAX_ATTEMPTS):
        genotype = draw_genotype(space, split, index, attempt, salt)
        if genotype is not None and side_of(genotype) == _side_of_split(split):
            return genotype
    raise AssertionError(f"no genotype for {space} {split} {index} in {MAX_ATTEMPTS} draws")


def side_of(genotype: Genotype) -> str:
    """``test``, ``val`` or ``train``: the side of the split that every network of this structure is on."""
    structure = graph_of_plan(plan_of(genotype, _REFERENCE), 10).structure
    return {0: "test", 1: "val"}.get(int(structure, 16) % SIDES, "train")


def _side_of_split(split: str) -> str:
    return split if split in ("train", "val") else "test"


@architecture("deepnet")
@dataclass(frozen=True, kw_only=True)
class DeepNetSpec(ArchitectureSpec):
    """The random cell network at (salt, space, split, index); ``width`` overrides the drawn channels.

    Example:
        >>> spec = DeepNetSpec(split="test", index=3, classes=10, input=(3, 16, 16))
        >>> spec.graph() == spec.graph(), len(spec.graph()) > 5
        (True, True)
    """

    space: Annotated[str, Choice(tuple(SPACES), "the ranges that it is drawn from")] = "tiny"
    split: Annotated[str, Choice(SPLITS, "which networks: no structure is on two sides")] = "train"
    index: Annotated[int, Whole(0, 2**40, "which network of the split")] = 0
    salt: Annotated[int, Whole(0, 2**40, "another salt, other networks; the sides stay as they are")] = 0
    width: Annotated[int | None, Whole(2, 4096, "channels of the first cells, drawn if left out")] = None

    activation: Activation = "relu"

    @property
    def genotype(self) -> Genotype:
        """What the network is made of."""
        drawn = genotype_of(self.space, self.split, self.index, self.salt)
        return drawn if self.width is None else dataclasses.replace(drawn, width=self.width)

    def body(self, input: tuple[int, int, int]) -> tuple[nn.Module, int]:
        plan = plan_of(self.genotype, input)
        return PlanNetwork(plan, self.activation), plan[-1].shape[0]

    def graph(self) -> ModuleGraph:
        """The computation graph, straight from the genotype.

        Raises:
            SpecError: classes or input are undecided.
        """
        if self.classes is None or self.input is None:
            raise SpecError(f"{self} does not say its classes and input; resolve it with a task")
        return graph_of_plan(plan_of(self.genotype, self.input), self.classes)

    @classmethod
    def example_texts(cls) -> tuple[str, ...]:
        return ("deepnet(index=7)", "deepnet(space=deepnets,split=test,index=1,width=16)")
