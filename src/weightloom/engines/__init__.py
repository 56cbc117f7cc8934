"""Where independent jobs run: in processes of this machine, or on a Ray cluster. The jobs are the same.

Knows nothing of what a job does: zoos and leaderboards bring their own.
"""

from __future__ import annotations

import sys

from weightloom.engines.base import Engine, Payload, engines, job, one_thread
from weightloom.registry import discover

discover(sys.modules[__name__])

__all__ = ["Engine", "Payload", "engines", "job", "one_thread", "open_engine"]


def open_engine(name: str = "local", *, workers: int = 1, address: str | None = None) -> Engine:
    """The engine called ``name``, to be used in a ``with`` statement.

    Args:
        name: ``local`` or ``ray``.
        workers: jobs at a time; a cluster with an address decides that itself.
        address: of a Ray cluster.

    Raises:
        UnknownNameError: no such engine.
        InputError: options that it does not have, or an address where nothing answers.
        DataUnavailableError: its library is not installed.

    Example:
        >>> from weightloom.engines.base import about_worker
        >>> with open_engine("local") as engine:
        ...     [(number, sorted(found)) for number, found in engine.map(about_worker, [{}])]
        [(0, ['process'])]
    """
    return engines.get(name)(workers=workers, address=address)
