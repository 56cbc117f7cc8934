"""Foreign ``.pt`` files, behind checks that come before any allocation.

``torch.load(weights_only=True)`` runs no code of the file, but it unpacks a bomb, believes a storage
that claims more numbers than there are, and fails in ten different ways. So the archive's directory
is checked, then its pickle is read once with stand-ins for everything it can name, which checks
every storage and tensor against the bytes that are really there; only then torch reads it.
Nothing of ours is ever written in this format.
"""

from __future__ import annotations

import hashlib
import io
import math
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from weightloom.defaults import with_plain_defaults
from weightloom.errors import CheckpointError
from weightloom.io.files import open_regular

MAX_ENTRIES = 131_072
MAX_PICKLE_BYTES = 8 << 20
MAX_INSTRUCTIONS = 1 << 20  # a tensor takes about 25
MAX_RANK = 8
# Tied weights share a storage, so the tensors may add up to more than the file; but not to any amount.
MAX_SHARING = 4

_END_OF_DIRECTORY = 22


@with_plain_defaults
def load_legacy(path: str | Path) -> dict[str, Any]:
    """The dictionary that a PyTorch checkpoint (zip format, PyTorch 1.6 and later) holds.

    Args:
        path: a file written by ``torch.save`` that holds tensors, numbers and text in dictionaries,
            lists and tuples.

    Returns:
        Its top dictionary; every tensor on the CPU, contiguous, with memory of its own. Values need
        not be finite: :func:`~weightloom.io.tensors.save_tensors` refuses those that are not.

    Raises:
        CheckpointError: anything else.
    """
    try:
        with open_regular(path) as (handle, size):
            storages, pickled, byteorder = _check_archive(path, handle, size)
            _check_pickle(path, pickled, storages, size)
            if byteorder not in (b"little", b""):
                raise CheckpointError(path, "was written on a big-endian machine")
            handle.seek(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                value = torch.load(handle, map_location="cpu", weights_only=True)
            if not isinstance(value, dict):
                raise CheckpointError(path, f"holds {type(value).__name__} where a dictionary is expected")
            return _own(value, {})  # type: ignore[no-any-return]
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(path, f"is not a checkpoint that can be read safely{_reason(error)}") from error


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
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                value = torch.load(handle, map_location="cpu", weights_only=True)
            if not isinstance(value, dict):
                raise CheckpointError(path, f"holds {type(value).__name__} where a dictionary is expected")
            return _own(value, {})  # type: ignore[no-any-return]
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(path, f"is not a checkpoint that can be read safely{_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What torch says of it, without its advice to read the file in an unsafe way."""
    text = (str(error).splitlines() or [""])[0][:200]
    return " (it asks for more than tensors, numbers and text)" if "eights only" in text else f" ({text})"


# -- the archive -------------------------------------------------------------------------------


def _check_archive(path: str | Path, handle: BinaryIO, size: int) -> tuple[dict[str, int], bytes, bytes]:
    """Sizes of the storages by key, the pickle, and the byte order, of an archive with nothing hidden."""
    if handle.read(4) != b"PK\x03\x04":
        raise CheckpointError(
            path,
            "is not a PyTorch zip file (if it is older than PyTorch 1.6: load and save it with a newer one)",
        )
    # The directory must be found at the very end, where every reader of zip files finds the same one.
    handle.seek(max(0, size - _END_OF_DIRECTORY))
    tail = handle.read(_END_OF_DIRECTORY)
    if not (tail.startswith(b"PK\x05\x06") and tail.endswith(b"\x00\x00")):
        raise CheckpointError(path, "is cut off, or has bytes after its end")
    with zipfile.ZipFile(handle) as archive:
        entries = archive.infolist()
        if not 0 < len(entries) <= MAX_ENTRIES:
            raise CheckpointError(path, f"has {len(entries):,} entries where {MAX_ENTRIES:,} are allowed")
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
            raise CheckpointError(path, "has compressed or encrypted entries, which PyTorch never writes")
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
        if "constants.pkl" in sizes:
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
    return storages, pickled, byteorder


# -- the pickle, read with stand-ins -----------------------------------------------------------

_OPCODES = {
    "PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "INT", "LONG", "BININT", "BININT1", "BININT2",
    "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "BINSTRING", "EMPTY_DICT", "EMPTY_LIST",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "LIST", "DICT", "APPEND", "APPENDS", "SETITEM",
    "SETITEMS", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "BINPERSID", "GLOBAL", "REDUCE", "BUILD",
}  # fmt: skip

_STORAGES: dict[str, torch.dtype] = {
    "torch DoubleStorage": torch.float64,
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
    "torch ComplexFloatStorage": torch.complex64,
    "torch ComplexDoubleStorage": torch.complex128,
    "torch.storage UntypedStorage": torch.uint8,
}
_DTYPES = {
    str(dtype).replace(".", " "): dtype
    for dtype in (*_STORAGES.values(), torch.uint16, torch.uint32, torch.uint64)
}


class _StorageKind(NamedTuple):
    itemsize: int


class _Storage(NamedTuple):
    numel: int
    nbytes: int


class _Dictionary(dict):
    """Stands for an ``OrderedDict``; the attribute that a state dict has (``_metadata``) is let go."""

    def __setstate__(self, state: Any) -> None:
        if len(state) > 4:  # torch copies the attributes, and would do so as often as the file asks
            raise ValueError("a dictionary with attributes")


class _Inspector(pickle.Unpickler):
    """Reads a checkpoint's pickle without making anything of it but dictionaries, lists and numbers."""

    def __init__(self, path: str | Path, pickled: bytes, storages: dict[str, int]) -> None:
        super().__init__(io.BytesIO(pickled))
        self.path, self.storages, self.claimed = path, storages, 0

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module} {name}"
        if full in _STORAGES:
            return _StorageKind(_STORAGES[full].itemsize)
        if full in _DTYPES:
            return _DTYPES[full]
        known: dict[str, Callable[..., Any]] = {
            # No arguments: a list handed over again and again would be copied again and again.
            "collections OrderedDict": lambda: _Dictionary(),
            "torch device": lambda *_: None,
            "torch._utils _rebuild_parameter": lambda data, *_: data,
            "torch._utils _rebuild_tensor_v2": self._tensor,
            "torch._utils _rebuild_tensor_v3": self._tensor_v3,
        }
        if full not in known:
            raise CheckpointError(self.path, f"names {module}.{name}, which no plain checkpoint needs")
        return known[full]

    def persistent_load(self, address: Any) -> _Storage:
        kind, storage, key, _, numel = address
        nbytes = self.storages.get(key)
        if kind != "storage" or not isinstance(storage, _StorageKind) or nbytes is None:
            raise CheckpointError(self.path, f"refers to a storage {key!r} that it does not hold")
        if type(numel) is not int or numel * storage.itemsize != nbytes:
            raise CheckpointError(
                self.path, f"claims {numel} numbers in the {nbytes:,} bytes of storage {key!r}"
            )
        return _Storage(numel, nbytes)

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> None:
        assert isinstance(storage, _Storage)
        self._check(storage, storage.nbytes // max(1, storage.numel), offset, shape, strides)

    def _tensor_v3(self, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> None:
        dtype = rest[2]  # after requires_grad and the hooks
        assert isinstance(storage, _Storage) and isinstance(dtype, torch.dtype)
        self._check(storage, dtype.itemsize, offset, shape, strides)

    def _check(self, storage: _Storage, itemsize: int, offset: Any, shape: Any, strides: Any) -> None:
        if len(shape) > MAX_RANK or len(strides) != len(shape):
            raise CheckpointError(
                self.path, f"has a tensor of {len(shape)} dimensions and {len(strides)} strides"
            )
        if any(type(number) is not int or number < 0 for number in (offset, *shape, *strides)):
            raise CheckpointError(self.path, "has a tensor whose shape cannot be")
        if 0 in shape:
            return
        last = offset + sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True))
        nbytes = math.prod(shape) * itemsize
        if nbytes > storage.nbytes or (last + 1) * itemsize > storage.nbytes:
            raise CheckpointError(
                self.path, f"has a tensor of shape {tuple(shape)} in a storage of {storage.nbytes:,} bytes"
            )
        self.claimed += nbytes


def _check_pickle(path: str | Path, pickled: bytes, storages: dict[str, int], size: int) -> None:
    # First the instructions alone: none that makes objects by itself, none that asks for a huge memo.
    for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
        if opcode.name not in _OPCODES:
            raise CheckpointError(path, f"has the pickle instruction {opcode.name}, which is never needed")
        if opcode.name in ("BINPUT", "LONG_BINPUT") and argument > MAX_INSTRUCTIONS:  # type: ignore[operator]
            raise CheckpointError(path, "asks for more memory than it describes")
        if count >= MAX_INSTRUCTIONS:
            raise CheckpointError(path, f"has more than {MAX_INSTRUCTIONS:,} pickle instructions")
    if any(re.fullmatch(r"[A-Za-z0-9_]{1,64}", key) is None for key in storages):
        raise CheckpointError(path, "has a storage with a strange name")
    inspector = _Inspector(path, pickled, storages)
    inspector.load()
    if inspector.claimed > MAX_SHARING * size:
        raise CheckpointError(path, f"has {size:,} bytes but tensors that claim {inspector.claimed:,}")


# -- the result --------------------------------------------------------------------------------


def _own(value: Any, seen: dict[int, Any]) -> Any:
    """``value`` with every tensor contiguous and in memory of its own; each object is visited once."""
    if id(value) in seen:
        return seen[id(value)]
    result: Any
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.device.type != "cpu":
            raise ValueError(f"a tensor of layout {value.layout} on {value.device}")
        result = value.detach().clone(memory_format=torch.contiguous_format)
    elif isinstance(value, dict):
        result = seen[id(value)] = {}
        for key, entry in value.items():
            if not isinstance(key, str | int):
                raise ValueError(f"a key that is neither text nor a number: {key!r:.80}")
            result[key] = _own(entry, seen)
    elif isinstance(value, list):
        result = seen[id(value)] = []
        result.extend(_own(entry, seen) for entry in value)
    elif isinstance(value, tuple):
        result = tuple(_own(entry, seen) for entry in value)
    elif value is None or isinstance(value, str | int | float | torch.device | torch.dtype):
        result = value
    else:
        raise ValueError(f"a {type(value).__name__}")
    seen[id(value)] = result
    return result
