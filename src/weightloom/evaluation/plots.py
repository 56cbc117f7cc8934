"""Pictures of evaluations. Knows reports only."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from weightloom.errors import InputError
from weightloom.evaluation.audit import GENERATED, TRAINING, AuditReport
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
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: a picture's name ends in {', '.join(SUFFIXES)}")
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
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix.lower().removeprefix("."), dpi=150)
    write_bytes(path, picture.getvalue())
    return path
