"""``weightloom evaluate``: the accuracy of a network in a file, by class."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from weightloom.cli.inputs import (
    DataFolder,
    Json,
    TaskName,
    calm_threads,
    fitting_task,
    load_network,
    provenance,
)
from weightloom.cli.output import bar, emit, facts, percent, say, table, working


def evaluate(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A network: .safetensors, or a PyTorch state dict with --arch."),
    ],
    task: TaskName = None,
    data: DataFolder = None,
    arch: Annotated[
        str | None,
        typer.Option(
            "--arch", metavar="SPEC", help="The architecture, for files that do not say it themselves."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a network on test images: accuracy, accuracy by class, confusions.

    Without --task and --data, a network is measured on the named task that it was generated for.

    Examples:
        weightloom evaluate digits.safetensors --task digits
        weightloom evaluate clothing.safetensors --task fashion-mnist+rot90 --json
        weightloom evaluate other.pt --arch 'mlp(depth=1,width=8,classes=10,input=3x16x16)' --task mnist
    """
    import torch

    from weightloom.fitting import run_networks

    started = time.perf_counter()
    network = load_network(file, arch)
    calm_threads(network.spec.num_parameters())
    made_for = provenance(network.metadata).get("task")
    if task is None and data is None and isinstance(made_for, str) and not made_for.startswith("folder:"):
        task = made_for
    target = fitting_task(network, task, data)
    test = target.data("test")
    classes = target.num_classes
    counts = torch.zeros(classes, classes, dtype=torch.int64)  # true class by answer
    with working("measuring"), torch.no_grad():
        for index in torch.arange(len(test)).split(1000):
            images, labels = test.batch(index)
            answers = run_networks(network.spec, network.flat[None], images)[0].argmax(-1)
            counts += torch.bincount(labels * classes + answers, minlength=classes**2).reshape(
                classes, classes
            )
    right, totals = counts.diagonal().tolist(), counts.sum(1).tolist()
    result: dict[str, Any] = {
        "file": file,
        "architecture": network.spec.full_text(),
        "num_parameters": network.spec.num_parameters(),
        "task": str(target),
        "images": len(test),
        "accuracy": sum(right) / len(test),
        "per_class": [
            {"class": name, "images": total, "accuracy": hits / total if total else None}
            for name, hits, total in zip(target.class_names, right, totals, strict=True)
        ],
        "confusion": counts.tolist(),
        "seconds": time.perf_counter() - started,
    }
    if as_json:
        emit(result)
        return
    say(f"{percent(result['accuracy'])} of {len(test):,} test images right", style="bold")
    facts(
        [("file", file), ("architecture", result["architecture"]), ("task", f"{target}: {target.describe()}")]
    )
    say()
    rows = []
    for label, (entry, row) in enumerate(zip(result["per_class"], result["confusion"], strict=True)):
        wrong = [(count, name) for count, name in zip(row, target.class_names, strict=True)]
        del wrong[label]
        most = max(wrong, key=lambda pair: pair[0])
        taken = f"{most[1]} ({most[0]:,})" if most[0] else None
        rows.append(
            (
                entry["class"],
                f"{entry['images']:,}",
                percent(entry["accuracy"]),
                bar(entry["accuracy"], 20),
                taken,
            )
        )
    table(["class", "images", "right", "", "most often taken for"], rows, numbers=["images", "right"])
