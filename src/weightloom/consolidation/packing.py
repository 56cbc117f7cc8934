"""A state dict in few bytes: what becomes of each tensor, and how all of them go to bytes and back.

A matrix becomes whole numbers (:mod:`weightloom.consolidation.rounding`) and goes through the prior; what is
small keeps 16 bits a value; whole numbers stay as they are; a tensor that is there twice is kept once.
Knows nothing of networks or of what an output can bear.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weightloom.consolidation.coding import Reader, Writer, count
from weightloom.consolidation.rounding import Codes

Part = Codes | Tensor | str
"""Codes; a tensor that is kept (16 bits where it has a point); the name of the tensor that it equals."""

MAX_HEADER = 8 << 20
MAX_VALUES = 1 << 30
_WHOLE = {torch.int64: "int64", torch.int32: "int32", torch.uint8: "uint8", torch.bool: "bool"}
_TYPES = {name: dtype for dtype, name in _WHOLE.items()}


@dataclass(frozen=True)
class Parts:
    """A state dict in parts: what each tensor became, its shape, and the name of the checkpoint under it."""

    parts: dict[str, Part]
    shapes: dict[str, tuple[int, ...]]
    base: str | None = None

    @property
    def values(self) -> int:
        """How many values there are, each tensor counted once."""
        return sum(math.prod(self.shapes[n]) for n, part in self.parts.items() if not isinstance(part, str))

    def state(self, base: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The tensors that the parts stand for.

        ``base``: the state of the checkpoint under it. A matrix that it has too is a difference.
        """
        result: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            if isinstance(part, Codes):
                value = part.matrix().reshape(self.shapes[name])  # (m, n) -> shape
                under = None if base is None else base.get(name)
                result[name] = value + under if under is not None and under.shape == value.shape else value
            elif isinstance(part, str):
                result[name] = result[part].clone()
            else:
                result[name] = halved(part)[2] if part.is_floating_point() else part.clone()
        return result

    def add_counts(self, counts: NDArray[np.float64]) -> None:
        """Add all codes to what the prior is counted from."""
        for part in self.parts.values():
            if isinstance(part, Codes):
                count(part.codes.numpy().astype(np.int64), counts)


def duplicates(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Names whose tensor is there under an earlier name already."""
    seen: dict[tuple[Any, ...], list[str]] = {}
    found = {}
    for name, tensor in state.items():
        if tensor.numel() < 64:
            continue
        key = (tensor.dtype, tuple(tensor.shape), float(tensor.double().sum()))
        for other in seen.get(key, []):
            if torch.equal(state[other], tensor):
                found[name] = other
                break
        else:
            seen.setdefault(key, []).append(name)
    return found


def halved(tensor: Tensor) -> tuple[Tensor, int, Tensor]:
    """16 bits a value below a common power of two: the halves, its exponent, and what they stand for."""
    largest = float(tensor.abs().max()) if tensor.numel() else 0.0
    exponent = math.frexp(largest)[1] if largest > 0 else 0
    half = (tensor.double() * 2.0**-exponent).half()
    return half, exponent, (half.double() * 2.0**exponent).float()


def pack(parts: Parts, prior: NDArray[np.float16]) -> dict[str, Tensor]:
    """``header``, ``stream``, ``halves`` and ``whole``: all that :func:`unpack` needs but the prior."""
    writer = Writer(prior)
    halves: list[Tensor] = []
    whole: list[Tensor] = []
    entries: list[list[Any]] = []
    for name, part in parts.parts.items():
        shape = list(parts.shapes[name])
        if isinstance(part, Codes):
            columns = bool((part.columns != 0).any())
            entries.append([name, shape, "codes", part.codes.shape[0], columns])
            writer.numbers(part.rows.numpy())
            if columns:
                writer.numbers(part.columns.numpy())
            writer.matrix(part.codes.numpy().astype(np.int64))
        elif isinstance(part, str):
            entries.append([name, shape, "same", part])
        elif part.is_floating_point():
            half, exponent, _ = halved(part)
            entries.append([name, shape, "half", exponent])
            halves.append(half.reshape(-1))
        else:
            entries.append([name, shape, _WHOLE[part.dtype]])
            whole.append(part.contiguous().reshape(-1).view(torch.uint8))
    stream = writer.bits().view(np.uint8)
    header = {"base": parts.base, "crc": zlib.crc32(stream.tobytes()), "tensors": entries}
    text = json.dumps(header, separators=(",", ":")).encode()
    return {
        "header": torch.from_numpy(np.frombuffer(zlib.compress(text, 9), np.uint8).copy()),
        "stream": torch.from_numpy(stream.copy()),
        "halves": torch.cat(halves) if halves else torch.zeros(0, dtype=torch.float16),
        "whole": torch.cat(whole) if whole else torch.zeros(0, dtype=torch.uint8),
    }


def unpack(packed: Mapping[str, Tensor], prior: NDArray[np.float16]) -> Parts:
    """What :func:`pack` was given. Raises ValueError, in any of its kinds, where the bytes are not whole."""
    inflate = zlib.decompressobj()
    text = inflate.decompress(packed["header"].numpy().tobytes(), MAX_HEADER)
    if inflate.unconsumed_tail or inflate.unused_data or not inflate.eof:
        raise ValueError("a header that is cut off or too large")
    header = json.loads(text)
    stream = packed["stream"].numpy()
    # A range coder reads any bits as something.
    if len(stream) % 4 or header["crc"] != zlib.crc32(stream.tobytes()):
        raise ValueError("a stream that is not what was written")
    reader = Reader(prior, stream.view(np.uint32))
    halves, whole = packed["halves"], packed["whole"]
    at_half = at_whole = total = 0
    parts: dict[str, Part] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape, kind, *rest in header["tensors"]:
        shapes[name] = tuple(int(extent) for extent in shape)
        size = math.prod(shapes[name])
        total += size
        if min(shapes[name], default=1) < 0 or total > MAX_VALUES:
            raise ValueError("a shape that cannot be")
        if kind == "codes":
            rows = int(rest[0])
            if not rows or size % rows:
                raise ValueError("a matrix that cannot be")
            by_row = torch.from_numpy(reader.numbers(rows)).int()
            by_column = torch.zeros(size // rows, dtype=torch.int32)
            if rest[1]:
                by_column = torch.from_numpy(reader.numbers(size // rows)).int()
            codes = torch.from_numpy(np.ascontiguousarray(reader.matrix(rows, size // rows))).int()
            parts[name] = Codes(codes, by_row, by_column)
        elif kind == "same":
            if rest[0] not in parts:
                raise ValueError("a tensor that equals none")
            parts[name] = str(rest[0])
        elif kind == "half":
            half = halves[at_half : at_half + size].double() * 2.0 ** int(rest[0])
            parts[name] = half.float().reshape(shapes[name])  # (size,) -> shape
            at_half += size
        else:
            dtype = _TYPES[kind]
            end = at_whole + size * dtype.itemsize
            parts[name] = whole[at_whole:end].clone().view(dtype).reshape(shapes[name])  # bytes -> shape
            at_whole = end
    if (at_half, at_whole) != (len(halves), len(whole)):
        raise ValueError("bytes that belong to no tensor")
    return Parts(parts, shapes, header["base"])


def size_of(packed: Mapping[str, Tensor]) -> dict[str, int]:
    """Bytes of each part of a packed checkpoint."""
    return {name: tensor.numel() * tensor.element_size() for name, tensor in packed.items()}
