"""The pickle inside a foreign PyTorch file, read before torch reads it: with stand-ins that make nothing.

``torch.load(weights_only=True)`` runs no code of a file, but believes a storage that claims more numbers
than there are, and copies what a file asks it to copy as often as it asks. Here the instructions are counted
first; then they are carried out with stand-ins for everything that a checkpoint can name, and every storage
and tensor is compared with the bytes that are really there. Knows neither archives nor ``torch.load``.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from weightloom.errors import CheckpointError
from weightloom.io.kinds import STATE_DICT, plain_words, quoted

MAX_PICKLE_BYTES = 8 << 20
MAX_INSTRUCTIONS = 1 << 19
"""Pickle instructions of a file without tensors; each tensor may have :data:`EACH_TENSOR` more."""
MAX_CONTAINERS = 1 << 16
"""Lists, tuples and dictionaries that are made, beside those that describe tensors."""
EACH_TENSOR = 64  # about 25 instructions, of which 10 make a list, a tuple or a dictionary
MAX_COPIED = 16 << 20
"""Bytes of text, and entries of lists, that the instructions copy into others."""
MAX_RANK = 8
MAX_ATTRIBUTES = 64

MAX_TEXTS = 1 << 16
"""Texts and names of classes."""
MAX_LONG = 4096
"""Whole numbers beyond 64 bits; as keys of a dictionary they can be chosen so that all collide."""

# One instruction of a fixed length. The first group has those that are counted: what makes a list, a tuple or
# a dictionary, and Q, which refers to a storage. The index of the memo is below 2^20. Left out is whatever
# makes objects by itself (INST, OBJ, NEWOBJ, STACK_GLOBAL, EXT1), and what no safe reader knows.
_FIXED = rb"[N\x88\x89sueabR]|[Khq\x80].|M..|[Jj]....|r..[\x00-\x0f]\x00|G.{8}"
_COUNTED = rb"[\]})(\x85-\x87tQ]"
_ONE = re.compile(rb"(" + _COUNTED + rb")|" + _FIXED, re.DOTALL)
_RUN = re.compile(rb"(?:" + _COUNTED + rb"|" + _FIXED + rb"){1,4096}", re.DOTALL)
_LENGTHS = {b"K": 1, b"h": 1, b"q": 1, b"\x80": 1, b"M": 2, b"J": 4, b"j": 4, b"r": 4, b"G": 8}
_NEW_PROTOCOL = b"\x8c\x8d\x8e\x8f\x90\x91\x92\x93\x94\x95\x96"

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
_NEWER = (
    "uint16", "uint32", "uint64", "complex32", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz",
    "float8_e5m2fnuz", "float8_e8m0fnu",
)  # fmt: skip
_DTYPES: dict[str, torch.dtype] = {
    f"torch {name.removeprefix('torch.')}": getattr(torch, name.removeprefix("torch."))
    for name in (*map(str, _STORAGES.values()), *_NEWER)
    if hasattr(torch, name.removeprefix("torch."))
}
# What torch itself would read, and nothing here can use.
_ODD_TENSORS = {
    "_rebuild_qtensor": "a quantised tensor; save dequantize() of it",
    "_rebuild_sparse_tensor": "a sparse tensor; save to_dense() of it",
    "_rebuild_nested_tensor": "a nested tensor; save its parts",
    "_rebuild_meta_tensor_no_storage": "a tensor on the meta device, which has no values",
    "_rebuild_wrapper_subclass": "a tensor of a class of its own; save a plain tensor",
    "_rebuild_device_tensor_from_numpy": "a tensor of another device as a NumPy array; save cpu() of it",
    "_rebuild_device_tensor_from_cpu_tensor": "a tensor of another device; save cpu() of it",
}
_CODECS = ("latin1", "latin-1", "utf-8", "utf8", "ascii")
_RUNS = re.compile(
    r"(builtins|__builtin__|os|posix|nt|sys|subprocess|shutil|socket|runpy|importlib|ctypes)\b"
)


class StorageKind(NamedTuple):
    """Stands for a class of storages."""

    itemsize: int


class StorageInfo(NamedTuple):
    """Stands for a storage, or a part of one."""

    numel: int
    nbytes: int


class _Tensor:
    """Stands for every tensor, and for the classes ``Tensor`` and ``Parameter``, which nothing may call."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a tensor that is made without a storage")


