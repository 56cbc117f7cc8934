"""``weightloom stream``: one network that may be larger than memory, written layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weightloom.cli.folders import data_facts, data_report
from weightloom.cli.inputs import (
    DataFolder,
    GeneratorName,
    Instruction,
    Json,
    SkipBroken,
    TaskName,
    calm_threads,
    check_place,
    check_shots,
    load_task,
    plain_text,
)
from weightloom.cli.output import emit, facts, measured, say, seconds_text, working
from weightloom.errors import InputError


def stream(
    arch: Annotated[
        str,
        typer.Option("--arch", metavar="SPEC", help="Any depth and width, say 'cnn(depth=8,width=1260)'."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the files go.")],
    instruction: Instruction = None,
    task: TaskName = None,
    data: DataFolder = None,
    skip_broken: SkipBroken = False,
    generator: GeneratorName = "layerwise-tiny",
    shots: Annotated[int, typer.Option("--shots", help="Examples of each class to look at.")] = 16,
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same network.")] = 0,
    shard_mb: Annotated[
        int, typer.Option("--shard-mb", help="Megabytes of a file at most, unless one tensor is larger.")
    ] = 1000,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a network that this command wrote there before.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Generate a network larger than memory, straight into sharded safetensors.

    Memory does not grow with the width. The files have the hub's layout: model.safetensors, or
    model-00001-of-0000N.safetensors and model.safetensors.index.json. The generator needs layer-wise
    parts, as layerwise-tiny has.

    Examples:
        weightloom stream --arch 'cnn(depth=8,width=1260)' --task digits --out runs/wide
        weightloom stream --arch 'resnet(depth=20,width=512,classes=10)' --out runs/wide --shard-mb 200
    """
    check_shots(shots)
    if not 1 <= shard_mb <= 1_000_000:
        raise InputError(f"--shard-mb must be from 1 to 1,000,000, not {shard_mb:,}")
    out = out.expanduser()
    check_place(out.parent, "--out")
    from weightloom.architectures import parse_architecture
    from weightloom.generators.load import load_generator
    from weightloom.generators.streaming import stream_network

    spec = parse_architecture(plain_text(arch, "architecture"))
    model = load_generator(plain_text(generator, "generator"))
    calm_threads()
    target = load_task(task, data, model.validity.input, skip_broken)
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise InputError(f"--out {out}: is not empty; --overwrite replaces a network that was written there")
    with working("generating and writing"):
        report = stream_network(
            model,
            spec,
            out,
            instruction=None if instruction is None else plain_text(instruction, "instruction"),
            support=None if target is None else target.support(shots, seed),
            seed=seed,
            shard_bytes=shard_mb * 1_000_000,
            overwrite=overwrite,
        )
    folder_report = data_report(target)
    if as_json:
        name = None if target is None else str(target)
        emit({**report, "task": name, "data": folder_report, "folder": out})
        return
    say(
        f"{report['generator']} generated {report['parameters']:,} parameters in "
        f"{seconds_text(report['seconds'])}",
        style="bold",
    )
    facts(
        [
            ("architecture", report["architecture"]),
            ("task", None if target is None else f"{target}: {target.describe()}"),
            *data_facts(folder_report),
            ("on the examples", measured(report.get("support_accuracy"), report.get("support_images"))),
            ("files", f"{len(report['files'])} in {out}"),
        ]
    )
