"""What a request would take in memory and seconds, known before anything is allocated.

Counts and measures the machine; knows no method and no weights.

Shapes: M samples, P parameters of a network.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from weightloom.architectures import ArchitectureSpec
from weightloom.errors import UnsupportedRequestError

COPIES = 4
"""Copies of every sample that a request holds at its peak: raw, measured, stacked, and being unflattened."""

INDEX_BYTES = 16
"""Bytes for each value of one network, once: the layout's index of values, and its making."""

TRAINING_COPIES = 8
"""Copies of a network in training: weights, also times their rate, gradients, two moments, a snapshot."""

SHARE = 0.8
"""Of the memory that is free, what a request may take: the rest is for pictures and activations."""

_SMALL = 50_000_000
"""Parameters below which the machine is not asked: 0.2 GB."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a request takes at least.

    Attributes:
        parameters: P of one network.
        bytes: memory at its peak.
        seconds: time to draw and copy every value once on this machine; a generator only adds to it.
    """

    parameters: int
    bytes: int
    seconds: float


def cost_of(spec: ArchitectureSpec, samples: int = 1, *, training: bool = False) -> Cost:
    """The least that ``samples`` networks of a resolved spec take; nothing of their size is allocated.

    Args:
        spec: resolved architecture.
        samples: M networks generated together.
        training: one network is then trained.

    Example:
        >>> from weightloom.architectures import parse_architecture
        >>> spec = parse_architecture("cnn(depth=8,width=4096)").resolve(classes=10, input=(3, 16, 16))
        >>> cost = cost_of(spec)
        >>> cost.parameters, round(cost.bytes / 1e9)
        (1057304586, 34)
    """
    count = spec.num_parameters()
    copies = max(COPIES * samples, TRAINING_COPIES if training else 0)
    return Cost(
        parameters=count,
        bytes=count * (4 * copies + INDEX_BYTES),
        seconds=count * samples * _seconds_a_value(),
    )


def check_cost(spec: ArchitectureSpec, samples: int = 1, *, training: bool = False) -> None:
    """Raise :class:`UnsupportedRequestError`, saying what it would take, where the memory is not there."""
    if spec.num_parameters() * samples < _SMALL:
        return
    free = available_memory()
    cost = cost_of(spec, samples, training=training)
    if free is None or cost.bytes <= SHARE * free:
        return
    many = f"{samples} networks of {cost.parameters:,} parameters each" if samples > 1 else (
        f"a network of {cost.parameters:,} parameters"
    )  # fmt: skip
    raise UnsupportedRequestError(
        f"{many} would take about {cost.bytes / 1e9:,.1f} GB of memory and at least {cost.seconds:,.0f} "
        f"seconds, but this machine has {free / 1e9:,.1f} GB free; ask for a smaller network"
        + (" or fewer samples" if samples > 1 else "")
    )


def available_memory() -> int | None:
    """Bytes that this process can still have: the machine's, or its control group's where that is less.

    None where the system does not say.
    """
    found = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(1024 * int(line.split()[1]))
    except (OSError, ValueError):
        pass
    # Version 2 and version 1 of control groups; a limit of "max", or near 2**63, is none.
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            found.append(max(0, int(Path(limit).read_text()) - int(Path(used).read_text())))
        except (OSError, ValueError):
            continue
    return min(found) if found else None


@cache
def _seconds_a_value() -> float:
    """Seconds to draw and copy one value, measured once on a quarter of a million."""
    stream = torch.Generator().manual_seed(0)
    start = time.perf_counter()
    torch.empty(2**18).normal_(generator=stream).clone()
    return (time.perf_counter() - start) / 2**18
