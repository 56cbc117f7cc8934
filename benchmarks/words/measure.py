"""Networks from words, against fully trained ones and against what a user would do instead."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from references import fully_trained

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.conditioning import encode_text
from weightloom.fitting import accuracy, run_networks
from weightloom.generators import Generator, Sampling
from weightloom.generators.load import load_generator
from weightloom.generators.words import Words
from weightloom.seeding import numpy_generator, torch_generator
from weightloom.tasks import DatasetTask, TaskSampler
from weightloom.tasks.store import datasets
from weightloom.tasks.transforms import transform_names
from weightloom.tasks.words import misspell
from weightloom.training.words_tasks import PictureSource, holds_out_pair, known_stems, names_of_split

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


# ------------------------------------------------------------------------------------------ parts


def whole(config: Config) -> Rows:
    """Whole known datasets, and ten drawn QuickDraw classes, from words alone."""
    rows: Rows = []
    for text in config["architectures"]:
        spec = resolved(config, text)
        for dataset in config["datasets"]:
            task = task_of(spec, dataset)
            sentences = [task.instructions(1, seed=seed)[0] for seed in config["seeds"]]
            reached = [from_words(config, spec, task, sentence) for sentence in sentences]
            trained = fully_trained(spec, task)
            rows.append(
                {
                    "architecture": text,
                    "task": dataset,
                    **spread(reached),
                    "trained": trained,
                    "ratio": round(float(np.mean(reached)) / trained, 4),
                }
            )
        reached, ratios, trained = [], [], []
        for seed in config["seeds"]:
            tasks = [
                drawn_names(config, spec, 10, seed, n)
                for n in range(config["drawn_tasks"] if seed == 0 else 1)
            ]
            for task in tasks:
                reached.append(from_words(config, spec, task))
                trained.append(fully_trained(spec, task))
                ratios.append(reached[-1] / trained[-1])
        rows.append(
            {
                "architecture": text,
                "task": "ten QuickDraw classes",
                **spread(reached),
                "trained": round(float(np.mean(trained)), 4),
                "ratio": round(float(np.mean(ratios)), 4),
            }
        )
        print(rows[-4:], flush=True)
    return rows


def subsets(config: Config) -> Rows:
    """Subsets and orders of classes that no training saw, from words alone."""
    rows: Rows = []
    salt = recipe(config)["salt"]
    for text in config["architectures"][:1]:
        spec = resolved(config, text)
        for split in ("held-out-subset", "held-out-order"):
            ratios, reached = [], []
            for number in range(config["subset_tasks"]):
                dataset = config["datasets"][number % len(config["datasets"])]
                task = TaskSampler([dataset], salt, split, (2, 9)).task(number)
                task = task_of(spec, dataset, task.classes)
                reached.append(from_words(config, spec, task))
                ratios.append(reached[-1] / fully_trained(spec, task))
            rows.append(
                {
                    "architecture": text,
                    "split": split,
                    "tasks": len(ratios),
                    **spread(reached),
                    "ratio": round(float(np.mean(ratios)), 4),
                }
            )
        print(rows[-2:], flush=True)
    return rows


def pairs(config: Config) -> Rows:
    """Pairs of dataset and transform that no sentence of training spoke of, from words alone."""
    rows: Rows = []
    salt = recipe(config)["salt"]
    for text in config["architectures"]:
        spec = resolved(config, text)
        held = [(d, t) for d in config["datasets"] for t in transform_names() if holds_out_pair(salt, d, t)]
        order = numpy_generator("benchmark", "pairs").permutation(len(held))[: 3 * config["pair_tasks"]]
        reached, ratios = [], []
        for place in order.tolist():
            dataset, transform = held[place]
            task = task_of(spec, dataset, transform=transform)
            reached.append(from_words(config, spec, task))
            # A fully trained network does as well on turned pictures as on the pictures.
            ratios.append(reached[-1] / fully_trained(spec, task_of(spec, dataset)))
        rows.append(
            {
                "architecture": text,
                "pairs": len(ratios),
                **spread(reached),
                "ratio": round(float(np.mean(ratios)), 4),
                "lowest": round(min(ratios), 4),
            }
        )
        print(rows[-1], flush=True)
    return rows


def unseen(config: Config) -> Rows:
    """Class names never seen, from words alone."""
    rows: Rows = []
    for text in config["architectures"]:
        spec = resolved(config, text)
        for dataset in ("quickdraw", "icons"):
            pool = pools(config)[dataset]["unseen"]
            for ways in (2, 5, 10):
                draw = numpy_generator("benchmark", "unseen", dataset, ways)
                reached = []
                for _ in range(config["name_draws"]):
                    classes = tuple(int(label) for label in draw.choice(pool, ways, replace=False))
                    reached.append(from_words(config, spec, task_of(spec, dataset, classes)))
                error = float(np.std(reached, ddof=1)) / len(reached) ** 0.5
                rows.append(
                    {
                        "architecture": text,
                        "dataset": dataset,
                        "names": len(pool),
                        "ways": ways,
                        "mean": round(float(np.mean(reached)), 4),
                        "error": round(error, 4),
                    }
                )
                print(rows[-1], flush=True)
    return rows


def wordings(config: Config) -> Rows:
    """Sentences written by hand, and the same misspelt, from words alone, whole datasets."""
    rows: Rows = []
    spec = resolved(config, config["architectures"][0])
    for kind in ("paraphrased", "misspelt"):
        plain, other = [], []
        for dataset, sentences in config["sentences"].items():
            task = task_of(spec, dataset)
            plain.append(from_words(config, spec, task, f"Classify {datasets.get(dataset).subject}"))
            draw = numpy_generator("benchmark", "wordings", dataset)
            if kind == "misspelt":
                sentences = [misspell(sentence, draw) for sentence in sentences]
            other += [from_words(config, spec, task, sentence) for sentence in sentences]
        rows.append(
            {
                "wording": kind,
                "plain": round(float(np.mean(plain)), 4),
                **spread(other),
                "change": round(float(np.mean(other) - np.mean(plain)), 4),
            }
        )
    return rows


def turns(config: Config) -> Rows:
    """Sentences that speak of no turn and are taken to, and turns of held-out pairs that are misread."""
    model = generator(config["generator"])
    assert isinstance(model, Words)
    salt = recipe(config)["salt"]
    spec = resolved(config, config["architectures"][0])
    draw = numpy_generator("benchmark", "turns")
    plain: list[str] = list(config["no_turns"])
    for dataset in ("icons", "quickdraw"):
        for number in range(100):
            chosen = draw.choice(pools(config)[dataset]["unseen"], 5, replace=False)
            task = task_of(spec, dataset, tuple(int(label) for label in chosen))
            plain += task.instructions(1, seed=number)
    spoken, wanted = [], []
    for dataset in config["datasets"]:
        for transform in transform_names():
            if holds_out_pair(salt, dataset, transform):
                texts = task_of(spec, dataset, transform=transform).instructions(20, seed=9, misspelt=0.25)
                spoken += texts
                wanted += [transform] * len(texts)

    def read(texts: list[str]) -> list[str]:
        with torch.no_grad():
            return [transform_names()[turn] for turn in model.turns.read(encode_text(texts), texts)]

    false = [text for text, turn in zip(plain, read(plain), strict=True) if turn != "id"]
    wrong = sum(a != b for a, b in zip(read(spoken), wanted, strict=True))
    print(false[:10], flush=True)
    return [
        {"sentences": "speak of no turn", "count": len(plain), "wrong": len(false)},
        {"sentences": "speak of a turn, pairs held out", "count": len(spoken), "wrong": wrong},
    ]


def _instead(support: Any, images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """What a user would do instead with the same examples: an SVM and a logistic regression on pixels."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

    known, own = support.flat()
    found = {}
    for name, model in (("svm", SVC()), ("logistic", LogisticRegression(max_iter=200))):
        model.fit(known.flatten(1).numpy(), own.numpy())
        found[name] = float((model.predict(images.flatten(1).numpy()) == labels.numpy()).mean())
    return found


