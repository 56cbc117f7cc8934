"""Pictures of evaluations. Knows reports only."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

from weightloom.architectures import ArchitectureSpec
from weightloom.errors import InputError
from weightloom.evaluation.audit import GENERATED, TRAINING, AuditReport
from weightloom.evaluation.selection import Selection
from weightloom.io import write_bytes

SUFFIXES = (".png", ".pdf", ".svg")
_LOOKS: dict[str, tuple[str, str]] = {
    TRAINING: ("#9a9a9a", "o"),
    "noise": ("#b0413e", "v"),
    "averaged": ("#3d5a99", "s"),
    "interpolated": ("#6f9fd8", "P"),
    "aligned interpolation": ("#2a9d8f", "X"),
    "gaussian": ("#c9a227", "D"),
    GENERATED: ("#0b6e4f", "*"),
}


def draw_audit(report: AuditReport, path: str | Path) -> Path:
    """Accuracy against novelty of errors (left) and of weights (right), one point a network.

    Args:
        report: what :func:`weightloom.evaluation.audit` found.
        path: PNG, PDF or SVG; written atomically.

    Raises:
        InputError: the name ends otherwise.
    """
    path = _checked(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for group, (colour, marker) in _LOOKS.items():
        rows = [row for row in report.networks if row["group"] == group]
        look: dict[str, Any] = {
            "color": colour,
            "marker": marker,
            "s": 90 if group == GENERATED else 34,
            "alpha": 0.75,
            "linewidths": 0,
        }
        points = [(1 - row["overlap"], 100 * row["accuracy"]) for row in rows if row["overlap"] is not None]
        if points:
            left.scatter(*zip(*points, strict=True), label=group, **look)
        points = [
            (row["distance"] / report.usual[row["architecture"]]["distance"], 100 * row["accuracy"])
            for row in rows
            if row["distance"] is not None
        ]
        if points:
            right.scatter(*zip(*points, strict=True), **look)
    left.set_xlabel("errors not shared with the most alike checkpoint (1 - overlap)")
    left.set_ylabel("test accuracy, %")
    right.set_xlabel("distance to the nearest checkpoint, aligned (1: usual in the training set)")
    right.axvline(1, color="#9a9a9a", linestyle="--", linewidth=1)
    for axes in (left, right):
        axes.grid(alpha=0.25)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    left.legend(frameon=False, fontsize=8)
    figure.suptitle(report.sentence(), fontsize=10)
    return _written(figure, path)


def draw_selection(selection: Selection, path: str | Path) -> Path:
    """Accuracy on the images held back against wall-clock seconds, one line a candidate, the winner's thick.

    Args:
        selection: what :func:`weightloom.evaluation.select` found.
        path: PNG, PDF or SVG; written atomically.

    Raises:
        InputError: the name ends otherwise.
    """
    path = _checked(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.4), layout="constrained")
    axes = figure.subplots()
    for place, candidate in enumerate(selection.ranking):
        if not candidate.curve:
            continue
        best = place == 0
        seconds, values = zip(*candidate.curve, strict=True)
        axes.plot(
            seconds,
            [100 * value for value in values],
            color="#0b6e4f" if best else f"C{place % 10}",
            linewidth=2.5 if best else 1.0,
            alpha=1.0 if best else 0.6,
            marker="o",
            markersize=5 if best else 3,
            zorder=3 if best else 2,
            label=f"{place + 1}. {_short(candidate.spec)}",
        )
    axes.axvline(selection.settings.budget, color="#9a9a9a", linestyle="--", linewidth=1)
    axes.set_xlabel("seconds since the start")
    axes.set_ylabel("accuracy on images held back, %")
    axes.set_title(f"Selection on {selection.task}", fontsize=10)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _written(figure, path)


def _short(spec: ArchitectureSpec) -> str:
    """Depth, width and what is unusual, without what the task decides."""
    _, _, inside = str(replace(spec, classes=None, input=None)).rstrip(")").partition("(")
    parts = [part for part in inside.split(",") if part and part.partition("=")[0] not in ("depth", "width")]
    sizes = [f"{name}={getattr(spec, name)}" for name in ("depth", "width") if hasattr(spec, name)]
    return f"{spec.family}({','.join([*sizes, *parts])})"


def _checked(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: a picture's name ends in {', '.join(SUFFIXES)}")
    return path


def _written(figure: Any, path: Path) -> Path:
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix.lower().removeprefix("."), dpi=150)
    write_bytes(path, picture.getvalue())
    return path
