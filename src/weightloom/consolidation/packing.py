"""A state dict in few bytes: what becomes of each tensor, and how all of them go to bytes and back.

A matrix becomes whole numbers (:mod:`weightloom.consolidation.rounding`) and goes through the prior; what is
small keeps 24 bits a value; whole numbers stay as they are; a tensor that is there twice is kept once.
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
"""Codes; a tensor that is kept (24 bits where it has a point); the name of the tensor that it equals."""

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
                result[name] = shortened(part) if part.is_floating_point() else part.clone()
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


def shortened(tensor: Tensor) -> Tensor:
    """float32 with the last eight bits rounded away, so that three bytes hold a value.

    16 bits would not do: in deep networks with batch norms that alone moves the outputs by half a per cent.
    """
    bits = tensor.contiguous().view(torch.int32)
    near = ((bits + 128) & -256).view(torch.float32)
    return torch.where(near.isfinite(), near, (bits & -256).view(torch.float32))


def _three_bytes(tensor: Tensor) -> Tensor:
    """(3 n,) the upper bytes of each value, all first bytes first."""
    raw = shortened(tensor).reshape(-1).view(torch.uint8).reshape(-1, 4)  # (n,) -> (n, 4)
    return raw[:, 1:].T.reshape(-1)


def _from_three_bytes(data: Tensor) -> Tensor:
    raw = torch.zeros(len(data) // 3, 4, dtype=torch.uint8)
    raw[:, 1:] = data.reshape(3, -1).T
    return raw.reshape(-1).view(torch.float32)


def pack(parts: Parts, prior: NDArray[np.float16]) -> dict[str, Tensor]:
    """``header``, ``stream``, ``shorts`` and ``whole``: all that :func:`unpack` needs but the prior."""
    writer = Writer(prior)
    shorts: list[Tensor] = []
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
            entries.append([name, shape, "short"])
            shorts.append(_three_bytes(part))
        else:
            entries.append([name, shape, _WHOLE[part.dtype]])
            whole.append(part.contiguous().reshape(-1).view(torch.uint8))
    stream = writer.bits().view(np.uint8)
    header = {"base": parts.base, "crc": zlib.crc32(stream.tobytes()), "tensors": entries}
    text = json.dumps(header, separators=(",", ":")).encode()
    return {
        "header": torch.from_numpy(np.frombuffer(zlib.compress(text, 9), np.uint8).copy()),
        "stream": torch.from_numpy(stream.copy()),
        "shorts": torch.cat(shorts) if shorts else torch.zeros(0, dtype=torch.uint8),
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
    shorts, whole = packed["shorts"], packed["whole"]
    at_short = at_whole = total = 0
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
        elif kind == "short":
            values = _from_three_bytes(shorts[at_short : at_short + 3 * size])
            parts[name] = values.reshape(shapes[name])  # (size,) -> shape
            at_short += 3 * size
        else:
            dtype = _TYPES[kind]
            end = at_whole + size * dtype.itemsize
            parts[name] = whole[at_whole:end].clone().view(dtype).reshape(shapes[name])  # bytes -> shape
            at_whole = end
    if (at_short, at_whole) != (len(shorts), len(whole)):
        raise ValueError("bytes that belong to no tensor")
    return Parts(parts, shapes, header["base"])


def size_of(packed: Mapping[str, Tensor]) -> dict[str, int]:
    """Bytes of each part of a packed checkpoint."""
    return {name: tensor.numel() * tensor.element_size() for name, tensor in packed.items()}
