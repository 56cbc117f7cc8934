"""A limit on what may be allocated while something from a file is being built.

A config of a kilobyte can ask for a model of terabytes, which is found out when the machine is out of memory.
Inside :func:`allocation_limit` every tensor that torch makes from nothing is counted before it is made. Knows
nothing of models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from weightloom.errors import CheckpointError

SLACK = 32 << 20
"""Bytes that anything may take: temporaries of small models are larger than their files."""

COPIES = 16
"""Times the bytes of its files that a model may take while it is made: narrowed files, initial values,
tensors on their way in."""


@contextmanager
def allocation_limit(path: str | Path, files: Sequence[Path]) -> Iterator[None]:
    """Refuse inside the block to allocate far more than ``files``, which are to fill it, hold.

    Raises:
        CheckpointError: more is asked for; ``path`` is what asks for it.

    Example:
        >>> with allocation_limit("config.json", []):
        ...     torch.nn.Linear(10**6, 10**6)
        Traceback (most recent call last):
        ...
        weightloom.errors.CheckpointError: config.json: asks for 4,000,000,000,000 bytes at once, far more ...
    """
    held = sum(file.stat().st_size for file in files if file.is_file())
    with _Limit(path, COPIES * held + SLACK):
        yield


class _Limit(TorchDispatchMode):
    def __init__(self, path: str | Path, most: int) -> None:
        super().__init__()
        self.path, self.left = path, most

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        place = _size_argument(func)
        if place is not None and str(kwargs.get("device")) != "meta":
            size = args[place] if place < len(args) else kwargs.get("size", ())
            dtype = kwargs.get("dtype") or torch.get_default_dtype()
            nbytes = math.prod(size) * dtype.itemsize
            self.left -= nbytes
            if self.left < 0:
                raise CheckpointError(
                    self.path, f"asks for {nbytes:,} bytes at once, far more than its files can fill"
                )
        return func(*args, **kwargs)


@cache
def _size_argument(func: Any) -> int | None:
    """Where an operator that makes a tensor from nothing is told its size; None for any other operator."""
    arguments = func._schema.arguments
    names = [argument.name for argument in arguments]
    fresh = not any("Tensor" in str(argument.type) for argument in arguments if argument.name != "out")
    made_like = names[:1] == ["self"] and func._schema.name.startswith("aten::new_")
    return names.index("size") if "size" in names and (fresh or made_like) else None
