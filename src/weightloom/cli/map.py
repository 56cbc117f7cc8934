"""``weightloom map``: a zoo in weight space, generated networks among its own."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from weightloom.cli.inputs import (
    Json,
    calm_threads,
    carried_by,
    check_out,
    plain_text,
    short_text,
    zoo_or_recipe,
)
from weightloom.cli.output import emit, percent, say, seconds_text, table, working
from weightloom.cli.plots import PLOT_SUFFIXES
from weightloom.errors import InputError

if TYPE_CHECKING:
    from weightloom.evaluation.atlas import Method, Settlement
    from weightloom.evaluation.ground import Ground
    from weightloom.generators import Generator

MOST_SAMPLES = 4096


def map_zoo(
    zoo: Annotated[
        str,
        typer.Argument(
            metavar="ZOO",
            help="A zoo's folder, or its recipe: then with the checkpoints that the generator carries.",
        ),
    ],
    generator: Annotated[
        str,
        typer.Option(
            "--generator",
            metavar="NAME",
            help="Whose networks lie among the zoo's: a bundled name, a folder, or a hub id.",
        ),
    ] = "layerwise-tiny",
    arch: Annotated[
        str | None, typer.Option("--arch", metavar="SPEC", help="Only this architecture.")
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", help="Generated networks, for seen tasks in turn.")
    ] = 24,
    method: Annotated[
        str,
        typer.Option("--method", metavar="METHOD", help="pca, or umap with pip install 'weightloom[map]'."),
    ] = "pca",
    seed: Annotated[int, typer.Option("--seed", help="Decides the samples.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write every point, as .json.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw the map (.png, .pdf, .svg).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Map a zoo in weight space, with generated networks, and predict accuracy from it.

    Every network is one point, coloured by dataset, by architecture and classes, and by accuracy; generated
    networks lie among them. Kendall's tau says how well accuracy is predicted from weights on checkpoints
    that nothing was fitted on, beside a prediction from plain statistics of the weights.

    Examples:
        weightloom map zoos/tiny --plot map.png
        weightloom map zoo-tiny --arch 'cnn(depth=3,width=16)' --samples 40 --plot cnn.png --out cnn.json
    """
    started = time.perf_counter()
    out = check_out(out, (".json",), "--out")
    plot = check_out(plot, PLOT_SUFFIXES, "--plot")
    if not 0 <= samples <= MOST_SAMPLES:
        raise InputError(f"--samples must be from 0 to {MOST_SAMPLES}, not {samples}")
    from weightloom.evaluation.atlas import chart, settlements_of_zoo, settlements_of_zoo_index
    from weightloom.evaluation.ground import Ground
    from weightloom.generators.load import load_generator
    from weightloom.io import write_json
    from weightloom.plots import draw_atlas
    from weightloom.zoo import Zoo

    held = zoo_or_recipe(zoo)
    model = load_generator(plain_text(generator, "generator"))
    calm_threads()
    with working("reading the zoo"):
        if isinstance(held, Zoo):
            ground, people = Ground.from_zoo(held), settlements_of_zoo(held)
        else:
            carried = carried_by(model)
            ground = Ground.from_zoo_index(held, carried)
            people = settlements_of_zoo_index(carried)
    people = _only(people, arch)
    with working("generating"):
        made = _generated(model, ground, people, samples, seed)
    with working("drawing the map"):
        atlas = chart(people, made, method=cast("Method", method), seed=seed)
    result = {"zoo": ground.name, "generator": model.name, **atlas.to_json()}
    if out is not None:
        write_json(out, result)
    if plot is not None:
        draw_atlas(atlas, plot)
    if as_json:
        emit({**result, "seconds": time.perf_counter() - started})
        return
    _print(result, time.perf_counter() - started)


def _only(people: list[Settlement], arch: str | None) -> list[Settlement]:
    """Those of one architecture, whatever it leaves open."""
    if arch is None:
        return people
    from weightloom.architectures import parse_architecture

    wanted = short_text(parse_architecture(plain_text(arch, "architecture")))
    kept = [one for one in people if short_text(one.spec) == wanted]
    if not kept:
        names = dict.fromkeys(short_text(one.spec) for one in people)
        raise InputError(f"the zoo has no networks of {wanted}; it has {', '.join(names)}")
    return kept


def _generated(
    model: Generator, ground: Ground, people: list[Settlement], samples: int, seed: int
) -> list[Settlement]:
    """One network each for seen tasks of the mapped architectures, at most ``samples``."""
    from weightloom.evaluation.atlas import settle

    specs = {one.spec for one in people}
    trials = [trial for trial in ground.seen(1_000_000) if trial.spec in specs]
    made = []
    for number in range(samples if trials else 0):
        trial = trials[number % len(trials)]
        own = seed + number // len(trials)
        sample = model.generate_many(trial.spec, support=trial.task.support(seed=own), seed=own)[0]
        made.append(settle(trial.spec, sample.flat[None], str(trial.task)))
    return made


def _print(result: dict[str, Any], seconds: float) -> None:
    counts: dict[tuple[str, str], list[float]] = {}
    for point in result["points"]:
        own = counts.setdefault((short_text(point["architecture"]), point["kind"]), [])
        own.append(point["accuracy"] if point["accuracy"] is not None else float("nan"))
    rows = [
        (name, kind, len(values), percent(sum(values) / len(values)) if kind == "checkpoint" else None)
        for (name, kind), values in counts.items()
    ]
    table(["architecture", "networks", "count", "mean accuracy"], rows, numbers=["count", "mean accuracy"])
    if result["explained"]:
        say(f"the two directions hold {percent(sum(result['explained']))} of the variance")
    if result["prediction"]:
        say()
        say("accuracy predicted on held-out checkpoints, Kendall's tau", style="bold")
        numbers = ["fitted", "tested", "from weights", "from weight statistics"]
        table(
            ["architecture", *numbers],
            [
                (
                    short_text(one["architecture"]),
                    one["fitted"],
                    one["tested"],
                    _tau(one["weights"]),
                    _tau(one["statistics"]),
                )
                for one in result["prediction"]
            ],
            numbers=numbers,
        )
    say(seconds_text(seconds))


def _tau(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"
