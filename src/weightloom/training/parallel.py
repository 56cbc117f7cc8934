"""Several processes on one training: who they are, which part of a batch is whose, what they tell the others.

``torchrun`` starts the processes and says who they are. All do the same work in step, except for their parts
of a batch; only the first one writes to the folder of the training, the others to copies that are thrown
away. Knows nothing of losses or models.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch import distributed as dist

from weightloom.errors import SpecError
from weightloom.io import temporary_folder, write_bytes

_PATIENCE = timedelta(hours=2)
"""How long a process waits for the others: the first one may be writing."""


@dataclass(frozen=True)
class Part:
    """One of ``count`` parts of a batch.

    Example:
        >>> [list(Part(index, 3).of(7)) for index in range(3)]
        [[0, 1], [2, 3], [4, 5, 6]]
        >>> Part(2, 3).share(7)
        0.42857142857142855
    """

    index: int = 0
    count: int = 1

    def of(self, items: int) -> range:
        """Which of a batch's items are in it."""
        return range(items * self.index // self.count, items * (self.index + 1) // self.count)

    def rows(self, items: int) -> slice:
        """:meth:`of`, to index a tensor with."""
        own = self.of(items)
        return slice(own.start, own.stop)

    def share(self, items: int) -> float:
        """The share of the items that are in it: what a mean over them counts in the mean over all."""
        return len(self.of(items)) / items


WHOLE = Part()


@runtime_checkable
class Divisible(Protocol):
    """An objective whose batch can be divided.

    Every part draws what the whole would have drawn, and computes its own items only. The losses of all parts
    add up to that of the whole, and so do the numbers.
    """

    @property
    def items(self) -> int:
        """How many items a batch has; 1 for one that cannot be divided."""
        ...

    def __call__(self, step: int, part: Part = WHOLE) -> tuple[Tensor, dict[str, float]]: ...


def check_divisible(what: str, objective: object, parts: int) -> None:
    """Raise :class:`SpecError` unless a batch of ``objective`` can be divided into so many parts.

    Example:
        >>> check_divisible("prior", print, 2)
        Traceback (most recent call last):
        ...
        weightloom.errors.SpecError: prior: its batches cannot be divided; ...
    """
    if parts == 1:
        return
    items = objective.items if isinstance(objective, Divisible) else 1
    if items == 1:
        raise SpecError(
            f"{what}: its batches cannot be divided; train it in one process, without accumulation"
        )
    if items < parts:
        raise SpecError(
            f"{what}: a batch of {items} cannot be divided into {parts} parts (processes times accumulation)"
        )


# ------------------------------------------------------------------------------------ processes


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def started() -> int:
    """How many processes ``torchrun`` has started, joined or not."""
    said = os.environ.get("WORLD_SIZE", "1")
    return int(said) if said.isdecimal() else 1


def rank() -> int:
    """Which of them this one is; 0 is the one that writes."""
    return dist.get_rank() if count() > 1 else 0


def gather(value: Any) -> list[Any]:
    """What every process gives, in their order: plain data, which travels as JSON."""
    if count() == 1:
        return [value]
    return [json.loads(_from(source, json.dumps(value).encode())) for source in range(count())]


def from_first(value: Any) -> Any:
    """What the first process gives: plain data, which travels as JSON."""
    return value if count() == 1 else json.loads(_from(0, json.dumps(value).encode()))


def _from(source: int, own: bytes) -> bytes:
    """The bytes of one process, for all. torch's own way to hand objects over would pickle them."""
    size = torch.tensor(len(own))
    dist.broadcast(size, src=source)
    content = torch.zeros(int(size), dtype=torch.uint8)
    if dist.get_rank() == source:
        content = torch.frombuffer(bytearray(own), dtype=torch.uint8) if own else content
    dist.broadcast(content, src=source)
    return content.numpy().tobytes()


def copy_from_first(tensors: Iterator[Tensor]) -> None:
    """Write the first process's numbers into everybody's tensors, which are alike."""
    if count() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def added_up(bucket: Any) -> torch.futures.Future[Tensor]:
    """The sum of all processes' gradients, for a data-parallel module, which would take their mean.

    A loss that is scaled to make up for it would meet the objectives' own bounds on gradients differently.
    """
    added = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
    return added.then(lambda done: done.value()[0])


@contextmanager
def joined() -> Iterator[None]:
    """Join the other processes where ``torchrun`` has started several; alone, nothing happens.

    Example:
        >>> with joined():
        ...     count(), rank()
        (1, 0)
    """
    if started() == 1 or not dist.is_available() or dist.is_initialized():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def own_folder(out: Path) -> Iterator[Path]:
    """Where this process writes: ``out`` is the first one's; the others have copies as long as this lasts.

    The copies hold what finished stages have left. The state of a stage that is under way is not among it:
    the loop hands that on by itself.
    """
    if count() == 1:
        yield out
        return
    names = from_first(_left_by_stages(out) if rank() == 0 else [])
    with temporary_folder() as copy:
        for name in names:
            content = _from(0, (out / name).read_bytes() if rank() == 0 else b"")
            if rank() > 0:
                write_bytes(copy / name, content)
        yield out if rank() == 0 else copy


def _left_by_stages(out: Path) -> list[str]:
    found = []
    for folder in sorted(out.glob("work*")):
        for path in sorted(folder.rglob("*")):
            mine = path.name.startswith("state") or path.name == "log.jsonl"
            if path.is_file() and not path.is_symlink() and not mine:
                found.append(path.relative_to(out).as_posix())
    return found