TENSOR = _Tensor()


class _Dictionary(dict):
    """Stands for an ``OrderedDict``; the attribute that a state dict has (``_metadata``) is let go."""

    def __setstate__(self, state: Any) -> None:
        if len(state) > 4:  # torch copies the attributes, and would do so as often as the file asks
            raise ValueError("a dictionary with attributes")


def check_instructions(path: str | Path, pickled: bytes, storages: int, start: int = 0) -> int:
    """Count the instructions of a pickle, from ``start`` on; none of them makes an object by itself.

    Args:
        path: the file, for the error.
        pickled: the pickle, or several one after another.
        storages: how many storages the file may have.
        start: where the pickle begins.

    Returns:
        Where it ends.

    Raises:
        CheckpointError: there are too many, or one that no checkpoint needs.
        ValueError: it does not end.
    """
    place, count, made, tensors, texts, long, named = start, 0, 0, 0, 0, 0, b""
    while True:
        if run := _RUN.match(pickled, place):
            parts = _ONE.findall(pickled, place, run.end())
            place, count = run.end(), count + len(parts)
            referred = parts.count(b"Q")
            tensors, made = tensors + referred, made + len(parts) - parts.count(b"") - referred
        else:
            code, count, texts = pickled[place : place + 1], count + 1, texts + 1
            if code == b".":
                return place + 1
            if not code or place + 1 + _LENGTHS.get(code, 0) > len(pickled):
                raise ValueError("its pickle does not end")
            if code == b"X":
                place += 5 + int.from_bytes(pickled[place + 1 : place + 5], "little")
            elif code in (b"U", b"\x8a"):
                length = int.from_bytes(pickled[place + 1 : place + 2], "little")
                place, long = place + 2 + length, long + (code == b"\x8a" and length > 8)
            elif code == b"c":
                end = pickled.index(b"\n", pickled.index(b"\n", place) + 1)
                named, place = pickled[place + 1 : end], end + 1
            elif code == b"r":
                raise CheckpointError(path, "asks for more memory than it describes")
            else:
                raise CheckpointError(path, _instruction_reason(code, named, pickled[start : start + 64]))
        room = EACH_TENSOR * min(tensors, storages)
        if count > MAX_INSTRUCTIONS + room:
            raise CheckpointError(path, f"has more than {MAX_INSTRUCTIONS + room:,} pickle instructions")
        if made > MAX_CONTAINERS + room or texts > MAX_TEXTS + room or long > MAX_LONG:
            raise CheckpointError(
                path, "has more lists, dictionaries, texts or long numbers than are read here"
            )


def _instruction_reason(code: bytes, named: bytes, pickled: bytes) -> str:
    """Why an instruction is not carried out; ``named`` is the class that was named last."""
    if code in _NEW_PROTOCOL:
        return (
            "was written with a newer pickle protocol than PyTorch's own; save it again where it was made, "
            "without pickle_protocol: torch.save(model.state_dict(), 'weights.pt')"
        )
    if code == b"\x81" and named:  # NEWOBJ makes an object of a class
        module, _, name = named.decode("utf-8", "replace").partition("\n")
        return _object_reason(module, name, pickled)
    return f"has the pickle instruction {code!r}, which no checkpoint needs; {STATE_DICT}"


