"""``python``: one file of plain PyTorch, written from the graph of ``torch.export``.

An operation that has a short name is written with it, any other as ``torch.ops.aten``; so every network
that torch can export can be written. Small networks carry their weights in the file, larger ones
have them in a safetensors file beside it.
"""

from __future__ import annotations

import base64
import math
import operator
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from weightloom.errors import UnsupportedRequestError, WeightloomError
from weightloom.export.base import Job, Target, batches, targets
from weightloom.export.facts import NO_LICENCE
from weightloom.export.graph import NORM, exported, is_normed, operation, plain, tensors_of
from weightloom.export.python_text import BESIDE, HEAD, INSIDE, TAIL
from weightloom.io import run_program, save_tensors

EMBEDDED = 4 << 20
"""Bytes of weights up to which they are in the file itself."""

_LINE = 110
_FUNCTIONS = {  # the same arguments in the same order
    "conv1d.default": "F.conv1d",
    "conv2d.default": "F.conv2d",
    "conv2d.padding": "F.conv2d",
    "linear.default": "F.linear",
    "relu.default": "F.relu",
    "relu6.default": "F.relu6",
    "leaky_relu.default": "F.leaky_relu",
    "gelu.default": "F.gelu",
    "silu.default": "F.silu",
    "hardtanh.default": "F.hardtanh",
    "hardswish.default": "F.hardswish",
    "hardsigmoid.default": "F.hardsigmoid",
    "max_pool2d.default": "F.max_pool2d",
    "avg_pool2d.default": "F.avg_pool2d",
    "adaptive_avg_pool2d.default": "F.adaptive_avg_pool2d",
    "pad.default": "F.pad",
    "constant_pad_nd.default": "F.pad",
    "layer_norm.default": "F.layer_norm",
    "group_norm.default": "F.group_norm",
    "matmul.default": "torch.matmul",
    "cat.default": "torch.cat",
    "softmax.int": "torch.softmax",
    "tanh.default": "torch.tanh",
    "sigmoid.default": "torch.sigmoid",
    "permute.default": "torch.permute",
    "transpose.int": "torch.transpose",
    "mean.dim": "torch.mean",
    "select.int": "torch.select",
    "unsqueeze.default": "torch.unsqueeze",
    "flatten.using_ints": "torch.flatten",
    "clamp.default": "torch.clamp",
}
_NUMBERED = {
    "layer_norm.default": 5,
    "group_norm.default": 5,
}  # arguments, of which torch's function has no more
_OPERATORS = {"add.Tensor": "+", "sub.Tensor": "-", "mul.Tensor": "*", "div.Tensor": "/"}
_INTEGERS = {operator.mul: "*", operator.add: "+", operator.sub: "-", operator.floordiv: "//"}
_RESHAPES = {"view.default", "_unsafe_view.default", "reshape.default"}

_CHECK = """
import runpy, sys
sys.modules["weightloom"] = None
import torch
torch.set_num_threads(1)
held = runpy.run_path(sys.argv[1])
images = torch.frombuffer(bytearray(sys.stdin.buffer.read()), dtype=torch.float32)
images = images.reshape(-1, *held["INPUT"])
with torch.inference_mode():
    network = held["load"]()
    answers = torch.cat([network(part) for part in images.split(int(sys.argv[2]))])
sys.stdout.buffer.write(answers.numpy().tobytes())
"""


class _Python(Target):
    """A module of plain PyTorch with weights, class names and a ``main`` for pictures."""

    name, suffix = "python", ".py"

    def write(self, job: Job) -> list[Path]:
        program = plain(exported(job.network, job.facts.input))
        tensors = tensors_of(program)
        body, used = forward_of(program.graph, tensors)
        held = {_attribute(tensors[name][0]): tensors[name][1].contiguous() for name in used}
        learned = sorted(_attribute(tensors[name][0]) for name in used if tensors[name][2])
        text = HEAD.format(
            title="\n".join(f"# {name}: {value}" for name, value in job.facts.lines()),
            about=_literal(dict(job.facts.lines())),
            class_names=_literal(list(job.facts.class_names)),
            input=job.facts.input,
            mean=job.facts.mean,
            scale=job.facts.scale,
            temperature=job.facts.temperature or 1.0,
        )
        files = [job.file]
        size = sum(values.numel() * values.element_size() for values in held.values())
        if size <= EMBEDDED:
            raw = b"".join(values.numpy().tobytes() for values in held.values())
            table = [
                (name, tuple(values.shape), str(values.dtype).removeprefix("torch."))
                for name, values in held.items()
            ]
            letters = base64.b85encode(raw).decode("ascii")
            rows = "\n".join(letters[at : at + _LINE] for at in range(0, len(letters), _LINE))
            weights = INSIDE.format(table=_literal(table), rows=rows)
        else:
            beside = job.file.with_suffix(".weights.safetensors")
            said = {"licence": job.facts.licence or NO_LICENCE, "architecture": job.facts.architecture}
            save_tensors(beside, held, said)
            files.append(beside)
            weights = BESIDE.format(name=_literal(beside.name))
        text += TAIL.format(weights=weights, learned=_literal(learned), body=body)
        job.file.write_text(text, encoding="utf-8")
        return files

    def run(self, job: Job, images: Tensor) -> tuple[Tensor, str]:
        command = [sys.executable, "-I", "-c", _CHECK, str(job.file), str(len(batches(images)[0]))]
        try:
            ended = run_program(command, job.folder, said=images.numpy().tobytes())
        except (OSError, subprocess.TimeoutExpired) as error:
            raise WeightloomError(f"the Python file does not run: {error}") from None
        if ended.returncode:
            last = ended.stderr.decode("utf-8", "replace").strip().splitlines() or ["nothing was said"]
            raise WeightloomError(f"the Python file does not run: {last[-1]}")
        answers = np.frombuffer(ended.stdout, dtype=np.float32).copy()
        return torch.from_numpy(answers).reshape(len(images), -1), "a fresh Python, without Weightloom"


