"""``weightloom select``: a task and a time in, the best architecture with a trained network out."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightloom.cli.folders import data_counts, data_facts, data_report
from weightloom.cli.inputs import (
    DataFolder,
    GeneratorName,
    Json,
    SkipBroken,
    TaskName,
    calm_threads,
    check_out,
    check_shots,
    plain_text,
    require_task,
    short_text,
)
from weightloom.cli.interrupts import Raised
from weightloom.cli.output import (
    emit,
    facts,
    measured,
    note,
    progress,
    say,
    seconds_text,
    table,
    working,
)
from weightloom.cli.plots import PLOT_SUFFIXES
from weightloom.errors import InputError

if TYPE_CHECKING:
    from weightloom.evaluation import Candidate

MOST_CANDIDATES = 1000


def select(
    task: TaskName = None,
    data: DataFolder = None,
    skip_broken: SkipBroken = False,
    budget: Annotated[
        str, typer.Option("--budget", metavar="TIME", help="Wall-clock time in all, such as 60s, 2m or 1h.")
    ] = "60s",
    arch: Annotated[
        list[str] | None,
        typer.Option(
            "--arch", metavar="SPEC", help="A candidate; may be repeated. Left out: what the generator makes."
        ),
    ] = None,
    generator: GeneratorName = "layerwise-tiny",
    instruction: Annotated[
        str | None, typer.Option("--instruction", metavar="TEXT", help="What the network is to do.")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", help="Networks generated for each candidate.")] = 1,
    shots: Annotated[
        int, typer.Option("--shots", help="Examples of each class that the generator looks at.")
    ] = 16,
    seed: Annotated[int, typer.Option("--seed", help="Decides examples, samples and batches.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Save the winner, as .safetensors.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw accuracy against seconds (.png, .pdf, .svg)."),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            metavar="FILE",
            help="Keep the state here (.safetensors); the same command goes on from it.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    r"""Choose an architecture for a task and train it, within a time.

    Networks of all candidates are generated and ranked, and the best few are trained by successive halving on
    the training images; a part of these is held back to judge by. Test images are looked at once, at the end.
    Ctrl-C ends it with the best so far.

    Examples:
        weightloom select --data photos/ --budget 60s --out photos.safetensors
        weightloom select --task fashion-mnist --budget 2m --arch 'cnn(depth=3,width=16)' \
            --arch 'mlp(depth=2,width=32)' --plot selection.png
    """
    started = time.perf_counter()
    out = check_out(out, (".safetensors",), "--out")
    plot = check_out(plot, PLOT_SUFFIXES, "--plot")
    state = check_out(state, (".safetensors",), "--state")
    if state is not None and state == out:
        raise InputError("--state and --out are two different files")
    check_shots(shots)
    if arch is not None and len(arch) > MOST_CANDIDATES:
        raise InputError(f"at most {MOST_CANDIDATES:,} candidates, not {len(arch):,}")

    from weightloom.architectures import parse_architecture
    from weightloom.conditioning.text import check_instruction
    from weightloom.evaluation import SelectionSettings, parse_budget
    from weightloom.evaluation import select as run
    from weightloom.fitting import accuracy, counted
    from weightloom.generators.load import load_generator
    from weightloom.plots import draw_selection

    settings = SelectionSettings(
        budget=parse_budget(plain_text(budget, "budget")), samples=samples, shots=shots, seed=seed
    )
    if instruction is not None:
        instruction = check_instruction(plain_text(instruction, "instruction"))
    specs = [parse_architecture(plain_text(text, "architecture")) for text in arch] if arch else None
    model = load_generator(plain_text(generator, "generator"))
    calm_threads()
    target = require_task(task, data, model.validity.input, skip_broken)
    with Raised(), progress() as move:
        found = run(
            model,
            target,
            specs,
            settings,
            instruction=instruction,
            state=state,
            progress=move,
            started=started,
        )
    best = found.winner
    assert best.flat is not None
    if out is not None and found.interrupted:  # first of all: what follows may be interrupted again
        found.sample().save(out)
    with working("measuring"):
        images, labels = target.data("test").all()
        right = float(accuracy(best.spec, best.flat[None], images, labels)[0])
    folder_report = data_report(target)
    if out is not None:
        sample = found.sample()
        extra = {"task": str(target), "data": data_counts(folder_report), **counted(right, len(labels))}
        replace(sample, report={**sample.report, **extra}).save(out)
    if plot is not None:
        draw_selection(found, plot)
    result: dict[str, Any] = {
        **found.to_json(),
        "data": folder_report,
        **counted(right, len(labels)),
        "test_images": len(labels),
        "out": out,
        "plot": plot,
        "state": state,
        "total_seconds": time.perf_counter() - started,
    }
    if as_json:
        emit(result)
        return
    if found.interrupted:
        note("interrupted: this is the best so far")
    say(
        f"{short_text(best.spec)}: {measured(right, len(labels))} of {len(labels):,} test images right "
        f"after {seconds_text(found.seconds)} of {seconds_text(settings.budget)}",
        style="bold",
    )
    facts([("task", f"{target}: {target.describe()}"), *data_facts(folder_report), ("generator", model.name)])
    say()
    count, judging, places = len(found.rungs), found.images["held_back"], found.predicted_places()
    columns = ["", "architecture", "parameters", "expected place", "as generated"]
    columns += [f"rung {rung + 1}" for rung in range(count)] + ["steps", "seconds", "remark"]
    rows = [
        (
            place + 1,
            short_text(c.spec),
            f"{c.parameters:,}",
            places.get(c.spec),
            *_numbers(c, count, judging),
            c.problem or None,
        )
        for place, c in enumerate(found.ranking)
    ]
    table(columns, rows, numbers=[columns[0], *columns[2:-1]])
    say()
    say(
        f"per cents are accuracies with their 95 % intervals, on {judging:,} training images held back from "
        f"{found.images['train']:,} to train on; the expected place is a ranking from before any rung"
    )
    spent = ", ".join(f"{what} {seconds_text(seconds)}" for what, seconds in found.spent.items())
    facts([("spent on", spent), ("saved", out), ("curves", plot), ("state", state)])


def _numbers(candidate: Candidate, rungs: int, images: int) -> list[str | None]:
    """A row's numbers, on ``images`` images."""
    reached = [measured(value, images) for value in candidate.rungs]
    return [
        measured(candidate.zero_shot, images),
        *reached,
        *[None] * (rungs - len(reached)),
        f"{candidate.steps:,}",
        f"{candidate.seconds:.1f}",
    ]
