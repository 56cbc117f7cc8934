"""A network as a list of steps for one picture, with sizes known and constants worked out.

What follows from weights alone is computed here, batch norms are folded into the convolution or product
before them, zero padding into the convolution after it, clipping (ReLU, ReLU6) into the step before it, and
max-pooling whose windows do not meet into the convolution before it, whose whole map is then never in memory.
Knows graphs; no language.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from weightloom.errors import UnsupportedLayerError, UnsupportedRequestError
from weightloom.export.graph import NORM, exported, is_normed, operation, plain, tensors_of

Shape = tuple[int, ...]


@dataclass(eq=False)
class Value:
    """What a step gives: its shape, and the value whose memory it lies in."""

    shape: Shape
    memory: Value | None = None

    @property
    def root(self) -> Value:
        """The value that the memory belongs to."""
        return self if self.memory is None else self.memory.root

    @property
    def size(self) -> int:
        """Number of floats."""
        return math.prod(self.shape)


@dataclass(eq=False)
class Step:
    """One piece of work.

    Attributes:
        kind: what is done, such as ``conv``.
        out: what it gives.
        reads: values and constants, in order.
        settings: sizes and the like.
        tensors: weights, by role.
        in_place: whether it may write where its first value lies: it reads no place after it has written
            there.
    """

    kind: str
    out: Value
    reads: list[Value | Tensor]
    settings: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    in_place: bool = False


Held = Value | Tensor | int | float | None
CLIPPED = {"conv", "linear", "affine", "binary"}
"""Kinds of steps that can clip what they give."""

UNARY = {
    "leaky_relu.default", "gelu.default", "silu.default", "tanh.default", "sigmoid.default",
    "hardswish.default", "hardsigmoid.default", "exp.default", "sqrt.default", "rsqrt.default", "neg.default",
    "abs.default",
}  # fmt: skip
_SAME = {
    "view.default", "_unsafe_view.default", "reshape.default", "clone.default", "contiguous.default",
    "flatten.using_ints", "unsqueeze.default", "squeeze.dim", "squeeze.dims", "squeeze.default",
    "alias.default", "dropout.default", "_to_copy.default", "detach.default", "lift_fresh_copy.default",
}  # fmt: skip
_MOVED = {"permute.default", "transpose.int", "expand.default", "select.int", "slice.Tensor", "t.default"}


class Steps:
    """The steps of a network for one picture.

    Attributes:
        steps: in order.
        image: what comes in, (1, channels, height, width).
        logits: what goes out, (1, classes).
    """

    def __init__(self, network: nn.Module, input: tuple[int, int, int]) -> None:
        """
        Raises:
            UnsupportedLayerError: operations that no step does.
            UnsupportedRequestError: the network is no graph of one picture and one answer.
        """
        program = plain(exported(network, input, batch=1))
        self.steps: list[Step] = []
        self._held: dict[fx.Node, Any] = {}
        self._makers: dict[Value, Step] = {}
        tensors = tensors_of(program)
        touched: set[fx.Node] = set()
        for node in program.graph.nodes:
            if (node.op == "placeholder" and node.name not in tensors) or any(
                read in touched for read in node.all_input_nodes
            ):
                touched.add(node)
        called = [node for node in program.graph.nodes if node in touched and node.op == "call_function"]
        lacking = [node for node in called if not _known(node)]
        if lacking:
            kinds = sorted({operation(node) for node in lacking})
            raise UnsupportedLayerError(
                [(node.name, operation(node), "used by the network") for node in lacking],
                f"c lacks {', '.join(kinds)}, which this network computes with",
            )
        for node in program.graph.nodes:
            if node.op == "placeholder":
                if node.name in tensors:
                    self._held[node] = tensors[node.name][1].float()
                else:
                    self.image = self._held[node] = Value((1, *input))
            elif node.op == "output":
                (answer,) = node.args[0]
                found = self._held[answer]
                if not isinstance(found, Value):
                    raise UnsupportedRequestError("the network's answer does not depend on the picture")
                self.logits = found
            else:
                self._held[node] = self._lower(node)

    def _lower(self, node: fx.Node) -> Any:
        args: tuple[Any, ...] = fx.map_arg(node.args, lambda read: self._held[read])  # type: ignore[assignment]
        if _is_constant(args):
            return node.target(*args, **node.kwargs)  # type: ignore[operator]
        what = operation(node)
        if is_normed(node):
            return args[0]
        shape = _shape_of(node)
        if what in _SAME:
            return Value(shape, memory=args[0])
        if what in _MOVED:
            return self._moved(node, args, shape)
        if what in UNARY:
            values = [float(value) for value in args[1:]]
            settings = {"function": what.split(".")[0], "values": values, **node.kwargs}
            return self.add(Step("unary", Value(shape), [args[0]], settings, in_place=True))
        return HANDLERS[what](self, node, args, shape)

    # -- what handlers use -----------------------------------------------------------------------

    def add(self, step: Step) -> Value:
        self.steps.append(step)
        self._makers[step.out] = step
        return step.out

    def only(self, node: fx.Node, place: int = 0) -> Step | None:
        """The step that gave a node's argument, if nothing else reads what it gives."""
        read = node.args[place]
        while isinstance(read, fx.Node) and read.target is operator.getitem and len(read.users) == 1:
            read = read.args[0]  # a batch norm, whose other outputs nobody reads
        return (
            None
            if not isinstance(read, fx.Node) or len(read.users) != 1
            else self._makers.get(self._held[read])
        )

    def _moved(self, node: fx.Node, args: tuple[Any, ...], shape: Shape) -> Value:
        """Places that are read in another order, or some of them."""
        source = args[0]
        # What torch itself does to the strides of such a tensor is what has to be read.
        like = torch.empty(source.shape, device="meta")
        seen = node.target(like, *args[1:], **node.kwargs)  # type: ignore[operator]
        settings = {"strides": seen.stride(), "offset": seen.storage_offset()}
        contiguous = torch.empty(shape, device="meta").stride()
        sides = [side for side in zip(shape, seen.stride(), contiguous, strict=True) if side[0] > 1]
        if not settings["offset"] and math.prod(shape) == source.size and all(a == b for _, a, b in sides):
            return Value(shape, memory=source)
        return self.add(Step("gather", Value(shape), [source], settings))


