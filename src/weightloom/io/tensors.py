"""Safetensors, strictly: what is written is canonical, what is read has been checked first.

The format is a length, a JSON header and the numbers. It is read and written here instead of through
the safetensors library because the library accepts duplicate names, names such as ``../../x``,
headers that cost gigabytes to parse and values that are not finite, does not flush to the disk, and
copies the data once more; the tests hold this file and the library against each other.
Knows nothing of what the tensors are for.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from weightloom.defaults import with_plain_defaults
from weightloom.errors import CheckpointError
from weightloom.finite import all_finite
from weightloom.io.atomic import atomic_file
from weightloom.io.documents import parse_json
from weightloom.io.files import open_regular

MAX_HEADER_BYTES = 8 << 20
MAX_TENSORS = 65_536
MAX_RANK = 8
MAX_NAME = 512
MAX_DIMENSION = 1 << 40

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/-]*")

_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


class TensorInfo(NamedTuple):
    """One tensor of a file: its shape, its type, and where its bytes lie after the header."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """What a file says of itself: its tensors in name order, and free text under free keys."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]

    @property
    def num_elements(self) -> int:
        """How many numbers the file holds."""
        return sum(math.prod(info.shape) for info in self.tensors.values())


Expected = Mapping[str, tuple[Sequence[int], torch.dtype]]


def shapes_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """The ``expected`` of :func:`load_tensors` for a state dict (one on the meta device will do).

    Example:
        >>> with torch.device("meta"):
        ...     shapes_of(torch.nn.Linear(3, 2).state_dict())
        {'weight': ((2, 3), torch.float32), 'bias': ((2,), torch.float32)}
    """
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


@with_plain_defaults
def save_tensors(
    path: str | Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    durable: bool = True,
) -> str:
    """Write a safetensors file atomically; the same content gives the same bytes.

    Args:
        path: the file to write; missing parent folders are made.
        tensors: dense tensors of any device, contiguous, every value finite.
        metadata: text for the header.
        durable: wait until the disk has the bytes (see :func:`~weightloom.io.atomic.atomic_file`).

    Returns:
        The SHA-256 of the file, as 64 hexadecimal digits.

    Raises:
        CheckpointError: a name, a tensor or the metadata that no reader of ours would accept.
        InputError: nothing can be written at this place.
        WeightloomError: the write failed.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "two.safetensors"
        >>> _ = save_tensors(path, {"weight": torch.ones(2)}, {"task": "digits"})
        >>> load_tensors(path)
        ({'weight': tensor([1., 1.])}, {'task': 'digits'})
    """
    assert sys.byteorder == "little", "safetensors are little-endian"
    for name, tensor in tensors.items():
        reason = _name_fault(name) or _tensor_fault(tensor)
        if reason:
            raise CheckpointError(path, f"not written: tensor {name!r} {reason}")
    # Wide types first, so that every tensor begins at a multiple of its own width.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    head = header_bytes(path, {name: (tensor.shape, tensor.dtype) for name, tensor in ordered}, metadata)

    digest = hashlib.sha256()
    with atomic_file(path, durable=durable) as handle:
        digest.update(head)
        handle.write(head)
        for _, tensor in ordered:
            data = _bytes_of(tensor.detach().cpu()).numpy().data
            digest.update(data)
            handle.write(data)
    return digest.hexdigest()


def header_bytes(path: str | Path, plan: Expected, metadata: Mapping[str, str] | None = None) -> bytes:
    """The beginning of a file that holds the tensors of ``plan`` in its order: length and header.

    Raises:
        CheckpointError: too many tensors, a name that no reader takes, metadata that is not text.
    """
    metadata = dict(metadata or {})
    for key, value in metadata.items():
        if not (isinstance(key, str) and isinstance(value, str)):
            raise CheckpointError(path, f"not written: metadata {key!r} is not text")
    if len(plan) > MAX_TENSORS:
        raise CheckpointError(path, f"not written: {len(plan):,} tensors are more than {MAX_TENSORS:,}")
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name, (shape, dtype) in plan.items():
        if reason := _name_fault(name):
            raise CheckpointError(path, f"not written: tensor {name!r} {reason}")
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise CheckpointError(path, f"not written: its header would have {len(text):,} bytes")
    return len(text).to_bytes(8, "little") + text


