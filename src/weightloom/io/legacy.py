"""Foreign files of PyTorch, of any age, behind checks that come before any allocation.

``torch.load(weights_only=True)`` runs no code of the file, but it unpacks a bomb, believes a storage
that claims more numbers than there are, and fails in ten different ways. So the archive's directory (since
PyTorch 1.6), or the row of pickles and storages (before), is checked first; then the pickle is read once with
stand-ins (:mod:`weightloom.io.pickles`), which compares every storage and tensor with the bytes that are
really there; only then torch reads it. Nothing of ours is ever written in this format.
"""

from __future__ import annotations

import hashlib
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from weightloom.defaults import with_plain_defaults
from weightloom.errors import CheckpointError
from weightloom.io.documents import read_json
from weightloom.io.files import open_regular
from weightloom.io.kinds import MAX_ENTRIES, OLD_MAGIC, check_directory, file_kind, plain_words, quoted
from weightloom.io.pickles import MAX_PICKLE_BYTES, Inspector, StorageInfo, StorageKind, check_instructions

# Tied weights share a storage, so the tensors may add up to more than the file; but not to any amount.
MAX_SHARING = 4
MAX_DEPTH = 64
"""Dictionaries, lists and tuples inside each other."""

ONE_BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
BIN_NAME = re.compile(r"pytorch_model-[0-9]{5}-of-[0-9]{5}\.bin")

_END_OF_DIRECTORY = 22
_PROTOCOL = b"\x80\x02M\xe9\x03."  # 1001, the version of the format before PyTorch 1.6


@with_plain_defaults
def load_legacy(path: str | Path) -> Any:
    """What a PyTorch file holds.

    Args:
        path: a file written by ``torch.save`` that holds tensors, numbers and text in dictionaries,
            lists, tuples and sets.

    Returns:
        It, with every tensor on the CPU, contiguous, with memory of its own. Values need not be finite:
        :func:`~weightloom.io.tensors.save_tensors` refuses those that are not.

    Raises:
        CheckpointError: anything else, with what the file is.
    """
    kind = file_kind(path)
    if kind.name == "safetensors":
        raise CheckpointError(path, "is a safetensors file, and no PyTorch file")
    if kind.name == "other":
        raise CheckpointError(path, kind.reason)
    try:
        with open_regular(path) as (handle, size):
            if kind.name == "pytorch":
                storages, pickled, byteorder = _check_archive(path, handle, size)
                _check_pickle(path, Inspector(path, pickled, storages), size)
                if byteorder not in (b"little", b""):
                    raise CheckpointError(path, "was written on a big-endian machine")
            else:
                _check_stream(path, handle, size)
            handle.seek(0)
            return _own(_torch_load(handle), {})
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(path, f"is not a checkpoint that can be read safely{_reason(error)}") from error


def load_parts(folder: str | Path) -> Any:
    """What the PyTorch files of a folder in the hub's layout hold: :data:`ONE_BIN`, or the parts of an index.

    Raises:
        CheckpointError: the index or a file is broken, or they do not fit each other.
    """
    folder = Path(folder)
    if (folder / ONE_BIN).exists():
        return load_legacy(folder / ONE_BIN)
    index = read_json(folder / BIN_INDEX)
    where = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(where, dict) or not where:
        raise CheckpointError(folder / BIN_INDEX, "is not the index of a folder of weights")
    parts: dict[str, Any] = {}
    state: dict[str, Any] = {}
    for tensor, name in where.items():
        if not isinstance(name, str) or not BIN_NAME.fullmatch(name):
            shown = quoted(str(name))
            raise CheckpointError(folder / BIN_INDEX, f"names a file {shown}, which is no part of a network")
        if name not in parts:
            parts[name] = load_legacy(folder / name)
        part = parts[name]
        if not isinstance(part, dict) or not isinstance(part.get(tensor), torch.Tensor):
            raise CheckpointError(folder / name, f"lacks tensor {quoted(tensor)}, which the index names")
        state[tensor] = part[tensor]
    return state


class _NoDescriptor:
    """An open file without a descriptor: torch would first try to read an old file as a tar archive by it."""

    def __init__(self, handle: BinaryIO) -> None:
        self.read, self.readline, self.readinto = handle.read, handle.readline, handle.readinto  # type: ignore[attr-defined]
        self.seek, self.tell = handle.seek, handle.tell


def _torch_load(handle: BinaryIO) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(_NoDescriptor(handle), map_location="cpu", weights_only=True)  # type: ignore[arg-type]