def _known(node: fx.Node) -> bool:
    what = operation(node)
    return is_normed(node) or what in _SAME or what in _MOVED or what in UNARY or what in HANDLERS


def _is_constant(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_constant(item) for item in value)
    return not isinstance(value, Value)


def _shape_of(node: fx.Node) -> Shape:
    value = node.meta["val"]
    return tuple(int(side) for side in (value[0] if isinstance(value, tuple) else value).shape)


# -- one function an operation -------------------------------------------------------------------

Handler = Callable[[Steps, fx.Node, tuple[Any, ...], Shape], Value]
HANDLERS: dict[str, Handler] = {}


def _lowers(*names: str) -> Callable[[Handler], Handler]:
    def file(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return file


def _pair(value: Any) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return (values[0], values[-1])


def _given(args: tuple[Any, ...], place: int, default: Any) -> Any:
    return args[place] if len(args) > place and args[place] not in (None, []) else default


def _refuse(what: str) -> UnsupportedRequestError:
    return UnsupportedRequestError(f"c lacks {what}, which this network computes with")


@_lowers("conv2d.default", "conv2d.padding")
def _conv(steps: Steps, node: fx.Node, args: tuple[Any, ...], shape: Shape) -> Value:
    x, weight = args[0], args[1]
    if not isinstance(weight, Tensor) or not isinstance(x, Value) or len(shape) != 4:
        raise _refuse("convolutions whose weights follow from the picture")
    kernel = (weight.shape[2], weight.shape[3])
    padding, dilation = _given(args, 4, 0), _pair(_given(args, 5, 1))
    if padding == "valid":
        padding = 0
    elif padding == "same":  # where it is not even torch pads one more at the end, which needs no number here
        padding = [d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)]
    top, left = _pair(padding)
    before = steps.only(node)
    if before is not None and before.kind == "pad":
        steps.steps.remove(before)
        x, (above, beside) = before.reads[0], before.settings["before"][-2:]
        top, left = top + above, left + beside
    bias = _given(args, 2, torch.zeros(weight.shape[0]))
    settings = {
        "stride": _pair(_given(args, 3, 1)),
        "padding": (top, left),
        "dilation": dilation,
        "groups": _given(args, 6, 1),
    }
    return steps.add(Step("conv", Value(shape), [x], settings, {"weight": weight, "bias": bias}))


