"""``weightloom bench``: one leaderboard of every registered generator over one zoo and what it holds out."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightloom.cli.failures import interrupted
from weightloom.cli.inputs import (
    Address,
    EngineName,
    Json,
    Workers,
    calm_threads,
    carried_by,
    check_place,
    engine_for,
    findable,
    plain_text,
    zoo_or_recipe,
)
from weightloom.cli.output import emit, measured, note, progress, say, seconds_text, table

if TYPE_CHECKING:
    from weightloom.evaluation import Ground
    from weightloom.generators import Generator


def bench(
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="Cells, tables and pictures; the same command goes on."),
    ],
    generator: Annotated[
        list[str] | None,
        typer.Option(
            "--generator",
            metavar="NAME",
            help="A bundled name, a folder, or a hub id; may be repeated. The first lends the baselines its "
            "checkpoints. Left out: layerwise-tiny.",
        ),
    ] = None,
    zoo: Annotated[
        str,
        typer.Option(
            "--zoo",
            metavar="ZOO",
            help="A zoo's folder, or its recipe: then with the checkpoints that the first generator carries.",
        ),
    ] = "zoo-tiny",
    tasks: Annotated[int | None, typer.Option("--tasks", help="Of each group. [default: 6]")] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help="Of every cell. [default: 3]")] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", help="Networks for each request. [default: 4]")
    ] = None,
    images: Annotated[
        int | None, typer.Option("--images", help="Test images of a task at most. [default: 1000]")
    ] = None,
    finetuned: Annotated[
        int | None,
        typer.Option(
            "--finetuned", help="Seen and unseen tasks on which networks are fine-tuned. [default: 1]"
        ),
    ] = None,
    epoch_steps: Annotated[
        int | None,
        typer.Option("--epoch-steps", help="Steps of 64 images that count as an epoch. [default: 100]"),
    ] = None,
    arch: Annotated[
        list[str] | None,
        typer.Option(
            "--arch",
            metavar="SPEC",
            help="An unseen architecture; may be repeated. Left out: the zoo's own a quarter wider.",
        ),
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            "--dataset",
            metavar="NAME",
            help="An unseen dataset; may be repeated. Left out: all that are here.",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="The smallest sizes that fill every column; says nothing.")
    ] = False,
    workers: Workers = 1,
    engine: EngineName = "local",
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Compare every registered generator on one zoo, its held-out tasks, and what is beyond it.

    Zero-shot accuracy on seen and unseen tasks, architectures and datasets; accuracy after 1, 5 and 25
    epochs of fine-tuning, steps to the trained accuracy; novelty; seconds and memory of one network and of a
    hundred. Baselines stand beside them; where one is ahead of a method the table says so in bold. Every cell
    is kept as it is done. Writes leaderboard.json, leaderboard.md and leaderboard.png. With several workers
    or a cluster all but timings is measured side by side; generators and zoo have to be where they find them.

    Examples:
        weightloom bench --out runs/bench --quick
        weightloom bench --out runs/bench --workers 2
        weightloom bench --zoo zoos/tiny --generator layerwise-tiny --generator runs/other --out runs/bench
    """
    started = time.perf_counter()
    out = out.expanduser()
    check_place(out, "--out")
    from weightloom.evaluation import (
        LeaderboardSettings,
        leaderboard_json,
        leaderboard_markdown,
        run_leaderboard,
    )
    from weightloom.generators.load import load_generator
    from weightloom.io import write_json, write_text
    from weightloom.plots import draw_leaderboard

    options: dict[str, Any] = {
        "tasks": tasks,
        "seeds": seeds,
        "samples": samples,
        "images": images,
        "finetuned": finetuned,
        "epoch_steps": epoch_steps,
        "architectures": tuple(plain_text(text, "architecture") for text in arch or ()) or None,
        "datasets": tuple(plain_text(text, "dataset") for text in dataset or ()) or None,
    }
    make = LeaderboardSettings.quick if quick else LeaderboardSettings
    settings = make(**{name: value for name, value in options.items() if value is not None})
    given = [load_generator(plain_text(name, "generator")) for name in generator or ["layerwise-tiny"]]
    ground = _ground(zoo, given[0])
    calm_threads()
    goes_on = f"what was measured is kept in {out}, and the same command goes on from there"
    with interrupted(goes_on), engine_for(engine, workers, address) as machine, progress() as move:
        if engine != "local" or workers > 1:
            from weightloom.evaluation.spread import Source, spread_cells
            from weightloom.zoo import Zoo

            held = zoo_or_recipe(zoo)
            names = tuple(findable(name) for name in generator or ["layerwise-tiny"])
            source = Source(names, held.path.absolute() if isinstance(held, Zoo) else held)
            spread_cells(source, given, ground, out, settings, machine, progress=move)
        board = run_leaderboard(given, ground, out, settings, progress=move)
    result = leaderboard_json(board)
    picture = draw_leaderboard(board, out / "leaderboard.png")
    command = shlex.join(["weightloom", *sys.argv[1:]])
    write_json(out / "leaderboard.json", {"command": command, **result})
    write_text(out / "leaderboard.md", leaderboard_markdown(board, command=command, picture=picture.name))
    if as_json:
        emit({**result, "out": out, "seconds": time.perf_counter() - started})
        return
    groups = list(dict.fromkeys(row["group"] for row in result["trials"]))
    rows = [
        (entry["name"], *(_shown(entry["figures"][group]) for group in groups))
        for entry in result["table"]
        if not entry["why_not"]
    ]
    for text in result["notes"]:
        note(f"note: {text}")
    table(["generator", *groups], rows, numbers=groups)
    say()
    for text in result["beaten"]:
        say(text, style="bold")
    say(f"{out / 'leaderboard.md'} has it all; {seconds_text(time.perf_counter() - started)}")


def _ground(zoo: str, first: Generator) -> Ground:
    """A zoo's folder, or a recipe with the checkpoints that the first generator carries."""
    from weightloom.evaluation import Ground
    from weightloom.zoo import Zoo

    held = zoo_or_recipe(zoo)
    if isinstance(held, Zoo):
        return Ground.from_zoo(held)
    return Ground.from_zoo_index(held, carried_by(first))


def _shown(figure: dict[str, Any] | None) -> str | None:
    if figure is None:
        return None
    return "refuses" if "refused" in figure else measured(figure["mean"], figure.get("num_images"))
