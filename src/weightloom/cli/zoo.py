"""``weightloom zoo``: populations of trained networks: build, look into, check, import, export."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
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
    check_out,
    check_place,
    engine_for,
    find_recipe,
    plain_text,
    short_text,
)
from weightloom.cli.output import emit, facts, note, percent, progress, say, seconds_text, table, working
from weightloom.cli.teaching import command
from weightloom.cli.zoo_import import import_networks
from weightloom.errors import InputError, WeightloomError

if TYPE_CHECKING:
    from weightloom.zoo import Record, Zoo

app = typer.Typer(
    help="Build and inspect zoos: folders of trained networks with an index.",
    no_args_is_help=True,
)
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The zoo's folder.")]


@command(app, "build")
def build(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a published recipe.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The zoo's folder.")],
    workers: Workers = 1,
    engine: EngineName = "local",
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Train every network of a recipe that the zoo does not hold yet.

    An interrupted build goes on where it stopped when the same command is given again. The networks do not
    depend on the engine.

    Examples:
        weightloom zoo build zoo-tiny --out zoos/tiny --workers 2
        weightloom zoo build zoo-tiny --out zoos/tiny --engine ray --address auto
        weightloom zoo build my-recipe.yaml --out zoos/mine
    """
    started = time.perf_counter()
    path = find_recipe(recipe)
    check_place(out.expanduser(), "--out")
    from weightloom.io import read_yaml
    from weightloom.zoo import ZooRecipe, build_zoo

    wanted = read_yaml(path, ZooRecipe)
    calm_threads()
    out = out.expanduser()
    goes_on = f"what was trained before stays in {out}, and the same command goes on from there"
    kept = interrupted(goes_on, where=out / "zoo.sqlite3")
    with kept, engine_for(engine, workers, address) as machine, progress() as move:
        zoo = build_zoo(wanted, out, move, engine=machine)
    records = zoo.records()
    result: dict[str, Any] = {
        "zoo": out,
        "recipe": wanted.name,
        "checkpoints": len(records),
        "networks": sum(record.final for record in records),
        "mean_accuracy": _mean(records),
        "seconds": time.perf_counter() - started,
    }
    if as_json:
        emit(result)
        return
    say(f"{out} holds {result['networks']:,} networks, {result['checkpoints']:,} checkpoints", style="bold")
    facts(
        [
            ("recipe", wanted.name),
            ("mean accuracy", percent(result["mean_accuracy"])),
            ("time", seconds_text(result["seconds"])),
        ]
    )


@command(app, "list")
def list_(
    zoo: Folder,
    arch: Annotated[
        str | None, typer.Option("--arch", metavar="SPEC", help="Only this architecture.")
    ] = None,
    task: Annotated[str | None, typer.Option("--task", metavar="TASK", help="Only this task.")] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", metavar="NAME", help="Only this dataset.")
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", metavar="NAME", help="Only this split, such as held-out-order.")
    ] = None,
    classes: Annotated[int | None, typer.Option("--classes", help="Only so many classes.")] = None,
    min_accuracy: Annotated[
        float | None, typer.Option("--min-accuracy", help="Only so accurate ones, from 0 to 1.")
    ] = None,
    final: Annotated[
        bool | None, typer.Option("--final/--not-final", help="Only the ends of training, or only the rest.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", help="Show at most so many; 0: all.")] = 50,
    as_json: Json = False,
) -> None:
    """List a zoo's checkpoints, filtered.

    Examples:
        weightloom zoo list zoos/tiny --dataset mnist --final --min-accuracy 0.9
        weightloom zoo list zoos/tiny --arch 'cnn(depth=3,width=16)' --split held-out-order --json
    """
    from weightloom.tasks import parse_task
    from weightloom.zoo import Zoo

    if limit < 0:
        raise InputError(f"--limit must be 0 or more, not {limit}")
    held = Zoo(zoo)
    found = held.records(
        architecture=None if arch is None else plain_text(arch, "architecture"),
        task=None if task is None else str(parse_task(plain_text(task, "task"))),
        dataset=None if dataset is None else plain_text(dataset, "dataset"),
        split=None if split is None else plain_text(split, "split"),
        classes=classes,
        final=final,
        min_accuracy=min_accuracy,
    )
    shown = found[:limit] if limit else found
    if as_json:
        emit({"zoo": zoo, "count": len(found), "checkpoints": [asdict(record) for record in shown]})
        return
    rows = [
        (
            r.id,
            short_text(r.architecture),
            r.task or None,
            r.split,
            r.step,
            "yes" if r.final else "",
            percent(r.accuracy),
        )
        for r in shown
    ]
    table(
        ["id", "architecture", "task", "split", "step", "final", "accuracy"],
        rows,
        numbers=["step", "accuracy"],
    )
    if len(shown) < len(found):
        note(f"{len(shown):,} of {len(found):,} checkpoints; --limit 0 shows all")
    elif not found:
        note(f"no checkpoint of {zoo} passes these filters")


