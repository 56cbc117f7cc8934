"""What happens to a picture in a module, call by call, without memory or arithmetic.

A copy of the module without memory of its own (on the meta device) sees one picture without memory, in eval
mode, and every ATen operation is written down with what it reads: the operations that ``torch.export``
gives, several times faster. Where that fails ``torch.export`` itself is asked, over fake CPU tensors.
Tensors are followed by identity, never by position or by names of autograd nodes. The caller's module is
left as it was.
"""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from weightloom.errors import InputError

_BATCH = 2  # a batch of one is a special case to torch.export and to some modules


class Ref(NamedTuple):
    """A tensor of the trace: who it is, its shape, and whose memory it looks at."""

    key: int
    shape: tuple[int, ...]
    memory: int = 0


@dataclass(frozen=True)
class Call:
    """One operation of the trace, with its arguments by name."""

    op: str
    arguments: Mapping[str, Any]
    results: tuple[Ref, ...]
    in_place: bool


@dataclass(frozen=True)
class Trace:
    """Everything that happened to a picture: calls in order, and which refs are what."""

    calls: list[Call]
    parameters: dict[int, str]
    buffers: dict[int, str]
    inputs: set[int]
    outputs: list[int]
    how: str


def copy_with(module: nn.Module, tensors: Callable[[str, Tensor, bool], Tensor]) -> nn.Module:
    """A deep copy of ``module`` whose tensors are those that ``tensors(name, old, is_buffer)`` gives.

    Nothing of the old tensors is copied. A tensor that the module holds under several names is asked for once
    and stays shared.
    """
    memo: dict[int, Any] = {}
    for is_buffer, items in (
        (False, module.named_parameters()),
        (True, module.named_buffers()),
    ):
        for name, old in items:
            new = tensors(name, old, is_buffer)
            memo[id(old)] = new if is_buffer else nn.Parameter(new, requires_grad=old.requires_grad)
    for path, layer in module.named_modules():
        for name, old in vars(layer).items():  # what hooks have made, and what a module keeps for later
            if isinstance(old, Tensor):
                memo[id(old)] = tensors(f"{path}.{name}".removeprefix("."), old, True)
    return copy.deepcopy(module, memo)


def trace(module: nn.Module, shape: tuple[int, ...]) -> Trace:
    """What happens to a picture of ``shape`` (C, H, W): recorded, or exported where that fails.

    Raises:
        InputError: neither can be done with such a picture.
    """
    running: list[str] = []
    try:
        return record(module, shape, running)
    except Exception as error:
        recorded = error
    try:
        return export(module, shape)
    except Exception as error:
        # A picture that does not fit is said best by torch's own sentence, which the recorder has met.
        fault = recorded if isinstance(recorded, RuntimeError) and "size" in str(recorded) else error
    reason = (str(fault).strip().splitlines() or [type(fault).__name__])[0]
    if "data-dependent" in reason:
        reason = "which way its forward pass goes depends on the pixels"
    pixels = "x".join(map(str, shape))
    layer = f", in layer {running[-1]!r}" if running and running[-1] else ""
    shaped = any(word in reason for word in ("size", "shape", "channels", "dim"))
    hint = " (input=(channels, height, width) is the shape of the pictures that it takes)" if shaped else ""
    raise InputError(
        f"{type(module).__name__} cannot be traced on a picture of {pixels}{layer}: {reason[:300]}{hint}"
    )