targets.register("python")(_Python())


# -- the graph as text ---------------------------------------------------------------------------


def forward_of(graph: fx.Graph, tensors: Mapping[str, tuple[str, Tensor, bool]]) -> tuple[str, list[str]]:
    """The lines of ``forward`` for a functional graph, and the placeholders that it reads as weights.

    A name is given again when nothing reads it any more, so that memory is free when it can be.

    Raises:
        UnsupportedRequestError: it reads anything but one batch, or computes sizes in a way of its own.
    """
    names: dict[fx.Node, str] = {}
    root = {node: node.args[0] if is_normed(node) else node for node in graph.nodes}
    last: dict[Any, fx.Node] = {}
    for node in graph.nodes:
        if not is_normed(node):
            last.update((root[read], node) for read in node.all_input_nodes)
    lines: list[str] = []
    used: list[str] = []
    free: list[str] = []
    for node in graph.nodes:
        if node.op == "placeholder":
            if node.name in tensors:
                names[node] = f"self.{_attribute(tensors[node.name][0])}"
                if node.users:
                    used.append(node.name)
            else:
                names[node] = "x"
        elif node.op == "output":
            (answer,) = node.args[0]
            lines.append(f"return {names[answer]}")
        elif is_normed(node):
            names[node] = names[root[node]]
        else:
            text = _call(node, names)
            over = {root[read] for read in node.all_input_nodes if last[root[read]] is node}
            free += sorted(names[read] for read in over if names[read].startswith("t"))
            if _is_size(node):
                names[node] = f"n{len(names)}"
            else:
                names[node] = free.pop() if free else f"t{len(names)}"
            lines.append(f"{names[node]} = {text}")
    return "\n".join(f"        {line}" for line in lines), used


def _is_size(node: fx.Node) -> bool:
    return not isinstance(node.meta.get("val"), (Tensor, tuple, list))


def _call(node: fx.Node, names: Mapping[fx.Node, str]) -> str:
    what = operation(node)
    args = [_value(value, names) for value in node.args]
    kwargs = {key: _value(value, names) for key, value in node.kwargs.items()}
    if node.target is operator.getitem:
        return f"{args[0]}[{args[1]}]"
    if node.target in _INTEGERS:
        return f"{args[0]} {_INTEGERS[node.target]} {args[1]}"  # type: ignore[index]
    if what == NORM:
        x, weight, bias, mean, variance, _, eps = args
        return f"F.batch_norm({x}, {mean}, {variance}, {weight}, {bias}, eps={eps})"
    if what in _OPERATORS and not kwargs:
        return f"{args[0]} {_OPERATORS[what]} {args[1]}"
    if what == "sym_size.int":
        return f"{args[0]}.shape[{args[1]}]"
    if what in _RESHAPES:
        return f"{args[0]}.reshape({args[1]})"
    if what == "expand.default":
        return f"{args[0]}.expand({args[1]})"
    if what == "clone.default":
        return f"{args[0]}.contiguous()"
    if what in _FUNCTIONS:
        args = args[: _NUMBERED.get(what)]
        return f"{_FUNCTIONS[what]}({', '.join([*args, *(f'{k}={v}' for k, v in kwargs.items())])})"
    if not str(node.target).startswith("aten."):
        raise UnsupportedRequestError(f"python lacks {what}, which this network computes a size with")
    given = ", ".join([*args, *(f"{key}={value}" for key, value in kwargs.items())])
    return f"torch.ops.aten.{what}({given})"


def _value(value: Any, names: Mapping[fx.Node, str]) -> str:
    if isinstance(value, fx.Node):
        return names[value]
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(item, names) for item in value) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    return str(value)  # torch.float32, torch.contiguous_format


def _attribute(name: str) -> str:
    return name.replace(".", "_")


def _literal(value: Any) -> str:
    """Python's own spelling, in ASCII: what a stranger named cannot become code."""
    return ascii(value)
