"""Fine-tuning within a time: what is known of the start, and what is said of the result.

Knows no options.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightloom.cli.folders import data_counts, data_facts, data_report
from weightloom.cli.inputs import Network, provenance
from weightloom.cli.output import emit, facts, measured, progress, say, seconds_text, table, working

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from weightloom.fitting.tuned import Start, Trial, Tuned
    from weightloom.tasks import Task

MOST_EXAMPLES = 100_000
"""Examples of a start's report that are believed."""


def tuned_within(
    file: Path,
    network: Network,
    task: Task,
    seconds: float,
    *,
    seed: int,
    out: Path | None,
    from_random: bool,
    as_json: bool,
    started: float,
) -> None:
    """Fine-tune ``network`` within ``seconds`` from ``started``, save it and say what came of it."""
    from weightloom import fitting
    from weightloom.fitting import Start, TuneSettings, tune
    from weightloom.seeding import seed_for

    settings, names = TuneSettings(seconds=seconds, seed=seed), task.class_names
    train, spec = task.data("train"), network.spec
    # Reading the network and the pictures counts; of a short time at least half is for training.
    begun = max(started, time.perf_counter() - seconds / 2)
    with progress() as move:
        start = start_of(network, task)
        tuned = tune(spec, start, train, names, settings, progress=move, started=begun)
        random = None
        if from_random:
            flat = fitting.initial_flats(spec, [seed_for("random-init", seed, 0)])[0]
            random = tune(spec, Start(flat=flat), train, names, settings, progress=move)
    with working("measuring"):
        test = task.data("test")
        flats = [network.flat, tuned.flat] + ([random.flat] if random else [])
        before, after, *other = (float(fitting.accuracy_on(spec, flat[None], test)[0]) for flat in flats)
    images, folder = len(test), data_report(task)
    report = {
        "generator": "finetune",
        "task": str(task),
        "data": data_counts(folder),
        "budget": seconds,
        "seed": seed,
        "tuned": {k: v for k, v in tuned.to_json().items() if k != "trials"},
        **fitting.counted(after, images),
        "from": {"file": file.name, **provenance(network.metadata)},
    }
    if out is not None:
        save(out, network, task, tuned, report, file)
    result: dict[str, Any] = {
        "file": file,
        "architecture": spec.full_text(),
        "read_from": network.key,
        "left_out": list(network.left_out),
        "task": str(task),
        "data": folder,
        "budget": seconds,
        "seed": seed,
        **tuned.to_json(),
        "start_accuracy": before,
        "start_interval": fitting.interval_of(before, images),
        **fitting.counted(after, images),
        "random_init_accuracy": other[0] if other else None,
        "random_init_interval": fitting.interval_of(other[0], images) if other else None,
        "out": out,
        "tuning_seconds": tuned.seconds,
        "seconds": time.perf_counter() - started,
    }
    if as_json:
        emit(result)
        return
    was, now = measured(before, images), measured(after, images)
    say(f"{was} before, {now} after {seconds_text(tuned.seconds)}, of {images:,} test images", style="bold")
    say(tuned.sentence)
    facts([("file", file), ("architecture", result["architecture"]), ("task", f"{task}: {task.describe()}")])
    facts(data_facts(folder))
    say()
    columns = ["what moves", "rate", "shift", "mirrored", "steps", "seconds", "on images held back"]
    table(columns, [row(one, tuned) for one in tuned.trials], numbers=columns[1:])
    say()
    say(held_back_text(tuned))
    for remark in tuned.remarks:
        say(remark)
    facts(
        [
            ("random initialisation", measured(other[0], images) if other else None),
            ("temperature", temperature_text(tuned)),
            ("saved", out),
            ("time in all", seconds_text(result["seconds"])),
        ]
    )


