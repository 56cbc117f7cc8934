"""The contract of an engine, and how a job is named, called and answered wherever it runs.

A job is a function of this package: what travels to another process is its name and plain data (numbers,
texts, lists, dicts, numpy arrays), and plain data comes back. A name that no file of ours has registered
is not called. Knows neither processes nor clusters.
"""

from __future__ import annotations

import importlib
import os
import sqlite3
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import weightloom
from weightloom import errors
from weightloom.errors import InputError, WeightloomError
from weightloom.registry import Registry

Payload = dict[str, Any]
"""Plain data: what a job is given."""

Job = Callable[[Payload, Callable[[int], None]], Any]
"""From a payload, and what may be told of the steps done, to plain data. It decides its answer by the payload
alone: a job whose worker dies is done again."""

Told = Callable[[int, int], None]
"""Called with a job's number and its steps done, by engines that can hear their jobs."""

TRIES = 4
"""How often a job is begun before an engine gives up: one that ends its worker every time would go on for
ever."""

engines: Registry[type[Engine]] = Registry("engine")
jobs: Registry[Job] = Registry("job")


def job(function: Job) -> Job:
    """Decorator for a function at the top of one of our files: engines may call it."""
    jobs.register(name_of(function))(function)
    return function


def name_of(function: Job) -> str:
    """What a job is called in other processes.

    Example:
        >>> name_of(about_worker)
        'weightloom.engines.base:about_worker'
    """
    return f"{function.__module__}:{function.__name__}"


class Engine(ABC):
    """Runs independent jobs. Used in a ``with`` statement; what it started ends there.

    The answers do not depend on the engine, nor on the number of workers. A worker that dies costs the job
    that it was at, which is done again.
    """

    @abstractmethod
    def __init__(self, *, workers: int = 1, address: str | None = None) -> None: ...

    @abstractmethod
    def map(
        self, function: Job, payloads: Sequence[Payload], told: Told = lambda *_: None
    ) -> Iterator[tuple[int, Any]]:
        """Call ``function`` for every payload; yields each one's number and answer as it is done.

        Raises:
            WeightloomError: what a job raised, with its sentence; or a job ended its worker every time.
        """

    @abstractmethod
    def close(self) -> None:
        """End what was started, at once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes with one thread inside the block, and with as many as before after it.

    For a job whose answer is to be the same to the last bit wherever it runs: a sum is divided among the
    threads, so its last bits depend on how many there are, which OMP_NUM_THREADS decides.

    Example:
        >>> import torch
        >>> before = torch.get_num_threads()
        >>> with one_thread():
        ...     torch.get_num_threads()
        1
        >>> torch.get_num_threads() == before
        True
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------------------------ in a worker


@job
def about_worker(payload: Payload, step: Callable[[int], None]) -> dict[str, int]:
    """The worker's process: a job that does nothing else."""
    return {"process": os.getpid()}


def versions() -> dict[str, str]:
    """What decides that two machines compute the same, as far as software does."""
    import torch

    return {"weightloom": weightloom.__version__, "torch": str(torch.__version__)}


def call_job(name: str, payload: Payload) -> dict[str, Any]:
    """Call the job ``name`` and answer in plain data: its ``answer``, or what it raised as ``failure``."""
    try:
        answer = _find(name)(payload, lambda _: None)
    except Exception as error:
        return {"failure": _failure(error)}
    return {"answer": answer}


def _find(name: str) -> Job:
    module = name.partition(":")[0]
    if not module.startswith("weightloom."):
        raise InputError(f"{name} is no job of this package")
    importlib.import_module(module)
    return jobs.get(name)


def _failure(error: Exception) -> dict[str, Any]:
    system = [error.errno, error.strerror, error.filename] if isinstance(error, OSError) else None
    return {
        "type": type(error).__name__,
        "text": str(error),
        "system": system,
        "trace": traceback.format_exc(),
    }


# ------------------------------------------------------------------------------------ where it was asked for


def answer_of(said: dict[str, Any]) -> Any:
    """What :func:`call_job` found; raises what the job raised.

    Example:
        >>> answer_of(call_job("weightloom.engines.base:no_job", {}))
        Traceback (most recent call last):
        ...
        weightloom.errors.UnknownNameError: unknown job 'weightloom.engines.base:no_job'
    """
    if "failure" in said:
        raise _error(said["failure"])
    return said["answer"]


def _error(failure: dict[str, Any]) -> Exception:
    """The exception again, of the same type where that is in our family or says what the disk did."""
    name, text = failure["type"], failure["text"]
    error: Exception
    kind = getattr(errors, name, None) or getattr(sqlite3, name, None)
    if failure["system"] is not None:
        error = OSError(*failure["system"])
    elif isinstance(kind, type) and issubclass(kind, WeightloomError | sqlite3.Error):
        error = kind.__new__(kind)  # its sentence is made already
        error.args = (text,)
    elif name == "MemoryError":
        error = MemoryError(text)
    else:
        error = RuntimeError(f"{name}: {text}")
    error.add_note(f"In a worker:\n{failure['trace']}")
    return error


def gives_up(what: str) -> WeightloomError:
    """A job that ended its worker every time."""
    return WeightloomError(
        f"{what} ended its worker {TRIES} times; the machine may have too little memory for it"
    )
