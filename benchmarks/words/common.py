"""What the measurements of networks from words share."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.fitting import accuracy
from weightloom.generators import Generator
from weightloom.generators.load import load_generator
from weightloom.seeding import numpy_generator, torch_generator
from weightloom.tasks import DatasetTask
from weightloom.tasks.store import datasets
from weightloom.training.words_tasks import PictureSource, known_stems, names_of_split

Config = dict[str, Any]
Rows = list[dict[str, Any]]


@cache
def generator(name: str) -> Generator:
    return load_generator(name)


def recipe(config: Config) -> dict[str, Any]:
    found = yaml.safe_load((Path(__file__).parents[2] / config["recipe"]).read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def resolved(config: Config, text: str) -> ArchitectureSpec:
    spec = parse_architecture(text)
    return spec.resolve(input=generator(config["generator"]).validity.input_for(spec))


def task_of(
    spec: ArchitectureSpec, dataset: str, classes: tuple[int, ...] = (), transform: str = "id"
) -> DatasetTask:
    assert spec.input is not None
    return DatasetTask(
        dataset=dataset, classes=classes, transform=transform, size=spec.input[1], channels=spec.input[0]
    )


def images_of(task: DatasetTask, config: Config) -> tuple[torch.Tensor, torch.Tensor]:
    data = task.data("test")
    order = torch.randperm(len(data), generator=torch_generator("benchmark", str(task)))[: config["images"]]
    return data.batch(order)


def from_words(
    config: Config, spec: ArchitectureSpec, task: DatasetTask, instruction: str | None = None, **options: Any
) -> float:
    """Accuracy of the network made from the names of the task's classes and a sentence."""
    if instruction is None:
        instruction = task.instructions(1, seed=0)[0]
    made = generator(config["generator"]).generate_many(
        spec, instruction=instruction, classes=task.class_names, **options
    )[0]
    return float(accuracy(made.architecture, made.flat[None], *images_of(task, config))[0])


def spread(values: list[float]) -> dict[str, float]:
    """Mean and standard deviation."""
    return {
        "mean": round(float(np.mean(values)), 4),
        "sd": round(float(np.std(values, ddof=1)), 4) if len(values) > 1 else 0.0,
    }


def drawn_names(config: Config, spec: ArchitectureSpec, count: int, seed: int, index: int) -> DatasetTask:
    """A QuickDraw task of names that training has seen."""
    pool = pools(config)["quickdraw"]["train"]
    chosen = numpy_generator("benchmark", "drawn", seed, index).choice(pool, count, replace=False)
    return task_of(spec, "quickdraw", tuple(int(label) for label in chosen))


@cache
def _pools(path: str) -> dict[str, dict[str, list[int]]]:
    held = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    sources = tuple(PictureSource(**source) for source in held["sources"])
    known = known_stems(sources)
    found = {
        source.dataset: {
            split: names_of_split(source.dataset, split, held["salt"], known) for split in ("train", "unseen")
        }
        for source in sources
        if source.names
    }

    def joined(dataset: str, label: int) -> str:
        return datasets.get(dataset).class_names[label].lower().replace(" ", "").rstrip("s")

    # "water melon" has been seen where "watermelon" has.
    seen = {joined(dataset, label) for dataset, splits in found.items() for label in splits["train"]}
    for dataset, splits in found.items():
        splits["unseen"] = [label for label in splits["unseen"] if joined(dataset, label) not in seen]
    return found


def pools(config: Config) -> dict[str, dict[str, list[int]]]:
    return _pools(str(Path(__file__).parents[2] / config["recipe"]))