@with_plain_defaults
def load_tensors(
    path: str | Path,
    *,
    expected: Expected | None = None,
    only: Collection[str] | None = None,
    allow_nonfinite: bool = False,
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read a safetensors file onto the CPU, each tensor with memory of its own.

    Args:
        path: the file.
        expected: names with shapes and types that the file must hold, all of them and no other
            (:func:`shapes_of` makes it from a state dict). Checked before any number is read.
        only: names to read; the values of others are neither read nor checked.
        allow_nonfinite: accept infinities and NaN, to look at a file that is known to be bad.

    Returns:
        The tensors in name order, and the metadata.

    Raises:
        CheckpointError: whatever is wrong, naming the tensor.
    """
    try:
        with open_regular(path) as (handle, size):
            header, start = _parse_header(path, handle, size)
            if expected is not None:
                _compare(path, header, expected)
            tensors: dict[str, torch.Tensor] = {}
            for name, info in sorted(header.tensors.items(), key=lambda item: item[1].offset):
                if only is not None and name not in only:
                    continue
                data = torch.empty(info.nbytes, dtype=torch.uint8, device="cpu")
                _fill(path, name, handle, start + info.offset, data.numpy().data)
                tensors[name] = _checked(path, name, info.dtype, info.shape, data, allow_nonfinite)
    except (RuntimeError, MemoryError) as error:
        raise CheckpointError(path, f"cannot be read into memory ({_first_line(error)})") from error
    return {name: tensors[name] for name in header.tensors if name in tensors}, header.metadata


@with_plain_defaults
def load_rows(
    path: str | Path, rows: Sequence[int], entries: Expected, *, allow_nonfinite: bool = False
) -> dict[str, torch.Tensor]:
    """Some entries of the first dimension of a file's tensors; the others are not read.

    Args:
        path: a safetensors file of stacked tensors.
        rows: R positions along the first dimension, in the order wanted.
        entries: the tensors to read, each with the shape of one entry and its type; what else the file holds
            is passed over.
        allow_nonfinite: as for :func:`load_tensors`.

    Returns:
        (R, ...) for each name of ``entries``.

    Raises:
        CheckpointError: whatever is wrong, naming the tensor.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "stack.safetensors"
        >>> _ = save_tensors(path, {"weight": torch.arange(6.0).view(3, 2)})
        >>> load_rows(path, [2, 0], {"weight": ((2,), torch.float32)})
        {'weight': tensor([[4., 5.],
                [0., 1.]])}
    """
    try:
        with open_regular(path) as (handle, size):
            header, start = _parse_header(path, handle, size)
            for name, (shape, dtype) in entries.items():
                info = header.tensors.get(name)
                if info is None or info.shape[1:] != tuple(shape) or not info.shape or info.dtype != dtype:
                    raise CheckpointError(
                        path, f"tensor {name!r} does not fit: entries of shape {tuple(shape)} are wanted"
                    )
                if any(not 0 <= row < info.shape[0] for row in rows):
                    raise CheckpointError(
                        path, f"tensor {name!r} has {info.shape[0]} entries, none is {max(rows)}"
                    )
            tensors: dict[str, torch.Tensor] = {}
            for name, (shape, dtype) in entries.items():
                width = math.prod(shape) * dtype.itemsize
                first = start + header.tensors[name].offset
                data = torch.empty(len(rows) * width, dtype=torch.uint8, device="cpu")
                view, at = data.numpy().data, 0
                while at < len(rows):
                    end = at + 1
                    while end < len(rows) and rows[end] == rows[end - 1] + 1:  # neighbours are read at once
                        end += 1
                    _fill(path, name, handle, first + rows[at] * width, view[at * width : end * width])
                    at = end
                tensors[name] = _checked(path, name, dtype, (len(rows), *shape), data, allow_nonfinite)
    except (RuntimeError, MemoryError) as error:
        raise CheckpointError(path, f"cannot be read into memory ({_first_line(error)})") from error
    return tensors


def read_header(path: str | Path) -> Header:
    """Names, shapes, types and metadata of a safetensors file, without reading its numbers.

    Raises:
        CheckpointError: the header is not one that :func:`load_tensors` would accept.
    """
    with open_regular(path) as (handle, size):
        return _parse_header(path, handle, size)[0]


# -- the header --------------------------------------------------------------------------------


def _parse_header(path: str | Path, handle: BinaryIO, size: int) -> tuple[Header, int]:
    """The checked header, and where the numbers begin."""
    if size < 10:
        raise CheckpointError(path, f"is not a safetensors file: it has {size} bytes")
    length = int.from_bytes(handle.read(8), "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(path, f"is no safetensors file, or its header ({length:,} bytes) is too large")
    if 8 + length > size:
        raise CheckpointError(path, "is cut off inside its header, or is not a safetensors file")
    text = handle.read(length)
    if not text.startswith(b"{"):
        raise CheckpointError(path, "is not a safetensors file: its header is not JSON")
    entries = parse_json(path, text, what="header")
    if not isinstance(entries, dict):
        raise CheckpointError(path, "is not a safetensors file: its header is not an object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(path, "has metadata that is not text")
    if len(entries) > MAX_TENSORS:
        raise CheckpointError(path, f"has {len(entries):,} tensors where {MAX_TENSORS:,} are allowed")
    tensors = {name: _parse_entry(path, name, entries[name]) for name in sorted(entries)}

    position = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if info.offset != position:
            raise CheckpointError(path, f"tensor {name!r} begins at byte {info.offset:,}, not {position:,}")
        position += info.nbytes
    if 8 + length + position != size:
        announced = 8 + length + position
        raise CheckpointError(path, f"has {size:,} bytes where its header announces {announced:,}")
    return Header(tensors, metadata), 8 + length


def _parse_entry(path: str | Path, name: str, entry: Any) -> TensorInfo:
    if reason := _name_fault(name):
        raise CheckpointError(path, f"tensor {_short(name)} {reason}")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(path, f"tensor {name!r} is not described by dtype, shape and data_offsets")
    dtype = _DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise CheckpointError(path, f"tensor {name!r} has the unknown type {_short(entry['dtype'])}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_counts(shape) or len(shape) > MAX_RANK or any(extent > MAX_DIMENSION for extent in shape):
        raise CheckpointError(path, f"tensor {name!r} has the shape {_short(shape)}, which cannot be")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise CheckpointError(path, f"tensor {name!r} has the offsets {_short(offsets)}, which cannot be")
    nbytes = math.prod(shape) * dtype.itemsize
    if offsets[1] - offsets[0] != nbytes:
        raise CheckpointError(path, f"tensor {name!r} has offsets for another shape than {tuple(shape)}")
    return TensorInfo(tuple(shape), dtype, offsets[0], nbytes)


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(entry) is int and entry >= 0 for entry in value)


def _name_fault(name: Any) -> str | None:
    """Why ``name`` cannot name a tensor, or None: it may later become part of a path or a line of text."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
        return f"has a name that is not 1 to {MAX_NAME} characters long"
    if not _NAME.fullmatch(name) or ".." in name:
        return "has a name with other characters than letters, digits and single . _ - : /"
    return None


def _compare(path: str | Path, header: Header, expected: Expected) -> None:
    missing = [name for name in expected if name not in header.tensors]
    extra = [name for name in header.tensors if name not in expected]
    if missing:
        raise CheckpointError(path, f"lacks tensor {missing[0]!r}" + _and_more(missing))
    if extra:
        raise CheckpointError(path, f"holds tensor {extra[0]!r}, which nothing asks for" + _and_more(extra))
    for name, (shape, dtype) in expected.items():
        found = header.tensors[name]
        if found.shape != tuple(shape):
            raise CheckpointError(path, f"tensor {name!r} has shape {found.shape}, not {tuple(shape)}")
        if found.dtype != dtype:
            raise CheckpointError(path, f"tensor {name!r} is {found.dtype}, not {dtype}")


# -- the numbers -------------------------------------------------------------------------------


def _fill(path: str | Path, name: str, handle: BinaryIO, place: int, view: memoryview) -> None:
    handle.seek(place)
    if handle.readinto(view) != len(view):  # type: ignore[attr-defined]
        raise CheckpointError(path, f"ends inside tensor {name!r}")


def _checked(
    path: str | Path,
    name: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    data: torch.Tensor,
    allow_nonfinite: bool,
) -> torch.Tensor:
    """The tensor in ``data`` (nbytes,), unless a value of it cannot be used."""
    if dtype is torch.bool and len(data) and int(data.max()) > 1:
        raise CheckpointError(path, f"tensor {name!r} has a truth value that is neither 0 nor 1")
    tensor = data.view(dtype).reshape(shape)  # (nbytes,) -> (numel,) -> shape
    if not allow_nonfinite and (reason := value_fault(tensor)):
        raise CheckpointError(path, f"tensor {name!r} {reason}")
    return tensor


def _tensor_fault(tensor: Any) -> str | None:
    if not isinstance(tensor, torch.Tensor):
        return f"is no tensor but {type(tensor).__name__}"
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.dtype not in _CODES:
        return f"cannot be written (layout {tensor.layout}, type {tensor.dtype}, on {tensor.device})"
    if tensor.dim() > MAX_RANK:
        return f"has {tensor.dim()} dimensions where {MAX_RANK} are allowed"
    if not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
        return "is not contiguous"
    return value_fault(tensor.detach())


def value_fault(tensor: torch.Tensor) -> str | None:
    """Why a tensor's values cannot be used, or None."""
    return None if all_finite(tensor) else "has values that are not finite"


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)  # shape -> (numel,) -> (nbytes,)


# -- words -------------------------------------------------------------------------------------


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _and_more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
