"""What the scripts that write pages of results share: numbers, tables, marked places. Knows no result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOT_YET = "not measured yet"
Row = Sequence[str]


def pm(found: Mapping[str, float], digits: int = 3, factor: float = 1.0) -> str:
    """``mean ± sd``; the mean alone where there was one value.

    Example:
        >>> pm({"mean": 0.9, "sd": 0.01, "n": 3}, 1, 100)
        '90.0 ± 1.0'
    """
    mean = f"{found['mean'] * factor:,.{digits}f}"
    return f"{mean} ± {found['sd'] * factor:,.{digits}f}" if found.get("n", 1) > 1 else mean


def percent(found: Mapping[str, float]) -> str:
    """An accuracy in per cent."""
    return pm(found, 1, 100)


def markdown(header: Row, rows: Iterable[Row], numbers: int = 1) -> str:
    """A table; columns from the one numbered ``numbers`` on are right-aligned."""
    marks = ["---" if i < numbers else "---:" for i in range(len(header))]
    lines = [header, marks, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


@dataclass(frozen=True)
class Figure:
    """One row of the summary: what was measured, the bar, the result and whether it holds (None: unknown)."""

    table: str
    what: str
    bar: str
    result: str = NOT_YET
    holds: bool | None = None
    remark: str = ""

    @property
    def verdict(self) -> str:
        """In a word."""
        return {True: "holds", False: "**falls short**", None: "–"}[self.holds]


def fill(text: str, mark: str, content: str) -> str:
    r"""``text`` with ``content`` between its two marks; unchanged where it has none.

    Example:
        >>> fill("a <!-- x:start -->old<!-- x:end --> b", "x", "new")
        'a <!-- x:start -->\nnew\n<!-- x:end --> b'
    """
    start, end = f"<!-- {mark}:start -->", f"<!-- {mark}:end -->"
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        return text
    return f"{before}{start}\n{content}\n{end}{after}"
