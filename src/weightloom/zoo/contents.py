"""What a file of weights holds, in one form for every format: tensors by name, in dictionaries by path.

The keys that lead to a tensor are joined with dots, as the parts of a name in a state dict are, so that a
dictionary inside another and a prefix of names are one thing: ``model.state_dict.module.head.weight``. Knows
formats; no architectures.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from weightloom.errors import CheckpointError
from weightloom.finite import all_finite
from weightloom.io import (
    file_kind,
    load_legacy,
    load_parts,
    load_tensors,
    read_header,
    read_shards,
    shards_header,
    shards_metadata,
)
from weightloom.io.kinds import folder_reason, quoted
from weightloom.io.legacy import BIN_INDEX, ONE_BIN
from weightloom.io.shards import INDEX_FILE, ONE_FILE
from weightloom.io.tensors import MAX_TENSORS

Format = Literal["safetensors", "pytorch", "shards"]

MAX_PLACES = 1 << 15
"""Dictionaries and lists with tensors."""
MAX_AGAIN = 1 << 10
"""How often a file may name such a dictionary in another place, all of them together."""
MAX_NAMES = 8 << 20
"""Letters of all names together, with the keys that lead to them."""


class StoredTensor(NamedTuple):
    """A tensor of a file: its shape and type, and the path of the dictionary that it stands in."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    container: str = ""


class Place(NamedTuple):
    """A dictionary of a file, and the path of the one that it stands in."""

    entries: Mapping[Any, Any]
    parent: str


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    Attributes:
        path: the file, or the folder of one network in the hub's layout.
        format: how it is read.
        tensors: shape and type of each tensor by name, in the file's order.
        metadata: the text in a header.
        places: the dictionaries of a PyTorch file by path; ``""`` is the outermost.
        load: reads some tensors by name; floats need not be finite.
    """

    path: Path
    format: Format
    tensors: dict[str, StoredTensor]
    load: Callable[[Collection[str]], Mapping[str, Tensor]] = field(repr=False)
    metadata: dict[str, str] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict, repr=False)

    def dictionaries(self) -> dict[str, int]:
        """How many tensors stand in each dictionary, by its path; ``.`` is the outermost."""
        counts: dict[str, int] = {}
        for stored in self.tensors.values():
            counts[stored.container or "."] = counts.get(stored.container or ".", 0) + 1
        return counts

    def not_finite(self) -> Iterator[str]:
        """Names of tensors with a value that is NaN or infinite; one tensor is read at a time."""
        for name, stored in self.tensors.items():
            if (stored.dtype.is_floating_point or stored.dtype.is_complex) and not all_finite(
                self.load([name])[name]
            ):
                yield name


def format_of(path: str | Path) -> Format:
    """How a file is read, by its first bytes; a folder is one network in the hub's layout.

    Raises:
        CheckpointError: it is neither; the reason says what it is.
    """
    path = _folder_of(Path(path))
    if path.is_dir():
        if any((path / name).is_file() for name in (INDEX_FILE, ONE_FILE, BIN_INDEX, ONE_BIN)):
            return "shards"
        raise CheckpointError(path, folder_reason(path))
    kind = file_kind(path)
    if kind.name == "other":
        raise CheckpointError(path, kind.reason)
    return "safetensors" if kind.name == "safetensors" else "pytorch"


def contents_of(path: str | Path) -> Contents:
    """What the file, or the folder of one network, holds.

    Raises:
        CheckpointError: it is broken, or of another kind; the reason says which.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "checkpoint.tar"
        >>> torch.save({"epoch": 3, "model": {"module.weight": torch.ones(2)}}, path)
        >>> contents = contents_of(path)
        >>> contents.format, list(contents.tensors), contents.dictionaries()
        ('pytorch', ['model.module.weight'], {'model': 1})
    """
    path = _folder_of(Path(path))
    kind = format_of(path)
    if kind == "safetensors":
        header = read_header(path)
        return Contents(
            path,
            kind,
            {name: StoredTensor(info.shape, info.dtype) for name, info in header.tensors.items()},
            lambda names: load_tensors(path, only=set(names), allow_nonfinite=True)[0],
            header.metadata,
        )
    if kind == "shards" and any((path / name).is_file() for name in (INDEX_FILE, ONE_FILE)):
        return Contents(
            path,
            kind,
            {name: StoredTensor(info.shape, info.dtype) for name, info in shards_header(path).items()},
            lambda names: dict(read_shards(path, only=set(names), allow_nonfinite=True)),
            {key: value for key, value in shards_metadata(path).items() if isinstance(value, str)},
        )
    value = load_parts(path) if kind == "shards" else load_legacy(path)
    if not isinstance(value, Tensor | dict | list | tuple):
        raise CheckpointError(path, f"holds {type(value).__name__} and no tensors")
    flat: dict[str, Tensor] = {}
    tensors: dict[str, StoredTensor] = {}
    places: dict[str, Place] = {}
    for name, container, tensor in _flattened(path, value, places):
        if name in flat:  # 1 and "1", or "a.b" and b in a
            raise CheckpointError(path, f"has two tensors of one name, {quoted(name)}")
        flat[name] = tensor
        tensors[name] = StoredTensor(tuple(tensor.shape), tensor.dtype, container)
    return Contents(path, kind, tensors, lambda names: {name: flat[name] for name in names}, places=places)


def _folder_of(path: Path) -> Path:
    """The folder that an index belongs to, where the index is named in its place."""
    return path.parent if path.name in (INDEX_FILE, BIN_INDEX) and path.is_file() else path


def _flattened(path: Path, value: Any, places: dict[str, Place]) -> Iterator[tuple[str, str, Tensor]]:
    """Full name, dictionary and tensor, of each tensor in dictionaries and lists; fills ``places``."""
    leads: dict[int, bool] = {}
    _leads(value, leads)
    waiting: list[tuple[str, str, Any]] = [("", "", value)]  # name, parent, value
    letters, count, again = 0, 0, 0
    visited: set[int] = set()
    while waiting:
        name, parent, entry = waiting.pop()
        if isinstance(entry, Tensor):
            count += 1
            if count > MAX_TENSORS:
                raise CheckpointError(path, f"names more than {MAX_TENSORS:,} tensors")
            yield name or "tensor", parent, entry
            continue
        named = isinstance(entry, dict)
        places[name] = Place(entry if named else {}, parent)
        again += id(entry) in visited
        visited.add(id(entry))
        if len(visited) > MAX_PLACES or again > MAX_AGAIN:
            raise CheckpointError(
                path,
                f"has more than {MAX_PLACES:,} dictionaries with tensors, or {MAX_AGAIN:,} of them twice",
            )
        inner = list(entry.items() if named else enumerate(entry))
        for key, part in reversed(inner):  # what is put last comes first: the file's order
            if isinstance(part, Tensor) or leads.get(id(part)):
                full = f"{name}.{key}" if name else str(key)
                letters += len(full)
                if letters > MAX_NAMES:
                    raise CheckpointError(path, f"has names of more than {MAX_NAMES:,} letters together")
                waiting.append((full, name, part))


def _leads(value: Any, known: dict[int, bool]) -> bool:
    """Whether there is a tensor in a dictionary, list or tuple; each is looked at once."""
    if isinstance(value, Tensor):
        return True
    if not isinstance(value, dict | list | tuple):
        return False
    if id(value) not in known:
        known[id(value)] = False  # of one that holds itself
        for part in value.values() if isinstance(value, dict) else value:
            if _leads(part, known):  # and on, so that all are known
                known[id(value)] = True
    return known[id(value)]
