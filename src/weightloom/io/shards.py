"""Weights that are larger than memory: several safetensors files and an index, piece by piece.

The layout is the hub's: ``model.safetensors``, or, where that would be too large,
``model-00001-of-00003.safetensors`` and so on with a ``weight_map`` in ``model.safetensors.index.json``.
Knows nothing of what the tensors are for.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import torch

from weightloom.errors import CheckpointError, InputError
from weightloom.io.atomic import atomic_folder
from weightloom.io.documents import read_json, write_json
from weightloom.io.tensors import (
    Expected,
    Header,
    TensorInfo,
    header_bytes,
    load_rows,
    load_tensors,
    read_header,
    value_fault,
)

ONE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SHARD_BYTES = 2 << 30
BLOCK_BYTES = 1 << 20
"""Bytes that are checked, hashed and written together, while the processor has them at hand."""
MAX_SHARDS = 99_999

Parts = list[tuple[str, int]]
"""Names of tensors, and how many values of each."""

SHARD_NAME = re.compile(r"model-[0-9]{5}-of-[0-9]{5}\.safetensors")


def write_shards(
    folder: str | Path,
    plan: Expected,
    pieces: Iterable[tuple[str, torch.Tensor]],
    *,
    metadata: Mapping[str, str] | None = None,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
) -> list[str]:
    """Write tensors that arrive piece by piece; no more than one piece is held at any time.

    Args:
        folder: where to; it is there as a whole or not at all.
        plan: every tensor's shape and type, in the order in which they come.
        pieces: for each tensor of the plan, in its order, consecutive parts of its first dimension.
        metadata: text for the header of every file, and for the index.
        shard_bytes: a new file begins where the last would grow beyond; a larger tensor has one of its own.
        overwrite: replace a folder that this function wrote before.

    Returns:
        The names of the files with weights.

    Raises:
        CheckpointError: a value that is not finite, a name that no reader takes.
        InputError: nothing can be written at this place, or a tensor comes that the plan has not.
        WeightloomError: the write failed (a full disk).

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "network"
        >>> plan = {"a": ((4, 2), torch.float32), "b": ((3,), torch.float32)}
        >>> halves = [("a", torch.zeros(2, 2)), ("a", torch.ones(2, 2)), ("b", torch.ones(3))]
        >>> write_shards(folder, plan, halves, shard_bytes=40)
        ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
        >>> dict(read_shards(folder))["b"]
        tensor([1., 1., 1.])
    """
    groups = _grouped(plan, shard_bytes)
    names = [f"model-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1)]
    names = names if len(groups) > 1 else [ONE_FILE]
    stream, folder = iter(pieces), Path(folder)
    digests: dict[str, str] = {}
    with atomic_folder(folder, overwrite=overwrite, digests=digests) as place:
        for name, group in zip(names, groups, strict=True):
            part = {tensor: plan[tensor] for tensor in group}
            head = header_bytes(folder / name, part, metadata)
            digest = hashlib.sha256(head)
            with (place / name).open("xb") as handle:
                handle.write(head)
                for names_of, values in _blocks(_checked(part, stream)):
                    data = _bytes_of(folder, names_of, values)
                    digest.update(data)
                    handle.write(data)
            digests[name] = digest.hexdigest()
        if (left := next(stream, None)) is not None:
            raise InputError(f"tensor {left[0]!r} is not part of the plan")
        if len(groups) > 1:
            total = sum(_nbytes(plan[tensor]) for tensor in plan)
            where = {tensor: name for name, group in zip(names, groups, strict=True) for tensor in group}
            index = {"metadata": {**(metadata or {}), "total_size": total}, "weight_map": where}
            write_json(place / INDEX_FILE, index, durable=False)  # the folder's commit waits for the disk
    return names


def read_shards(
    folder: str | Path, *, only: Collection[str] | None = None, allow_nonfinite: bool = False
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a folder in the hub's layout one after another, file by file; ``only`` those, if given.

    Where there is a ``model.safetensors``, as in the hub's own libraries, an index beside it is not read.

    Raises:
        CheckpointError: the index or a file is broken, or they do not fit each other.
    """
    folder = Path(folder)
    for name, header in _headers(folder):
        for tensor, info in header.tensors.items():
            if only is not None and tensor not in only:
                continue
            if not info.shape:
                scalar, _ = load_tensors(folder / name, only={tensor}, allow_nonfinite=allow_nonfinite)
                yield tensor, scalar[tensor]
                continue
            entry = {tensor: (info.shape[1:], info.dtype)}
            rows = range(info.shape[0])
            yield tensor, load_rows(folder / name, rows, entry, allow_nonfinite=allow_nonfinite)[tensor]


def shards_header(folder: str | Path) -> dict[str, TensorInfo]:
    """Shapes and types of a folder's tensors; no number is read. Raises :class:`CheckpointError`."""
    return {tensor: info for _, header in _headers(Path(folder)) for tensor, info in header.tensors.items()}


