"""Steps as C: arrays, the functions that are needed, and the calls in order."""

from __future__ import annotations

import hashlib
import math
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from weightloom.export.arena import in_place, outside, placed
from weightloom.export.c_parts import HEAD, PARTS, PREDICT, UNARY
from weightloom.export.facts import Facts
from weightloom.export.steps import Shape, Step, Steps, Value
from weightloom.finite import all_finite

_WIDTH = 100


def source(network: nn.Module, facts: Facts, *, int8: bool = False) -> str:
    """The C file of a network.

    Raises:
        UnsupportedLayerError: it computes with what the target lacks.
    """
    steps = Steps(network, facts.input)
    in_place(steps)
    return _Writer(steps, int8=int8).text(facts)


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``weight`` (out, ...) as int8 and what each output's numbers are multiplied by, (out,)."""
    largest = weight.flatten(1).abs().amax(1)  # (out,)
    scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
    held = torch.round(weight / scale.reshape(-1, *(1,) * (weight.dim() - 1)))
    return held.clamp(-127, 127).to(torch.int8), scale


class _Writer:
    def __init__(self, steps: Steps, *, int8: bool) -> None:
        self.steps, self.int8 = steps, int8
        self.outside = outside(steps)
        self.offsets, self.floats = placed(steps)
        self.arrays: dict[str, tuple[str, str]] = {}  # digest to name and text
        self.parts: dict[str, str] = {}  # functions in the order of their first use

    def text(self, facts: Facts) -> str:
        calls = [line for step in self.steps.steps for line in getattr(self, f"_{step.kind}")(step)]
        if self.outside is None:
            # logits of a network that answers with a part of something larger, or with the picture itself
            calls.append(
                f"memcpy(logits, {self._place(self.steps.logits)}, sizeof(float) * WEIGHTLOOM_CLASSES);"
            )
        used = "".join(self.parts.values())
        libm = " and -lm" if re.search(r"\b(expf|tanhf|erff|sqrtf)\(", used) else ""
        head = HEAD.format(
            libm=libm,
            about="\n".join(f" * {name}: {_comment(value)}" for name, value in facts.lines()),
            inputs=math.prod(facts.input),
            classes=len(facts.class_names),
            mean=_float(facts.mean),
            scale=_float(facts.scale),
            names=",\n".join(f"    {_string(name)}" for name in facts.class_names),
        )
        arrays = "".join(text for _, text in self.arrays.values())
        arena = f"\nstatic float arena[{self.floats}];\n" if self.floats else ""
        body = "\n".join(f"    {line}" for line in calls)
        return head + "\n" + arrays + arena + used + PREDICT.format(calls=body)

    # -- places and arrays ------------------------------------------------------------------------

    def _place(self, value: Value | Tensor) -> str:
        if isinstance(value, Tensor):
            return self._array(value)
        root = value.root
        if root is self.steps.image.root:
            return "image"
        if root is self.outside:
            return "logits"
        return f"arena + {self.offsets[root]}" if self.offsets[root] else "arena"

    def _array(self, values: Tensor) -> str:
        """The name of a constant array; equal ones are one."""
        whole = values.dtype == torch.int8
        assert whole or all_finite(values)
        held = np.ascontiguousarray(values.numpy() if whole else values.float().numpy()).reshape(-1)
        digest = hashlib.sha256(held.dtype.str.encode() + held.tobytes()).hexdigest()
        if digest not in self.arrays:
            name = f"{'q' if whole else 'w'}{len(self.arrays)}"
            numbers = [str(int(v)) for v in held] if whole else [_float(v) for v in held.tolist()]
            kind = "int8_t" if whole else "float"
            text = f"static const {kind} {name}[{len(held)}] = {{\n{_rows(numbers)}\n}};\n"
            self.arrays[digest] = (name, text)
        return self.arrays[digest][0]

    def _need(self, name: str) -> str:
        if name not in self.parts:
            text = PARTS[name]
            if "clip(" in text and name != "clip":
                self._need("clip")
            kinds = ("int8_t", "const float *scales, ", "scales[o] * ") if self.int8 else ("float", "", "")
            for mark, kind in zip(("{weight}", "{scales}", "{scale}"), kinds, strict=True):
                text = text.replace(mark, kind)
            self.parts[name] = text
        return name

    def _weights(self, step: Step) -> list[str]:
        """The arguments for weights and bias."""
        weight, bias = step.tensors["weight"], self._array(step.tensors["bias"])
        if not self.int8:
            return [self._array(weight), bias]
        held, scale = rounded(weight)
        return [self._array(held), self._array(scale), bias]

    def _call(self, name: str, *arguments: Any) -> list[str]:
        return [f"{self._need(name)}({', '.join(map(str, arguments))});"]

    # -- one method a kind of step ------------------------------------------------------------------

    def _conv(self, step: Step) -> list[str]:
        x, y, own = step.reads[0], step.out, step.settings
        sides = (*own["stride"], *own["padding"], *own["dilation"], own["groups"], *own.get("pool", (1, 1)))
        kernel = tuple(step.tensors["weight"].shape[2:])
        return self._call(
            "conv", self._place(x), *x.shape[1:], self._place(y), *y.shape[1:], *self._weights(step), *kernel,
            *sides, *_limits(step),
        )  # fmt: skip

    def _linear(self, step: Step) -> list[str]:
        out, inner = step.tensors["weight"].shape
        rows = step.out.size // out
        x, y = self._from_to(step)
        return self._call("linear", x, rows, inner, y, out, *self._weights(step), *_limits(step))

    def _affine(self, step: Step) -> list[str]:
        scale, shift = (self._array(step.tensors[name]) for name in ("scale", "shift"))
        sizes = (step.settings["channels"], step.settings["inner"])
        return self._call("affine", *self._from_to(step), *sizes, scale, shift, *_limits(step))

    def _matmul(self, step: Step) -> list[str]:
        sizes = [step.settings[name] for name in ("batch", "rows", "inner", "columns")]
        return self._call("matmul", *map(self._place, step.reads), self._place(step.out), *sizes)

    def _max_pool(self, step: Step) -> list[str]:
        return self._pooled("max_pool", step, step.settings["dilation"])

    def _avg_pool(self, step: Step) -> list[str]:
        return self._pooled("avg_pool", step, (int(step.settings["whole"]), step.settings["divisor"]))

    def _pooled(self, name: str, step: Step, more: tuple[int, ...]) -> list[str]:
        x, y, own = step.reads[0], step.out, step.settings
        sides = (*own["kernel"], *own["stride"], *own["padding"], *more)
        return self._call(
            name,
            self._place(x),
            math.prod(x.shape[:-2]),
            *x.shape[-2:],
            self._place(y),
            *y.shape[-2:],
            *sides,
        )

    def _softmax(self, step: Step) -> list[str]:
        return self._call("softmax", *self._from_to(step), *_sizes(step))

    def _reduce(self, step: Step) -> list[str]:
        return self._call(f"reduce_{step.settings['how']}", *self._from_to(step), *_sizes(step))

    def _normalise(self, step: Step) -> list[str]:
        own = step.settings
        sizes = [own[name] for name in ("rows", "count", "inner", "cycle")]
        arrays = [self._array(step.tensors[name]) for name in ("scale", "shift")]
        return self._call("normalise", *self._from_to(step), *sizes, _float(own["eps"]), *arrays)

    def _unary(self, step: Step) -> list[str]:
        name = step.settings["function"]
        if step.settings.get("approximate") == "tanh":
            name += "_tanh"
        numbers = [_float(value) for value in step.settings["values"]] or [_float(0.01)]
        call = name if name != "leaky_relu" else f"leaky_relu_{numbers[0].translate(_PLAIN)}"
        if call not in self.parts:
            self.parts[call] = (
                f"\nstatic void {call}_of(const float *x, float *y, int count)\n{{\n"
                "    for (int i = 0; i < count; i++) {\n        const float v = x[i];\n"
                f"        y[i] = {UNARY[name].format(*numbers)};\n    }}\n}}\n"
            )
        return [f"{call}_of({', '.join(map(str, (*self._from_to(step), step.out.size)))});"]

    def _clip(self, step: Step) -> list[str]:
        self._need("clip")
        x, y = self._from_to(step)
        low, high = _limits(step)
        return [
            f"for (int i = 0; i < {step.out.size}; i++)",
            f"    ({y})[i] = clip(({x})[i], {low}, {high});",
        ]

    def _binary(self, step: Step) -> list[str]:
        sign = {"add": "+", "sub": "-", "mul": "*", "div": "/"}[step.settings["how"]]
        shape, strides, read = step.out.shape, [], []
        for number, value in enumerate(step.reads):
            if isinstance(value, Tensor) and value.numel() == 1:
                read.append(_float(float(value)))
                continue
            seen = torch.empty(tuple(value.shape), device="meta").expand(shape).stride()
            strides.append(seen)
            read.append(f"({self._place(value)})[{{{len(strides) - 1}}}]")
            assert number < 2
        text = f"{read[0]} {sign} {read[1]}"
        if "low" in step.settings:
            self._need("clip")
            text = f"clip({text}, {', '.join(_limits(step))})"
        return _loops(shape, strides, f"({self._place(step.out)})[k++] = {text};")

    def _gather(self, step: Step) -> list[str]:
        x, offset = self._place(step.reads[0]), step.settings["offset"]
        at = f"{offset} + {{0}}" if offset else "{0}"
        return _loops(
            step.out.shape, [step.settings["strides"]], f"({self._place(step.out)})[k++] = ({x})[{at}];"
        )

    def _pad(self, step: Step) -> list[str]:
        y, x, before = self._place(step.out), step.reads[0], step.settings["before"]
        assert isinstance(x, Value)
        strides = torch.empty(step.out.shape, device="meta").stride()
        offset = sum(side * stride for side, stride in zip(before, strides, strict=True))
        return [
            f"memset({y}, 0, sizeof(float) * {step.out.size});",
            *_loops(x.shape, [strides], f"({y})[{offset} + {{0}}] = ({self._place(x)})[k++];"),
        ]

    def _cat(self, step: Step) -> list[str]:
        parts, lines, at = step.settings["parts"], [], 0
        for value, count in zip(step.reads, parts, strict=True):
            lines += [
                f"for (int i = 0; i < {step.settings['outer']}; i++)",
                f"    memcpy({self._place(step.out)} + i * {sum(parts)} + {at}, {self._place(value)} + "
                f"i * {count}, sizeof(float) * {count});",
            ]
            at += count
        return lines

    def _from_to(self, step: Step) -> tuple[str, str]:
        return self._place(step.reads[0]), self._place(step.out)