def examples(config: Config) -> Rows:
    """Five-way tasks with examples: names never seen (QuickDraw), and CIFAR-10."""
    rows: Rows = []
    model, other = generator(config["generator"]), generator("igpg-tiny")
    for text in config["architectures"][:1]:
        spec = resolved(config, text)
        for dataset, pool in (
            ("quickdraw", pools(config)["quickdraw"]["unseen"]),
            ("cifar10", list(range(10))),
        ):
            for shots in (1, 4, 16):
                found: dict[str, list[list[float]]] = {}
                for seed in config["seeds"]:
                    draw = numpy_generator("benchmark", "examples", dataset, shots, seed)
                    own: dict[str, list[float]] = {}
                    for index in range(config["shot_draws"]):
                        classes = tuple(int(label) for label in draw.choice(pool, 5, replace=False))
                        task = task_of(spec, dataset, classes)
                        support = task.support(shots, seed=1000 * seed + index)
                        images, labels = images_of(task, {**config, "images": 500})
                        sentence = task.instructions(1, seed=0)[0]
                        made = {
                            "names": model.generate_many(spec, instruction=sentence, support=support)[0],
                            "igpg-tiny": other.generate(
                                spec, instruction=sentence, support=support, num_samples=4
                            ),
                        }
                        for name, sample in made.items():
                            right = accuracy(sample.architecture, sample.flat[None], images, labels)[0]
                            own.setdefault(name, []).append(float(right))
                        own.setdefault("words alone", []).append(from_words(config, spec, task))
                        for name, value in _instead(support, images, labels).items():
                            own.setdefault(name, []).append(value)
                    for name, values in own.items():
                        found.setdefault(name, []).append(values)
                row = {"architecture": text, "dataset": dataset, "shots": shots}
                row |= {name: spread([float(np.mean(v)) for v in values]) for name, values in found.items()}
                rows.append(row)
                print(row, flush=True)
    return rows