def _headers(folder: Path) -> Iterator[tuple[str, Header]]:
    """The name of each file, and its header, which says what the index says."""
    for name, tensors in _files(folder).items():
        header = read_header(folder / name)
        if tensors is not None and set(header.tensors) != tensors:
            odd = sorted(set(header.tensors) ^ tensors)[0]
            raise CheckpointError(folder / name, f"tensor {odd!r} is in the index or in the file only")
        yield name, header


def shards_metadata(folder: str | Path) -> dict[str, object]:
    """What the files of a folder say beside the tensors. Raises :class:`CheckpointError`."""
    folder = Path(folder)
    if (folder / ONE_FILE).exists():
        return dict(read_header(folder / ONE_FILE).metadata)
    held = read_json(folder / INDEX_FILE)
    metadata = held.get("metadata", {}) if isinstance(held, dict) else None
    if not isinstance(metadata, dict):
        raise CheckpointError(folder / INDEX_FILE, "is not the index of a folder of weights")
    return metadata


def _files(folder: Path) -> dict[str, set[str] | None]:
    """Names of tensors by file, from the index; None of the one file that needs no index."""
    if (folder / ONE_FILE).exists():
        return {ONE_FILE: None}
    held = read_json(folder / INDEX_FILE)
    where = held.get("weight_map") if isinstance(held, dict) else None
    if not isinstance(where, dict) or not where:
        raise CheckpointError(folder / INDEX_FILE, "is not the index of a folder of weights")
    files: dict[str, set[str]] = {}
    for tensor, name in where.items():
        if not isinstance(name, str) or not SHARD_NAME.fullmatch(name):
            raise CheckpointError(folder / INDEX_FILE, f"names a file {str(name)[:80]!r}, which is no shard")
        files.setdefault(name, set()).add(tensor)
    return {name: files[name] for name in sorted(files)}


def _grouped(plan: Expected, shard_bytes: int) -> list[list[str]]:
    groups: list[list[str]] = []
    room = 0
    for tensor, about in plan.items():
        nbytes = _nbytes(about)
        if not groups or nbytes > room:
            groups.append([])
            room = shard_bytes
        groups[-1].append(tensor)
        room -= nbytes
    if not 0 < len(groups) <= MAX_SHARDS:
        raise InputError(f"these tensors would be {len(groups):,} files; 1 to {MAX_SHARDS:,} are written")
    return groups


def _nbytes(about: tuple[Iterable[int], torch.dtype]) -> int:
    return math.prod(about[0]) * about[1].itemsize


def _checked(
    plan: Expected, stream: Iterator[tuple[str, torch.Tensor]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The pieces of ``plan``, flat, or what came instead."""
    for tensor, about in plan.items():
        shape, dtype = tuple(about[0]), about[1]
        left = math.prod(shape)
        while left > 0:
            name, piece = next(stream, ("", None))
            if (
                piece is None or name != tensor or piece.dtype != dtype or piece.shape[1:] != shape[1:]
                or not 0 < piece.numel() <= left
            ):  # fmt: skip
                came = f"{name!r} of {tuple(piece.shape)}" if piece is not None else "nothing"
                raise InputError(f"tensor {tensor!r} of {shape} was expected, {came} came")
            left -= piece.numel()
            yield tensor, piece.detach().cpu().reshape(-1)  # shape -> (numel,)


def _blocks(pieces: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[Parts, torch.Tensor]]:
    """Values of one type, ``BLOCK_BYTES`` of them at most, and whose they are.

    Small pieces are copied together, so that none is held when the next one is asked for.
    """
    buffer = torch.empty(BLOCK_BYTES, dtype=torch.uint8)
    parts: Parts = []
    dtype, used = torch.uint8, 0
    for name, piece in pieces:
        if parts and (piece.dtype != dtype or used + piece.nbytes > BLOCK_BYTES):
            yield parts, buffer[:used].view(dtype)
            parts, used = [], 0
        if piece.nbytes > BLOCK_BYTES:
            for values in piece.split(BLOCK_BYTES // piece.element_size()):
                yield [(name, len(values))], values
            continue
        dtype, end = piece.dtype, used + piece.nbytes
        buffer[used:end].view(dtype).copy_(piece)
        parts.append((name, len(piece)))
        used = end
    if parts:
        yield parts, buffer[:used].view(dtype)


def _bytes_of(folder: Path, parts: Parts, values: torch.Tensor) -> memoryview:
    """The bytes of a block (n,). Raises :class:`CheckpointError` where a value is not finite."""
    if value_fault(values):
        each = values.split([count for _, count in parts])
        name, reason = next(
            (name, reason) for (name, _), own in zip(parts, each, strict=True) if (reason := value_fault(own))
        )
        raise CheckpointError(folder, f"not written: tensor {name!r} {reason}")
    data: memoryview = values.contiguous().view(torch.uint8).numpy().data  # (n,) -> (nbytes,)
    return data
