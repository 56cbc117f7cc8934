"""Commands in processes of their own, that are sent signals. Not a test.

A process is started so that it hears an interrupt even where this one does not: a suite that runs in the
background of a shell without job control ignores it, and so would every process that it starts. Whatever
happens, all of its group is gone at the end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 120.0
"""Seconds for anything on a crowded machine; no test waits without an end, and none asserts by it."""


class Running:
    """``with Running("info", folder=place) as run:`` a command under way, with its own temporary folder."""

    def __init__(self, *arguments: object, folder: Path, env: dict[str, str] | None = None) -> None:
        self.temporary = folder / "temporary"
        self.temporary.mkdir(parents=True, exist_ok=True)
        own = {"TMPDIR": str(self.temporary), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
        # What has a handler here has none in what is started; what is ignored here would be ignored there.
        before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "weightloom.cli", *map(str, arguments)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                text=True, cwd=folder, env=os.environ | own | (env or {}), start_new_session=True,
            )  # fmt: skip
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        self.out = self.err = ""
        self.seconds = 0.0
        """From the last signal to the end."""

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in members(self.process.pid):
            try:
                os.kill(process, signal.SIGKILL)
            except OSError:
                continue
        self.process.kill()
        self.process.communicate()

    @property
    def code(self) -> int:
        return self.process.returncode

    def until(self, ready: Any) -> bool:
        """Wait for ``ready()``; False where the process ended, or all patience did, before."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self.process.poll() is None:
            if ready():
                return True
            time.sleep(0.002)
        return False

    def until_watched(self) -> bool:
        """Wait until interrupts are watched for: there is a second thread."""
        return self.until(lambda: status(self.process.pid, "Threads") > 1)

    def signal(self, number: int = signal.SIGINT, *, group: bool = True) -> None:
        """What a terminal does: every process of the group hears it."""
        try:
            (os.killpg if group else os.kill)(self.process.pid, number)
        except ProcessLookupError:
            return

    def end(self) -> Running:
        """Wait for its end, and for that of its pipes: a process that is left holds them."""
        begun = time.monotonic()
        self.out, self.err = self.process.communicate(timeout=PATIENCE)
        self.seconds = time.monotonic() - begun
        return self

    def left(self) -> list[str]:
        """What there is that should not be: processes of its session, and files in its temporary folder."""
        end = time.monotonic() + 10  # a process that was killed a moment ago is still in the list
        while members(self.process.pid) and time.monotonic() < end:
            time.sleep(0.01)
        found = [f"process {pid}: {command_of(pid)}" for pid in members(self.process.pid)]
        return found + [str(path.relative_to(self.temporary)) for path in sorted(self.temporary.rglob("*"))]


def members(session: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] not in "ZX":
                found.append(int(entry.name))
    return found


def lives(process: int) -> bool:
    """Whether it is there and not dead; whoever inherited it may not have looked yet."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def below(root: int) -> list[int]:
    """Processes that ``root`` has started, in sessions of their own too."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    known, added = {root}, True
    while added:
        more = {process for process, parent in parents.items() if parent in known} - known
        known, added = known | more, bool(more)
    return sorted(known - {root})


def command_of(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
    except OSError:
        return "gone"


def status(process: int, field: str) -> int:
    """A number of a process's status; 0 where there is none."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)


def litter(folder: Path) -> Sequence[str]:
    """Temporary names of ours anywhere below ``folder``."""
    return [str(path) for path in folder.rglob("*") if ".tmp-" in path.name or ".old-" in path.name]
