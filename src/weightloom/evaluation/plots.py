"""Pictures of evaluations. Knows reports only."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.errors import InputError
from weightloom.evaluation.atlas import CHECKPOINT, Atlas
from weightloom.evaluation.audit import GENERATED, TRAINING, AuditReport
from weightloom.evaluation.ground import UNSEEN
from weightloom.evaluation.leaderboard import EPOCHS, Leaderboard
from weightloom.evaluation.ranking import ZERO_SHOT, leaderboard_table
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


def draw_atlas(atlas: Atlas, path: str | Path) -> Path:
    """A zoo's map three times: by dataset, by architecture and classes, by accuracy; generated ones as stars.

    Args:
        atlas: what :func:`weightloom.evaluation.chart` made.
        path: PNG, PDF or SVG; written atomically.

    Raises:
        InputError: the name ends otherwise.
    """
    path = _checked(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15.0, 4.8), layout="constrained")
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    kinds: dict[str, dict[str, Any]] = {
        CHECKPOINT: {"marker": "o", "s": 16, "alpha": 0.6, "linewidths": 0},
        GENERATED: {"marker": "*", "s": 110, "alpha": 0.95, "linewidths": 0.6, "edgecolors": "black"},
    }
    points = [{**point, "network": _network(point["architecture"])} for point in atlas.points]
    for axes, what in zip(panels, ("dataset", "network"), strict=False):
        for number, name in enumerate(sorted({point[what] for point in points})):
            for kind, look in kinds.items():
                own = [p for p in points if p[what] == name and p["kind"] == kind]
                if own:
                    label = name if kind == CHECKPOINT else None
                    xs, ys = [p["x"] for p in own], [p["y"] for p in own]
                    axes.scatter(xs, ys, color=f"C{number % 10}", label=label, **look)
        axes.legend(frameon=False, fontsize=7)
    known = [p for p in points if p["accuracy"] is not None]
    made = [p for p in points if p["kind"] == GENERATED]
    panels[2].scatter([p["x"] for p in made], [p["y"] for p in made], color="none", **kinds[GENERATED])
    if known:
        shown = panels[2].scatter(
            [p["x"] for p in known], [p["y"] for p in known],
            c=[100 * p["accuracy"] for p in known], cmap="viridis", **kinds[CHECKPOINT],
        )  # fmt: skip
        figure.colorbar(shown, ax=panels[2], label="test accuracy, %")
    titles = ("by dataset", "by architecture and classes", "by accuracy; stars are generated")
    for number, (axes, title) in enumerate(zip(panels, titles, strict=True)):
        axes.set_title(title, fontsize=10)
        share = f" ({100 * atlas.explained[0]:.0f} % of the variance)" if atlas.explained else ""
        axes.set_xlabel(f"{atlas.method} 1{share if number == 0 else ''}")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    panels[0].set_ylabel(f"{atlas.method} 2")
    return _written(figure, path)


def draw_leaderboard(board: Leaderboard, path: str | Path) -> Path:
    """Zero-shot accuracy by group (left) and along fine-tuning on unseen tasks (right), baselines in grey.

    Args:
        board: what :func:`weightloom.evaluation.run_leaderboard` measured.
        path: PNG, PDF or SVG; written atomically.

    Raises:
        InputError: the name ends otherwise.
    """
    path = _checked(path)
    from matplotlib.figure import Figure

    entries = [entry for entry in leaderboard_table(board) if not entry["why_not"]]
    methods = [entry["name"] for entry in entries if not entry["baseline"]]
    greys = ("#4d4d4d", "#8c8c8c", "#b8b8b8")
    figure = Figure(figsize=(12.0, 1.8 + 0.42 * max(6, len(entries))), layout="constrained")
    left, right = figure.subplots(1, 2)
    height = 0.8 / len(ZERO_SHOT)
    for number, column in enumerate(ZERO_SHOT):
        found = [
            (place + (number - 1.5) * height, entry["figures"][column.name])
            for place, entry in enumerate(entries)
            if "mean" in (entry["figures"][column.name] or {})
        ]
        if not found:
            continue
        left.barh(
            [place for place, _ in found],
            [100 * one["mean"] for _, one in found],
            height,
            xerr=[100 * one["sd"] for _, one in found],
            label=column.name,
            color=("#0b6e4f", "#3d5a99", "#c9a227", "#b0413e")[number],
            error_kw={"linewidth": 0.8},
        )
    left.set_yticks(range(len(entries)), [entry["name"] for entry in entries])
    left.invert_yaxis()
    left.set_xlabel("zero-shot accuracy, %")
    for place, entry in enumerate(entries):
        names = [f"{UNSEEN}, after {epoch} epoch{'s' * (epoch != 1)}" for epoch in EPOCHS[1:]]
        figures = [entry["figures"][name] or {} for name in names]
        if not all("mean" in figure for figure in figures):
            continue
        own = entry["name"] in methods
        right.plot(
            range(len(names)),
            [100 * figure["mean"] for figure in figures],
            marker="o",
            linewidth=2.2 if own else 1.0,
            linestyle="-" if own else ("--", ":", "-.")[place % 3],
            color=f"C{methods.index(entry['name'])}" if own else greys[place % 3],
            label=entry["name"],
        )
    right.set_xticks(range(len(EPOCHS) - 1), [str(epoch) for epoch in EPOCHS[1:]])
    right.set_xlabel("epochs of fine-tuning on unseen tasks")
    right.set_ylabel("test accuracy, %")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=7)
    return _written(figure, path)


def _short(spec: ArchitectureSpec) -> str:
    """Depth, width and what is unusual, without what the task decides."""
    _, _, inside = str(replace(spec, classes=None, input=None)).rstrip(")").partition("(")
    parts = [part for part in inside.split(",") if part and part.partition("=")[0] not in ("depth", "width")]
    sizes = [f"{name}={getattr(spec, name)}" for name in ("depth", "width") if hasattr(spec, name)]
    return f"{spec.family}({','.join([*sizes, *parts])})"


def _network(architecture: str) -> str:
    """An architecture with its class count."""
    spec = parse_architecture(architecture)
    return f"{_short(spec)}, {spec.classes} classes"


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
