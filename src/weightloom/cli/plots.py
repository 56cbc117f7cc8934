"""Pictures that commands draw: fine-tuning curves and contact sheets. Knows numbers and names only."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

PLOT_SUFFIXES = (".png", ".pdf", ".svg")
MEASURES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
"""Steps at which curves are measured, as far as they go."""

_COLOURS = {"generated": "#0b6e4f", "random_init": "#b0413e", "nearest_checkpoint": "#3d5a99"}
_NAMES = {
    "generated": "generated",
    "random_init": "random initialisation",
    "nearest_checkpoint": "nearest checkpoint",
    "start": "this network",
}


def draw_curves(
    path: Path,
    steps: Sequence[int],
    curves: Mapping[str, Sequence[float]],
    *,
    title: str,
    trained: float | None = None,
) -> None:
    """Accuracy against training steps, one line for each starting point.

    Args:
        path: PNG, PDF or SVG; written atomically.
        steps: where it was measured, from 0.
        curves: accuracies in [0, 1] by starting point.
        title: above the picture.
        trained: accuracy of trained networks, drawn as a level.
    """
    figure, axes = _figure(7.0, 4.2)
    places = range(len(steps))
    for name, values in curves.items():
        axes.plot(
            places,
            [100 * value for value in values],
            marker="o",
            markersize=4,
            linewidth=2,
            color=_COLOURS.get(name, "#0b6e4f"),
            label=_NAMES.get(name, name),
        )
    if trained is not None:
        axes.axhline(100 * trained, color="#777777", linestyle="--", linewidth=1, label="trained (zoo)")
    axes.set_xticks(list(places), [f"{step:,}" for step in steps])
    axes.set_xlabel("training steps")
    axes.set_ylabel("test accuracy, %")
    axes.set_ylim(0, 102)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    _write(figure, path)


def draw_contact_sheet(path: Path, images: Tensor, names: Sequence[str], title: str) -> None:
    """Rows of example images, one row a class.

    Args:
        path: PNG, PDF or SVG; written atomically.
        images: (classes, shots, C, H, W) in [-1, 1].
        names: class names in label order.
        title: above the picture.
    """
    classes, shots, channels, height, width = images.shape
    # (classes, shots, C, H, W) -> (classes*H, shots*W, C), with a line of white between the pictures
    gap = max(1, height // 16)
    sheet = images.new_ones(classes * (height + gap), shots * (width + gap), channels)
    for row in range(classes):
        for column in range(shots):
            top, left = row * (height + gap), column * (width + gap)
            sheet[top : top + height, left : left + width] = images[row, column].permute(1, 2, 0)
    pixels = ((sheet.clamp(-1, 1) + 1) / 2).numpy()
    figure, axes = _figure(min(14.0, 1.6 + 0.45 * shots), min(30.0, 0.7 + 0.45 * classes))
    axes.imshow(
        pixels if channels == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest"
    )
    axes.set_yticks([row * (height + gap) + height / 2 for row in range(classes)], list(names))
    axes.set_xticks([])
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title(title, fontsize=10)
    _write(figure, path)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _write(figure: Any, path: Path) -> None:
    from weightloom.io import write_bytes

    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix.lower().removeprefix("."), dpi=150)
    write_bytes(path, picture.getvalue())