def start_of(network: Network, task: Task) -> Start:
    """The network with what its report says of the training images that it was made from.

    Which these are follows from the seed and their number; where that was another task, images that it was
    not made from are taken for such, which costs nothing.
    """
    import torch

    from weightloom.fitting import Start
    from weightloom.tasks.data import places_not_shown

    report = provenance(network.metadata)
    count, seed = report.get("support_images"), report.get("seed")
    unseen = accuracy = None
    classes = task.num_classes
    if type(count) is int and type(seed) is int and seed >= 0 and classes <= count <= MOST_EXAMPLES:
        train = task.data("train")
        support = task.support(count // classes, seed)
        unseen = torch.zeros(len(train), dtype=torch.bool)
        unseen[places_not_shown(train, support, len(train), ("fine-tuning",))] = True
    if "left out" in str(report.get("support_scores", "")):
        value = report.get("support_accuracy")
        accuracy = float(value) if isinstance(value, float) and 0 <= value <= 1 else None
    return Start(flat=network.flat, unseen=unseen, accuracy=accuracy, features=published_features(network))


def published_features(network: Network) -> Callable[[Tensor], Tensor] | None:
    """The fast way to the features of a network whose trunk is a published one, unchanged; else None."""
    import torch

    from weightloom.generators.trunks import PUBLISHED, features_of, installed, trunk_of
    from weightloom.weights import layout_of

    spec = network.spec
    if spec.family not in PUBLISHED or spec.input is None or spec.input[0] != 3 or not installed(spec):
        return None
    own = layout_of(spec).unflatten(network.flat)
    same = all(name in own and torch.equal(own[name], value) for name, value in trunk_of(spec).body.items()
               if value.is_floating_point())  # fmt: skip
    return (lambda images: features_of(spec, images)) if same else None


def save(out: Path, network: Network, task: Task, tuned: Tuned, report: dict[str, Any], file: Path) -> None:
    """Write the network with its card; the start keeps the temperature that it has."""
    from weightloom.generators import Sample

    card = network.card.for_task(task)
    source = network.card.made_by or file.name
    if tuned.chosen.what == "start":
        card = card if tuned.calibration is None else card.calibrated(tuned.calibration)
        card = replace(card, made_by=f"finetune, which left it as it was, of {source}")
    else:
        card = replace(card, made_by=f"finetune, {tuned.chosen.what}, of {source}").calibrated(
            tuned.calibration
        )
    Sample(network.spec, tuned.flat.detach(), report, card).save(out)


def row(trial: Trial, tuned: Tuned) -> tuple[Any, ...]:
    """A trial as people read it."""
    how = trial.how
    if "pull" in how:
        return (trial.what, f"pull {how['pull']:g}", None, None, None, f"{trial.seconds:.1f}",
                measured(trial.accuracy, tuned.judged_on))  # fmt: skip
    moved = (f"{how['rate']:g}", how["shift"], "yes" if how["flip"] else "no") if how else (None, None, None)
    steps = f"{trial.steps:,}" if how else None
    seconds = f"{trial.seconds:.1f}" if how else None
    what = f"{trial.what}, mean with before" if "mix" in how else trial.what
    return (what, *moved, steps, seconds, measured(trial.accuracy, tuned.judged_on))


def held_back_text(tuned: Tuned) -> str:
    """What the accuracies of the trials were measured on."""
    if tuned.folds > 1:
        return (
            f"accuracies of the trials are on {tuned.judged_on:,} training images, each left out once in "
            f"{tuned.folds} parts"
            + ("" if tuned.chosen.what == "start" else "; the chosen way was then taken with all of them")
        )
    return f"accuracies of the trials are on {tuned.judged_on:,} training images held back from fine-tuning"


def temperature_text(tuned: Tuned) -> str:
    """The temperature, or why there is none."""
    if tuned.calibration is not None:
        return f"{tuned.calibration['temperature']:.3g}, measured on {tuned.calibration['on']}"
    if tuned.chosen.what == "start":
        return "as it was: the images held back may be among those that the start was made from"
    return f"none: {tuned.judged_on} images held back are too few to measure one"
