"""How an interrupt ends a command: at any instant, within seconds, with one sentence and exit code 1.

An exception that is raised wherever the program happens to be is not enough for that: libraries swallow it or
make another one of it while they are imported, ``__del__`` and callbacks drop it with a traceback, and a long
call of a library hears of it when it is over. So :func:`watch` starts a thread that hears the signal itself.
It waits until the main thread stands still, between two instructions and outside a :class:`WholeStep`, says
the sentence, removes what is unfinished and ends the process. Whatever this package writes is whole or absent
where the process ends at any instant, by whatever cause.

``select`` alone goes on after an interrupt, with the best so far: see :class:`Raised`.

Imports nothing but what the interpreter has loaded already, and knows no command: while this is imported,
nothing watches yet. Without it, in another program or on Windows, an interrupt is a ``KeyboardInterrupt``.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # what the module signal wraps, without its enums
import _thread
import faulthandler
import os
import sys
import time

from weightloom.unfinished import WholeStep, undo_all, what_was_written

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType, TracebackType
    from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

_STANDS = 0.5
"""Seconds for the main thread to come to a stand; a long call of a library is then left to itself."""
_WHOLE = 2.0
"""Seconds for a :class:`WholeStep` to end."""
_LAST = 4.0
"""Seconds after which the process ends, whatever is still to be undone, or to be said."""

_rests: list[Rest] = []
_raising = 0


class Rest:
    """``with Rest("..."):`` how the sentence ends for an interrupt inside: what is left, how to go on.

    With ``where`` that holds as soon as there is something at this path; before, nothing was written.
    """

    def __init__(self, text: str, where: Any = None) -> None:
        self.text, self.where = text, where if where is None else os.path.abspath(where)

    def __enter__(self) -> Rest:
        _rests.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _rests.pop()


class Raised:
    """``with Raised():`` the first interrupt is a ``KeyboardInterrupt`` for the command to go on with.

    It has :data:`_LAST` seconds; a second interrupt, or the end of that time, ends the process as elsewhere.
    """

    def __enter__(self) -> Raised:
        global _raising
        _raising += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _raising
        _raising -= 1


def rest() -> str:
    """What is left, as the end of a sentence."""
    if not _rests:
        return what_was_written()
    last = _rests[-1]
    return last.text if last.where is None or os.path.lexists(last.where) else "nothing was written"


class _Watcher:
    """One a process: the pipe that signals are heard by, and whether the main thread stands still."""

    def __init__(self) -> None:
        self.hears, self.tells = os.pipe()
        os.set_blocking(self.tells, False)
        self.stands = self.raised = False
        self.ended = _thread.allocate_lock()

    def heard(self, number: int, frame: FrameType | None) -> None:
        """Python's handler, which runs in the main thread between two instructions: it stands still here."""
        if _raising and not self.raised:
            self.raised = True
            raise KeyboardInterrupt
        if WholeStep.depth:
            WholeStep.then = self.stand
        else:
            self.stand()

    def stand(self) -> None:
        self.stands = True
        while True:
            time.sleep(3600)

    def listen(self) -> None:
        """The thread: from the signal to the end of the process. It must not import: the main thread may."""
        self.await_signal()
        # Without Python: whatever holds the interpreter up, the process ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        faulthandler.dump_traceback_later(_LAST, exit=True, file=nowhere)
        self.await_main()
        if self.raised or (_raising and not self.stands):
            _thread.start_new_thread(self.end_later, ())
            self.await_signal()
            self.await_main()
        self.end()

    def await_signal(self) -> None:
        while os.read(self.hears, 1)[0] not in SIGNALS:
            pass

    def await_main(self) -> None:
        """Until the main thread has heard it, or for so long that it will not soon."""
        begun = time.monotonic()
        while not self.stands and not self.raised:
            if time.monotonic() - begun > (_WHOLE if WholeStep.depth else _STANDS):
                return
            time.sleep(0.002)

    def end_later(self) -> None:
        time.sleep(_LAST - _STANDS - 0.5)
        self.end()

    def end(self) -> None:
        """The end of the process, once."""
        self.ended.acquire()
        say()
        undo_all()
        os._exit(1)


def say() -> None:
    """The sentence, in one piece, past every buffer; on a terminal in place of a progress bar."""
    if os.environ.get("RANK", "0") not in ("", "0"):
        return  # one of several processes that do the same: the first one speaks for all
    text = f"weightloom: interrupted; {rest()}\n"
    if sys.stderr is not None and os.isatty(2) and os.environ.get("TERM", "") not in ("", "dumb"):
        text = f"\r\x1b[2K\x1b[?25h{text}"  # clear the line, show the cursor
    try:  # noqa: SIM105 - contextlib is not imported yet
        os.write(2, text.encode("utf-8", "backslashreplace"))
    except OSError:
        pass


def watch() -> None:
    """From here on an interrupt ends the process with a sentence.

    Left alone are signals that the process was started to ignore (``nohup``, a job in the background), and,
    with ``WEIGHTLOOM_DEBUG=1``, all of them.
    """
    if sys.platform == "win32" or debugging():
        return
    usual = (signal.SIG_DFL, signal.default_int_handler)
    wanted = [number for number in SIGNALS if signal.getsignal(number) in usual]
    if not wanted:
        return
    watcher = _Watcher()
    signal.set_wakeup_fd(watcher.tells, warn_on_full_buffer=False)
    _thread.start_new_thread(watcher.listen, ())
    for number in wanted:
        signal.signal(number, watcher.heard)


def debugging() -> bool:
    """Whether every exception is let through."""
    return os.environ.get("WEIGHTLOOM_DEBUG", "") not in ("", "0")


def leave() -> None:
    """The work is done, or its failure is about to be said: signals change nothing any more."""
    for number in SIGNALS:
        watcher = getattr(signal.getsignal(number), "__self__", None)
        if isinstance(watcher, _Watcher):
            signal.signal(number, signal.SIG_IGN)
            watcher.ended.acquire(False)  # nor does one that was heard before: there is one sentence
