"""Not a test: a process whose children write for ever until they are killed (see test_atomic.py).

Each line on stdin, ``SECONDS``, starts one child and kills it after that time with SIGKILL.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch

from weightloom.io import atomic_folder, save_tensors


def write_for_ever(folder: Path, start: int) -> None:
    for round_ in range(start, 1 << 30):
        numbers = {"a": torch.full((100_000,), float(round_)), "b": torch.full((7,), float(round_))}
        save_tensors(folder / "one.safetensors", numbers)
        with atomic_folder(folder / "model", overwrite=True) as place:
            save_tensors(place / "model.safetensors", numbers)
            (place / "config.json").write_text(str(round_))


if __name__ == "__main__":
    for number, line in enumerate(sys.stdin):
        child = os.fork()
        if child == 0:
            write_for_ever(Path(sys.argv[1]), 1 + number * 10_000)
        time.sleep(float(line))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        print("dead", flush=True)
