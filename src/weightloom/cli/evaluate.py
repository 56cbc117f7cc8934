"""``weightloom evaluate``: the accuracy of networks in files, by class."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightloom.cli.folders import data_facts, data_report
from weightloom.cli.info_file import short_list
from weightloom.cli.inputs import (
    Address,
    DataFolder,
    EngineName,
    FileArch,
    Json,
    Key,
    Network,
    SkipBroken,
    TaskName,
    Workers,
    calm_threads,
    check_engine,
    engine_for,
    load_network,
    load_task,
    provenance,
)
from weightloom.cli.matching import fitting_task, measured_folder
from weightloom.cli.output import (
    bar,
    emit,
    facts,
    measured,
    progress,
    say,
    seconds_text,
    table,
    working,
)
from weightloom.cli.several import Several
from weightloom.errors import InputError

if TYPE_CHECKING:
    from weightloom.tasks import Task

CLUSTER = 16
"""Jobs at a time that a cluster of unknown size is thought to do."""


def evaluate(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="Networks: safetensors, folders in the hub's layout, or PyTorch checkpoints with --arch.",
        ),
    ],
    task: TaskName = None,
    data: DataFolder = None,
    test_data: Annotated[
        Path | None,
        typer.Option(
            "--test-data",
            metavar="FOLDER",
            help="Your own test pictures, one sub-folder for each class: all are measured, and classes are "
            "matched by name.",
        ),
    ] = None,
    skip_broken: SkipBroken = False,
    arch: FileArch = None,
    key: Key = None,
    workers: Workers = 1,
    engine: EngineName = "local",
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Measure networks on test images: accuracy, accuracy by class, confusions.

    Without --task and --data, a network is measured on the named task that it was generated for. Of a folder,
    --data measures the test part, or one picture in five where it has none; --test-data measures every
    picture. Classes of the same names are matched, in whatever order they are. Several networks are read
    first, measured side by side, and shown with the best first; those that cannot be read are listed.

    Examples:
        weightloom evaluate digits.safetensors --task digits
        weightloom evaluate clothing.safetensors --task fashion-mnist+rot90 --json
        weightloom evaluate photos.safetensors --test-data holiday-photos/
        weightloom evaluate other.pt --arch 'mlp(depth=1,width=8,classes=10,input=3x16x16)' --task mnist
        weightloom evaluate last.ckpt --key model_ema --arch 'mlp(depth=1,width=8)' --task mnist
        weightloom evaluate runs/*.safetensors --task digits --workers 2
    """
    started = time.perf_counter()
    check_engine(engine, workers, address)
    if test_data is not None and (task is not None or data is not None):
        raise InputError("give one of --task, --data and --test-data")
    # A slip there is no fault of any file.
    load_task(task, test_data or data, skip_broken=skip_broken, whole=test_data is not None)
    several = Several(len(files), "files")
    given: list[tuple[Path, Network, Task]] = []
    shared: dict[tuple[object, ...], Task] = {}
    for file in files:
        with several.attempt(file):
            network = load_network(file, arch, key)
            own = task or _made_for(network, test_data or data)
            key_of_task = (own, network.spec.input, network.spec.classes, network.card.class_names)
            target = shared.get(key_of_task)
            if target is None:
                target = _target(file, network, own, data, test_data, skip_broken)
                shared[key_of_task] = target
            given.append((file, network, target))
    if not given:
        if as_json:
            emit({"networks": [], "failed": several.failed, "seconds": time.perf_counter() - started})
        several.finish()
    calm_threads(max(network.spec.num_parameters() for _, network, _ in given))
    from weightloom.evaluation.accuracy import confusions

    wanted = [(network.spec, network.flat, target) for _, network, target in given]
    shown = working("measuring") if len(files) == 1 else progress()
    with engine_for(engine, workers, address) as machine, shown as move:
        jobs = workers if address is None else CLUSTER
        counts = confusions(wanted, machine, jobs=jobs, progress=move or (lambda *_: None))
    results = [_result(*own, counted) for own, counted in zip(given, counts, strict=True)]
    folder_report = data_report(given[0][2])
    seconds = time.perf_counter() - started
    if as_json:
        answer = results[0] if len(files) == 1 else {"networks": results, "failed": several.failed}
        emit({**answer, **({} if folder_report is None else {"data": folder_report}), "seconds": seconds})
    elif len(files) == 1:
        _show(results[0], given[0][2], folder_report)
    else:
        results.sort(key=lambda result: -result["accuracy"])
        rows = [
            (
                result["file"],
                result["architecture"],
                result["task"],
                measured(result["accuracy"], result["num_images"]),
                f"{result['num_images']:,}",
            )
            for result in results
        ]
        columns = ["network", "architecture", "task", "right", "images"]
        table(columns, rows, numbers=columns[3:])
        facts(data_facts(folder_report))
        say(f"{len(results)} networks in {seconds_text(seconds)}")
    several.finish()


def _made_for(network: Network, data: Path | None) -> str | None:
    """The named task that a network says it was made for, where no folder is given instead."""
    task = provenance(network.metadata).get("task")
    return task if data is None and isinstance(task, str) and not task.startswith("folder:") else None


def _target(
    file: Path,
    network: Network,
    task: str | None,
    data: Path | None,
    test_data: Path | None,
    skip_broken: bool,
) -> Task:
    try:
        if test_data is not None:
            return measured_folder(network, test_data, skip_broken)
        return fitting_task(network, task, data, skip_broken)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def _result(file: Path, network: Network, target: Task, confusion: list[list[int]]) -> dict[str, Any]:
    totals = [sum(row) for row in confusion]
    right = [row[label] for label, row in enumerate(confusion)]
    from weightloom.fitting import counted

    return {
        "file": file,
        "architecture": network.spec.full_text(),
        "num_parameters": network.spec.num_parameters(),
        "read_from": network.key,
        "left_out": list(network.left_out),
        "task": str(target),
        "images": sum(totals),
        "class_names": target.class_names,
        "missing_classes": [
            name for name, total in zip(target.class_names, totals, strict=True) if not total
        ],
        **counted(sum(right) / sum(totals), sum(totals)),
        "by_class": {
            name: counted(hits / total if total else None, total)
            for name, hits, total in zip(target.class_names, right, totals, strict=True)
        },
        "confusion": confusion,
    }


def _show(result: dict[str, Any], target: Task, folder_report: dict[str, Any] | None) -> None:
    right = measured(result["accuracy"], result["num_images"])
    say(f"{right} of {result['num_images']:,} test images right", style="bold")
    facts(
        [
            ("file", result["file"]),
            ("architecture", result["architecture"]),
            ("read from", result["read_from"] if result["read_from"] != "." else None),
            ("left out", short_list(result["left_out"])),
            ("task", f"{target}: {target.describe()}"),
            *data_facts(folder_report),
        ]
    )
    say()
    rows = []
    measured_classes = zip(result["by_class"].items(), result["confusion"], strict=True)
    for label, ((own, entry), row) in enumerate(measured_classes):
        wrong = [(count, name) for count, name in zip(row, target.class_names, strict=True)]
        del wrong[label]
        most = max(wrong, key=lambda pair: pair[0])
        taken = f"{most[1]} ({most[0]:,})" if most[0] else None
        rows.append(
            (
                own,
                f"{entry['num_images']:,}",
                measured(entry["accuracy"], entry["num_images"]),
                bar(entry["accuracy"], 20),
                taken,
            )
        )
    table(["class", "images", "right", "", "most often taken for"], rows, numbers=["images", "right"])
