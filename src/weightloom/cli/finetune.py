"""``weightloom finetune``: train a network from a file a little further, and see what the start was worth."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from weightloom.cli.folders import data_counts, data_facts, data_report
from weightloom.cli.info_file import short_list
from weightloom.cli.inputs import (
    DataFolder,
    FileArch,
    Json,
    Key,
    SkipBroken,
    TaskName,
    calm_threads,
    check_out,
    load_network,
    plain_text,
    provenance,
)
from weightloom.cli.matching import fitting_task
from weightloom.cli.output import emit, facts, measured, note, progress, say, seconds_text, table
from weightloom.cli.plots import MEASURES, PLOT_SUFFIXES
from weightloom.cli.tuning import tuned_within
from weightloom.errors import InputError


def finetune(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A network: safetensors, or a PyTorch checkpoint with --arch."),
    ],
    task: TaskName = None,
    data: DataFolder = None,
    skip_broken: SkipBroken = False,
    arch: FileArch = None,
    key: Key = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="TIME",
            help="Wall-clock time, such as 60s, 2m or 1h, in which everything else is chosen. [default: 60s]",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", help="Instead of --budget: so many steps, whatever comes of them."),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option("--lr", help="With --steps: highest learning rate of AdamW. [default: 0.001]"),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="With --steps: images a step. [default: 64]")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Decides the batches, and what is held back.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Save the result, as .safetensors.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE", help="With --steps: draw accuracy against them (.png, .pdf, .svg)."
        ),
    ] = None,
    from_random: Annotated[
        bool, typer.Option("--from-random", help="Train a random initialisation beside it, to compare.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fine-tune a network on a task's training images, within a time.

    Which layers, at which rate, with which pictures moved or mirrored, and for how long, is chosen on
    training images that are held back; few images are left out in turn. What comes out is never below the
    start on these: where nothing does better, it is the start, which is said. With --steps nothing is chosen.

    Examples:
        weightloom finetune photos.safetensors --data photos/ --budget 60s --out better.safetensors
        weightloom finetune clothing.safetensors --task fashion-mnist --steps 100 --from-random --plot a.png
    """
    started = time.perf_counter()
    out = check_out(out, (".safetensors",), "--out")
    plot = check_out(plot, PLOT_SUFFIXES, "--plot")
    if steps is None:
        for option, given in (("--lr", lr), ("--batch-size", batch_size), ("--plot", plot)):
            if given is not None:
                raise InputError(f"{option} goes with --steps; within a --budget it is chosen or not there")
    elif budget is not None:
        raise InputError("--budget and --steps are two ways to end: give one of them")
    lr, batch_size = 1e-3 if lr is None else lr, 64 if batch_size is None else batch_size
    if steps is not None and not 1 <= steps <= 1_000_000:
        raise InputError(f"--steps must be from 1 to 1,000,000, not {steps}")
    if not (math.isfinite(lr) and 0 < lr <= 10):
        raise InputError(f"--lr must be above 0 and at most 10, not {lr}")
    if not 2 <= batch_size <= 65_536:
        raise InputError(f"--batch-size must be from 2 to 65,536, not {batch_size}")
    from weightloom.evaluation.selection import parse_budget

    seconds = parse_budget(plain_text("60s" if budget is None else budget, "budget"))
    import torch

    from weightloom import fitting
    from weightloom.generators import Sample
    from weightloom.seeding import seed_for

    network = load_network(file, arch, key)
    calm_threads(network.spec.num_parameters())
    target = fitting_task(network, task, data, skip_broken)
    if steps is None:
        tuned_within(
            file, network, target, seconds, seed=seed, out=out, from_random=from_random, as_json=as_json,
            started=started,
        )  # fmt: skip
        return
    starts = [network.flat]
    if from_random:
        starts.append(fitting.initial_flats(network.spec, [seed_for("random-init", seed, 0)])[0])
    settings = fitting.FitSettings(steps=steps, learning_rate=lr, batch_size=batch_size)
    with progress() as move:
        curve = fitting.finetune(
            network.spec,
            torch.stack(starts),
            target,
            settings,
            measure_at=MEASURES,
            seed=seed,
            on_step=lambda step: move("fine-tuning", step, steps),
        )
    lines = curve.accuracy.T.tolist()
    folder_report = data_report(target)
    images = len(target.data("test"))
    report = {
        "generator": "finetune",
        "task": str(target),
        "data": data_counts(folder_report),
        "steps": steps,
        "learning_rate": lr,
        "batch_size": batch_size,
        "seed": seed,
        **fitting.counted(lines[0][-1], images),
        "from": {"file": file.name, **provenance(network.metadata)},
    }
    if plot is not None:
        from weightloom.cli.plots import draw_curves

        named = dict(zip(("start", "random_init"), lines, strict=False))
        draw_curves(plot, curve.steps, named, title=f"{file.name} on {target}")
    if out is not None:
        made_by = f"finetune, {steps:,} step{'s' * (steps > 1)}, of {network.card.made_by or file.name}"
        card = replace(network.card.for_task(target), made_by=made_by).calibrated(None)
        Sample(network.spec, curve.flats[0].detach(), report, card).save(out)
    random = lines[1] if from_random else None
    result: dict[str, Any] = {
        "file": file,
        "architecture": network.spec.full_text(),
        "read_from": network.key,
        "left_out": list(network.left_out),
        "task": str(target),
        "data": folder_report,
        "steps": steps,
        "learning_rate": lr,
        "batch_size": batch_size,
        "seed": seed,
        "start_accuracy": lines[0][0],
        "start_interval": fitting.interval_of(lines[0][0], images),
        **fitting.counted(lines[0][-1], images),
        "random_init_accuracy": random[-1] if random else None,
        "random_init_interval": fitting.interval_of(random[-1], images) if random else None,
        "curves": {"steps": list(curve.steps), "start": lines[0], "random_init": random},
        "curve_intervals": {
            name: line and [fitting.interval_of(value, images) for value in line]
            for name, line in (("start", lines[0]), ("random_init", random))
        },
        "out": out,
        "plot": plot,
        "seconds": time.perf_counter() - started,
    }
    if as_json:
        emit(result)
        return
    before, after = (measured(lines[0][place], images) for place in (0, -1))
    say(f"{before} before, {after} after {steps:,} steps, of {images:,} test images", style="bold")
    if lines[0][-1] < lines[0][0]:
        note(
            "it ended below where it started; with --budget instead of --steps that is looked for and avoided"
        )
    facts(
        [
            ("file", file),
            ("architecture", result["architecture"]),
            ("read from", network.key if network.key != "." else None),
            ("left out", short_list(result["left_out"])),
            ("task", f"{target}: {target.describe()}"),
            *data_facts(folder_report),
        ]
    )
    say()
    columns = ["steps", "this network"] + (["random initialisation"] if random else [])
    rows = [
        (f"{step:,}", *(measured(line[i], images) for line in lines)) for i, step in enumerate(curve.steps)
    ]
    table(columns, rows, numbers=columns)
    say()
    facts([("saved", out), ("curves", plot), ("time in all", seconds_text(result["seconds"]))])