def _object_reason(module: str, name: str, pickled: bytes) -> str:
    """What a file is that asks for something that no checkpoint needs, and what to do."""
    shown = plain_words(f"{module}.{name}")
    if module == "torch._utils" and name in _ODD_TENSORS:
        return f"holds {_ODD_TENSORS[name]} where it was made"
    if module == "torch" and name.startswith("Q") and name.endswith("Storage"):
        return f"holds {_ODD_TENSORS['_rebuild_qtensor']} where it was made"
    if _RUNS.match(module):
        return (
            f"names {shown}, which is no part of a checkpoint: whoever opens such a file runs a program of "
            "its author"
        )
    if pickled[2:3] == b"c" or pickled[2:15] == b"(X\x06\0\0\0moduleq":
        return f"is a pickled object of the class {shown} and not its weights alone; {STATE_DICT}"
    if module.startswith("numpy"):
        return (
            f"names {shown}: it holds NumPy values beside its tensors; save it again where it was made, with "
            "float(), .tolist() or torch.from_numpy() of them"
        )
    return (
        f"names {shown}: it holds objects of a program beside its tensors, and making them would run that "
        f"program; {STATE_DICT}"
    )


class Inspector(pickle.Unpickler):
    """Reads a checkpoint's pickle without making anything of it but dictionaries, lists and numbers.

    Attributes:
        tensors: how many there are.
        claimed: bytes of all of them together.
    """

    def __init__(self, path: str | Path, pickled: bytes, storages: Mapping[str, int]) -> None:
        super().__init__(io.BytesIO(pickled), encoding="utf-8")
        self.path, self.storages, self.copied = path, storages, 0
        self.tensors, self.claimed = 0, 0
        self.pickled = pickled
        self.rebuilds: dict[str, Callable[..., Any]] = {
            "torch._utils _rebuild_tensor": self._tensor,
            "torch._utils _rebuild_tensor_v2": self._tensor,
            "torch._utils _rebuild_tensor_v3": self._tensor_v3,
            "torch._utils _rebuild_parameter": self._parameter,
        }
        self.known: dict[str, Any] = {
            **self.rebuilds,
            "torch._utils _rebuild_parameter_with_state": self._parameter_with_state,
            "torch._tensor _rebuild_from_type_v2": self._with_attributes,
            "torch Tensor": TENSOR,
            "torch.nn.parameter Parameter": TENSOR,
            "torch device": self._nothing,
            "torch Size": self._size,
            "collections OrderedDict": self._ordered,
            "collections Counter": self._counter,
            "_codecs encode": self._bytes,
        }
        for module in ("builtins", "__builtin__"):
            self.known |= {
                f"{module} set": self._set,
                f"{module} bytearray": self._bytearray,
                f"{module} complex": self._complex,
            }

    def fail(self, reason: str) -> CheckpointError:
        """The error that says what is wrong with this file."""
        return CheckpointError(self.path, reason)

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module} {name}"
        if full in _STORAGES:
            return StorageKind(_STORAGES[full].itemsize)
        if full in _DTYPES:
            return _DTYPES[full]
        if full not in self.known:
            raise self.fail(_object_reason(module, name, self.pickled))
        return self.known[full]

    # -- containers and plain values, whose copies are counted

    def _nothing(self, *_: Any) -> None:
        """Stands for what is a plain value to torch, and nothing here."""

    def _complex(self, real: Any, imaginary: Any) -> complex:
        if not isinstance(real, int | float) or not isinstance(imaginary, int | float):  # a text may be long
            raise ValueError("a complex number of something else than numbers")
        return complex(real, imaginary)

    def _count(self, number: int) -> None:
        self.copied += number
        if self.copied > MAX_COPIED:
            raise self.fail("asks for more copies than it has bytes")

    def _ordered(self, entries: Any = ()) -> _Dictionary:
        self._count(64 * len(entries))
        return _Dictionary((key, value) for key, value in entries)

    def _counter(self, entries: Any = ()) -> _Dictionary:
        if not isinstance(entries, dict):
            raise ValueError("a Counter of something else than a dictionary")
        self._count(64 * len(entries))
        return _Dictionary(entries)

    def _set(self, entries: Any = ()) -> set[Any]:
        if not isinstance(entries, list | tuple):
            raise ValueError("a set of something else than a list")
        self._count(64 * len(entries))
        return set(entries)

    def _size(self, extents: Any = ()) -> tuple[int, ...]:
        self._count(8 * len(extents))
        if not all(type(extent) is int for extent in extents):
            raise ValueError("a shape that is none")
        return tuple(extents)

    def _bytes(self, text: Any, codec: Any = "latin1") -> bytes:
        if not isinstance(text, str) or codec not in _CODECS:
            raise ValueError("bytes in an unknown code")
        self._count(len(text))
        return text.encode(codec)

    def _bytearray(self, data: Any = b"", codec: Any = "latin1") -> bytes:
        if isinstance(data, str):
            return self._bytes(data, codec)
        if not isinstance(data, bytes):  # a number would be so many bytes
            raise ValueError("bytes of something else")
        self._count(len(data))
        return data

    # -- storages and tensors, which are compared with the bytes that are there

    def persistent_load(self, address: Any) -> StorageInfo:
        kind, storage, key, _, numel = address
        nbytes = self.storages.get(key)
        if kind != "storage" or not isinstance(storage, StorageKind) or nbytes is None:
            raise self.fail(f"refers to a storage {quoted(key)} that it does not hold")
        if type(numel) is not int or numel * storage.itemsize != nbytes:
            raise self.fail(
                f"claims {plain_words(repr(numel), 40)} numbers in the {nbytes:,} bytes of storage "
                f"{quoted(key)}"
            )
        return StorageInfo(numel, nbytes)

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Any:
        if not isinstance(storage, StorageInfo):
            raise ValueError("a tensor without a storage")
        return self._check(storage, storage.nbytes // max(1, storage.numel), offset, shape, strides)

    def _tensor_v3(self, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Any:
        dtype = rest[2]  # after requires_grad and the hooks
        if not isinstance(storage, StorageInfo) or not isinstance(dtype, torch.dtype):
            raise ValueError("a tensor without a storage or a type")
        return self._check(storage, dtype.itemsize, offset, shape, strides)

    def _check(self, storage: StorageInfo, itemsize: int, offset: Any, shape: Any, strides: Any) -> Any:
        if len(shape) > MAX_RANK or len(strides) != len(shape):
            raise self.fail(f"has a tensor of {len(shape)} dimensions and {len(strides)} strides")
        if any(type(number) is not int or number < 0 for number in (offset, *shape, *strides)):
            raise self.fail("has a tensor whose shape cannot be")
        self.tensors += 1
        if 0 not in shape:
            last = offset + sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True))
            nbytes = math.prod(shape) * itemsize
            if nbytes > storage.nbytes or (last + 1) * itemsize > storage.nbytes:
                raise self.fail(
                    f"has a tensor of shape {tuple(shape)} in a storage of {storage.nbytes:,} bytes"
                )
            self.claimed += nbytes
        return TENSOR

    def _parameter(self, data: Any, *_: Any) -> Any:
        if data is not TENSOR:
            raise ValueError("a parameter of something else than a tensor")
        return data

    def _parameter_with_state(self, data: Any, *rest: Any) -> Any:
        self._check_attributes(rest[2])  # after requires_grad and the hooks
        return self._parameter(data)

    def _with_attributes(self, rebuild: Any, kind: Any, arguments: Any, state: Any) -> Any:
        if rebuild not in self.rebuilds.values() or kind is not TENSOR:
            raise ValueError("a tensor of a class of its own")
        self._check_attributes(state)
        return rebuild(*arguments)

    def _check_attributes(self, state: Any) -> None:
        """Attributes of a tensor, none of which torch itself reads; it would set all of them."""
        if not isinstance(state, dict) or len(state) > MAX_ATTRIBUTES:
            raise ValueError("a tensor with a state")
        self._count(64 * len(state))
        for name in state:
            if not isinstance(name, str) or not name.isidentifier() or hasattr(torch.nn.Parameter, name):
                raise self.fail(f"has a tensor with the attribute {quoted(name)}; {STATE_DICT}")
