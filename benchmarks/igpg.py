"""The figures of the IGPG page: `python benchmarks/igpg.py TABLE --zoo DIR [--generator NAME]`.

Every table prints itself and writes benchmarks/results/igpg-TABLE.json with mean and standard deviation
over the seeds. Nothing here is tuned on held-out tasks: samples are chosen on support sets only.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from weightloom.architectures import ArchitectureSpec
from weightloom.evaluation.measures import TEST_IMAGES, summary, test_batch
from weightloom.fitting import (
    FitSettings,
    accuracy,
    finetune,
    initial_flats,
    recalibrate,
    steps_until,
)
from weightloom.generators import Sampling, best_of
from weightloom.generators.average import AverageCheckpoint
from weightloom.generators.igpg import IGPG
from weightloom.generators.kde import KernelDensity
from weightloom.generators.load import load_generator
from weightloom.generators.nearest import NearestCheckpoint
from weightloom.io import write_json
from weightloom.seeding import torch_generator
from weightloom.tasks import DatasetTask, parse_task
from weightloom.tokenizers import architecture_key
from weightloom.training.tokenizer import (
    Population,
    held_out_populations,
    load_populations,
    round_trip,
)
from weightloom.zoo import Zoo

RESULTS = Path(__file__).parent / "results"
STRANGE = "digits[9,8,7,6,5,4,3,2,1,0]+rot90"
"""A task that the zoo does not hold, for the speed of whole requests."""
EPOCH_STEPS = 100
"""Steps of 64 images that count as one epoch in the fine-tuning protocol (6,400 images)."""


def family(spec: ArchitectureSpec) -> str:
    """The architecture as the tables print it."""
    return architecture_key(spec).replace(",input=3x16x16", "").replace("(input=3x16x16)", "")


def chosen(populations: list[Population], limit: int) -> list[tuple[ArchitectureSpec, DatasetTask, float]]:
    """Up to ``limit`` different tasks of every population with the mean accuracy of their checkpoints, on the
    images that everything else is measured on.
    """
    rows = []
    for population in populations:
        members: dict[str, list[int]] = defaultdict(list)
        for index, record in enumerate(population.records):
            if record.final:
                members[record.task].append(index)
        tasks = sorted(members)
        order = torch.randperm(len(tasks), generator=torch_generator("benchmark", len(tasks)))[:limit]
        for index in sorted(order.tolist()):
            own = members[tasks[index]]
            task = population.records[own[0]].parsed_task()
            scores = accuracy(population.spec, population.flats[own], *test_batch(task))
            rows.append((population.spec, task, float(scores.mean())))
    return rows


def zero_shot(
    model: IGPG, rows: list[tuple[ArchitectureSpec, DatasetTask, float]], seeds: int, samples: int
) -> list[dict[str, Any]]:
    """Accuracy of every method on every task: mean of the samples, best on the support set, baselines."""
    nearest = NearestCheckpoint.from_generator(model)
    found = []
    for spec, task, trained in rows:
        images, labels = test_batch(task)
        for seed in range(seeds):
            support = task.support(16, seed=100 + seed)
            text = task.instructions(1, seed=100 + seed)[0]
            made = model.generate_many(
                spec, instruction=text, support=support, num_samples=samples, seed=seed
            )
            scores = accuracy(spec, torch.stack([s.flat for s in made]), images, labels)
            best = next(i for i, sample in enumerate(made) if sample is best_of(made))
            copy = nearest.generate_many(spec, support=support)[0].flat
            guess = model.closed_form(spec, support.images)
            fresh = initial_flats(spec, [seed])
            others = accuracy(spec, torch.cat([copy[None], guess[None], fresh]), images, labels).tolist()
            novelty = model.zoo_index.novelty(spec, torch.stack([s.flat for s in made]))  # type: ignore[union-attr]
            found.append(
                {
                    "architecture": family(spec),
                    "task": str(task),
                    "dataset": task.dataset,
                    "classes": task.num_classes,
                    "seed": seed,
                    "trained": trained,
                    "igpg_mean": float(scores.mean()),
                    "igpg_best_on_support": float(scores[best]),
                    "nearest": others[0],
                    "closed_form": others[1],
                    "random_init": others[2],
                    "distance": None if not novelty else novelty[0]["distance"],
                    "zoo_spacing": None if not novelty else novelty[0]["zoo_spacing"],
                }
            )
    return found


METHODS = ("igpg_mean", "igpg_best_on_support", "nearest", "closed_form", "random_init", "trained")


def aggregate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean over tasks for each seed, then mean and deviation over seeds; ratios to the trained networks."""
    table: dict[str, Any] = {}
    groups = {"all": rows}
    for key in ("architecture", "dataset", "classes", "split"):
        for value in sorted({str(r[key]) for r in rows if key in r}):
            groups[f"{key}={value}"] = [r for r in rows if str(r.get(key)) == value]
    for name, group in groups.items():
        seeds = sorted({r["seed"] for r in group})
        entry: dict[str, Any] = {}
        for method in METHODS:
            means = [statistics.fmean(r[method] for r in group if r["seed"] == s) for s in seeds]
            entry[method] = summary(means)
        trained = entry["trained"]["mean"]
        entry["ratio_mean"] = entry["igpg_mean"]["mean"] / trained
        entry["ratio_best"] = entry["igpg_best_on_support"]["mean"] / trained
        entry["above_nearest"] = entry["igpg_mean"]["mean"] - entry["nearest"]["mean"]
        table[name] = entry
    return table


