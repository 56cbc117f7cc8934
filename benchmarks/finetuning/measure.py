"""Is a generated start, fine-tuned within some seconds, worth more than a random one in the same seconds?"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from weightloom.architectures import ArchitectureSpec
from weightloom.fitting import (
    FitSettings,
    Start,
    TuneSettings,
    accuracy,
    fit_population,
    initial_flats,
    interval_of,
    tune,
)
from weightloom.generators.load import load_generator
from weightloom.seeding import seed_for, torch_generator
from weightloom.tasks import TaskData, parse_task
from weightloom.tasks.data import draw_support, places_not_shown

Config = dict[str, Any]
Rows = list[dict[str, Any]]


def drawn(text: str, config: Config, seed: int) -> tuple[TaskData, TaskData, tuple[str, ...]]:
    """Training pictures, so many a class, test pictures and the names of the classes."""
    task = parse_task(text)
    generator = torch_generator("finetuning", text, seed)
    train, test = task.data("train"), task.data("test")
    rows = []
    for label in range(task.num_classes):
        own = torch.nonzero(train.labels == label).flatten()
        rows.append(own[torch.randperm(len(own), generator=generator)[: config["train"]]])
    chosen = torch.randperm(len(test), generator=generator)[: config["test"]]
    return train.part(torch.cat(rows)), test.part(chosen), tuple(task.class_names)


def plain(
    spec: ArchitectureSpec, flat: Tensor, data: TaskData, config: Config, seed: int
) -> tuple[Tensor, int]:
    """AdamW with one cycle that ends when the seconds are over."""
    begun = time.perf_counter()
    settings = FitSettings(steps=10**6, learning_rate=config["rate"])

    def pace(step: int) -> float:
        return (time.perf_counter() - begun) / config["seconds"]

    (last,) = fit_population(spec, flat[None], [data], settings, seed=seed, pace=pace)
    return last.flats[0], last.step


def share(spec: ArchitectureSpec, flat: Tensor, test: TaskData) -> float:
    """Accuracy on the test pictures."""
    return round(float(accuracy(spec, flat[None], *test.all())[0]), 4)


def compare(config: Config, seed: int) -> Rows:
    """All tasks: the start, fine-tuned, and random starts in the same seconds."""
    torch.set_num_threads(1)
    model = load_generator(config["generator"])
    rows: Rows = []
    for name, text in config["tasks"].items():
        train, test, names = drawn(text, config, seed)
        support = draw_support(train, names, names, config["shots"], ("finetuning", seed))
        sample = model.generate(config["architecture"], support=support, seed=seed)
        spec = sample.architecture
        unseen = torch.zeros(len(train), dtype=torch.bool)
        unseen[places_not_shown(train, support, len(train), ("finetuning", seed))] = True
        settings = TuneSettings(seconds=config["seconds"], seed=seed)
        fresh = initial_flats(spec, [seed_for("finetuning", seed)])[0]
        tuned = tune(spec, Start(flat=sample.flat, unseen=unseen), train, names, settings)
        random = tune(spec, Start(flat=fresh), train, names, settings)
        trained, steps = plain(spec, fresh, train, config, seed)
        warm, _ = plain(spec, sample.flat, train, config, seed)
        reached = {
            "start": sample.flat,
            "tuned": tuned.flat,
            "random_tuned": random.flat,
            "random_plain": trained,
            "start_plain": warm,
        }
        row = {
            "task": name, "seed": seed, "train": len(train), "test": len(test), "plain_steps": steps,
            **{what: share(spec, flat, test) for what, flat in reached.items()},
            "chosen": tuned.sentence, "random_chosen": random.sentence,
            "held_back": [round(tuned.start.accuracy, 4), round(tuned.chosen.accuracy, 4), tuned.judged_on],
            "tuned_steps": sum(trial.steps for trial in tuned.trials if "mix" not in trial.how),
            "temperature": tuned.calibration and round(tuned.calibration["temperature"], 3),
            "seconds": [round(tuned.seconds, 1), round(random.seconds, 1)],
        }  # fmt: skip
        row["interval"] = interval_of(row["tuned"], len(test))
        rows.append(row)
        print(row, flush=True)
    return rows


PARTS: dict[str, Callable[[Config], Rows]] = {
    f"seed-{seed}": partial(compare, seed=seed) for seed in range(2)
}


def page(results: dict[str, Any], config: Config) -> str:
    """The page."""
    from finetuning.page import render

    return render(results, config)
