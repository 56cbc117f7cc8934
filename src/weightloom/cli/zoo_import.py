"""``weightloom zoo import``: networks from elsewhere into a zoo."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from weightloom.cli.failures import interrupted
from weightloom.cli.info_file import short_list
from weightloom.cli.inputs import Json, Key, check_place, plain_text, short_text
from weightloom.cli.output import emit, note, percent, progress, table
from weightloom.cli.several import Several
from weightloom.errors import InputError

if TYPE_CHECKING:
    from weightloom.zoo.importing import Plan
    from weightloom.zoo.sources import Found

SHOWN = 40
"""Networks, and reasons, that people are shown."""


def import_networks(
    zoo: Annotated[Path, typer.Argument(metavar="DIR", help="The zoo's folder.")],
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCES...", help="Files, folders, published model zoos, hf://owner/name."),
    ],
    task: Annotated[
        str | None, typer.Option("--task", metavar="TASK", help="What they were trained for.")
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option("--arch", metavar="SPEC", help="What they are, where the file does not say it itself."),
    ] = None,
    match: Annotated[
        Literal["names", "order"],
        typer.Option("--match", help="Match tensors by name, or (.pt files) one after another."),
    ] = "names",
    format: Annotated[
        Literal["auto", "file", "folder", "modelzoos", "hub"],
        typer.Option("--format", help="What the sources are; by default each is looked at."),
    ] = "auto",
    key: Key = None,
    epochs: Annotated[
        str,
        typer.Option("--epochs", metavar="WHICH", help="Of model zoos: last, all, or epochs such as 5,25."),
    ] = "last",
    accuracy: Annotated[
        Literal["auto", "reported", "measured"],
        typer.Option(
            "--accuracy",
            help="As the files report it, or measured on the task's test images (auto: measured, but for "
            "published model zoos).",
        ),
    ] = "auto",
    strict: Annotated[
        bool, typer.Option("--strict", help="Add nothing if anything would be skipped.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Read and check everything, say what would be done, write nothing."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Add networks from elsewhere to a zoo, which is made if it is missing.

    A source is a file (safetensors, or a PyTorch checkpoint, whatever it is called), a folder of such files,
    a published model zoo (folders of trials with params.json), or a repository on a hub, of which only
    safetensors are taken. Everything is checked before anything is added. What does not fit, or is of another
    kind, is skipped and said; where it was named itself, the exit code is 1. What the zoo holds already is
    passed over, so that an interrupted import goes on when it is given again.

    Examples:
        weightloom zoo import zoos/mine clothing.safetensors --task fashion-mnist
        weightloom zoo import zoos/mine a.pt b.pt --arch 'mlp(depth=2,width=32)' --task mnist
        weightloom zoo import zoos/mnist tune_zoo_mnist_uniform --task mnist --epochs 5,25,50 --dry-run
    """
    from weightloom.architectures import parse_architecture
    from weightloom.tasks import parse_task
    from weightloom.zoo import Zoo
    from weightloom.zoo.importing import carry_out, input_of, plan_import, to_measure
    from weightloom.zoo.modelzoos import parse_epochs
    from weightloom.zoo.sources import find_networks

    spec = None if arch is None else parse_architecture(plain_text(arch, "architecture"))
    target = None if task is None else parse_task(plain_text(task, "task"))
    if accuracy == "measured" and target is None:
        raise InputError("--accuracy measured needs --task")
    zoo = zoo.expanduser()
    if not dry_run:
        check_place(zoo, "DIR")
    wanted = parse_epochs(plain_text(epochs, "epochs"))
    chosen = None if key is None else plain_text(key, "key")
    several = Several(len(sources), "sources")
    found: list[Found] = []
    for source in sources:
        with nullcontext() if strict else several.attempt(source):
            name = plain_text(source, "source")
            found.append(find_networks(name, format=format, epochs=wanted, key=chosen))
    if not found:
        several.finish()
    if len(sources) > 1 and not strict:
        found, named = _one_of_several(found)
    else:
        named = frozenset()
    if task is not None and target is not None and "@" not in task:
        shape = input_of(found, spec)
        if shape is not None and shape[1] == shape[2]:
            target = target.resized(shape[1], shape[0])
    target_zoo = Zoo.planned(zoo)
    with progress() as move:
        plan = plan_import(
            found,
            zoo=target_zoo,
            architecture=spec,
            task=target,
            match=match,
            strict=strict,
            progress=move,
        )
    for entry in plan.skipped:
        if entry.name in named and not entry.reason.startswith("has the same bytes"):
            several.failed.append({"name": entry.name, "reason": entry.reason})
    result: dict[str, Any] = {
        "zoo": zoo,
        "formats": list(plan.formats),
        "passed_over": len(plan.held),
        "skipped": [asdict(entry) for entry in plan.skipped],
        "failed": several.failed,
    }
    if dry_run:
        planned: list[dict[str, Any]] = [
            {
                "file": n.candidate.name,
                "architecture": n.spec.full_text(),
                "read_from": n.key,
                "left_out": list(n.left_out),
                **n.facts,
            }
            for n in plan.networks
        ]
        if as_json:
            emit({**result, "planned": planned})
            several.finish()
            return
        rows = [(p["file"], p["architecture"], p.get("epoch"), p.get("accuracy")) for p in planned]
        _show(("file", "architecture", "epoch", "accuracy"), rows, plan)
        note(f"nothing was written; without --dry-run {len(planned):,} networks would be added to {zoo}")
        several.finish()
        return
    if target is not None and to_measure(plan, accuracy):
        target.data("test")  # a dataset that is missing is found before anything is written
    goes_on = f"what was added before stays in {zoo}, and the same command goes on from there"
    with interrupted(goes_on, where=zoo / "zoo.sqlite3"), progress() as move:
        added = carry_out(target_zoo, plan, task=target, match=match, source=accuracy, progress=move)
    if as_json:
        emit({**result, "imported": [asdict(record) for record in added]})
        several.finish()
        return
    shown: list[tuple[Any, ...]] = [
        (
            r.id,
            r.provenance.get("file"),
            r.architecture,
            r.task or None,
            r.provenance.get("epoch"),
            r.accuracy,
        )
        for r in added
    ]
    _show(("id", "file", "architecture", "task", "epoch", "accuracy"), shown, plan)
    several.finish()


