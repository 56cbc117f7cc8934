"""Another program, run to its end: it ends with this process, with an error, and when its time is over.

Knows no program.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from weightloom.unfinished import Undoing, WholeStep


def run_program(
    command: Sequence[str], folder: str | Path, *, said: bytes = b"", seconds: float = 900
) -> subprocess.CompletedProcess[bytes]:
    """Run ``command`` in ``folder`` in a group of its own, with messages in English.

    Args:
        command: the program and its arguments.
        folder: where it works.
        said: what it reads from its standard input.
        seconds: it is killed, and what it has started, when these are over.

    Raises:
        OSError: it cannot be started.
        subprocess.TimeoutExpired: the time was over.

    Example:
        >>> run_program(["cat"], ".", said=b"words").stdout
        b'words'
    """
    started: list[subprocess.Popen[bytes]] = []
    with Undoing(partial(_kill, started)):
        try:
            with WholeStep():  # a program that nobody knows of would go on by itself
                started.append(
                    subprocess.Popen(
                        command,
                        cwd=folder,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE,
                        env=os.environ | {"LC_ALL": "C"},
                        start_new_session=True,
                    )
                )
            answered, complaints = started[0].communicate(said, timeout=seconds)
        finally:
            _kill(started)
    return subprocess.CompletedProcess(command, started[0].returncode, answered, complaints)


def _kill(started: Sequence[subprocess.Popen[bytes]]) -> None:
    """End a program that has not ended, and what it has started: they are a group of their own."""
    for program in started:
        if program.returncode is None:
            with contextlib.suppress(OSError):
                os.killpg(program.pid, signal.SIGKILL) if hasattr(os, "killpg") else program.kill()
                os.waitpid(program.pid, 0)  # until it is gone it may write