@with_plain_defaults
def load_pinned(path: str | Path, sha256: str) -> dict[str, Any]:
    """The dictionary in a known checkpoint of any PyTorch age: its bytes must be those of ``sha256``.

    Files from before PyTorch 1.6 cannot be checked from outside, so only those are read that are known byte
    for byte; nothing else reaches ``torch.load(weights_only=True)``.

    Raises:
        CheckpointError: other bytes, or not a checkpoint.
    """
    try:
        with open_regular(path) as (handle, _):
            digest = hashlib.sha256()
            while chunk := handle.read(1 << 20):
                digest.update(chunk)
            if digest.hexdigest() != sha256:
                raise CheckpointError(path, "is not the published file: its SHA-256 is another")
            handle.seek(0)  # the same open file, so that nobody can put another in its place
            value = _torch_load(handle)
            if not isinstance(value, dict):
                raise CheckpointError(path, f"holds {type(value).__name__} where a dictionary is expected")
            return _own(value, {})  # type: ignore[no-any-return]
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(path, f"is not a checkpoint that can be read safely{_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What torch says of it, without its advice to read the file in an unsafe way."""
    text = plain_words((str(error).splitlines() or [""])[0], 160)
    advice = re.search("eights.only|safe_globals|pickle_module|trust|allowlist", text)
    return " (it asks for more than tensors, numbers and text)" if advice or not text else f" ({text})"


# -- the archive -------------------------------------------------------------------------------


def _check_archive(path: str | Path, handle: BinaryIO, size: int) -> tuple[dict[str, int], bytes, bytes]:
    """Sizes of the storages by key, the pickle, and the byte order, of an archive with nothing hidden."""
    # The directory must be found at the very end, where every reader of zip files finds the same one.
    place = max(0, size - _END_OF_DIRECTORY)
    handle.seek(place)
    tail = handle.read(_END_OF_DIRECTORY)
    if not (tail.startswith(b"PK\x05\x06") and tail.endswith(b"\x00\x00")):
        raise CheckpointError(path, "is cut off, or has bytes after its end; download it again")
    check_directory(path, handle, size, tail, place)
    with zipfile.ZipFile(handle) as archive:
        entries = archive.infolist()
        if not 0 < len(entries) <= MAX_ENTRIES:
            raise CheckpointError(path, f"has {len(entries):,} entries where {MAX_ENTRIES:,} are allowed")
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
            raise CheckpointError(
                path,
                "has compressed or encrypted entries, which PyTorch never writes; if it was packed again, "
                "unpack it, and pack it without compression (zip -0 -r)",
            )
        if any(entry.file_size != entry.compress_size for entry in entries):
            raise CheckpointError(path, "has an entry whose two sizes differ")
        if sum(entry.file_size for entry in entries) > size:
            raise CheckpointError(path, "has entries that together are larger than the file")
        if min(entry.header_offset for entry in entries) != 0:
            raise CheckpointError(path, "has bytes before its first entry")
        names = [entry.filename for entry in entries]
        if len({name.casefold() for name in names}) != len(names):
            raise CheckpointError(path, "has two entries of one name")
        prefix = names[0].partition("/")[0] + "/"
        if any(not name.startswith(prefix) or ".." in name for name in names):
            raise CheckpointError(path, "has entries outside its one folder")
        sizes = {entry.filename.removeprefix(prefix): entry.file_size for entry in entries}
        if "constants.pkl" in sizes:  # which torch.load would hand to torch.jit
            raise CheckpointError(path, "is a TorchScript program, not a checkpoint")
        if "data.pkl" not in sizes:
            raise CheckpointError(path, "has no data.pkl, so it is no PyTorch checkpoint")
        if sizes["data.pkl"] > MAX_PICKLE_BYTES:
            raise CheckpointError(path, f"has {sizes['data.pkl']:,} bytes of description, which is too much")
        pickled = archive.read(prefix + "data.pkl")
        byteorder = b""
        if 0 < sizes.get("byteorder", 0) <= 16:
            byteorder = archive.read(prefix + "byteorder")
    storages = {name[5:]: nbytes for name, nbytes in sizes.items() if name.startswith("data/")}
    if any(re.fullmatch(r"[A-Za-z0-9_]{1,64}", key) is None for key in storages):
        raise CheckpointError(path, "has a storage with a strange name")
    check_instructions(path, pickled, len(storages))
    return storages, pickled, byteorder


def _check_pickle(path: str | Path, inspector: Inspector, size: int) -> None:
    inspector.load()
    if not inspector.tensors:
        raise CheckpointError(path, "holds no tensors")
    if inspector.claimed > MAX_SHARING * size:
        raise CheckpointError(path, f"has {size:,} bytes but tensors that claim {inspector.claimed:,}")


# -- the format before PyTorch 1.6 -------------------------------------------------------------


class _StreamInspector(Inspector):
    """As its base; storages come behind the pickle, so that they are noted first and compared later.

    Attributes:
        roots: values and bytes of each storage.
    """

    def __init__(self, path: str | Path, pickled: bytes) -> None:
        super().__init__(path, pickled, {})
        self.roots: dict[str, StorageInfo] = {}
        self.kinds: dict[str, StorageKind] = {}
        self.views: dict[str, tuple[str, int, int]] = {}

    def persistent_load(self, address: Any) -> StorageInfo:
        kind, storage, key, _, numel, view = address
        if kind != "storage" or not isinstance(storage, StorageKind) or not isinstance(key, str):
            raise self.fail("refers to something that is no storage")
        if type(numel) is not int or not 0 <= numel < 1 << 60:
            raise self.fail("has a storage whose size cannot be")
        root = StorageInfo(numel, numel * storage.itemsize)
        if self.roots.setdefault(key, root) != root or self.kinds.setdefault(key, storage) != storage:
            raise self.fail(f"describes the storage {quoted(key)} in two ways")
        if view is None:
            return root
        name, offset, length = view
        if type(offset) is not int or type(length) is not int or not 0 <= offset <= offset + length <= numel:
            raise self.fail(f"has a part of the storage {quoted(key)} that is not in it")
        if not isinstance(name, str) or self.views.setdefault(name, (key, offset, length)) != (
            key,
            offset,
            length,
        ):
            raise self.fail("describes a part of a storage in two ways")
        return StorageInfo(length, length * storage.itemsize)


def _check_stream(path: str | Path, handle: BinaryIO, size: int) -> None:
    """A file from before PyTorch 1.6: five pickles, then each storage behind the number of its values."""
    head = handle.read(min(size, MAX_PICKLE_BYTES))
    pickles, place = [], 0
    for _ in range(5):
        try:
            end = check_instructions(path, head, size // 9, place)
        except CheckpointError:
            raise
        except ValueError:
            if size > len(head):
                raise CheckpointError(path, f"has more than {len(head):,} bytes of description") from None
            raise CheckpointError(path, "is cut off, or damaged; download it again") from None
        pickles.append(head[place:end])
        place = end
    if pickles[0] != OLD_MAGIC or pickles[1] != _PROTOCOL:
        raise CheckpointError(path, "is not the format that PyTorch wrote before version 1.6")
    machine = Inspector(path, pickles[2], {}).load()
    if not isinstance(machine, dict) or machine.get("little_endian") is False:
        raise CheckpointError(path, "was written on a big-endian machine")
    inspector = _StreamInspector(path, pickles[3])
    _check_pickle(path, inspector, size)
    keys = Inspector(path, pickles[4], {}).load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise CheckpointError(path, "has no list of its storages")
    if len(keys) > MAX_ENTRIES or sorted(keys) != sorted(inspector.roots):
        raise CheckpointError(path, "lists other storages than those that its tensors refer to")
    if any(name in inspector.roots for name in inspector.views):
        raise CheckpointError(path, "describes a part of a storage as a whole one")
    for key in keys:
        root = inspector.roots[key]
        handle.seek(place)
        if handle.read(8) != root.numel.to_bytes(8, "little"):
            raise CheckpointError(
                path,
                f"claims {root.numel:,} numbers in the storage {quoted(key)}, which has others",
            )
        place += 8 + root.nbytes
    if place != size:
        raise CheckpointError(path, "is cut off, or has bytes after its end; download it again")


# -- the result --------------------------------------------------------------------------------


def _own(value: Any, seen: dict[int, Any], depth: int = 0) -> Any:
    """``value`` with every tensor contiguous and in memory of its own; each object is visited once."""
    if id(value) in seen:
        return seen[id(value)]
    if depth > MAX_DEPTH:
        raise ValueError(f"dictionaries and lists inside each other, more than {MAX_DEPTH} of them")
    result: Any
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise ValueError(f"a tensor of layout {value.layout} on {value.device}")
        plain = value.detach().resolve_conj().resolve_neg()
        result = plain.clone(memory_format=torch.contiguous_format)
    elif isinstance(value, dict):
        result = seen[id(value)] = {}
        for key, entry in value.items():
            result[key if isinstance(key, str | int) else _text_of(key)] = _own(entry, seen, depth + 1)
    elif isinstance(value, list):
        result = seen[id(value)] = []
        result.extend(_own(entry, seen, depth + 1) for entry in value)
    elif isinstance(value, tuple):
        result = tuple(_own(entry, seen, depth + 1) for entry in value)
    elif value is None or isinstance(value, str | int | float | complex | bytes | torch.device | torch.dtype):
        result = value
    elif isinstance(value, bytearray):
        result = bytes(value)
    elif isinstance(value, set):
        result = {entry if isinstance(entry, str | int | float) else _text_of(entry) for entry in value}
    else:
        raise ValueError(f"a {type(value).__name__}")
    seen[id(value)] = result
    return result


def _text_of(key: Any) -> str:
    """A key that is no text as text; nothing is looked up by it."""
    return type(key).__name__ if isinstance(key, torch.Tensor) else plain_words(repr(key), 80)
