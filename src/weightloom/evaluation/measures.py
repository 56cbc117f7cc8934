"""What several measurements share: test images, means over seeds, memory. Knows no generator."""

from __future__ import annotations

import ctypes
import gc
import resource
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightloom.seeding import torch_generator
from weightloom.tasks import Task

TEST_IMAGES = 1000
"""Test images of a task that benchmarks measure on."""

Rows = list[dict[str, Any]]


def test_batch(task: Task, limit: int = TEST_IMAGES) -> tuple[Tensor, Tensor]:
    """Up to ``limit`` test images (B, channels, height, width) of a task and their labels (B,).

    The same for every method: which they are follows from the task alone.
    """
    data = task.data("test")
    order = torch.randperm(len(data), generator=torch_generator("benchmark", str(task)))
    return data.batch(order[:limit])


def summary(values: Sequence[float]) -> dict[str, float]:
    """Mean and standard deviation.

    Example:
        >>> summary([1.0, 3.0]) == {"mean": 2.0, "sd": 2**0.5, "n": 2}
        True
    """
    return {
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else 0.0,
        "n": len(values),
    }


def over_seeds(rows: Rows, value: Callable[[Rows], float]) -> dict[str, float]:
    """Mean and deviation over seeds of what ``value`` says of the rows of a seed.

    Example:
        >>> rows = [{"seed": 0, "a": 1.0}, {"seed": 0, "a": 3.0}, {"seed": 1, "a": 4.0}]
        >>> over_seeds(rows, lambda group: mean_of(group, "a"))["mean"]
        3.0
    """
    seeds = sorted({row["seed"] for row in rows})
    return summary([value([row for row in rows if row["seed"] == seed]) for seed in seeds])


def mean_of(rows: Rows, name: str) -> float:
    """Mean of one column."""
    return statistics.fmean(row[name] for row in rows)


def peak_mb(*, reset: bool = False) -> float:
    """The most memory that this process has had since the last reset (where the system keeps such a mark).

    With ``reset`` the mark is put down to what is in use now, freed memory given back first: it would hide
    what is asked for next. Elsewhere than on Linux there is only the most since the process began.
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if reset:
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # not every C library has it
        if trim is not None:
            trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
