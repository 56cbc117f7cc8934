"""What the networks of zoo-tiny and plain baselines reach: `python benchmarks/zoo_references.py --zoo DIR`.

On up to eight tasks of every group of the zoo, seen and held out: the zoo's own networks, the nearest
checkpoint and the closed form (of the zoo index that `--generator` carries), and random weights. Writes
benchmarks/results/zoo-tiny.json, which benchmarks/full.py reads. Test images are never used to choose.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from weightloom.architectures import ArchitectureSpec
from weightloom.evaluation.measures import test_batch
from weightloom.fitting import accuracy, initial_flats
from weightloom.generators import Generator
from weightloom.generators.closed_form import ClosedForm
from weightloom.generators.load import load_generator
from weightloom.generators.nearest import NearestCheckpoint
from weightloom.io import write_json
from weightloom.seeding import torch_generator
from weightloom.tasks import DatasetTask
from weightloom.tokenizers import architecture_key
from weightloom.training.tokenizer import Population, held_out_populations, load_populations
from weightloom.zoo import Zoo

RESULTS = Path(__file__).parent / "results"


def family(spec: ArchitectureSpec) -> str:
    """The architecture as the tables print it."""
    return architecture_key(spec).replace(",input=3x16x16", "").replace("(input=3x16x16)", "")


def chosen(
    populations: list[Population], limit: int
) -> list[tuple[ArchitectureSpec, DatasetTask, str, float]]:
    """Up to ``limit`` different tasks of every population with their split and the mean accuracy of their
    checkpoints, on the images that everything else is measured on.
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
            record = population.records[own[0]]
            task = record.parsed_task()
            scores = accuracy(population.spec, population.flats[own], *test_batch(task))
            rows.append((population.spec, task, record.split, float(scores.mean())))
    return rows


def references(
    model: Generator, tasks: list[tuple[ArchitectureSpec, DatasetTask, str, float]], seeds: int
) -> list[dict[str, Any]]:
    """Accuracies on every task, a seed a row."""
    nearest, closed = NearestCheckpoint.from_generator(model), ClosedForm.from_generator(model)
    rows = []
    for spec, task, split, trained in tasks:
        images, labels = test_batch(task)
        for seed in range(seeds):
            support = task.support(16, seed=100 + seed)
            made = [baseline.generate(spec, support=support).flat for baseline in (nearest, closed)]
            flats = torch.stack([*made, initial_flats(spec, [seed])[0]])
            scores = accuracy(spec, flats, images, labels).tolist()
            about = {"architecture": family(spec), "task": str(task), "dataset": task.dataset}
            about |= {"classes": task.num_classes, "seed": seed, "split": split, "trained": trained}
            names = ("nearest", "closed_form", "random_init")
            rows.append(about | dict(zip(names, scores, strict=True)))
    return rows


def main() -> None:
    """Measure both kinds of tasks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--zoo", required=True)
    parser.add_argument("--generator", default="layerwise-tiny")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=8, help="tasks of each group")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, zoo = load_generator(options.generator), Zoo(options.zoo)
    kinds = {"unseen": held_out_populations(zoo), "seen": load_populations(zoo, final=True)}
    rows = {
        name: references(model, chosen(populations, options.limit), options.seeds)
        for name, populations in kinds.items()
    }
    command = f"python benchmarks/zoo_references.py --zoo {options.zoo} --generator {options.generator}"
    write_json(options.out / "zoo-tiny.json", {"command": command, "rows": rows})


if __name__ == "__main__":
    main()
