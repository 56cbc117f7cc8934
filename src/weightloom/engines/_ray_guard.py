"""Not imported: a process that ends a Ray of this machine's own when the process that started it has gone.

``python -I -S _ray_guard.py DRIVER PACKAGE FOLDER``: while its standard input is open, the processes that the
process DRIVER has started for Ray, whose package is in PACKAGE, are looked at every now and then. At the end
of the input, whether DRIVER closed it or was killed, those that are still there are killed, and FOLDER is
removed. Ray itself leaves two agents behind a driver that is killed, for good. Needs nothing but the standard
library and a system that has ``/proc``.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

EVERY = 0.5
"""Seconds from one look to the next."""

Known = dict[int, str]
"""Processes by number, each with the moment it was started at: a number may be given to another one."""


def facts(process: int) -> tuple[int, str, bytes] | None:
    """Its parent, its start, and its command line; None where it has gone."""
    with suppress(OSError, ValueError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        if fields[0] not in "ZX":
            return int(fields[1]), fields[19], Path(f"/proc/{process}/cmdline").read_bytes()
    return None


def look(driver: int, package: bytes, known: Known) -> None:
    """Add to ``known`` what is Ray's below ``driver`` and below what is known."""
    if not os.path.isdir("/proc"):
        return
    found = {int(name): own for name in os.listdir("/proc") if name.isdecimal() and (own := facts(int(name)))}
    below, grown = {driver, *known}, True
    while grown:
        more = {number for number, own in found.items() if own[0] in below} - below
        below, grown = below | more, bool(more)
    for number in below - {driver, os.getpid()}:
        if number in found and (found[number][2].startswith(b"ray::") or package in found[number][2]):
            known[number] = found[number][1]


def end(known: Known) -> None:
    """Kill what is still there, and wait until it has gone."""
    for _ in range(100):
        left = [number for number, start in known.items() if (own := facts(number)) and own[1] == start]
        if not left:
            return
        for number in left:
            with suppress(OSError):
                os.kill(number, signal.SIGKILL)
        time.sleep(0.05)


def main(driver: int, package: bytes, folder: str) -> None:
    """See the top of this file."""
    known: Known = {}
    while not (select.select([sys.stdin], [], [], EVERY)[0] and not os.read(0, 1)):
        look(driver, package, known)
    look(driver, package, known)  # a driver that is still there has ended Ray itself, as far as that goes
    end(known)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # it ends with the driver, and not before
        signal.signal(number, signal.SIG_IGN)
    main(int(sys.argv[1]), os.fsencode(sys.argv[2]), sys.argv[3])
