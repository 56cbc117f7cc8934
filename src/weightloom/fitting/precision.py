"""Target networks are run in full precision, also while what makes them is trained with fewer bits.

They are small, so half the bits would save next to nothing, and closed forms solve systems of equations.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: inside torch's autocast the function runs without it, on float32 tensors.

    Example:
        >>> double = full_precision(lambda x: x @ x)
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     double(torch.eye(2, dtype=torch.bfloat16)).dtype
        torch.float32
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        devices = [name for name in ("cpu", "cuda") if torch.is_autocast_enabled(name)]
        if not devices:
            return function(*args, **kwargs)
        with torch.autocast(devices[0], enabled=False):
            return function(*_widened(args), **_widened(kwargs))

    return run


def _widened(value: Any) -> Any:
    """Half-precision tensors as float32, also in dicts and tuples."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
    if isinstance(value, dict):
        return {name: _widened(one) for name, one in value.items()}
    if isinstance(value, tuple):
        return tuple(_widened(one) for one in value)
    return value
