"""C compilers of this machine: what they make of a file, whether it answers, and how large it is.

Knows no network.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from weightloom.errors import WeightloomError
from weightloom.io import run_program

COMPILERS = ("cc", "gcc", "clang")
CORTEX = "arm-none-eabi-gcc"
CORTEX_OPTIONS = ("-mcpu=cortex-m4", "-mthumb")


def found_compiler() -> str | None:
    """The first C compiler on the path."""
    return next((name for name in COMPILERS if shutil.which(name)), None)


def build(compiler: str, file: Path, program: Path) -> Path:
    """Compile a file as a program. Raises :class:`WeightloomError` with the compiler's first words."""
    options = ("-std=c99", "-O2", "-DWEIGHTLOOM_MAIN", str(file), "-o", str(program), "-lm")
    _run([compiler, *options], file.parent, "the C file does not compile")
    return program


def answers_of(program: Path, said: bytes) -> bytes:
    """What a program says to what it is told on its standard input."""
    return _run([str(program)], program.parent, "the compiled C file does not run", said)


def footprints(file: Path) -> dict[str, dict[str, int]]:
    """Bytes of flash (code, constants and start values) and RAM (start values and zeros) by compiler.

    By ``-Os -c`` and ``size``, for this machine and, where its compiler is there, for a Cortex-M4; without
    the C library, the stack, the caller's picture and logits. A compiler that fails, or has no ``size``, is
    left out.
    """
    found: dict[str, dict[str, int]] = {}
    own = found_compiler()
    wanted: list[tuple[str, Sequence[str], str]] = [] if own is None else [(own, (), "size")]
    wanted.append((CORTEX, CORTEX_OPTIONS, "arm-none-eabi-size"))
    for compiler, options, measure in wanted:
        if not (shutil.which(compiler) and shutil.which(measure)):
            continue
        made = file.with_name(f"{compiler}.o")
        try:
            _run([compiler, "-std=c99", "-Os", *options, "-c", str(file), "-o", str(made)], file.parent, "")
            said = _run([measure, str(made)], file.parent, "").decode("utf-8", "replace")
        except WeightloomError:
            continue
        numbers = re.findall(r"\d+", said.splitlines()[1])
        text, data, bss = (int(number) for number in numbers[:3])
        found[" ".join([compiler, *options])] = {"flash": text + data, "ram": data + bss}
    return found


def _run(command: Sequence[str], folder: Path, what: str, said: bytes = b"") -> bytes:
    try:
        ended = run_program(command, folder, said=said)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise WeightloomError(f"{what}: {error}") from None
    if ended.returncode:
        told = ended.stderr.decode("utf-8", "replace").strip().splitlines() or [f"code {ended.returncode}"]
        raise WeightloomError(f"{what}: {told[0]}")
    return ended.stdout
