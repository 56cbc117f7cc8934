"""How large the tests of this folder are, and limits on what a refusal may cost.

``WEIGHTLOOM_FAULTS=full`` (``make faults``) gives the full size; otherwise each file takes seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

FULL = os.environ.get("WEIGHTLOOM_FAULTS") == "full"

Bounded = Callable[..., AbstractContextManager[None]]


Ask = Callable[..., str]


@pytest.fixture(scope="session")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """``ask(folder, kind, version, instant)``: one child of the process in writers.py, and how it ended."""
    script = Path(__file__).with_name("writers.py")
    writer = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path_factory.mktemp("warm"))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert writer.stdin is not None and writer.stdout is not None

    def put(folder: Path, kind: str, version: int, instant: object = "never") -> str:
        assert writer.stdin is not None and writer.stdout is not None
        folder.mkdir(parents=True, exist_ok=True)
        writer.stdin.write(f"{folder}\t{kind}\t{version}\t{instant}\n")
        writer.stdin.flush()
        return writer.stdout.readline().strip()

    with writer:
        yield put
        writer.stdin.close()


@pytest.fixture(scope="session")
def full() -> bool:
    """Whether this is the full size."""
    return FULL


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])  # in KiB
    raise AssertionError(field)


@pytest.fixture
def bounded() -> Bounded:
    """``with bounded():`` fails if what is inside takes 100 ms of this process's time or 50 MB of memory.

    Time is the processor's, but a crowded processor is a slow one: the quick size asks for half a second
    only. Memory is the peak, which Linux lets a process set back.
    """

    @contextmanager
    def inside(seconds: float = 0.1 if FULL else 0.5, mebibytes: int = 50) -> Iterator[None]:
        measured = True
        try:
            Path("/proc/self/clear_refs").write_text("5")
            before = _status("VmHWM")
        except OSError:
            measured = False
        start = time.process_time()
        yield
        spent = time.process_time() - start
        assert spent < seconds, f"it took {1000 * spent:.0f} ms"
        if measured:
            grown = (_status("VmHWM") - before) / 1024
            assert grown < mebibytes, f"it took {grown:.0f} MiB"

    return inside
