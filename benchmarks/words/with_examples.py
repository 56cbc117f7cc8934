"""Networks from names and examples: what names and unlabelled pictures add, beside what a user would do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from references import fully_trained, second_trained, train
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

from weightloom.architectures import ArchitectureSpec
from weightloom.fitting import accuracy, run_networks
from weightloom.generators import Sampling
from weightloom.generators.choice import left_out_loss
from weightloom.generators.words import Words
from weightloom.seeding import numpy_generator
from weightloom.tasks import DatasetTask, SupportSet, TaskSampler
from weightloom.tasks.store import datasets

NONSENSE = ("wug", "blick", "dax", "zorp", "fep", "toma", "kiv", "modi", "gazzer", "lorp")
"""Names that no one knows: the generator then reads none."""


def _instead(support: SupportSet, images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """What a user would do instead with the same examples: an SVM and a logistic regression on pixels."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

    known, own = support.flat()
    found = {}
    for name, model in (("svm", SVC()), ("logistic", LogisticRegression(max_iter=200))):
        model.fit(known.flatten(1).numpy(), own.numpy())
        found[name] = float((model.predict(images.flatten(1).numpy()) == labels.numpy()).mean())
    return found


def unlabelled_of(task: DatasetTask, address: tuple[Any, ...], each: int = 20) -> torch.Tensor:
    """Training pictures of a task in random proportions, ``each`` a class on average."""
    data, draw = task.data("train"), numpy_generator("benchmark", "unlabelled", *address)
    counts = draw.multinomial(each * task.num_classes, draw.dirichlet(np.ones(task.num_classes)))
    rows = []
    for label, count in enumerate(counts.tolist()):
        members = torch.nonzero(data.labels == label).flatten().numpy()
        rows.append(draw.choice(members, count))
    return data.batch(torch.as_tensor(np.concatenate(rows)))[0]


def examples(config: Config) -> Rows:
    """Five-way tasks with examples: names never seen (QuickDraw), and CIFAR-10."""
    rows: Rows = []
    model, other = generator(config["generator"]), generator("layerwise-tiny")
    for number, text in enumerate(config["architectures"]):
        spec, draws = resolved(config, text), config["shot_draws"] // (1 if number == 0 else 3)
        for dataset, pool in (
            ("quickdraw", pools(config)["quickdraw"]["unseen"]),
            ("cifar10", list(range(10))),
        ):
            for shots in (1, 4, 16):
                found: dict[str, list[float]] = {}
                by_seed: dict[str, list[float]] = {}
                for seed in config["seeds"]:
                    draw = numpy_generator("benchmark", "examples", dataset, shots, seed)
                    own: dict[str, list[float]] = {}
                    for index in range(draws):
                        classes = tuple(int(label) for label in draw.choice(pool, 5, replace=False))
                        task = task_of(spec, dataset, classes)
                        support = task.support(shots, seed=1000 * seed + index)
                        more = unlabelled_of(task, (dataset, shots, seed, index))
                        images, labels = images_of(task, {**config, "images": 500})
                        sentence = task.instructions(1, seed=0)[0]
                        nameless = replace(support, class_names=NONSENSE[:5])
                        made = {
                            "names": model.generate(spec, instruction=sentence, support=support),
                            "no names": model.generate(spec, support=nameless),
                            "names, unlabelled": model.generate(
                                spec, instruction=sentence, support=support, unlabelled=more
                            ),
                            "unlabelled": model.generate(spec, support=nameless, unlabelled=more),
                        }
                        if number < 3 and index < 8:
                            made["layerwise-tiny"] = other.generate(
                                spec, instruction=sentence, support=support, num_samples=4
                            )
                        for name, sample in made.items():
                            right = accuracy(sample.architecture, sample.flat[None], images, labels)[0]
                            own.setdefault(name, []).append(float(right))
                        own.setdefault("words alone", []).append(from_words(config, spec, task))
                        if number == 0:
                            for name, value in _instead(support, images, labels).items():
                                own.setdefault(name, []).append(value)
                    for name, values in own.items():
                        found.setdefault(name, []).extend(values)
                        by_seed.setdefault(name, []).append(float(np.mean(values)))
                row = {"architecture": text, "dataset": dataset, "shots": shots, "tasks": len(found["names"])}
                row |= {name: spread(values) for name, values in by_seed.items()}
                for name, over, under in (
                    ("by names", "names", "no names"),
                    ("by unlabelled", "unlabelled", "no names"),
                    ("by unlabelled beside names", "names, unlabelled", "names"),
                ):
                    gain = 100 * (np.array(found[over]) - np.array(found[under]))
                    half = 1.96 * float(gain.std(ddof=1)) / len(gain) ** 0.5
                    row[name] = {"mean": round(float(gain.mean()), 2), "half": round(half, 2)}
                rows.append(row)
                print(row, flush=True)
    return rows


