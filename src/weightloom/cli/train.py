"""``weightloom train``: a generator from a recipe, and from a zoo where it needs one. A thin wrapper."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from weightloom.cli.failures import interrupted
from weightloom.cli.folders import data_counts, data_facts, data_report
from weightloom.cli.inputs import (
    DataFolder,
    Json,
    SkipBroken,
    TaskName,
    check_place,
    find_recipe,
    load_task,
    plain_text,
)
from weightloom.cli.output import emit, facts, measured, progress, say, seconds_text
from weightloom.errors import InputError

if TYPE_CHECKING:
    from weightloom.tasks import Task

GOES_ON = "the last kept state is in {}, and the same command goes on from there"


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A YAML file, or the name of a published recipe; with --objective reward: a generator.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the generator is written.")],
    zoo: Annotated[
        Path | None,
        typer.Option("--zoo", metavar="DIR", help="The zoo to learn from; some generators need none."),
    ] = None,
    objective: Annotated[
        Literal["recipe", "reward"],
        typer.Option(
            "--objective",
            help="reward: steer a trained generator by the accuracy of what it makes, on the tasks of "
            "recipes/reward-tiny.yaml, or on one task with --task or --data.",
        ),
    ] = "recipe",
    task: TaskName = None,
    data: DataFolder = None,
    skip_broken: SkipBroken = False,
    arch: Annotated[
        str, typer.Option("--arch", metavar="SPEC", help="The architecture to steer for one task.")
    ] = "cnn(depth=3,width=16)",
    shots: Annotated[
        int,
        typer.Option("--shots", help="Examples of each class; all training images give the reward."),
    ] = 16,
    seed: Annotated[int, typer.Option("--seed", help="Which examples, and what is drawn.")] = 0,
    as_json: Json = False,
) -> None:
    """Train a generator, or steer one by reward.

    An interrupted training goes on from its last kept state when the same command is given again. Under
    torchrun several processes train one generator, which is as one process would have trained it; any number
    of them can go on.

    Examples:
        weightloom train layerwise-tiny --zoo zoos/tiny --out runs/layerwise-tiny
        weightloom train layerwise-tiny --objective reward --task 'digits[3,1,7,0]+rot90' --out runs/better
        torchrun --nproc-per-node=2 --no-python weightloom train layerwise-tiny-any --out runs/any
        weightloom generate "Recognise handwritten digits" --task digits --generator runs/layerwise-tiny
    """
    started = time.perf_counter()
    out = out.expanduser()
    check_place(out, "--out")
    if objective == "reward":
        one = partial(load_task, task, data, skip_broken=skip_broken)
        _steer(recipe, out, one, arch, shots, seed, as_json)
        return
    if task is not None or data is not None or skip_broken:
        raise InputError("--task, --data and --skip-broken belong to --objective reward")
    path = find_recipe(recipe)
    from weightloom.training import parallel
    from weightloom.training.run import train_recipe
    from weightloom.zoo import Zoo

    if zoo is not None:
        zoo = zoo.expanduser()
        Zoo(zoo)  # a folder that is no zoo is found before anything is read
    with interrupted(GOES_ON.format(out)), parallel.joined():
        first = parallel.rank() == 0
        with progress() if first else nullcontext(lambda *_: None) as move:
            train_recipe(path, zoo, out, move)
    if not first:  # it has nothing to say: one of the processes speaks for all
        return
    result = {"recipe": path, "zoo": zoo, "generator": out, "seconds": time.perf_counter() - started}
    if as_json:
        emit(result)
        return
    say(f"{out} holds the trained generator", style="bold")
    facts([("recipe", path), ("zoo", zoo), ("time", seconds_text(result["seconds"]))])  # type: ignore[arg-type]


def _steer(
    generator: str,
    out: Path,
    one_task: Callable[[tuple[int, int, int]], Task | None],
    arch: str,
    shots: int,
    seed: int,
    as_json: bool,
) -> None:
    """``--objective reward``: one task, by the shape of its images, or None for the recipe's tasks."""
    started = time.perf_counter()
    from weightloom.architectures import parse_architecture
    from weightloom.generators.load import load_generator
    from weightloom.generators.streaming import layerwise_of
    from weightloom.training import parallel
    from weightloom.training.reward import train_across

    if parallel.started() > 1:
        raise InputError("steering by reward is the work of one process; start it without torchrun")
    path = find_recipe("reward-tiny")
    start = load_generator(plain_text(generator, "generator"))
    target = one_task(start.validity.input)
    result: dict[str, Any] = {"start": start.name, "recipe": path, "out": out}
    with interrupted(GOES_ON.format(out)), progress() as move:
        if target is None:
            train_across(path, start, out, move)
        else:
            spec = parse_architecture(plain_text(arch, "architecture"))
            model = layerwise_of(start, spec.resolve(classes=target.num_classes, input=start.validity.input))
            result |= _one_task(model, target, spec, path, out, shots, seed, move)
    folder_report = data_report(target)
    result |= {"data": folder_report, "seconds": time.perf_counter() - started}
    if as_json:
        emit(result)
        return
    say(f"{out} holds the steered {'generator' if target is None else 'network'}", style="bold")
    rows: list[tuple[str, Any]] = [("started from", start.name), ("time", seconds_text(result["seconds"]))]
    if target is not None:
        images = result["test_images"]
        rows += [
            ("network", str(result["network"])),
            *data_facts(folder_report),
            ("accuracy before", measured(result["accuracy_before"], images)),
            ("accuracy after", f"{measured(result['accuracy'], images)} on {images:,} test images"),
        ]
    facts(rows)


def _one_task(
    model: Any, target: Any, spec: Any, path: Path, out: Path, shots: int, seed: int, move: Any
) -> dict[str, Any]:
    """Steer for one task and save the network in the middle of what was reached."""
    from weightloom.fitting import accuracy, counted, interval_of
    from weightloom.generators import Sample, Sampling
    from weightloom.io import read_yaml
    from weightloom.training.recipe import RewardRecipe
    from weightloom.training.reward import settings_of, steer, steered_network

    support = target.support(shots, seed)
    sampling = Sampling(temperature=0.0)
    request = model.check(spec, None, support, 1, seed, sampling)
    settings = settings_of(read_yaml(path, RewardRecipe))
    out.mkdir(parents=True, exist_ok=True)
    steered = steer(model, request, target.data("train"), settings, folder=out, progress=move)
    flat = steered_network(model, request, steered)
    before = model.generate(spec, support=support, seed=seed, sampling=sampling)
    images, labels = target.data("test").all()
    after, first = (
        accuracy(request.architecture, flat[None], images, labels),
        accuracy(request.architecture, before.flat[None], images, labels),
    )
    report = {
        **{name: value for name, value in before.report.items() if name != "calibration"},
        "objective": "reward",
        "task": str(target),
        "data": data_counts(data_report(target)),
        **counted(float(after), len(images)),
        "accuracy_before": float(first),
        "interval_before": interval_of(float(first), len(images)),
        "networks_scored": steered.scored,
        "rewards": list(steered.rewards),
    }
    # Its training pictures were all looked at, so that nothing is left to measure how sure it may be.
    card = replace(before.card.for_task(target), made_by=f"{before.card.made_by}, steered by reward")
    sample = Sample(request.architecture, flat, report, card.calibrated(None))
    network = sample.save(out / "network.safetensors")
    kept = (
        "task", "accuracy", "interval", "num_images", "accuracy_before", "interval_before",
        "networks_scored", "rewards",
    )  # fmt: skip
    return {"network": network, "test_images": len(images), **{name: report[name] for name in kept}}