def _one_of_several(found: Sequence[Found]) -> tuple[list[Found], frozenset[str]]:
    """Files that were named, to be passed over where they do not fit, as those of a folder; their names."""
    named = frozenset(one.name for each in found for one in each.candidates if one.named)
    return [
        replace(each, candidates=[replace(one, named=False) for one in each.candidates]) for each in found
    ], named


def _show(columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]], plan: Plan) -> None:
    """The first networks as a table; then, on stderr, what was passed over and why."""
    at = columns.index("architecture")
    table(
        columns,
        [(*row[:at], short_text(row[at]), *row[at + 1 : -1], percent(row[-1])) for row in rows[:SHOWN]],
        numbers=["epoch", "accuracy"],
    )
    if len(rows) > SHOWN:
        note(f"{SHOWN} of {len(rows):,} networks; --json has all")
    wrapped = [network for network in plan.networks if network.left_out]
    for network in wrapped[:SHOWN]:
        where = "" if network.key == "." else f", and read from {network.key}"
        note(f"{network.candidate.name}: left out {short_list(list(network.left_out))}{where}")
    if len(wrapped) > SHOWN:
        note(f"and {len(wrapped) - SHOWN:,} more files with tensors that were left out; --json has all")
    if plan.held:
        note(f"{len(plan.held):,} files were in the zoo already")
    reasons: dict[str, list[str]] = {}
    for entry in plan.skipped:
        reasons.setdefault(entry.reason, []).append(entry.name)
    for number, (reason, names) in enumerate(sorted(reasons.items(), key=lambda pair: -len(pair[1]))):
        if number == SHOWN:
            note(f"and {len(reasons) - SHOWN:,} more reasons; --json has all")
            break
        note(f"skipped {short_list(names, SHOWN)}: {reason}")
