"""What happens to a picture in a module, call by call, without memory or arithmetic.

A copy of the module without memory of its own (on the meta device) sees one picture without memory, in eval
mode, and every ATen operation is written down with what it reads: the operations that ``torch.export``
gives, several times faster. Where that fails ``torch.export`` itself is asked, over fake CPU tensors.
Tensors are followed by identity, never by position or by names of autograd nodes. The caller's module is
left as it was, and its hooks are not run.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from weightloom.architectures.copying import copy_module, hooked_layers, objects_in
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
    memories: Mapping[int, str] = field(default_factory=dict)
    """Buffers by whose memory they are, where that is known."""


def trace(module: nn.Module, shape: tuple[int, ...]) -> Trace:
    """What happens to a picture of ``shape`` (C, H, W): recorded, or exported where that fails.

    Raises:
        InputError: neither can be done with such a picture, or the output holds no tensor.
    """
    running: list[str] = []
    try:
        return record(module, shape, running)
    except Exception as error:
        if isinstance(error, InputError) and not running:
            raise  # ours: it cannot be copied, or gives no tensor
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
    if hooked_layers(module):
        hint += "; its hooks were not run: what the network needs of them belongs in its forward"
    raise InputError(
        f"{type(module).__name__} cannot be traced on a picture of {pixels}{layer}: {reason[:300]}{hint}"
    )


def tensors_in(value: Any) -> list[Any]:
    """Tensors or refs in nested lists, tuples, sets, dicts and the fields of any other object.

    Example:
        >>> from types import SimpleNamespace
        >>> out = SimpleNamespace(logits=torch.zeros(2), more={"features": [torch.ones(3)]})
        >>> [len(tensor) for tensor in tensors_in(out)]
        [2, 3]
    """
    return objects_in(value, (Tensor, Ref))


def _checked(module: nn.Module, output: Any) -> list[Tensor]:
    """The tensors of an output, of which there must be some."""
    tensors = tensors_in(output)
    if not tensors:
        raise InputError(
            f"the forward pass of {type(module).__name__} gives an object of type {type(output).__name__!r}, "
            "in which no tensor is found; it can give a tensor, or a list, dict or object that holds tensors"
        )
    return tensors


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
        results = tuple(self.lift(t) for t in tensors_in(result))
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
    with torch.inference_mode(), warnings.catch_warnings(action="ignore"):
        twin = _without_memory(module, running).eval()
        picture = torch.empty(_batch_of(module), *shape, device="meta", dtype=dtype_of(twin))
        recorder = _Recorder()
        with torch.device("meta"), recorder:
            output = twin(picture)
    buffers = dict(twin.named_buffers())
    return Trace(
        recorder.calls,
        {id(p): name for name, p in twin.named_parameters()},
        {id(b): name for name, b in buffers.items()},
        {id(picture)},
        [id(t) for t in _checked(module, output)],
        "recorded",
        {b.untyped_storage()._cdata: name for name, b in buffers.items()},
    )


def _without_memory(module: nn.Module, running: list[str]) -> nn.Module:
    def emptied(name: str, old: Tensor, is_buffer: bool) -> Tensor:
        return torch.empty_like(old, device="meta")

    try:
        return copy_module(module, emptied, kept=lambda old: emptied("", old, False), running=running)
    except InputError:  # of an object that copies itself by the values of tensors, such as a random stream
        return copy_module(module, emptied, running=running)


def dtype_of(module: nn.Module) -> torch.dtype:
    """What a picture for ``module`` has to be of: the type of its first parameter of floats."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)


def _batch_of(module: nn.Module) -> int:
    """Pictures of a trace's batch: as many as an exported module insists on."""
    return fixed_batch(module) or _BATCH


def fixed_batch(module: nn.Module) -> int | None:
    """The batch that an exported module, or one with an exported part, was made for where it takes no other.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> exported = torch.export.export(net, (torch.zeros(3, 4),)).module()
        >>> fixed_batch(exported), fixed_batch(net)
        (3, None)
    """
    for part in module.modules():
        if isinstance(part, torch.fx.GraphModule):
            given = (node.meta.get("val") for node in part.graph.nodes if node.op == "placeholder")
            first = next(given, None)
            if isinstance(first, Tensor) and first.dim() and type(first.shape[0]) is int:
                return first.shape[0]
    return None


_TALKATIVE = ("torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor")
"""Loggers that write whole tracebacks where an export fails; the first export may be what makes them."""


@contextmanager
def _silent() -> Iterator[None]:
    """What torch logs and prints of a module that it cannot export stays inside; a sentence says why."""
    known = [name for name in logging.root.manager.loggerDict if name.startswith("torch.")]
    loggers = [logging.getLogger(name) for name in {*known, *_TALKATIVE}]
    before = [logger.disabled for logger in loggers]
    try:
        for logger in loggers:
            logger.disabled = True
        with (
            redirect_stderr(io.StringIO()),
            redirect_stdout(io.StringIO()),
            warnings.catch_warnings(action="ignore"),
        ):
            yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


def exported(twin: nn.Module, arguments: tuple[Any, ...]) -> torch.export.ExportedProgram:
    """``twin``, a copy of ours, as a program of ATen operations; what torch says of it is not printed."""
    with _silent():
        return torch.export.export(twin, arguments, strict=False)


def exported_copy(module: nn.Module, arguments: tuple[Any, ...]) -> torch.export.ExportedProgram:
    """A copy of ``module`` as a program of ATen operations; the module's hooks are not run.

    Raises:
        Exception: of the many kinds that ``torch.export`` has.
    """
    return exported(copy_module(module, running=[]), arguments)


class _Flat(nn.Module):
    """What a module gives, whatever it is wrapped in, as a plain list of tensors."""

    def __init__(self, module: nn.Module, named: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._named = (named,)  # in a tuple, where torch does not see a module

    def forward(self, x: Tensor) -> list[Tensor]:
        return _checked(self._named[0], self.module(x))


def _first_names(module: nn.Module) -> dict[str, str]:
    """Of every name of a parameter or buffer, the first that the same tensor has."""
    names: dict[str, str] = {}
    for named in (module.named_parameters, module.named_buffers):
        first = {id(tensor): name for name, tensor in named()}
        names |= {name: first[id(tensor)] for name, tensor in named(remove_duplicate=False)}
    return names


def export(module: nn.Module, shape: tuple[int, ...]) -> Trace:
    from torch._subclasses.fake_tensor import FakeTensorMode

    fake = FakeTensorMode(allow_non_fake_inputs=True)

    def emptied(name: str, old: Tensor, is_buffer: bool) -> Tensor:
        with fake:
            return torch.empty(old.shape, dtype=old.dtype, device="cpu")

    twin = copy_module(module, emptied, running=[]).eval()
    with fake:
        picture = torch.empty(_batch_of(module), *shape, dtype=dtype_of(twin))
    program = exported(_Flat(twin, module), (picture,))
    signature = program.graph_signature
    first = _first_names(twin)
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
                parameters[key] = first[signature.inputs_to_parameters[node.name].removeprefix("module.")]
            elif node.name in signature.inputs_to_buffers:
                buffers[key] = first[signature.inputs_to_buffers[node.name].removeprefix("module.")]
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
            outputs = [ref.key for ref in tensors_in(lift(node.args))]
    return Trace(calls, parameters, buffers, inputs, outputs, "torch.export")
