"""How a command fails: one sentence on stderr and an exit code, never a traceback.

Exit 0: done. 1: the work failed. 2: bad input. ``WEIGHTLOOM_DEBUG=1`` lets every exception through.
Knows no command.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from typer.core import TyperGroup

from weightloom.cli import interrupts
from weightloom.cli.output import nothing_noted
from weightloom.errors import BrokenPicturesError, WeightloomError, printable
from weightloom.unfinished import nothing_yet

# What the caller can mend by naming another place; anything else (a full disk) is a failure.
_WRONG_PLACE = {
    errno.EACCES, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR,
    errno.ENOTEMPTY, errno.EPERM, errno.EROFS,
}  # fmt: skip

_LONGEST = 1000
"""Characters of a sentence: what was typed may be 100 kB long, and is shown in part."""


class Interrupted(WeightloomError):
    """The user pressed Ctrl-C; the message says what is left and how to go on."""

    def __init__(self, rest: str | None = None) -> None:
        super().__init__(f"interrupted; {interrupts.rest() if rest is None else rest}")


@contextmanager
def interrupted(rest: str, where: Path | None = None) -> Iterator[None]:
    """An interrupt inside the block is told with ``rest``: what is left, and how to go on.

    With ``where`` it is so only if there is something at this path by then.

    Raises:
        Interrupted: there was one, and it came as ``KeyboardInterrupt``.
    """
    with interrupts.Rest(rest, where):
        try:
            yield
        except KeyboardInterrupt:
            if interrupts.debugging():
                raise
            raise Interrupted from None


def explain(error: BaseException) -> tuple[str, int]:
    """The sentence and the exit code for ``error``.

    Example:
        >>> from weightloom.errors import InputError
        >>> explain(InputError("no such task"))
        ('no such task', 2)
        >>> explain(OSError(errno.ENOSPC, "No space left on device", "zoo/a.safetensors"))
        ('zoo/a.safetensors: no space left on device', 1)
    """
    if isinstance(error, WeightloomError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return str(Interrupted()), 1
    if isinstance(error, OSError):
        why = (error.strerror or str(error) or type(error).__name__).rstrip(".")
        why = why[:1].lower() + why[1:]
        where = f"{error.filename}: " if error.filename else ""
        return where + why, 2 if error.errno in _WRONG_PLACE else 1
    if isinstance(error, sqlite3.OperationalError):
        return f"the zoo's index cannot be used ({error})", 1
    if isinstance(error, sqlite3.DatabaseError):
        return f"the zoo's index is broken ({error})", 2
    if isinstance(error, MemoryError) or "not enough memory" in str(error):
        return "there is not enough memory for this; ask for fewer samples or a smaller network", 1
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # the command line could not be read
        context = getattr(error, "ctx", None)
        hint = f" (see `{context.command_path} --help`)" if context is not None else ""
        message = str(error.format_message()).replace("\n", " ").strip().rstrip(".")
        return (message[:1].lower() + message[1:] or "nothing to do") + hint, int(error.exit_code)
    text = (str(error).splitlines() or [""])[0][:300]
    return (
        f"something went wrong inside Weightloom ({type(error).__name__}: {text}); "
        "set WEIGHTLOOM_DEBUG=1 to see where",
        1,
    )


class SafeGroup(TyperGroup):
    """The root of the command line: turns whatever a command raises into a sentence and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; typer must not see an interrupt, it has an exit code of its own for that."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            if interrupts.debugging():
                raise
            raise Interrupted from error

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run and leave the process with the exit code."""

        def run() -> Any:
            return super(SafeGroup, self).main(
                args, prog_name, complete_var, False, windows_expand_args, **extra
            )

        nothing_yet()
        nothing_noted()
        if not standalone_mode:
            return run()
        try:
            code = run()
            sys.stdout.flush()
        except SystemExit:
            raise
        except BrokenPipeError:  # the reader (`| head`) has gone: nobody to tell
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the interpreter flushes it when it leaves
            sys.exit(1)
        except BaseException as error:
            if interrupts.debugging():
                raise
            interrupts.leave()
            sentence, code = explain(error)
            if type(error).__name__ == "NoArgsIsHelpError":  # the help has been shown, which says it all
                sys.exit(code)
            # Written plainly: what a user typed may look like markup, hold control codes or not be encodable.
            sentence = printable(sentence)
            if len(sentence) > _LONGEST and not isinstance(error, BrokenPicturesError):
                sentence = f"{sentence[: _LONGEST // 2]} ... {sentence[-_LONGEST // 2 :]}"
            print("weightloom: " + " ".join(sentence.split("\n")), file=sys.stderr)
            sys.exit(code)
        sys.exit(code if isinstance(code, int) else 0)
