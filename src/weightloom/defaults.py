"""What is computed does not depend on torch's default dtype and device, which belong to the whole process.

Functions at the border are run with float32 on the CPU as the defaults, whatever a caller has set: by
``torch.set_default_dtype``, ``torch.set_default_device`` or ``with torch.device(...)``. Devices that tensors
and modules are on already are heeded as ever. Knows nothing of what is computed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

_CPU = torch.device("cpu")


@contextmanager
def plain_defaults() -> Iterator[None]:
    """Float32 and the CPU are torch's defaults inside the block; what was set before comes back after it.

    The dtype is the process's own: another thread that makes tensors meanwhile gets float32 as well.

    Example:
        >>> with torch.device("meta"), plain_defaults():
        ...     torch.zeros(2).device
        device(type='cpu')
    """
    dtype, elsewhere = torch.get_default_dtype(), torch.get_default_device() != _CPU
    if dtype is torch.float32 and not elsewhere:
        yield
        return
    with ExitStack() as stack:
        if dtype is not torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, dtype)
        if elsewhere:
            stack.enter_context(_CPU)
        yield


def with_plain_defaults(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: ``function``, or every step of a generator function, runs inside :func:`plain_defaults`.

    Example:
        >>> @with_plain_defaults
        ... def half():
        ...     return torch.tensor(1) / 2
        >>> with torch.device("meta"):
        ...     half()
        tensor(0.5000)
    """
    if inspect.isgeneratorfunction(function):

        @wraps(function)
        def steps(*args: P.args, **kwargs: P.kwargs) -> Iterator[Any]:
            running: Any = function(*args, **kwargs)
            try:
                while True:
                    with plain_defaults():
                        try:
                            value = next(running)
                        except StopIteration:
                            return
                    yield value
            finally:
                running.close()

        return steps  # type: ignore[return-value]

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with plain_defaults():
            return function(*args, **kwargs)

    return run
