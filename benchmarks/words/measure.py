"""Networks from words, against fully trained ones and against what a user would do instead."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from references import fully_trained
from words import with_examples
from words.common import (
    Config,
    Rows,
    drawn_names,
    from_words,
    generator,
    images_of,
    pools,
    recipe,
    resolved,
    spread,
    task_of,
)

from weightloom.conditioning import encode_text
from weightloom.fitting import accuracy
from weightloom.generators.words import Words
from weightloom.seeding import numpy_generator
from weightloom.tasks import TaskSampler
from weightloom.tasks.store import datasets
from weightloom.tasks.transforms import transform_names
from weightloom.tasks.words import misspell
from weightloom.training.words_tasks import holds_out_pair

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
                    task = task_of(spec, dataset, classes)
                    reached.append(from_words({**config, "images": config["draw_images"]}, spec, task))
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


def speed(config: Config) -> Rows:
    """Parameters a CPU-second of whole requests with examples, beside random initialisation: of ten classes
    that words alone answer, and of ten whose names were never seen.
    """
    from weightloom.generators.random_init import RandomInit

    spec = resolved(config, config["architectures"][0])
    pool = pools(config)["quickdraw"]["unseen"]
    chosen = numpy_generator("benchmark", "speed").choice(pool, 10, replace=False)
    tasks = [
        task_of(spec, "cifar10"),
        task_of(spec, "quickdraw", tuple(int(label) for label in chosen)),
    ]
    rows: Rows = []
    model = generator(config["generator"])
    for task in tasks:
        support, row = task.support(16), {"task": task.dataset}
        for name, one in (("words-small", model), ("random-init", RandomInit.from_generator(model))):
            one.generate_many(spec, support=support, num_samples=2)
            started, count = time.process_time(), 0
            while time.process_time() - started < 5:
                made = one.generate_many(spec, instruction="Sort pictures", support=support, num_samples=64)
                count += len(made)
            size = spec.resolve(classes=10).num_parameters()
            row[name] = round(count * size / (time.process_time() - started))
            row.setdefault("head", made[0].report.get("head"))
        rows.append(row)
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
    "draws": with_examples.draws,
    "speed": speed,
    "expected": expected,
    "unseen": unseen,
    "examples": with_examples.examples,
    "choice": with_examples.choice,
    "trained": with_examples.trained,
    "seen": with_examples.seen,
    "cycles": with_examples.cycles,
    "codes_with_examples": with_examples.codes,
}


def page(results: dict[str, Any], config: Config) -> str:
    """The page."""
    from words.page import render

    return render(results, config)