def table_round_trip(model: IGPG, zoo: Zoo, options: argparse.Namespace) -> dict[str, Any]:
    """Held-out checkpoints encoded and decoded."""
    rows = round_trip(model.tokenizer, held_out_populations(zoo), limit=options.limit, images=TEST_IMAGES)
    table = {}
    for name in ["all", *sorted({str(r["architecture"]) for r in rows})]:
        group = [r for r in rows if name in ("all", r["architecture"])]
        original = sum(float(r["original"]) for r in group)
        table[name] = {
            "original": original / len(group),
            "ratio": sum(float(r["rebuilt"]) for r in group) / original,
            "ratio_norms_as_coded": sum(float(r["rebuilt_norms_as_coded"]) for r in group) / original,
            "bits_per_weight": max(float(r["bits_per_weight"]) for r in group),
            "checkpoints": len(group),
        }
    populations = load_populations(zoo)
    codes = torch.cat([model.tokenizer.encode(p.spec, p.flats).flatten(0, 1) for p in populations])
    return {"table": table, "codebook": model.tokenizer.health(codes).summary()}


def table_seen(model: IGPG, zoo: Zoo, options: argparse.Namespace) -> dict[str, Any]:
    """Tasks and architectures of the zoo."""
    rows = zero_shot(model, chosen(load_populations(zoo), options.limit), options.seeds, options.samples)
    return {"table": aggregate(rows), "rows": rows}


def table_unseen(model: IGPG, zoo: Zoo, options: argparse.Namespace) -> dict[str, Any]:
    """Class subsets, orders and transforms that no part of training has seen."""
    rows = []
    for population in held_out_populations(zoo):
        found = zero_shot(model, chosen([population], options.limit), options.seeds, options.samples)
        rows += [{**row, "split": population.records[0].split} for row in found]
    return {"table": aggregate(rows), "rows": rows}


