"""Not a test: two or three processes whose system calls are put in one order, by means of tracer.py.

Whoever would have to wait lets the others go on, so that no order hangs and none depends on the clock.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress

from tests.faults import tracer

_SLEEPS = {35, 230}  # nanosleep, clock_nanosleep: SQLite waits for a lock so
_FLOCK = 73

Work = Callable[[], None]


class Process:
    """A child that does ``work`` and is stopped before its calls that look at a disk, or change it."""

    def __init__(self, work: Work) -> None:
        self.calls, self.ended, self.killed = 0, False, False
        ear, mouth = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(ear)
            try:
                tracer.offer()
                work()
                os._exit(0)
            except BaseException:
                os.write(mouth, traceback.format_exc().encode()[-4000:])
                os._exit(1)
        os.close(mouth)
        self._ear, self._entering, self._at = ear, True, False
        os.waitpid(self.pid, 0)
        tracer.follow_calls(self.pid)

    def run(self, last: int | None = None) -> bool:
        """Go on to the call number ``last``, to the end, or to where another process is waited for.

        Returns:
            Whether it got any further.
        """
        moved = False
        while not self.ended and (last is None or self.calls < last):
            if self._at and self._would_wait():
                return moved
            slept = self._at and tracer.number_of(self.pid) in _SLEEPS
            if slept and moved:
                return True
            moved = True
            self._step()
        return moved

    def _step(self) -> None:
        self._at = False
        while not self._at:
            stopped = tracer.go_on(self.pid)
            if not stopped:
                self.ended = True
                return
            if self._entering and (
                tracer.number_of(self.pid) in _SLEEPS or tracer.looks(self.pid) or tracer.touches(self.pid)
            ):
                self._at = True
                self.calls += 1
            self._entering = not self._entering

    def _would_wait(self) -> bool:
        """Whether the call is one for a lock that another process has."""
        number, descriptor, operation = tracer.call_of(self.pid)
        if number != _FLOCK or operation != fcntl.LOCK_EX:
            return False
        same = os.open(f"/proc/{self.pid}/fd/{descriptor}", os.O_RDONLY)
        try:
            fcntl.flock(same, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(same)
        return False

    def kill(self) -> None:
        if not self.ended:
            os.kill(self.pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
        self.ended = self.killed = True

    def error(self) -> str:
        """The traceback that it ended with, if it did."""
        with open(self._ear) as ear:
            return " | ".join(ear.read().split("\n"))


def cross(works: Sequence[Work], stops: Sequence[int], *, kill: bool = False) -> str:
    """Run each of ``works`` up to its stop, in this order, and then each to its end, in this order.

    With ``kill`` the first one is killed at its stop, and the last one runs to its end before the second goes
    on.

    Returns:
        ``done A B``, how many calls each made, or what went wrong.
    """
    processes = [Process(work) for work in works]
    try:
        for process, stop in zip(processes, stops, strict=False):
            process.run(stop)
            if kill and process is processes[0]:
                process.kill()
        queue = [processes[0], *reversed(processes[1:])]
        while not all(process.ended for process in queue):
            moved = [process.run() for process in queue]
            if not any(moved):
                return "error they wait for each other"
    finally:
        for process in processes:
            process.kill()
    errors = [process.error() for process in processes]
    if any(errors):
        return "error " + " || ".join(error for error in errors if error)
    return "done " + " ".join(str(process.calls) for process in processes)


def main_of(works: Sequence[Work], instant: str) -> None:
    """What writers.py answers to ``cross:M:N`` and ``cross-kill:M:N``."""
    kind, *stops = instant.split(":")
    print(cross(works, [int(stop) for stop in stops], kill=kind == "cross-kill"), flush=True)
    sys.stdout.flush()
