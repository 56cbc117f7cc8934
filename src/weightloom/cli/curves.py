"""Curves of fine-tuning: what ``weightloom generate --plot`` measures and draws. Knows no command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightloom.cli.inputs import short_text
from weightloom.cli.output import progress
from weightloom.cli.plots import MEASURES
from weightloom.errors import WeightloomError

if TYPE_CHECKING:
    from torch import Tensor

    from weightloom.cli.baselines import Baselines
    from weightloom.generators import Sample
    from weightloom.tasks import Task


def curves_of(best: Sample, compared: Baselines, task: Task, steps: int, seed: int) -> dict[str, Any]:
    """Fine-tune the best sample, a random initialisation and the nearest checkpoint side by side."""
    import torch

    from weightloom.fitting import FitSettings, finetune, initial_flats
    from weightloom.seeding import seed_for

    random = compared.random_flat
    if random is None:
        random = initial_flats(best.architecture, [seed_for("random-init", seed, 0)])[0]
    starts: dict[str, Tensor] = {"generated": best.flat, "random_init": random}
    if compared.nearest_flat is not None:
        starts["nearest_checkpoint"] = compared.nearest_flat
    with progress() as move:
        curve = finetune(
            best.architecture,
            torch.stack([*starts.values()]),
            task,
            FitSettings(steps=steps, learning_rate=1e-3),
            measure_at=MEASURES,
            seed=seed,
            on_step=lambda step: move("fine-tuning", step, steps),
        )
    columns = curve.accuracy.T.tolist()
    return {"steps": list(curve.steps), **dict(zip(starts, columns, strict=True))}


def curve_intervals(curves: dict[str, Any], images: int | None) -> dict[str, Any]:
    from weightloom.fitting import interval_of

    lines = {name: values for name, values in curves.items() if name != "steps"}
    return {name: [interval_of(value, images) for value in values] for name, values in lines.items()}


def draw(plot: Path, curves: dict[str, Any], best: Sample, task: Task, compared: Baselines) -> None:
    from weightloom.cli.plots import draw_curves

    lines = {name: values for name, values in curves.items() if name != "steps"}
    try:
        draw_curves(
            plot,
            curves["steps"],
            lines,
            title=f"{short_text(best.architecture)} on {task}",
            trained=compared.trained,
        )
    except ValueError as error:  # whatever matplotlib dislikes of a file's name or a title
        raise WeightloomError(f"cannot draw {plot}: {error}") from error
