"""What commands say of a folder of pictures: what was read, what was not, and what stands in it twice.

Knows no command.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightloom.tasks import Task

_SHOWN = 5  # names of files in one line; --json has more


def data_report(task: Task | None) -> dict[str, Any] | None:
    """:meth:`FolderTask.report` of a folder, None for any other task."""
    from weightloom.tasks import FolderTask

    return task.report() if isinstance(task, FolderTask) else None


def data_counts(report: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The numbers of a report without the names of pictures, for a file that may be given away."""
    if report is None:
        return None
    repeated = {name: found["pictures"] for name, found in report["repeated"].items()}
    passed = {
        name: sum(value.values()) if isinstance(value, dict) else value
        for name, value in report["passed_over"].items()
    }
    kept = {name: report[name] for name in ("pictures", "parts", "grey", "ranges")}
    return {**kept, "passed_over": passed, "broken": len(report["broken"]), "repeated": repeated}


def data_facts(report: Mapping[str, Any] | None) -> list[tuple[str, Any]]:
    """A report for people, one line for each thing that there is."""
    if report is None:
        return []
    count, parts = report["pictures"], report["parts"]
    divided = f", as its folders {parts['train']} and {parts['test']} say" if parts else ""
    broken = [f"{one['file']} ({one['reason']})" for one in report["broken"]]
    repeated = report["repeated"]
    return [
        (
            "pictures",
            f"{count['train']:,} to learn from, {count['test']:,} to measure on{divided}"
            if count["train"]
            else f"{count['test']:,} to measure on, all that there are",
        ),
        ("from sub-folders", _counted(report["nested"])),
        ("passed over", passed_over_text(report["passed_over"])),
        (
            "left out",
            f"{len(broken):,} that cannot be read: {_first(broken, len(broken))}" if broken else None,
        ),
        ("in both parts", _groups(repeated["in_train_and_test"])),
        ("in two classes", _groups(repeated["in_two_classes"])),
        ("black and white", _ranges(report["ranges"])),
    ]


def passed_over_text(passed: Mapping[str, Any]) -> str | None:
    """What was not read of a folder, in one line.

    Example:
        >>> passed_over_text({"suffixes": {".txt": 3}, "system": {"@eaDir": 1}, "hidden": 2})
        '3 .txt, 1 @eaDir, 2 hidden'
    """
    texts = [f"{count:,} {name}" for name, count in passed.get("suffixes", {}).items()]
    texts += [f"{count:,} {name}" for name, count in passed.get("system", {}).items()]
    texts += [f"{count:,} in folder {name}" for name, count in passed.get("folders", {}).items()]
    for name, words in (
        ("hidden", "hidden"),
        ("beside", "beside the folders of the classes"),
        ("not_files", "links that lead nowhere, or no files"),
    ):
        if passed.get(name):
            texts.append(f"{passed[name]:,} {words}")
    return ", ".join(texts) or None


def _counted(counts: Mapping[str, int]) -> str | None:
    return ", ".join(f"{count:,} of {name}" for name, count in counts.items()) or None


def _first(names: Sequence[str], count: int) -> str:
    shown = "; ".join(names[:_SHOWN])
    return f"{shown}; and {count - _SHOWN:,} more" if count > _SHOWN else shown


def _groups(found: Mapping[str, Any]) -> str | None:
    groups = [" = ".join(files) for files in found["files"]]
    count = found["pictures"]
    return f"{count:,} that networks cannot tell apart: {_first(groups, count)}" if count else None


def _ranges(ranges: Mapping[str, Sequence[float]]) -> str | None:
    words = {"sixteen": "16 bits", "integers": "whole numbers", "floats": "floating-point numbers"}
    texts = [f"{low:g} and {high:g} ({words[kind]})" for kind, (low, high) in ranges.items()]
    return ", ".join(texts) or None