def choice(config: Config) -> Rows:
    """Which generator left-out examples choose, on datasets that both have learned from and on others."""
    rows: Rows = []
    models = {name: generator(name) for name in (config["generator"], "layerwise-tiny")}
    spec = resolved(config, config["architectures"][0])
    for dataset in config["choice_datasets"]:
        labels_of = list(range(datasets.get(dataset).num_classes))
        pool = pools(config)[dataset]["unseen"] if dataset == "quickdraw" else labels_of
        for shots in (4, 16):
            by_seed: dict[str, list[float]] = {}
            for seed in config["seeds"]:
                draw = numpy_generator("benchmark", "choice", dataset, shots, seed)
                own: dict[str, list[float]] = {}
                for index in range(config["choice_draws"]):
                    classes = tuple(
                        int(label) for label in draw.choice(pool, min(6, len(pool)), replace=False)
                    )
                    task = task_of(spec, dataset, classes)
                    support = task.support(shots, seed=1000 * seed + index)
                    images, labels = images_of(task, {**config, "images": 500})
                    losses = {}
                    for name, model in models.items():
                        sentence = task.instructions(1, seed=0)[0]
                        sample = model.generate_many(spec, instruction=sentence, support=support)[0]
                        right = accuracy(sample.architecture, sample.flat[None], images, labels)[0]
                        own.setdefault(name, []).append(float(right))
                        losses[name] = left_out_loss(sample, support)
                    best = min(losses, key=lambda name: losses[name])
                    own.setdefault("chosen", []).append(own[best][-1])
                    own.setdefault("svm", []).append(_instead(support, images, labels)["svm"])
                for name, values in own.items():
                    by_seed.setdefault(name, []).append(float(np.mean(values)))
            rows.append({"dataset": dataset, "shots": shots, **{k: spread(v) for k, v in by_seed.items()}})
            print(rows[-1], flush=True)
    return rows


def trained(config: Config) -> Rows:
    """Unseen tasks with sixteen examples a class, against fully trained networks: with names and without."""
    rows: Rows = []
    model, salt = generator(config["generator"]), recipe(config)["salt"]
    for text in config["architectures"][:2]:
        spec = resolved(config, text)
        tasks: list[tuple[str, DatasetTask]] = []
        for number in range(config["subset_tasks"] + 2):
            dataset = config["datasets"][number % len(config["datasets"])]
            drawn = TaskSampler([dataset], salt, "held-out-subset", (2, 9)).task(number)
            tasks.append((dataset, task_of(spec, dataset, drawn.classes)))
        pool = pools(config)["quickdraw"]["unseen"]
        for number in range(config["subset_tasks"]):
            chosen = numpy_generator("benchmark", "trained", number).choice(pool, 5, replace=False)
            tasks.append(("quickdraw", task_of(spec, "quickdraw", tuple(int(label) for label in chosen))))
        for dataset, task in tasks:
            best, images = fully_trained(spec, task), images_of(task, config)
            ratios: dict[str, list[float]] = {"names": [], "no names": []}
            for seed in config["seeds"]:
                support = task.support(16, seed)
                nameless = replace(support, class_names=NONSENSE[: support.num_classes])
                made = {
                    "names": model.generate(
                        spec, instruction=task.instructions(1, seed=0)[0], support=support
                    ),
                    "no names": model.generate(spec, support=nameless),
                }
                for name, sample in made.items():
                    ratios[name].append(
                        float(accuracy(sample.architecture, sample.flat[None], *images)[0]) / best
                    )
            rows.append(
                {
                    "architecture": text,
                    "dataset": dataset,
                    "task": str(task),
                    "trained": best,
                    **{k: spread(v) for k, v in ratios.items()},
                }
            )
            print(rows[-1], flush=True)
    return rows


def seen(config: Config) -> Rows:
    """Known datasets and architectures with sixteen examples a class, against fully trained networks."""
    rows: Rows = []
    model = generator(config["generator"])
    for text in config["architectures"]:
        spec = resolved(config, text)
        for dataset in config["datasets"]:
            task = task_of(spec, dataset)
            images, best = images_of(task, config), fully_trained(spec, task)
            reached = []
            for seed in config["seeds"]:
                sentence = task.instructions(1, seed=seed)[0]
                sample = model.generate(spec, instruction=sentence, support=task.support(16, seed))
                reached.append(float(accuracy(sample.architecture, sample.flat[None], *images)[0]))
            ratio = round(float(np.mean(reached)) / best, 4)
            row = {"architecture": text, "task": dataset, **spread(reached), "trained": best, "ratio": ratio}
            rows.append(row)
            print(rows[-1], flush=True)
    return rows


