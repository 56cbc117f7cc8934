"""Layer-wise generation at full strength: `python benchmarks/full.py TABLE [--generator NAME] [--seeds 3]`.

TABLE is unseen, seen, datasets, sizes, reward, audit, large or instructions. Each prints its table and writes
benchmarks/results/full-TABLE.json with mean and standard deviation over the seeds. No zoo is needed: what the
zoo's own networks reach on its tasks is read from benchmarks/results/zoo-tiny.json, which
benchmarks/zoo_references.py measured. Test images are never used to choose anything.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from resizing import RESIZINGS, resized
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from zoo_references import RESULTS, family

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.evaluation.measures import Rows, mean_of, over_seeds, peak_mb, summary, test_batch
from weightloom.evaluation.novelty import Checkpoints, verdict_of
from weightloom.fitting import (
    FitSettings,
    accuracy,
    closed_form_network,
    fit_population,
    initial_flats,
    steps_until,
)
from weightloom.generators import Sampling, best_of
from weightloom.generators.layerwise_set import LayerwiseSet
from weightloom.generators.load import load_generator
from weightloom.generators.streaming import layerwise_of
from weightloom.io import read_json, write_json
from weightloom.seeding import numpy_generator, torch_generator
from weightloom.tasks import DatasetTask, SupportSet, dataset_info, parse_task
from weightloom.training.reward import (
    RewardSettings,
    best_of_prior,
    steer,
    steered_network,
)

SHAPE = (3, 16, 16)
AS_THE_ZOO = FitSettings(steps=300, batch_size=96, learning_rate=2e-3, head_rate=4, epsilon=0.03)
"""How recipes/zoo-tiny.yaml trains its networks, from its mean network here."""
STARTS = {
    "generated": FitSettings(steps=100, batch_size=64, learning_rate=3e-3),
    "random": FitSettings(steps=800, batch_size=64, learning_rate=6e-3),
}
"""Fine-tuning from each start: the best of three cycles and rates on six training tasks."""
HEAD_IMAGES = 640
"""Generated starts that are not there yet first get the closed form of so many training images as their head,
which counts as the steps that would show as many. On eight training tasks 550 steps in all, 640 without it;
random weights did not gain from it (3,330 with, 3,100 without)."""
FROM_SCRATCH = FitSettings(steps=800, batch_size=64, learning_rate=3e-3)
"""How networks are trained that no zoo holds, from random weights."""
INSIDE = (
    "cnn(depth=3,width=12)", "cnn(depth=3,width=24)", "cnn(depth=5,width=16)", "cnn(depth=5,width=20)",
    "mlp(depth=3,width=32)", "mlp(depth=2,width=48)", "mlp(depth=3,width=48)",
    "resnet(depth=8,width=6)", "resnet(depth=8,width=10)", "resnet(depth=14,width=8)",
    "resnet(depth=14,width=6)",
)  # fmt: skip
"""Depths and widths that were never trained, between those that were."""
OUTSIDE = (
    "cnn(depth=7,width=16)", "cnn(depth=3,width=48)", "mlp(depth=5,width=32)", "mlp(depth=2,width=96)",
    "resnet(depth=8,width=16)", "resnet(depth=26,width=8)",
)  # fmt: skip
"""Deeper and wider than anything that was trained."""


def held_out_rows() -> Rows:
    """What was measured on the zoo's held-out tasks before: the zoo's own networks and the baselines."""
    return reference_rows("unseen")


def reference_rows(kind: str) -> Rows:
    """The same of its ``unseen`` or ``seen`` tasks."""
    rows: Rows = read_json(RESULTS / "zoo-tiny.json")["rows"][kind]
    return rows


def spec_of(text: str, task: DatasetTask) -> ArchitectureSpec:
    """The resolved architecture that a table names."""
    return parse_architecture(text).resolve(classes=task.num_classes, input=SHAPE)


# ------------------------------------------------------------------------------------ unseen tasks


def table_unseen(options: argparse.Namespace) -> dict[str, Any]:
    """The held-out tasks of the zoo, with the examples, seeds and test images of its references."""
    return again(options, held_out_rows())


def table_seen(options: argparse.Namespace) -> dict[str, Any]:
    """The same of the zoo's own tasks."""
    return again(options, reference_rows("seen"))