@command(app, "show")
def show(
    zoo: Folder,
    checkpoint: Annotated[
        str | None, typer.Argument(metavar="ID", help="A checkpoint; without one the zoo as a whole.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Describe a zoo, or one of its checkpoints.

    Examples:
        weightloom zoo show zoos/tiny
        weightloom zoo show zoos/tiny mlp-depth-2-0-0-003-000400
    """
    from weightloom.zoo import Zoo

    held = Zoo(zoo)
    if checkpoint is not None:
        record = held.record(plain_text(checkpoint, "id"))
        result = {"zoo": zoo, "checkpoint": asdict(record), "num_parameters": record.spec().num_parameters()}
        if as_json:
            emit(result)
        else:
            say(record.id, style="bold")
            details = {**asdict(record), **record.provenance, "accuracy": percent(record.accuracy)}
            facts([(k, v) for k, v in details.items() if k not in ("id", "provenance") and v != ""])
        return
    result = describe_zoo(held)
    if as_json:
        emit(result)
    else:
        print_zoo(result)


@command(app, "verify")
def verify(zoo: Folder, as_json: Json = False) -> None:
    """Check that every shard of a zoo is there and unchanged; exit code 1 if not.

    Example:
        weightloom zoo verify zoos/tiny
    """
    from weightloom.zoo import Zoo

    held = Zoo(zoo)
    with working("checking"):
        problems = held.verify()
        count = len(held.records())
    if as_json:
        emit({"zoo": zoo, "ok": not problems, "checkpoints": count, "problems": problems})
    elif not problems:
        say(f"{zoo}: {count:,} checkpoints, nothing missing, nothing changed")
    else:
        for problem in problems:
            say(problem)
    if problems:
        raise WeightloomError(
            f"{zoo} has {len(problems)} broken shard{'s' * (len(problems) > 1)}: {problems[0]}"
        )


@command(app, "repair")
def repair(zoo: Folder, as_json: Json = False) -> None:
    """Drop what is broken in a zoo and say what; `zoo build` with its recipe makes dropped shards again.

    Example:
        weightloom zoo repair zoos/tiny
    """
    from weightloom.zoo import Zoo
    from weightloom.zoo import repair as repair_zoo

    with working("repairing"):
        said = repair_zoo(zoo)
        count = len(Zoo(zoo).records())
    if as_json:
        emit({"zoo": zoo, "done": said, "checkpoints": count})
        return
    for line in said:
        say(line)
    say(f"{zoo}: {count:,} checkpoints" + ("" if said else ", nothing missing, nothing changed"))


command(app, "import")(import_networks)


@command(app, "export")
def export(
    zoo: Folder,
    checkpoint: Annotated[str, typer.Argument(metavar="ID", help="The checkpoint.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where to, as .safetensors.")],
    as_json: Json = False,
) -> None:
    """Write one checkpoint of a zoo as a file that `evaluate` and `finetune` read.

    Example:
        weightloom zoo export zoos/tiny mlp-depth-2-0-0-003-000400 --out mnist.safetensors
    """
    place = check_out(out, (".safetensors",), "--out")
    assert place is not None
    from weightloom.generators import Sample
    from weightloom.zoo import Zoo

    held = Zoo(zoo)
    record = held.record(plain_text(checkpoint, "id"))
    report = {"generator": "zoo", "checkpoint": record.id, "step": record.step, **record.provenance}
    report |= {"task": record.task or None, "accuracy": record.accuracy}
    sample = Sample(record.spec(), held.load([record])[0], report)
    card = sample.card.for_task(record.parsed_task()) if sample.card.class_names else sample.card
    replace(sample, card=replace(card, made_by=f"zoo {held.path.name}, checkpoint {record.id}")).save(place)
    result = {"zoo": zoo, "checkpoint": record.id, "file": place, "architecture": record.architecture}
    if as_json:
        emit(result)
    else:
        say(
            f"wrote {place}: {short_text(record.architecture)}"
            + (f" for {record.task}" if record.task else "")
        )


def describe_zoo(zoo: Zoo) -> dict[str, Any]:
    """A zoo in plain values: recipe, counts, and final networks by architecture, dataset and split."""
    records = zoo.records()
    return {
        "kind": "zoo",
        "zoo": zoo.path,
        "recipe": zoo.recipe(),
        "checkpoints": len(records),
        "networks": sum(record.final for record in records),
        "mean_accuracy": _mean(records),
        "groups": zoo.summary(),
    }


def print_zoo(described: dict[str, Any]) -> None:
    """:func:`describe_zoo` for people."""
    networks, checkpoints = described["networks"], described["checkpoints"]
    say(f"{described['zoo']}: a zoo of {networks:,} networks, {checkpoints:,} checkpoints", style="bold")
    recipe = described["recipe"] or {}
    facts(
        [
            ("recipe", recipe.get("name")),
            ("initialisation", recipe.get("initialisation")),
            ("mean accuracy", percent(described["mean_accuracy"])),
        ]
    )
    say()
    rows = [
        (
            short_text(g["architecture"]),
            g["dataset"] or None,
            g["split"],
            g["classes"],
            g["networks"],
            percent(g["accuracy"]),
        )
        for g in described["groups"]
    ]
    columns = ["architecture", "dataset", "split", "classes", "networks", "accuracy"]
    table(columns, rows, numbers=columns[3:])


def _mean(records: list[Record]) -> float | None:
    scores = [record.accuracy for record in records if record.final and record.accuracy is not None]
    return sum(scores) / len(scores) if scores else None