def cycles(config: Config) -> Rows:
    """The shortest training, one cycle, that reaches 99 % of the fully trained accuracy: from a generated
    network and from a random one, each at the best of the rates.
    """
    rows: Rows = []
    model, salt = generator(config["generator"]), recipe(config)["salt"]
    spec = resolved(config, config["architectures"][0])
    tasks = [("unseen task", TaskSampler([d], salt, "held-out-subset", (2, 9)).task(n).classes, d)
             for n, d in enumerate(config["datasets"])]  # fmt: skip
    pool = pools(config)["quickdraw"]["unseen"]
    chosen = numpy_generator("benchmark", "trained", 0).choice(pool, 5, replace=False)
    tasks.append(("unseen task", tuple(int(label) for label in chosen), "quickdraw"))
    tasks.append(("unseen dataset", (), "digits"))
    for kind, classes, dataset in tasks:
        task = task_of(spec, dataset, classes)
        own, (images, labels) = spec.resolve(classes=task.num_classes), task.data("test").all()
        wanted = 0.99 * fully_trained(spec, task)
        found: dict[str, int | None] = {}
        for name in ("generated", "random"):
            found[name] = None
            for steps in config["cycle_steps"]:
                reached = []
                for rate in config["cycle_rates"]:
                    start = None
                    if name == "generated":
                        start = model.generate(
                            own, instruction=task.instructions(1, seed=0)[0], support=task.support(16, 0)
                        ).module
                    network = train(own, task, steps, start=start, rate=rate) if steps else start
                    if network is None:
                        continue
                    with torch.no_grad():
                        answers = torch.cat([network(part).argmax(1) for part in images.split(1000)])
                    reached.append(float((answers == labels).float().mean()))
                if reached and max(reached) >= wanted:
                    found[name] = steps
                    break
        rows.append({"kind": kind, "task": str(task), "wanted": round(wanted, 4), **found})
        print(rows[-1], flush=True)
    return rows


def codes(config: Config) -> Rows:
    """What the prior's codes are worth beside sixteen examples: replaced by their mean, and by another
    task's.

    Statistics and head are made anew for the codes that are put in.
    """
    model = generator(config["generator"])
    assert isinstance(model, Words)
    rows: Rows = []
    for text in config["architectures"]:
        spec = resolved(config, text)
        tasks = [task_of(spec, d) for d in config["datasets"]]
        tasks += [drawn_names(config, spec, 10, 5, n) for n in range(3)]
        pool = pools(config)["quickdraw"]["unseen"]
        for number in range(6):
            chosen = numpy_generator("benchmark", "codes", number).choice(pool, 5, replace=False)
            tasks.append(task_of(spec, "quickdraw", tuple(int(label) for label in chosen)))
        reached: dict[str, list[float]] = {"own": [], "mean": [], "another's": []}
        own = [_made(model, spec, task) for task in tasks]
        mean = torch.stack([written.codes for written, _ in own]).mean(0)
        for number, task in enumerate(tasks):
            part, (written, support) = model.seer(spec), own[number]
            images, labels = images_of(task, config)
            replaced = {
                "own": written.codes, "mean": mean, "another's": own[(number + 1) % len(own)][0].codes
            }  # fmt: skip
            for name, code in replaced.items():
                with torch.no_grad():
                    network, _ = part.see(replace(written, codes=code, trunk=part.decode(code)), support)
                    right = (part.answer(network, images).argmax(1) == labels).float().mean()
                reached[name].append(float(right))
        lost = 100 * (np.array(reached["own"]) - np.array(reached["mean"]))
        rows.append(
            {
                "architecture": text,
                "tasks": len(tasks),
                **{k: round(float(np.mean(v)), 4) for k, v in reached.items()},
                "half": round(1.96 * float(lost.std(ddof=1)) / len(lost) ** 0.5, 2),
            }
        )
        print(rows[-1], flush=True)
    return rows


@torch.no_grad()
def _made(model: Words, spec: ArchitectureSpec, task: DatasetTask) -> tuple[Any, torch.Tensor]:
    from weightloom.conditioning import encode_text
    from weightloom.conditioning.names import encode_names

    support = task.support(16, 0).images
    sentence = encode_text(task.instructions(1, seed=0))[0]
    return model.seer(spec).make(encode_names(task.class_names), sentence, support), support


def draws(config: Config) -> Rows:
    """How much two draws differ: the share of test pictures that they answer differently, beside that of two
    fully trained networks of other seeds.
    """
    rows: Rows = []
    spec = resolved(config, config["architectures"][0])
    trained: list[float] = []
    for dataset in config["datasets"]:
        task = task_of(spec, dataset)
        images, _ = images_of(task, config)
        trained.append(second_trained(spec, task, images))
    for temperature in config["temperatures"]:
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
                "trained differ": round(float(np.mean(trained)), 4),
                "drawn": round(float(np.mean(drawn)), 4),
                "greedy": round(float(np.mean(greedy)), 4),
            }
        )
    return rows