def again(options: argparse.Namespace, measured: Rows) -> dict[str, Any]:
    """Tasks and architectures that were measured before."""
    model = load_generator(options.generator)
    rows = []
    for old in measured:
        if old["seed"] >= options.seeds:
            continue
        task, seed = parse_task(old["task"]), old["seed"]
        spec = spec_of(old["architecture"], task)
        made = model.generate_many(
            spec,
            instruction=task.instructions(1, seed=100 + seed)[0],
            support=task.support(16, seed=100 + seed),
            num_samples=options.samples,
            seed=seed,
        )
        scores = accuracy(spec, torch.stack([s.flat for s in made]), *test_batch(task))
        far = None
        if model.zoo_index is not None:
            found = model.zoo_index.novelty(spec, torch.stack([s.flat for s in made]))
            far = None if not found else found[0]["distance"] / found[0]["zoo_spacing"]
        best = next(i for i, sample in enumerate(made) if sample is best_of(made))
        rows.append(
            {**old, "made": float(scores.mean()), "best_on_support": float(scores[best]), "novelty": far}
        )
    table: dict[str, Any] = {}
    for column in (None, "split", "architecture", "dataset", "classes"):
        for name in sorted({row[column] for row in rows}, key=str) if column else ["all"]:
            group = [row for row in rows if column is None or row[column] == name]
            trained = mean_of(group, "trained")
            table[f"{column or ''} {name}".strip()] = {
                "ratio": over_seeds(group, lambda g: mean_of(g, "made") / mean_of(g, "trained")),
                "trained": trained,
                "above_nearest": over_seeds(group, lambda g: mean_of(g, "made") - mean_of(g, "nearest")),
                "above_closed_form": over_seeds(
                    group, lambda g: mean_of(g, "made") - mean_of(g, "closed_form")
                ),
            }
    return {"table": table, "rows": rows}


# ------------------------------------------------------------------------------------ unseen datasets


def dataset_tasks(dataset: str, count: int) -> list[DatasetTask]:
    """Tasks of a whole dataset that training has not seen: 4 and 10 classes in turn, pictures as they are."""
    names = dataset_info(dataset).class_names
    tasks = []
    for number in range(count):
        generator = numpy_generator("unseen dataset", dataset, number)
        size = min((10, 4)[number % 2], len(names))
        classes = tuple(int(label) for label in generator.choice(len(names), size, replace=False))
        tasks.append(DatasetTask(dataset=dataset, classes=classes))
    return tasks


