"""What a command shows: results on stdout, as tables for people or as one JSON object; progress on stderr.

Knows no command.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from weightloom.errors import UNSHOWABLE, printable

Progress = Callable[[str, int, int], None]
"""Called with what is being done, steps done and steps in all."""

_QUIET_SECONDS = 10.0
_PIPE_WIDTH = 240


def results() -> Console:
    """Where tables for people go; in a pipe or a file no line is folded."""
    console = Console(file=sys.stdout, highlight=False)
    return console if console.is_terminal else Console(file=sys.stdout, highlight=False, width=_PIPE_WIDTH)


def notes() -> Console:
    """Where progress and remarks go."""
    return Console(file=sys.stderr, highlight=False)


def shown(value: Any, style: str = "") -> Text:
    """A value as text that can be shown; what a terminal would obey, or no output takes, is spelt out."""
    return Text(printable(str(value)), style=style)


_noted: set[str] = set()


def note(text: str) -> None:
    """One remark on stderr; what a command has said already it does not say again."""
    if text not in _noted:
        _noted.add(text)
        notes().print(shown(text), soft_wrap=True)


def nothing_noted() -> None:
    """A command begins."""
    _noted.clear()


def say(text: str = "", style: str = "") -> None:
    """One line of a result for people; never read as markup."""
    results().print(shown(text, style), soft_wrap=True)


def emit(value: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    from weightloom.io import dump_json

    # JSON escapes most of what a terminal would obey by itself; the rest is inside strings and can be too.
    write_text(UNSHOWABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", dump_json(_plain(value))) + "\n")


def write_text(text: str) -> None:
    """Text on stdout, whatever its encoding."""
    sys.stdout.write(text.encode("utf-8", "replace").decode(sys.stdout.encoding or "utf-8", "replace"))


def _plain(value: Any) -> Any:
    """``value`` with floats of seven digits (what a float32 knows, and no more), and text that is UTF-8."""
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.7g}")
    if isinstance(value, (str, PurePath)):
        text = str(value)
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:  # the name of a file that is not
            text = printable(text)
        return text
    if isinstance(value, dict):
        return {_plain(key): _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, numbers: Sequence[str] = ()) -> None:
    """A table for people; columns in ``numbers`` are right-aligned."""
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        grid.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(shown("–" if cell is None else cell) for cell in row))
    _print(grid)


def facts(pairs: Sequence[tuple[str, Any]]) -> None:
    """Names with values, one a line; pairs without a value are left out."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        if value is not None:
            grid.add_row(shown(name), shown(value))
    _print(grid)


def _print(grid: Table) -> None:
    console = results()
    with console.capture() as captured:
        console.print(grid)
    # Without the blanks that fill a table's last column.
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def percent(share: float | None) -> str | None:
    """A share as people read it.

    Example:
        >>> percent(0.8417)
        '84.2 %'
    """
    return None if share is None else f"{100 * share:.1f} %"


def measured(share: float | None, images: int | None) -> str | None:
    """An accuracy with its 95 % interval, in per cent: a few images say little, and the reader is told.

    Example:
        >>> measured(1.0, 3), measured(0.8417, 1000)
        ('100.0 % (43.9–100.0)', '84.2 % (81.8–86.3)')
    """
    text = percent(share)
    if share is None or not images:
        return text
    from weightloom.fitting.interval import accuracy_interval

    low, high = accuracy_interval(share, images)
    return f"{text} ({100 * low:.1f}–{100 * high:.1f})"


def bar(share: float | None, width: int = 30) -> str:
    """A share as a bar of text.

    Example:
        >>> bar(0.5, width=4)
        '██'
    """
    eighths = round(max(0.0, min(1.0, share or 0.0)) * width * 8)
    return "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8]


def seconds_text(seconds: float) -> str:
    """A time as people read it.

    Example:
        >>> seconds_text(0.0312), seconds_text(75)
        ('31 ms', '1 min 15 s')
    """
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def progress() -> Iterator[Progress]:
    """A bar with the time left on a terminal; elsewhere one line every ten seconds."""
    console = notes()
    if not console.is_terminal:
        last = time.monotonic()

        def line(what: str, done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last >= _QUIET_SECONDS and done < total:
                last = time.monotonic()
                note(f"{what}: {done:,} of {total:,} ({100 * done / max(1, total):.0f} %)")

        yield line
        return
    from rich.progress import (
        BarColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, transient=True, speed_estimate_period=120) as bars:
        running = bars.add_task("starting", total=None)
        before = (0, -1)

        def move(what: str, done: int, total: int) -> None:
            nonlocal before
            if done < before[0] or total != before[1]:  # another stage: its speed is its own
                bars.reset(running, total=total)
            before = (done, total)
            bars.update(running, description=what, completed=done)

        yield move


@contextmanager
def working(what: str) -> Iterator[None]:
    """A spinner on a terminal while something short is done; silence elsewhere."""
    console = notes()
    if not console.is_terminal:
        yield
        return
    with console.status(Text(what)):
        yield
