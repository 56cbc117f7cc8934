"""``weightloom audit``: does a generator generalise, or does it replay the checkpoints it learned from?"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from weightloom.cli.failures import interrupted
from weightloom.cli.inputs import (
    Address,
    EngineName,
    Json,
    Workers,
    calm_threads,
    check_engine,
    check_out,
    check_place,
    engine_for,
    findable,
    plain_text,
)
from weightloom.cli.output import emit, note, percent, progress, say, seconds_text, table
from weightloom.cli.plots import PLOT_SUFFIXES


def audit(
    generator: Annotated[
        str, typer.Argument(metavar="GENERATOR", help="A bundled name, a folder, or a hub id.")
    ],
    zoo: Annotated[Path, typer.Option("--zoo", metavar="DIR", help="The zoo that it was trained on.")],
    samples: Annotated[
        int, typer.Option("--samples", help="Networks for each task, and of each kind of mixture.")
    ] = 16,
    tasks: Annotated[int, typer.Option("--tasks", help="Training tasks for each architecture.")] = 2,
    arch: Annotated[
        str | None, typer.Option("--arch", metavar="SPEC", help="Only this architecture.")
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", metavar="TASK", help="Only this training task.")
    ] = None,
    images: Annotated[int, typer.Option("--images", help="Test images at most.")] = 2000,
    seed: Annotated[int, typer.Option("--seed", help="Decides what is drawn.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write everything measured, as .json.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw accuracy against novelty (.png, .pdf, .svg)."),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            "--work", metavar="DIR", help="Keep every task's result here; the same command then goes on."
        ),
    ] = None,
    workers: Workers = 1,
    engine: EngineName = "local",
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Audit a generator's novelty against the training checkpoints of its zoo.

    Samples are compared, after permutation alignment, with every training checkpoint of their architecture,
    in weights and in wrong answers, and with networks that are made of checkpoints without any generator.
    Each sample gets a verdict: fails, retrieves, interpolates, or novel; the page on audits says by which
    rule. With several workers or a cluster, architectures and tasks are measured side by side; generator and
    zoo have to be where they find them.

    Examples:
        weightloom audit layerwise-tiny --zoo zoos/tiny
        weightloom audit runs/diffusion --zoo zoos/mnist --samples 32 --plot audit.png --out audit.json
        weightloom audit layerwise-tiny --zoo zoos/tiny --tasks 20 --workers 2 --work runs/audit
    """
    started = time.perf_counter()
    out = check_out(out, (".json",), "--out")
    plot = check_out(plot, PLOT_SUFFIXES, "--plot")
    kept = None if work is None else work.expanduser()
    if kept is not None:
        check_place(kept, "--work")
    check_engine(engine, workers, address)
    from weightloom.evaluation import AuditSettings
    from weightloom.evaluation import audit as run_audit
    from weightloom.generators.load import load_generator
    from weightloom.io import write_json
    from weightloom.plots import draw_audit
    from weightloom.zoo import Zoo

    settings = AuditSettings(
        samples=samples,
        tasks=tasks,
        architecture=None if arch is None else plain_text(arch, "architecture"),
        task=None if task is None else plain_text(task, "task"),
        images=images,
        seed=seed,
    )
    held = Zoo(zoo.expanduser())
    model = load_generator(plain_text(generator, "generator"))
    calm_threads()
    with ExitStack() as stack:
        if kept is not None:
            goes_on = f"what was measured is kept in {kept}, and the same command goes on from there"
            stack.enter_context(interrupted(goes_on))
        move, place = stack.enter_context(progress()), kept
        if engine != "local" or workers > 1:
            from weightloom.evaluation.spread import spread_audit
            from weightloom.io import temporary_folder

            place = kept or stack.enter_context(temporary_folder())
            with engine_for(engine, workers, address) as machine:
                name = findable(generator)
                spread_audit(name, model, held, place, settings, machine, progress=move)
        report = run_audit(model, held, settings, work=place, progress=move)
    result: dict[str, Any] = {**report.to_json(), "zoo": zoo, "seconds": time.perf_counter() - started}
    if out is not None:
        write_json(out, {**result, "zoo": held.path.name})
    if plot is not None:
        draw_audit(report, plot)
    if as_json:
        emit(result)
        return
    for text in report.notes:
        note(f"note: {text}")
    say(report.sentence(), style="bold")
    say()
    rows = [
        (
            row["group"],
            row["networks"],
            percent(row["accuracy"]),
            _number(row["overlap"]),
            _number(row["distance_before"]),
            _number(row["distance"]),
            _number(row["largest_weight"]),
            ", ".join(f"{name} {percent(share)}" for name, share in row["verdicts"].items() if share),
        )
        for row in report.summary()
    ]
    columns = ["group", "networks", "accuracy", "overlap", "distance", "aligned", "largest weight", "verdict"]
    table(columns, rows, numbers=columns[1:-1])
    say()
    for architecture, usual in report.usual.items():
        say(
            f"usual in {architecture}: distance {usual['distance_before']:.2f}, "
            f"aligned {usual['distance']:.2f}, largest weight up to {usual['largest_weight']:.2f}"
        )
    say(f"{seconds_text(result['seconds'])}; the rule: {result['rule']}")


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"