def table_conditions(model: IGPG, zoo: Zoo, options: argparse.Namespace) -> dict[str, Any]:
    """Parts of the condition removed, or swapped for those of another task."""
    table: dict[str, Any] = {}
    for name, populations in (("seen", load_populations(zoo)), ("unseen", held_out_populations(zoo))):
        sums: dict[str, list[float]] = defaultdict(list)
        count = max(1, options.limit // 2)
        pairs = []
        for population in populations:
            found = chosen([population], max(2, count))
            pairs += [(row, found[(i + 1) % len(found)][1]) for i, row in enumerate(found[:count])]
        for (spec, task, trained), other in pairs:
            images, labels = test_batch(task)
            for seed in range(options.seeds):
                text, wrong = task.instructions(1, seed=100 + seed)[0], other.instructions(1, seed=100)[0]
                support, strange = task.support(16, seed=100 + seed), other.support(16, seed=100 + seed)
                full = model.condition(spec, [text], [support.images])
                variants = {
                    "full": full,
                    "no instruction": full.without("instruction"),
                    "no dataset": model.condition(spec, [text], [None]),
                    "no architecture": full.without("architecture"),
                    "nothing": full.without("instruction", "dataset", "architecture"),
                    "wrong instruction": model.condition(spec, [wrong], [support.images]),
                    "wrong dataset": model.condition(spec, [text], [strange.images]),
                }
                for variant, condition in variants.items():
                    noise = [torch_generator("conditions", seed)]
                    codes = model.sample_codes(spec, condition, noise, Sampling())
                    flats = model.tokenizer.decode(spec, codes)
                    # Batch norms are measured on the right images in every variant: only the codes differ.
                    flats = recalibrate(spec, flats, support.flat()[0])
                    sums[variant].append(float(accuracy(spec, flats, images, labels)[0]) / max(trained, 1e-9))
        table[name] = {variant: summary(values) for variant, values in sums.items()}
    return {"table": table}


def starts_for(model: IGPG, spec: ArchitectureSpec, task: DatasetTask, seed: int) -> dict[str, torch.Tensor]:
    """One network (P,) from every method, chosen without test images."""
    support = task.support(16, seed=100 + seed)
    text = task.instructions(1, seed=100 + seed)[0]
    options = {"support": support, "seed": seed}
    return {
        "random_init": initial_flats(spec, [1000 + seed])[0],
        "nearest": NearestCheckpoint.from_generator(model).generate(spec, **options).flat,
        "average": AverageCheckpoint.from_generator(model).generate(spec, **options).flat,
        "kernel_density": KernelDensity.from_generator(model).generate(spec, num_samples=8, **options).flat,
        "closed_form": model.closed_form(spec, support.images),
        "igpg": model.generate(spec, instruction=text, num_samples=8, **options).flat,
    }


def table_protocol(model: IGPG, zoo: Zoo, options: argparse.Namespace) -> dict[str, Any]:
    """The Tiny Model Zoo protocol on our zoo: epochs 0, 1, 5, 25 of fine-tuning from every start."""
    epochs = (0, 1, 5, 25)
    spec = next(p.spec for p in load_populations(zoo) if p.spec.family == "cnn" and p.spec.classes == 10)
    source = zoo.about()["recipe"]
    tasks = [r.parsed_task() for r in zoo.records(final=True, split="train") if r.spec() == spec]
    canonical: dict[str, DatasetTask] = {}
    for task in tasks:
        if task.transform == "id" and list(task.classes) == sorted(task.classes):
            canonical.setdefault(task.dataset, task)
    rows = []
    settings = FitSettings(steps=epochs[-1] * EPOCH_STEPS, batch_size=64, learning_rate=options.learning_rate)
    for name in source["datasets"]:
        for seed in range(options.seeds):
            starts = starts_for(model, spec, canonical[name], seed)
            curve = finetune(
                spec,
                torch.stack(list(starts.values())),
                canonical[name],
                settings,
                measure_at=[e * EPOCH_STEPS for e in epochs],
                seed=seed,
            )
            for column, method in enumerate(starts):
                for epoch, value in zip(epochs, curve.accuracy[:, column].tolist(), strict=True):
                    row = {"dataset": name, "method": method, "seed": seed, "epoch": epoch, "accuracy": value}
                    rows.append(row)
    table: dict[str, Any] = {}
    for row in rows:
        place = table.setdefault(str(row["epoch"]), {}).setdefault(row["method"], {})
        place.setdefault(row["dataset"], []).append(row["accuracy"])
    for methods in table.values():
        for scores in methods.values():
            means = [statistics.fmean(v) for v in zip(*scores.values(), strict=True)]
            scores.update({k: summary(v) for k, v in list(scores.items())})
            scores["mean"] = summary(means)
    return {"table": table, "rows": rows, "epoch_steps": EPOCH_STEPS, "architecture": str(spec)}


STARTS = {
    "generated": FitSettings(steps=300, batch_size=64, learning_rate=3e-3),
    "random": FitSettings(steps=800, batch_size=64, learning_rate=3e-3),
}
"""Fine-tuning from each start: the best of several cycles and rates on eight training tasks."""


def table_steps(model: IGPG, zoo: Zoo, options: argparse.Namespace) -> dict[str, Any]:
    """Steps to the trained network's accuracy, from generated over from random weights."""
    limit = options.steps
    table: dict[str, Any] = {}
    for name, populations in (("seen", load_populations(zoo)), ("unseen", held_out_populations(zoo))):
        rows = []
        for spec, task, trained in chosen(populations, max(1, options.limit // 4)):
            for seed in range(options.seeds):
                starts = starts_for(model, spec, task, seed)
                row = {"architecture": family(spec), "task": str(task), "seed": seed, "trained": trained}
                for what, start in (("generated", starts["igpg"]), ("random", starts["random_init"])):
                    row[what] = steps_until(
                        spec, start, task, STARTS[what], trained,
                        limit=limit, test=test_batch(task), seed=seed,
                    )  # fmt: skip
                rows.append(row)
        # A start that never gets there within the limit counts as the limit: for random ones this is
        # generous to random, for generated ones it is too, so it is counted and shown.
        made = [float(limit if r["generated"] is None else r["generated"]) for r in rows]
        fresh = [float(limit if r["random"] is None else r["random"]) for r in rows]
        table[name] = {
            "ratio_of_means": sum(made) / sum(fresh),
            "median_ratio": statistics.median(a / max(b, 1.0) for a, b in zip(made, fresh, strict=True)),
            "generated_steps": summary(made),
            "random_steps": summary(fresh),
            "generated_never": sum(r["generated"] is None for r in rows),
            "random_never": sum(r["random"] is None for r in rows),
            "limit": limit,
            "rows": rows,
        }
    settings = {
        what: f"cycles of {one.steps} steps, highest learning rate {one.learning_rate:g}"
        for what, one in STARTS.items()
    }
    return {"table": table, "settings": settings}


def table_speed(model: IGPG, zoo: Zoo, options: argparse.Namespace) -> dict[str, Any]:
    """Parameters per CPU-second of prior and decoder at batch 1 and 64; the cache against doing without."""
    table: dict[str, Any] = {}
    for spec in sorted({p.spec for p in held_out_populations(zoo) if p.spec.classes == 10}, key=str):
        for batch in (1, 64):
            condition = model.condition(spec, [None], [None]).repeat(batch)
            times: dict[str, list[float]] = defaultdict(list)
            for repeat in range(options.seeds):
                noise = [torch_generator("speed", repeat, i) for i in range(batch)]
                start = time.process_time()
                codes = model.sample_codes(spec, condition, noise, Sampling())
                middle = time.process_time()
                flats = model.tokenizer.decode(spec, codes)
                end = time.process_time()
                size = flats.numel()
                times["prior"].append(size / (middle - start))
                times["decoder"].append(size / (end - middle))
                times["together"].append(size / (end - start))
                support = parse_task(STRANGE).support(16, seed=repeat)
                start = time.process_time()
                model.generate_many(spec, support=support, num_samples=batch, seed=repeat)
                times["request"].append(size / (time.process_time() - start))
            table[f"{family(spec)} batch {batch}"] = {k: summary(v) for k, v in times.items()}
    backbone, width = model.backbone, model.config.width
    x = torch.randn(1, 512, width)
    ratios = []
    with torch.no_grad():
        for _ in range(options.seeds):
            start = time.process_time()
            cache = backbone.new_cache(1, 512)
            for i in range(512):
                backbone(x[:, i : i + 1], cache)
            cached = time.process_time() - start
            start = time.process_time()
            for i in range(512):
                backbone(x[:, : i + 1])
            ratios.append((time.process_time() - start) / cached)
    return {
        "table": table,
        "cache_speed_up_at_512": summary(ratios),
        "threads": torch.get_num_threads(),
    }


TABLES = {
    "round-trip": table_round_trip,
    "seen": table_seen,
    "unseen": table_unseen,
    "conditions": table_conditions,
    "protocol": table_protocol,
    "steps": table_steps,
    "speed": table_speed,
}


def main() -> None:
    """Make one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=sorted(TABLES))
    parser.add_argument("--zoo", required=True)
    parser.add_argument("--generator", default="igpg-tiny")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--limit", type=int, default=8, help="tasks of each group")
    parser.add_argument("--steps", type=int, default=800, help="longest fine-tuning of the steps table")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of the protocol's fine-tuning")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_generator(options.generator)
    assert isinstance(model, IGPG)
    start = time.perf_counter()
    result = TABLES[options.table](model, Zoo(options.zoo), options)
    command = f"python benchmarks/igpg.py {options.table} --zoo {options.zoo} --generator {options.generator}"
    sizes = f"--seeds {options.seeds} --samples {options.samples} --limit {options.limit}"
    if options.table == "protocol":
        sizes += f" --learning-rate {options.learning_rate}"
    about = {
        "command": f"{command} {sizes} --steps {options.steps} --threads {options.threads}",
        "seconds": round(time.perf_counter() - start, 1),
        "torch": torch.__version__.split("+")[0],
        "machine": f"{platform.machine()}, {options.threads} thread(s)",
    }
    write_json(options.out / f"igpg-{options.table}.json", {**about, **result})
    print(json.dumps(result["table"], indent=1))


if __name__ == "__main__":
    main()