@_lowers("constant_pad_nd.default", "pad.default")
def _pad(steps: Steps, node: fx.Node, args: tuple[Any, ...], shape: Shape) -> Value:
    if "pad.default" in str(node.target) and _given(args, 2, "constant") != "constant":
        raise _refuse("padding with anything but a constant")
    value = node.kwargs.get("value") or _given(args, 3 if "pad.default" in str(node.target) else 2, 0)
    sides = list(args[1])
    if value != 0 or any(side < 0 for side in sides):
        raise _refuse("padding with anything but zeros")
    before = [0] * (len(shape) - len(sides) // 2) + sides[::2][::-1]
    return steps.add(Step("pad", Value(shape), [args[0]], {"before": before}))


@_lowers("linear.default")
def _linear(steps: Steps, node: fx.Node, args: tuple[Any, ...], shape: Shape) -> Value:
    x, weight = args[0], args[1]
    if not isinstance(weight, Tensor) or not isinstance(x, Value):
        raise _refuse("products with weights that follow from the picture")
    bias = _given(args, 2, torch.zeros(weight.shape[0]))
    return steps.add(Step("linear", Value(shape), [x], {}, {"weight": weight, "bias": bias}))


@_lowers("matmul.default", "mm.default", "bmm.default")
def _matmul(steps: Steps, node: fx.Node, args: tuple[Any, ...], shape: Shape) -> Value:
    a, b = args[0], args[1]
    if isinstance(a, Value) and isinstance(b, Tensor) and b.dim() == 2:
        tensors = {"weight": b.T.contiguous(), "bias": torch.zeros(b.shape[1])}
        return steps.add(Step("linear", Value(shape), [a], {}, tensors))
    if len(a.shape) != len(b.shape) or a.shape[:-2] != b.shape[:-2] or len(shape) < 2:
        raise _refuse("products of stacks of different sizes")
    settings = {"batch": math.prod(shape[:-2]), "rows": shape[-2], "inner": a.shape[-1], "columns": shape[-1]}
    return steps.add(Step("matmul", Value(shape), [a, b], settings))


@_lowers(NORM)
def _batch_norm(steps: Steps, node: fx.Node, args: tuple[Any, ...], shape: Shape) -> Value:
    x, weight, bias, mean, variance, _, eps = args
    scale = (1.0 if weight is None else weight.double()) / torch.sqrt(variance.double() + eps)  # (C,)
    shift = (0.0 if bias is None else bias.double()) - mean.double() * scale
    before = steps.only(node)
    whole = before is not None and not {"low", "pool"} & before.settings.keys()
    if before is not None and before.kind in ("conv", "linear") and whole:
        held = before.tensors["weight"].double()
        before.tensors = {
            "weight": (held * scale.reshape(-1, *(1,) * (held.dim() - 1))).float(),
            "bias": (before.tensors["bias"].double() * scale + shift).float(),
        }
        return before.out
    settings = {"channels": shape[1], "inner": math.prod(shape[2:])}
    tensors = {"scale": scale.float(), "shift": shift.float()}
    return steps.add(Step("affine", Value(shape), [x], settings, tensors, in_place=True))


@_lowers("relu.default", "relu6.default", "hardtanh.default", "clamp.default")
def _clip(steps: Steps, node: fx.Node, args: tuple[Any, ...], shape: Shape) -> Value:
    what = operation(node).split(".")[0]
    low: float | None
    high: float | None
    if what == "clamp":
        low = _given(args, 1, node.kwargs.get("min"))
        high = _given(args, 2, node.kwargs.get("max"))
    else:
        low = 0.0 if what.startswith("relu") else float(_given(args, 1, -1.0)) if len(args) > 1 else -1.0
        high = {"relu": None, "relu6": 6.0}.get(what, float(args[2]) if len(args) > 2 else 1.0)
    limits = {"low": -math.inf if low is None else low, "high": math.inf if high is None else high}
    before = steps.only(node)
    if before is not None and before.kind in CLIPPED and "low" not in before.settings:
        before.settings.update(limits)
        before.out.shape = shape
        return before.out
    return steps.add(Step("clip", Value(shape), [args[0]], limits, in_place=True))


@_lowers("max_pool2d.default", "avg_pool2d.default")
def _pool(steps: Steps, node: fx.Node, args: tuple[Any, ...], shape: Shape) -> Value:
    kernel = _pair(args[1])
    settings: dict[str, Any] = {
        "kernel": kernel,
        "stride": _pair(_given(args, 2, kernel)),
        "padding": _pair(_given(args, 3, 0)),
        "dilation": (1, 1),
    }
    if operation(node).startswith("max"):
        settings["dilation"] = _pair(_given(args, 4, 1))
        before = steps.only(node)
        apart = settings["stride"] == kernel and settings["padding"] == (0, 0)
        apart = apart and settings["dilation"] == (1, 1)
        inside = all(n * k <= side for n, k, side in zip(shape[2:], kernel, args[0].shape[2:], strict=True))
        if (
            before is not None
            and before.kind == "conv"
            and "pool" not in before.settings
            and apart
            and inside
        ):
            before.settings["pool"] = kernel
            before.out.shape = shape
            return before.out
        return steps.add(Step("max_pool", Value(shape), [args[0]], settings))
    settings["whole"] = bool(args[5]) if len(args) > 5 else True
    settings["divisor"] = _given(args, 6, 0)
    return steps.add(Step("avg_pool", Value(shape), [args[0]], settings))


@_lowers("adaptive_avg_pool2d.default")
def _adaptive(steps: Steps, node: fx.Node, args: tuple[Any, ...], shape: Shape) -> Value:
    high, wide = args[0].shape[-2:]
    if high % shape[-2] or wide % shape[-1]:
        raise _refuse("averages over windows of different sizes")
    kernel = (high // shape[-2], wide // shape[-1])
    settings = {"kernel": kernel, "stride": kernel, "padding": (0, 0), "dilation": (1, 1), "whole": True,
                "divisor": 0}  # fmt: skip
    return steps.add(Step("avg_pool", Value(shape), [args[0]], settings))


@_lowers("mean.dim", "sum.dim_IntList", "amax.default")
def _reduce(steps: Steps, node: fx.Node, args: tuple[Any, ...], shape: Shape) -> Value:
    source = args[0].shape
    dims = sorted(dim % len(source) for dim in _given(args, 1, list(range(len(source)))))
    if dims != list(range(dims[0], dims[-1] + 1)):
        raise _refuse("means over axes that are apart")
    settings = {
        "how": operation(node).split(".")[0],
        "outer": math.prod(source[: dims[0]]),
        "count": math.prod(source[dims[0] : dims[-1] + 1]),
        "inner": math.prod(source[dims[-1] + 1 :]),
    }
    return steps.add(Step("reduce", Value(shape), [args[0]], settings))


@_lowers("softmax.int", "_softmax.default")
def _softmax(steps: Steps, node: fx.Node, args: tuple[Any, ...], shape: Shape) -> Value:
    dim = args[1] % len(shape)
    settings = {"outer": math.prod(shape[:dim]), "count": shape[dim], "inner": math.prod(shape[dim + 1 :])}
    return steps.add(Step("softmax", Value(shape), [args[0]], settings, in_place=True))


@_lowers("layer_norm.default")
def _layer_norm(steps: Steps, node: fx.Node, args: tuple[Any, ...], shape: Shape) -> Value:
    count = math.prod(args[1])
    tensors = {
        "scale": _given(args, 2, torch.ones(count)).reshape(-1),
        "shift": _given(args, 3, torch.zeros(count)).reshape(-1),
    }
    settings = {"rows": math.prod(shape) // count, "count": count, "inner": 1, "cycle": count,
                "eps": float(_given(args, 4, 1e-5))}  # fmt: skip
    return steps.add(Step("normalise", Value(shape), [args[0]], settings, tensors, in_place=True))


@_lowers("group_norm.default")
def _group_norm(steps: Steps, node: fx.Node, args: tuple[Any, ...], shape: Shape) -> Value:
    groups, channels, places = args[1], shape[1], math.prod(shape[2:])
    tensors = {
        "scale": _given(args, 2, torch.ones(channels)),
        "shift": _given(args, 3, torch.zeros(channels)),
    }
    settings = {"rows": groups, "count": channels // groups * places, "inner": places, "cycle": channels,
                "eps": float(_given(args, 4, 1e-5))}  # fmt: skip
    return steps.add(Step("normalise", Value(shape), [args[0]], settings, tensors, in_place=True))


@_lowers("add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor")
def _binary(steps: Steps, node: fx.Node, args: tuple[Any, ...], shape: Shape) -> Value:
    what = operation(node).split(".")[0]
    a, b = (value if isinstance(value, (Value, Tensor)) else torch.tensor(float(value)) for value in args[:2])
    if node.kwargs.get("alpha", 1) != 1:
        raise _refuse("sums with a factor")
    if not isinstance(a, Value) and what in ("add", "mul"):
        a, b = b, a
    settings = {"how": what}
    in_place = isinstance(a, Value) and tuple(a.shape) == shape
    return steps.add(Step("binary", Value(shape), [a, b], settings, in_place=in_place))


@_lowers("cat.default")
def _cat(steps: Steps, node: fx.Node, args: tuple[Any, ...], shape: Shape) -> Value:
    dim = _given(args, 1, 0) % len(shape)
    settings = {"outer": math.prod(shape[:dim]), "parts": [math.prod(part.shape[dim:]) for part in args[0]]}
    return steps.add(Step("cat", Value(shape), list(args[0]), settings))