def pixel_probe(support: SupportSet, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Accuracy of logistic regression on the pixels of the same examples."""
    seen, wanted = support.flat()
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    probe.fit(seen.flatten(1).numpy(), wanted.numpy())
    return float(probe.score(images.flatten(1).numpy(), labels.numpy()))


def nearest_other(
    model: LayerwiseSet, spec: ArchitectureSpec, support: SupportSet, dataset: str
) -> torch.Tensor:
    """(P,) the checkpoint of the zoo whose task looks most alike, among tasks of other datasets."""
    assert model.zoo_index is not None
    groups = [g for s, g in model.zoo_index.groups.items() if s == spec and g.rows]
    if not groups:
        return model.zoo_index.bind(spec).mean_network()
    described = model.images.describe(support.images)
    distance = (groups[0].classes - described).flatten(1).norm(dim=1)
    for row, facts in enumerate(groups[0].rows):
        if facts["dataset"] == dataset:
            distance[row] = torch.inf
    return groups[0].flats[int(distance.argmin())]


def trained_from_scratch(spec: ArchitectureSpec, task: DatasetTask, seeds: int) -> torch.Tensor:
    """(N, P) networks trained on the task from random weights."""
    start = initial_flats(spec, [7000 + seed for seed in range(seeds)])
    *_, last = fit_population(spec, start, [task.data("train")] * seeds, FROM_SCRATCH, seed=7)
    return last.flats


def trained_as_the_zoo(zoo: LayerwiseSet, spec: ArchitectureSpec, task: DatasetTask) -> torch.Tensor:
    """(2, P) networks trained on the task as a zoo's are, from the zoo's mean network."""
    assert zoo.zoo_index is not None
    start = zoo.zoo_index.bind(spec).mean_network().repeat(2, 1)
    *_, last = fit_population(spec, start, [task.data("train")] * 2, AS_THE_ZOO, seed=7)
    return last.flats


def table_datasets(options: argparse.Namespace) -> dict[str, Any]:
    """Datasets that no part of training has seen, each with a generator that was trained without it."""
    zoo = load_generator("layerwise-tiny")
    assert isinstance(zoo, LayerwiseSet)
    rows = []
    for dataset, name in (
        ("glyphs", options.generator),
        ("fashion-mnist", options.without.format("fashion-mnist")),
        ("cifar10", options.without.format("cifar10")),
    ):
        whole = load_generator(name)
        for task in dataset_tasks(dataset, options.limit):
            spec = spec_of("cnn(depth=3,width=16)", task)
            model = layerwise_of(whole, spec)
            images, labels = test_batch(task)
            target = float(accuracy(spec, trained_as_the_zoo(zoo, spec, task), images, labels).mean())
            for seed in range(options.seeds):
                support = task.support(16, seed=100 + seed)
                text = task.instructions(1, seed=100 + seed)[0]
                made = model.generate_many(
                    spec, instruction=text, support=support, num_samples=options.samples, seed=seed
                )
                flats = torch.stack([s.flat for s in made])
                scores = accuracy(spec, flats, images, labels)
                near = nearest_other(zoo, spec, support, dataset)
                row = {
                    "dataset": dataset,
                    "task": str(task),
                    "classes": task.num_classes,
                    "seed": seed,
                    "trained": target,
                    "generated": float(scores.mean()),
                    "nearest": float(accuracy(spec, near[None], images, labels)),
                    "pixels": pixel_probe(support, images, labels),
                }
                start = best_of(made).flat
                fresh = initial_flats(spec, [1000 + seed])[0]
                used = 0
                if float(accuracy(spec, start[None], images, labels)) < target:
                    used = HEAD_IMAGES // STARTS["generated"].batch_size
                    shown = task.support(HEAD_IMAGES // task.num_classes, seed=200 + seed)
                    start = model.with_head(spec, start, shown.images)
                for what, flat, before in (("generated", start, used), ("random", fresh, 0)):
                    more = steps_until(
                        spec, flat, task, STARTS[what], target,
                        limit=options.steps - before, test=(images, labels), seed=seed,
                    )  # fmt: skip
                    row[f"{what}_steps"] = None if more is None else before + more
                rows.append(row)
                print(json.dumps(row), flush=True)
    table = {}
    for name in ("all", "glyphs", "fashion-mnist", "cifar10"):
        group = [row for row in rows if name in ("all", row["dataset"])]

        def ratio(some: list[dict[str, Any]]) -> float:
            made, fresh = (
                sum(options.steps if row[k] is None else row[k] for row in some)
                for k in ("generated_steps", "random_steps")
            )
            return made / fresh

        table[name] = {
            **{
                k: over_seeds(group, lambda g, k=k: mean_of(g, k))
                for k in ("generated", "nearest", "pixels", "trained")
            },
            "above_nearest": over_seeds(group, lambda g: mean_of(g, "generated") - mean_of(g, "nearest")),
            "above_pixels": over_seeds(group, lambda g: mean_of(g, "generated") - mean_of(g, "pixels")),
            "ratio": over_seeds(group, lambda g: mean_of(g, "generated") / mean_of(g, "trained")),
            "steps_ratio": over_seeds(group, ratio),
            "generated_never": sum(row["generated_steps"] is None for row in group),
            "random_never": sum(row["random_steps"] is None for row in group),
            "runs": len(group),
        }
    return {"table": table, "rows": rows}


# ------------------------------------------------------------------------------------ depths and widths


def size_tasks(count: int) -> list[DatasetTask]:
    """Held-out tasks, a different kind of novelty and dataset each."""
    found: dict[tuple[str, str], DatasetTask] = {}
    for row in held_out_rows():
        found.setdefault((row["split"], row["dataset"]), parse_task(row["task"]))
    keys = sorted(found)
    order = torch.randperm(len(keys), generator=torch_generator("size tasks")).tolist()
    return [found[keys[i]] for i in order[:count]]


def size_rows(text: str, options: argparse.Namespace) -> Rows:
    """One depth and width on every task and seed."""
    torch.set_num_threads(1)
    model = load_generator(options.generator)
    zoo = load_generator("layerwise-tiny")
    assert isinstance(zoo, LayerwiseSet) and zoo.zoo_index is not None
    rows = []
    for task in size_tasks(options.limit):
        spec = spec_of(text, task)
        images, labels = test_batch(task)
        trained = float(accuracy(spec, trained_from_scratch(spec, task, 1), images, labels))
        near = next(
            replace(held, classes=task.num_classes)
            for held in zoo.zoo_index.groups
            if held.family == spec.family
        )
        for seed in range(options.seeds):
            support = task.support(16, seed=100 + seed)
            made = model.generate_many(spec, support=support, num_samples=options.samples, seed=seed)
            scores = accuracy(spec, torch.stack([s.flat for s in made]), images, labels)
            # The mean trunk of the most alike tasks of the zoo, in the nearest size that the zoo has.
            trunk = zoo.zoo_index.trunk_near(near, zoo.images.describe(support.images))
            assert trunk is not None
            copies = {}
            for how in RESIZINGS:
                copy = resized(near, trunk, spec, how)
                copies[f"resized_{how}"] = closed_form_network(spec, copy, support.images)
            copied = accuracy(spec, torch.stack(list(copies.values())), images, labels).tolist()
            rows.append(
                {
                    "architecture": text,
                    "family": spec.family,
                    "where": "inside" if text in INSIDE else "outside",
                    "task": str(task),
                    "seed": seed,
                    "trained": trained,
                    "generated": float(scores.mean()),
                    **dict(zip(copies, copied, strict=True)),
                }
            )
    return rows


def table_sizes(options: argparse.Namespace) -> dict[str, Any]:
    """Depths and widths outside training, on unseen tasks, beside resized weights of the nearest size."""
    rows: Rows = []
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        for found in pool.map(size_rows, (*INSIDE, *OUTSIDE), [options] * len(INSIDE + OUTSIDE)):
            rows += found
            print(json.dumps(rows[-1]), flush=True)
    table = {}
    names = [("all", "where", "inside"), ("outside", "where", "outside")]
    names += [(f"{f} inside", "family", f) for f in ("cnn", "mlp", "resnet")]
    names += [(text, "architecture", text) for text in (*INSIDE, *OUTSIDE)]
    for name, column, value in names:
        group = [r for r in rows if r[column] == value and ("inside" not in name or r["where"] == "inside")]
        best = max(f"resized_{how}" for how in RESIZINGS)
        best = max((f"resized_{how}" for how in RESIZINGS), key=lambda how: mean_of(group, how))
        table[name] = {
            "ratio": over_seeds(group, lambda g: mean_of(g, "generated") / mean_of(g, "trained")),
            "trained": mean_of(group, "trained"),
            "best_copy": best,
            "copy_ratio": over_seeds(group, lambda g, b=best: mean_of(g, b) / mean_of(g, "trained")),
            "above_copy": over_seeds(group, lambda g, b=best: mean_of(g, "generated") - mean_of(g, b)),
        }
    return {"table": table, "rows": rows}


# ------------------------------------------------------------------------------------ reward


def table_reward(options: argparse.Namespace) -> dict[str, Any]:
    """One task steered by reward, against the best of as many networks of the distribution it starts from."""
    whole = load_generator(options.generator)
    settings = RewardSettings()
    rows = []
    for task in size_tasks(options.limit):
        spec = spec_of("cnn(depth=3,width=16)", task)
        model = layerwise_of(whole, spec)
        images, labels = test_batch(task)
        for seed in range(options.seeds):
            support = task.support(16, seed=100 + seed)
            request = model.check(spec, None, support, 1, seed, Sampling(temperature=0.0))
            prior = model.generate(spec, support=support, seed=seed, sampling=Sampling(temperature=0.0)).flat
            start = time.process_time()
            steered = steered_network(model, request, steer(model, request, task.data("train"), settings))
            middle = time.process_time()
            latents, moves = best_of_prior(model, request, task.data("train"), settings)
            trunk = model.dictionary.decode(spec, latents[None])[0]
            best = model.with_head(spec, trunk, support.images, moves)
            end = time.process_time()
            flats = torch.stack([prior, steered, best])
            scores = accuracy(spec, flats, images, labels).tolist()
            far = None
            if whole.zoo_index is not None:
                far = whole.zoo_index.novelty(spec, flats)
            novelty = [None] * 3 if far is None else [f["distance"] / f["zoo_spacing"] for f in far]
            row: dict[str, Any] = {"task": str(task), "seed": seed}
            for name, score, new in zip(("prior", "steered", "best_of_prior"), scores, novelty, strict=True):
                row |= {name: score, f"{name}_novelty": new}
            rows.append({**row, "seconds_steered": middle - start, "seconds_best": end - middle})
            print(json.dumps(rows[-1]), flush=True)
    table = {
        name: over_seeds(rows, lambda g, n=name: mean_of(g, n))
        for name in ("prior", "steered", "best_of_prior")
    }
    table["above_best_of_prior"] = over_seeds(
        rows, lambda g: mean_of(g, "steered") - mean_of(g, "best_of_prior")
    )
    table["above_prior"] = over_seeds(rows, lambda g: mean_of(g, "steered") - mean_of(g, "prior"))
    for name in ("prior", "steered", "best_of_prior"):
        if rows[0][f"{name}_novelty"] is not None:
            table[f"{name}_novelty"] = over_seeds(rows, lambda g, n=name: mean_of(g, f"{n}_novelty"))
    for name in ("seconds_steered", "seconds_best"):
        table[name] = summary([row[name] for row in rows])
    table["networks_scored"] = settings.rounds * settings.trunks * settings.heads
    return {"table": table, "rows": rows}


# ------------------------------------------------------------------------------------ novelty


def table_audit(options: argparse.Namespace) -> dict[str, Any]:
    """The audit's verdict on samples for tasks of the zoo and for unseen ones.

    The training checkpoints are those that the generator carries: no zoo is needed. Wrong answers are not
    compared: nobody has trained a checkpoint for an unseen task.
    """
    model = load_generator(options.generator)
    assert model.zoo_index is not None
    trained = {(row["architecture"], row["task"]): row["trained"] for row in held_out_rows()}
    seen = reference_rows("seen")
    trained |= {(row["architecture"], row["task"]): row["trained"] for row in seen}
    rows = []
    for spec, group in model.zoo_index.groups.items():
        name = family(spec)
        known = Checkpoints(spec, group.flats)
        usual = known.usual()
        for where, measured in (("seen", seen), ("unseen", held_out_rows())):
            wanted = sorted(
                {r["task"] for r in measured if r["architecture"] == name and r["classes"] == spec.classes}
            )
            order = torch.randperm(len(wanted), generator=torch_generator("audit", where)).tolist()
            for text in [wanted[i] for i in order[: options.limit]]:
                task = parse_task(text)
                for seed in range(options.seeds):
                    support = task.support(16, seed=100 + seed)
                    made = model.generate_many(spec, support=support, num_samples=options.samples, seed=seed)
                    flats = torch.stack([sample.flat for sample in made])
                    scores = accuracy(spec, flats, *test_batch(task)).tolist()
                    for one, score in zip(known.compare(flats), scores, strict=True):
                        verdict = verdict_of(
                            one,
                            usual,
                            accuracy=score,
                            trained=trained[name, text],
                            chance=1 / task.num_classes,
                            overlap=None,
                            usual_overlap=None,
                        )
                        rows.append(
                            {
                                "architecture": name,
                                "where": where,
                                "task": text,
                                "seed": seed,
                                "accuracy": score,
                                "distance": one.distance / usual.distance,
                                "largest_weight": one.largest_weight,
                                "verdict": verdict,
                            }
                        )
            print(json.dumps(rows[-1]), flush=True)
    table = {}
    for where in ("seen", "unseen"):
        group_rows = [row for row in rows if row["where"] == where]
        counts = Counter(row["verdict"] for row in group_rows)
        table[where] = {
            "verdict": counts.most_common(1)[0][0],
            "shares": {name: count / len(group_rows) for name, count in counts.items()},
            "accuracy": over_seeds(group_rows, lambda g: mean_of(g, "accuracy")),
            "distance_over_usual": over_seeds(group_rows, lambda g: mean_of(g, "distance")),
            "samples": len(group_rows),
        }
    return {"table": table, "rows": rows}


# ------------------------------------------------------------------------------------ large networks


def table_large(options: argparse.Namespace) -> dict[str, Any]:
    """One residual network of ten million parameters, whole."""
    model = load_generator(options.generator)
    task = parse_task("cifar10")
    large = spec_of("resnet(depth=20,width=98)", task)
    support = task.support(16, seed=100)
    before = peak_mb(reset=True)
    runs = []
    for seed in range(options.seeds):
        start, cpu = time.perf_counter(), time.process_time()
        sample = model.generate(large, support=support, seed=seed)
        runs.append({"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu})
    peak = peak_mb()
    images, labels = (part[:500] for part in test_batch(task))
    narrow = model.generate("resnet(depth=20,width=12)", support=support, seed=0)
    rows: dict[str, Any] = {
        "parameters": large.num_parameters(),
        "tokens": sample.report.get("tokens"),
        "seconds": summary([run["seconds"] for run in runs]),
        "cpu_seconds": summary([run["cpu_seconds"] for run in runs]),
        "peak_over_start_mb": peak - before,
        "network_mb": sample.flat.numel() * 4 / 1e6,
        "accuracy": float(accuracy(large, sample.flat[None], images, labels)),
        "accuracy_of_width_12": float(accuracy(narrow.architecture, narrow.flat[None], images, labels)),
    }
    # The same request without its head and batch norms: codes and weights alone.
    layerwise = layerwise_of(model, large)
    request = layerwise.check(large, None, support, 1, 0, Sampling())
    start = time.process_time()
    codes = layerwise.sample_codes(layerwise.describe(request), [torch_generator("large")], Sampling())
    layerwise.dictionary.decode(large, layerwise.latents(codes))
    rows["parameters_per_cpu_second"] = large.num_parameters() / (time.process_time() - start)
    return {"table": rows}


# ------------------------------------------------------------------------------------ instructions


PARAPHRASES = {
    "mnist": "Please tell me which digit, zero to nine, somebody wrote by hand in these scans",
    "fashion-mnist": "I want to sort photographs of garments and footwear by what they are",
    "cifar10": "Say whether a small colour photo has a plane, a car, an animal, a ship or a truck in it",
    "quickdraw": "Guess what people doodled with a finger on their phones",
    "digits": "Read the tiny eight by eight scans of numerals that scikit-learn comes with",
}
"""Sentences that no template makes."""


def misspelt(text: str) -> str:
    """Every fourth word with two letters changed places, and one letter left out of the longest."""
    words = text.split()
    for i in range(0, len(words), 4):
        if len(words[i]) > 3:
            words[i] = words[i][0] + words[i][2] + words[i][1] + words[i][3:]
    longest = max(range(len(words)), key=lambda i: len(words[i]))
    words[longest] = words[longest][:2] + words[longest][3:]
    return " ".join(words)


def table_instructions(options: argparse.Namespace) -> dict[str, Any]:
    """Sentences rephrased, misspelt, contradicted by the examples, or missing, beside examples."""
    model = load_generator(options.generator)
    names = sorted(PARAPHRASES)
    rows = []
    for number, name in enumerate(names):
        canonical = parse_task(name) if name != "quickdraw" else None
        if canonical is None:
            assert model.zoo_index is not None
            canonical = next(
                parse_task(str(row["task"]))
                for group in model.zoo_index.groups.values()
                for row in group.rows
                if row["dataset"] == name and group.spec.classes == 10 and "+" not in str(row["task"])
            )
        spec = spec_of("cnn(depth=3,width=16)", canonical)
        images, labels = test_batch(canonical)
        for seed in range(options.seeds):
            plain = canonical.instructions(1, seed=100 + seed)[0]
            stranger = names[(number + 1) % len(names)]
            other = parse_task("mnist" if stranger == "quickdraw" else stranger)
            support = canonical.support(16, seed=100 + seed)
            texts = {
                "plain": plain,
                "paraphrased": PARAPHRASES[name],
                "misspelt": misspelt(plain),
                "contradicted": other.instructions(1, seed=100 + seed)[0],
                "absent": None,
            }
            for variant, text in texts.items():
                made = model.generate_many(spec, instruction=text, support=support, seed=seed)[0]
                reached = float(accuracy(spec, made.flat[None], images, labels))
                rows.append({"dataset": name, "seed": seed, "variant": variant, "accuracy": reached})
    table = {
        variant: over_seeds([r for r in rows if r["variant"] == variant], lambda g: mean_of(g, "accuracy"))
        for variant in ("plain", "paraphrased", "misspelt", "contradicted", "absent")
    }
    return {"table": table, "rows": rows}


TABLES = {
    "unseen": table_unseen,
    "seen": table_seen,
    "datasets": table_datasets,
    "sizes": table_sizes,
    "reward": table_reward,
    "audit": table_audit,
    "large": table_large,
    "instructions": table_instructions,
}


def main() -> None:
    """Make one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=sorted(TABLES))
    parser.add_argument("--generator", default="layerwise-tiny")
    parser.add_argument("--without", default="runs/layerwise-without-{}", help="generators without a dataset")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--limit", type=int, default=4, help="tasks of each group")
    parser.add_argument("--steps", type=int, default=1600, help="longest fine-tuning")
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread, for sizes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    result = TABLES[options.table](options)
    command = f"python benchmarks/full.py {options.table} --seeds {options.seeds} --samples {options.samples}"
    about = {
        "command": f"{command} --limit {options.limit} --steps {options.steps} --threads {options.threads}",
        "seconds": round(time.perf_counter() - start, 1),
        "torch": torch.__version__.split("+")[0],
        "machine": f"{platform.machine()}, {options.threads} thread(s)",
    }
    write_json(options.out / f"full-{options.table}.json", {**about, **result})
    print(json.dumps(result["table"], indent=1))


if __name__ == "__main__":
    main()