def _loops(shape: Shape, strides: list[tuple[int, ...]], line: str) -> list[str]:
    """Nested loops over ``shape`` in order; ``{0}`` and on in ``line`` are places by each of the strides."""
    axes = [(side, tuple(own[axis] for own in strides)) for axis, side in enumerate(shape) if side > 1]
    merged: list[tuple[int, tuple[int, ...]]] = []
    for side, steps in axes:
        if merged and all(before == own * side for before, own in zip(merged[-1][1], steps, strict=True)):
            merged[-1] = (merged[-1][0] * side, steps)
        else:
            merged.append((side, steps))
    places = []
    for operand in range(len(strides)):
        terms = [
            f"i{axis}" if steps[operand] == 1 else f"i{axis} * {steps[operand]}"
            for axis, (_, steps) in enumerate(merged)
            if steps[operand]
        ]
        places.append(" + ".join(terms) or "0")
    lines = ["{", "    int k = 0;"]
    for axis, (side, _) in enumerate(merged):
        lines.append("    " * (axis + 1) + f"for (int i{axis} = 0; i{axis} < {side}; i{axis}++)")
    lines.append("    " * (len(merged) + 1) + line.format(*places))
    return [*lines, "}"]


def _sizes(step: Step) -> list[int]:
    return [step.settings[name] for name in ("outer", "count", "inner")]


def _limits(step: Step) -> list[str]:
    return [_float(step.settings.get(name, end)) for name, end in (("low", -math.inf), ("high", math.inf))]


_PLAIN = str.maketrans({".": "_", "-": "m", "+": "p"})


def _float(value: float) -> str:
    if math.isinf(value):
        return "-INFINITY" if value < 0 else "INFINITY"
    text = f"{value:.9g}"
    return (text if any(mark in text for mark in ".e") else f"{text}.0") + "f"


def _rows(numbers: list[str]) -> str:
    rows, row = [], "   "
    for number in numbers:
        if len(row) + len(number) + 2 > _WIDTH:
            rows.append(row)
            row = "   "
        row += f" {number},"
    return "\n".join([*rows, row])


def _string(text: str) -> str:
    """A C string literal in ASCII: bytes that are no plain letters in octal, three digits each."""
    letters = (
        chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\?' else f"\\{byte:03o}"
        for byte in text.encode("utf-8", "replace")
    )
    return '"' + "".join(letters) + '"'


def _comment(text: str) -> str:
    """Text inside a comment: without slashes, backslashes and question marks nothing in it can end one."""
    return re.sub(r"[^\w .,;:()\[\]=+*-]", "_", text, flags=re.ASCII)