def codes(config: Config) -> Rows:
    """What the prior's codes are worth: replaced by their mean over training tasks, and by another task's."""
    model = generator(config["generator"])
    assert isinstance(model, Words)
    rows: Rows = []
    for text in config["architectures"]:
        spec = resolved(config, text)
        part = model.part(spec)
        tasks = [task_of(spec, d) for d in config["datasets"]]
        tasks += [drawn_names(config, spec, 10, 5, n) for n in range(3)]
        own = part.write_codes
        kept: list[torch.Tensor] = []

        def keep(*arguments: Any, own: Any = own, kept: list[torch.Tensor] = kept) -> torch.Tensor:
            kept.append(own(*arguments))
            return kept[-1]

        reached: dict[str, list[float]] = {"own": [], "mean": [], "another's": []}
        try:
            part.write_codes = keep  # type: ignore[method-assign]
            reached["own"] = [from_words(config, spec, task) for task in tasks]
            each = len(kept) // len(tasks)
            first = kept[::each]
            mean = torch.stack(first).mean(0)
            for number, task in enumerate(tasks):
                for name, replaced in (("mean", mean), ("another's", first[(number + 1) % len(tasks)])):
                    part.write_codes = lambda *_, code=replaced: code  # type: ignore[method-assign]
                    reached[name].append(from_words(config, spec, task))
        finally:
            del part.write_codes
        rows.append({"architecture": text, **{k: round(float(np.mean(v)), 4) for k, v in reached.items()}})
        print(rows[-1], flush=True)
    return rows


def draws(config: Config) -> Rows:
    """How much two draws differ: the share of test pictures that they answer differently."""
    rows: Rows = []
    spec = resolved(config, config["architectures"][0])
    for temperature in (0.1, 0.3, 0.6):
        differ, drawn, greedy = [], [], []
        for dataset in config["datasets"]:
            task = task_of(spec, dataset)
            images, labels = images_of(task, config)
            made = generator(config["generator"]).generate_many(
                spec,
                instruction=task.instructions(1)[0],
                classes=task.class_names,
                num_samples=3,
                sampling=Sampling(temperature=temperature),
            )
            flats = torch.stack([sample.flat for sample in made])
            answers = run_networks(made[0].architecture, flats, images).argmax(-1)
            differ.append(float((answers[1] != answers[2]).float().mean()))
            right = (answers == labels).float().mean(1)
            greedy.append(float(right[0]))
            drawn.append(float(right[1:].mean()))
        rows.append(
            {
                "temperature": temperature,
                "differ": round(float(np.mean(differ)), 4),
                "drawn": round(float(np.mean(drawn)), 4),
                "greedy": round(float(np.mean(greedy)), 4),
            }
        )
    return rows


def speed(config: Config) -> Rows:
    """Parameters a CPU-second of whole requests with examples, beside random initialisation."""
    spec = resolved(config, config["architectures"][0])
    task = task_of(spec, "cifar10")
    support = task.support(16)
    rows: Rows = []
    from weightloom.generators.random_init import RandomInit

    model = generator(config["generator"])
    for name, one in (("words-small", model), ("random-init", RandomInit.from_generator(model))):
        one.generate_many(spec, support=support, num_samples=2)
        started, count = time.process_time(), 0
        while time.process_time() - started < 5:
            count += len(one.generate_many(spec, instruction="Sort photos", support=support, num_samples=64))
        size = spec.resolve(classes=10).num_parameters()
        rows.append({"generator": name, "a_second": round(count * size / (time.process_time() - started))})
    return rows


def expected(config: Config) -> Rows:
    """Expected accuracy against measured, on held-out subsets and on names never seen."""
    rows: Rows = []
    salt = recipe(config)["salt"]
    for text in config["architectures"]:
        spec = resolved(config, text)
        errors = []
        for index in range(config["expected_tasks"]):
            draw = numpy_generator("benchmark", "expected", index)
            if index % 2:
                dataset = config["datasets"][index // 2 % len(config["datasets"])]
                held = TaskSampler([dataset], salt, "held-out-subset", (2, 9)).task(1000 + index)
                task = task_of(spec, dataset, held.classes)
            else:
                dataset = ("quickdraw", "icons")[index // 2 % 2]
                pool = pools(config)[dataset]["unseen"]
                chosen = draw.choice(pool, int(draw.integers(2, 11)), replace=False)
                task = task_of(spec, dataset, tuple(int(label) for label in chosen))
            made = generator(config["generator"]).generate(
                spec, instruction=task.instructions(1, seed=index)[0], classes=task.class_names
            )
            right = float(accuracy(made.architecture, made.flat[None], *images_of(task, config))[0])
            errors.append(abs(right - made.report["expected_accuracy"]))
        rows.append({"architecture": text, "tasks": len(errors), "error": round(float(np.mean(errors)), 4)})
        print(rows[-1], flush=True)
    return rows


PARTS: dict[str, Callable[[Config], Rows]] = {
    "pairs": pairs,
    "whole": whole,
    "subsets": subsets,
    "wordings": wordings,
    "turns": turns,
    "codes": codes,
    "draws": draws,
    "speed": speed,
    "expected": expected,
    "unseen": unseen,
    "examples": examples,
}


def page(results: dict[str, Any], config: Config) -> str:
    """The page."""
    from words.page import render

    return render(results, config)