def _tensors_in(value: Any) -> Iterable[Any]:
    """Tensors or refs in nested lists, tuples, dicts and dataclass-like outputs."""
    if isinstance(value, (Tensor, Ref)):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors_in(item)


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.alive: list[Any] = []  # ids name tensors only while these live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.alive += [args, kwargs, result]
        names = [argument.name for argument in func._schema.arguments]
        arguments = {name: self.lift(value) for name, value in zip(names, args, strict=False)}
        arguments |= {name: self.lift(value) for name, value in kwargs.items()}
        results = tuple(self.lift(t) for t in _tensors_in(result))
        name = func._schema.name.split("::")[-1]
        self.calls.append(Call(name, arguments, results, func._schema.is_mutable))
        return result

    def lift(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return Ref(id(value), tuple(value.shape), value.untyped_storage()._cdata)
        if isinstance(value, (list, tuple)):
            return [self.lift(item) for item in value]
        return value


def record(module: nn.Module, shape: tuple[int, ...], running: list[str]) -> Trace:
    """``running`` holds the names of the layers that are at work, the innermost last, also when one fails."""
    # In inference mode composite operations (linear, attention, batch norm) arrive whole.
    with torch.inference_mode():
        twin = copy_with(module, lambda name, old, is_buffer: torch.empty_like(old, device="meta")).eval()
        dtype = next((p.dtype for p in twin.parameters() if p.is_floating_point()), torch.float32)
        picture = torch.empty(_BATCH, *shape, device="meta", dtype=dtype)
        for name, layer in twin.named_modules():
            layer.register_forward_pre_hook(lambda *_, name=name: running.append(name))
            layer.register_forward_hook(lambda *_: _leave(running))
        recorder = _Recorder()
        with torch.device("meta"), recorder:
            output = twin(picture)
    return Trace(
        recorder.calls,
        {id(p): name for name, p in twin.named_parameters()},
        {id(b): name for name, b in twin.named_buffers()},
        {id(picture)},
        [id(t) for t in _tensors_in(output)],
        "recorded",
    )


def _leave(running: list[str]) -> None:
    """A hook gives nothing: what it gave would stand in the place of the layer's output."""
    running.pop()


_TALKATIVE = ("fx.experimental.symbolic_shapes", "_subclasses.fake_tensor")
"""Loggers that write whole tracebacks where an export fails."""


@contextmanager
def _silent() -> Iterator[None]:
    """What torch prints of a module that it cannot export stays inside; the reason is said in a sentence."""
    loggers = [logging.getLogger(f"torch.{name}") for name in _TALKATIVE]
    before = [logger.disabled for logger in loggers]
    try:
        for logger in loggers:
            logger.disabled = True
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


def export(module: nn.Module, shape: tuple[int, ...]) -> Trace:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        twin = copy_with(
            module, lambda name, old, is_buffer: torch.empty(old.shape, dtype=old.dtype, device="cpu")
        ).eval()
        dtype = next((p.dtype for p in twin.parameters() if p.is_floating_point()), torch.float32)
        picture = torch.empty(_BATCH, *shape, dtype=dtype)
    with _silent():
        program = torch.export.export(twin, (picture,), strict=False)
    signature = program.graph_signature
    keys = {node: number for number, node in enumerate(program.graph.nodes)}

    def lift(value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            held = value.meta.get("val")
            return Ref(keys[value], tuple(held.shape) if isinstance(held, Tensor) else ())
        if isinstance(value, (list, tuple)):
            return [lift(item) for item in value]
        return value

    calls, parameters, buffers, inputs, outputs = [], {}, {}, set(), []
    for node, key in keys.items():
        if node.op == "placeholder":
            if node.name in signature.inputs_to_parameters:
                parameters[key] = signature.inputs_to_parameters[node.name]
            elif node.name in signature.inputs_to_buffers:
                buffers[key] = signature.inputs_to_buffers[node.name]
            elif node.name in signature.user_inputs:
                inputs.add(key)
        elif node.op == "call_function":
            schema = getattr(node.target, "_schema", None)
            names = [] if schema is None else [argument.name for argument in schema.arguments]
            names += [f"argument{i}" for i in range(len(node.args) - len(names))]
            arguments = {name: lift(value) for name, value in zip(names, node.args, strict=False)}
            arguments |= {name: lift(value) for name, value in node.kwargs.items()}
            op = getattr(node.target, "__name__", str(node.target)) if schema is None else schema.name
            changes = schema is not None and schema.is_mutable
            calls.append(Call(op.split("::")[-1], arguments, (lift(node),), changes))
        elif node.op == "output":
            outputs = [ref.key for ref in _tensors_in(lift(node.args))]
    return Trace(calls, parameters, buffers, inputs, outputs, "torch.export")
