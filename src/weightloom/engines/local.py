"""The default engine: processes of this machine, one thread each; with one worker, this process itself.

Processes are faster than threads for networks this small. A pool of our own, because the library's gives all
its work up when one worker is killed.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from weightloom.engines.base import TRIES, Engine, Job, Payload, Told, answer_of, call_job, engines, gives_up
from weightloom.engines.base import name_of as named
from weightloom.errors import InputError
from weightloom.unfinished import Undoing, WholeStep
from weightloom.whole import whole_number


@dataclass(eq=False)
class _Worker:
    """A process, our end of the pipe to it, and the number of the job that it is at."""

    process: BaseProcess
    pipe: Connection
    undoing: Undoing
    at: int | None = None


@engines.register("local")
class LocalEngine(Engine):
    """Up to ``workers`` processes, started when there is work for them.

    Raises:
        InputError: fewer than one worker, or an address.
    """

    def __init__(self, *, workers: int = 1, address: str | None = None) -> None:
        if address is not None:
            raise InputError("an address belongs to the engine ray")
        self.workers = whole_number(workers, "workers", 1, 1024)
        self._pool: list[_Worker] = []

    def map(
        self, function: Job, payloads: Sequence[Payload], told: Told = lambda *_: None
    ) -> Iterator[tuple[int, Any]]:
        """See :meth:`Engine.map`. One worker, or one job alone, is done in this process, step by step."""
        if self.workers == 1 or len(payloads) == 1:
            for number, payload in enumerate(payloads):
                yield number, function(payload, partial(told, number))
            return
        waiting, begun = deque(range(len(payloads))), Counter[int]()
        name = named(function)
        finished = False
        try:
            while waiting or any(worker.at is not None for worker in self._pool):
                for worker in self._idle(len(waiting)):
                    number = waiting.popleft()
                    begun[number] += 1
                    if begun[number] > TRIES:
                        raise gives_up(f"job {number + 1} of {len(payloads)}")
                    worker.at = number
                    with suppress(OSError):  # it has died; what it says next is nothing
                        worker.pipe.send((name, payloads[number]))
                busy = {worker.pipe: worker for worker in self._pool if worker.at is not None}
                for pipe in wait(list(busy)):
                    worker = busy[pipe]  # type: ignore[index]
                    number, worker.at = worker.at, None  # type: ignore[assignment]
                    try:
                        said = worker.pipe.recv()
                    except (EOFError, OSError):
                        self._drop(worker)
                        waiting.appendleft(number)
                    else:
                        yield number, answer_of(said)
            finished = True
        finally:
            if not finished:
                self.close()

    def processes(self) -> list[int]:
        """The ids of workers that are at a job."""
        return [worker.process.pid or 0 for worker in self._pool if worker.at is not None]

    def close(self) -> None:
        """End the workers, in the middle of a job too: nothing is kept of a job before its answer."""
        for worker in list(self._pool):
            self._drop(worker)

    def _idle(self, wanted: int) -> list[_Worker]:
        """At most ``wanted`` workers without a job; new ones are started as long as there may be more."""
        idle = [worker for worker in self._pool if worker.at is None]
        while len(idle) < wanted and len(self._pool) < self.workers:
            with WholeStep(), _deaf_to_interrupts():  # one that came meanwhile is heard at its end, in here
                self._pool.append(_start())
                idle.append(self._pool[-1])
        return idle[:wanted]

    def _drop(self, worker: _Worker) -> None:
        self._pool.remove(worker)
        worker.process.kill()
        worker.undoing.forget()
        worker.process.join()
        worker.process.close()
        worker.pipe.close()


def _start() -> _Worker:
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(
        target=_serve, args=(theirs,), daemon=True, name="weightloom-worker"
    )
    process.start()
    theirs.close()  # so that its death is the end of the pipe
    undoing = Undoing(process.kill).__enter__()  # where this process ends too: nobody waits for it
    return _Worker(process, ours, undoing)


def _serve(pipe: Connection) -> None:
    """A worker's life: one thread, and no job after the process that asked for it has gone."""
    import torch

    torch.set_num_threads(1)
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, name="follow-parent", daemon=True).start()
    with suppress(EOFError, OSError):
        while True:
            name, payload = pipe.recv()
            pipe.send(call_job(name, payload))


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes started inside never hear Ctrl-C, which a terminal sends to all; this one hears it after."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # started by the first process otherwise, it would undo what follows
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
