"""``weightloom export``: a network as a file that runs without Weightloom."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from weightloom.cli.folders import data_counts, data_facts, data_report
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
    load_task,
)
from weightloom.cli.matching import fitting_task
from weightloom.cli.output import emit, facts, measured, note, say, seconds_text, working
from weightloom.errors import InputError

if TYPE_CHECKING:
    from weightloom.export import Exported

SUFFIXES = (".onnx", ".pt2", ".py", ".c")


def export(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A network: safetensors, or a PyTorch checkpoint with --arch."),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The file to write: .onnx, .pt2, .py or .c.")
    ],
    to: Annotated[
        Literal["onnx", "pt2", "python", "c"] | None,
        typer.Option("--to", help="What it is to be; without it the end of the name decides."),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Round weights to 8 bits (onnx, which needs examples, and c).")
    ] = False,
    max_loss: Annotated[
        float, typer.Option("--max-loss", metavar="POINTS", help="Points of accuracy that --int8 may cost.")
    ] = 1.0,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="A second output with probabilities (onnx).")
    ] = False,
    task: TaskName = None,
    data: DataFolder = None,
    skip_broken: SkipBroken = False,
    arch: FileArch = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Write a network as a file that runs without Weightloom: ONNX, a PyTorch program, Python, or C.

    The file is run and its answers are compared with the network's before it is put in its place. With a
    task or a folder the accuracy of both is measured on test images, and int8 is calibrated on training
    images.

    Examples:
        weightloom export digits.safetensors --out digits.onnx
        weightloom export digits.safetensors --to c --int8 --task digits --out digits.c
        weightloom export digits.safetensors --to onnx --int8 --task digits --out small.onnx
        weightloom export digits.safetensors --to python --out digits.py
    """
    started = time.perf_counter()
    found = check_out(out, SUFFIXES, "--out")
    assert found is not None
    if not (math.isfinite(max_loss) and 0 <= max_loss <= 100):
        raise InputError(f"--max-loss must be from 0 to 100 points, not {max_loss}")
    load_task(task, data, skip_broken=skip_broken)  # a slip there is no fault of the file
    network = load_network(file, arch, key)
    calm_threads(network.spec.num_parameters())
    target = None if task is None and data is None else fitting_task(network, task, data, skip_broken)
    from weightloom.export import export_network, facts_of
    from weightloom.generators import Sample

    with working("exporting"):
        done = export_network(
            Sample(network.spec, network.flat, {}),
            found,
            to=to,
            int8=int8,
            probabilities=probabilities,
            task=target,
            max_loss=max_loss,
            facts=facts_of(
                network.metadata, network.spec, None if target is None else target.class_names, file
            ),
        )
    folder = None if target is None else data_report(target)
    result = {
        "file": file,
        "architecture": network.spec.full_text(),
        "out": done.files[0],
        "files": list(done.files),
        "bytes": sum(written.stat().st_size for written in done.files),
        "to": done.to,
        "int8": int8,
        "checked": done.checked,
        "unchecked": done.unchecked,
        "difference": done.difference,
        "task": None if target is None else str(target),
        "data": data_counts(folder),
        "accuracy_before": None if done.accuracy is None else done.accuracy[0],
        "accuracy": None if done.accuracy is None else done.accuracy[1],
        "num_images": done.num_images,
        "class_names": list(done.facts.class_names),
        "licence": done.facts.licence,
        **done.more,
        "seconds": time.perf_counter() - started,
    }
    if as_json:
        emit(result)
        return
    _show(result, done)
    facts(data_facts(folder))


def _show(result: dict[str, Any], done: Exported) -> None:
    size = f"{result['bytes']:,} bytes"
    say(f"{result['out']}: {done.to}{', int8' if done.int8 else ''}, {size}", style="bold")
    if done.unchecked is not None:
        note(f"note: {result['out']} was not checked: {done.unchecked}")
    after = None
    if done.accuracy is not None:
        before, now = (measured(value, done.num_images) for value in done.accuracy)
        after = f"{now}; before {before}, of {done.num_images:,} test images"
    difference = None if done.difference is None else f"{done.difference:.2g} of the logits' spread at most"
    facts(
        [
            ("beside it", ", ".join(map(str, done.files[1:])) or None),
            ("architecture", result["architecture"]),
            ("checked by", done.checked),
            ("difference", difference),
            ("right", after),
            *(
                (compiler, f"{sizes['flash']:,} bytes of flash, {sizes['ram']:,} of RAM")
                for compiler, sizes in result.get("footprint", {}).items()
            ),
            ("licence of the weights", done.facts.licence or "unknown: the file does not say it"),
            ("time in all", seconds_text(result["seconds"])),
        ]
    )
