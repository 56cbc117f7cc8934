"""The figures of `weightloom select`: `python benchmarks/selection.py calibrate|measure [--generator NAME]`.

`calibrate` fits the weights of the prediction on training tasks and tells how well they do on training tasks
that were left out of the fit. `measure` draws tasks that no zoo of the recipe `zoo-tiny` holds, and compares
the ranking with that of training every candidate, and the winner with random search in the same seconds.
Both print a table and write benchmarks/results/selection[-calibration].json.

The generator `fresh` is a stand-in that makes every architecture: a random trunk with a head in closed form.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections import defaultdict
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.stats import kendalltau
from torch import Tensor

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.evaluation import SelectionSettings, candidates_of, parse_budget, select
from weightloom.evaluation.candidates import (
    DEFAULT_CANDIDATES,
    FAMILIES,
    WEIGHTS,
    log_odds,
    multiply_adds,
    signals,
)
from weightloom.fitting import FitSettings, accuracy, closed_form_network, fit_population, initial_flats
from weightloom.generators import Generator, Request, Validity, best_of
from weightloom.generators.base import ANY_ARCHITECTURE
from weightloom.generators.load import load_generator
from weightloom.io import write_json
from weightloom.seeding import seed_for, torch_generator
from weightloom.tasks import DatasetTask, TaskSampler
from weightloom.tasks.data import TaskData, draw_support, hold_back

RESULTS = Path(__file__).parent / "results"
DATASETS = ("mnist", "fashion-mnist", "cifar10", "quickdraw", "digits")
SALT = "weightloom-tiny"
"""That of the recipe `zoo-tiny`: what it holds out is unseen by every generator of that zoo."""

HELD_OUT = ("held-out-subset", "held-out-order", "held-out-transform")
RIDGE = 1.0


class Fresh(Generator):
    """A random trunk with a head in closed form, for any architecture: a stand-in."""

    kind: ClassVar[str] = "fresh"
    name = "fresh"

    def __init__(self) -> None:
        self.validity = Validity(
            architectures=(ANY_ARCHITECTURE,), input=(3, 16, 16), min_classes=2, max_classes=10
        )

    def sample_flats(self, request: Request) -> tuple[Tensor, list[dict[str, Any]]]:
        """(M, P) networks, another trunk each."""
        assert request.support is not None
        seeds = [seed_for("fresh", request.seed, index) for index in range(request.num_samples)]
        trunks = initial_flats(request.architecture, seeds)
        made = [
            closed_form_network(request.architecture, trunk, request.support.images, head_rms=0.3)
            for trunk in trunks
        ]
        return torch.stack(made), [{} for _ in made]


def generator_named(name: str) -> Generator:
    """A generator, or the stand-in."""
    return Fresh() if name == "fresh" else load_generator(name)


def specs_of(options: argparse.Namespace, model: Generator) -> list[ArchitectureSpec]:
    """The candidates."""
    if options.arch:
        return [parse_architecture(text) for text in options.arch]
    if options.generator == "fresh":
        return [parse_architecture(text) for text in DEFAULT_CANDIDATES]
    return candidates_of(model)


def tasks_of(split: str, count: int, first: int = 0) -> list[DatasetTask]:
    """``count`` tasks of one split, as they are drawn."""
    sampler = TaskSampler(DATASETS, SALT, split, (4, 10))
    return [sampler.task(first + index) for index in range(count)]


def parts_of(task: DatasetTask, seed: int) -> tuple[TaskData, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training images, those held back and up to 2,000 test images; the first two as `select` splits them."""
    settings = SelectionSettings(seed=seed)
    train, held = hold_back(task.data("train"), task.class_names, settings.held_back, ("held-back", seed))
    test = task.data("test")
    order = torch.randperm(len(test), generator=torch_generator("benchmark", str(task)))
    return train, held.all(), test.batch(order[:2000])


def fully(spec: ArchitectureSpec, train: TaskData, steps: int, seed: int, end: float = math.inf) -> Tensor:
    """(P,) a random initialisation after ``steps`` of training, or after what fits before ``end``."""
    start = initial_flats(spec, [seed_for("trained", seed, str(spec))])
    if end < math.inf:
        begun = time.perf_counter()
        for _ in fit_population(spec, start, [train], FitSettings(steps=5), seed=seed):
            pass
        each = (time.perf_counter() - begun) / 5
        steps = max(1, min(steps, int(0.95 * (end - time.perf_counter()) / each)))
    *_, last = fit_population(spec, start, [train], FitSettings(steps=steps, learning_rate=3e-3), seed=seed)
    return last.flats[0]


def score(spec: ArchitectureSpec, flat: Tensor, batch: tuple[Tensor, Tensor]) -> float:
    """Accuracy of one network."""
    return float(accuracy(spec, flat[None], *batch)[0])


def train_all(
    specs: list[ArchitectureSpec], task: DatasetTask, steps: int, seed: int
) -> tuple[list[float], list[float], float]:
    """Test accuracies and held-back accuracies of every candidate after full training, and its seconds."""
    train, held, test = parts_of(task, seed)
    found, judged, seconds = [], [], 0.0
    for spec in specs:
        begun = time.perf_counter()
        flat = fully(spec, train, steps, seed)
        judged.append(score(spec, flat, held))
        seconds += time.perf_counter() - begun
        found.append(score(spec, flat, test))
    return found, judged, seconds


def random_search(
    specs: list[ArchitectureSpec], task: DatasetTask, steps: int, seed: int, budget: float
) -> dict[str, Any]:
    """Full trainings of candidates in random order until the seconds are spent; the best on images held back.

    The last training is made as short as the time that is left, with a whole schedule of its own.
    """
    start = time.perf_counter()
    train, held, test = parts_of(task, seed)
    best, chosen, count = -1.0, None, 0
    while chosen is None or time.perf_counter() - start < 0.95 * budget:
        cycle, place = divmod(count, len(specs))
        if not place:  # all of them in another order, with other initialisations
            stream = torch_generator("random-search", str(task), seed, cycle)
            order = torch.randperm(len(specs), generator=stream).tolist()
        spec = specs[order[place]]
        flat = fully(spec, train, steps, seed + 1000 * cycle, start + 0.98 * budget)
        value, count = score(spec, flat, held), count + 1
        if value > best:
            best, chosen = value, (spec, flat)
    seconds = time.perf_counter() - start
    assert chosen is not None
    return {
        "accuracy": score(*chosen, test),
        "architecture": str(chosen[0]),
        "trained": count,
        "seconds": seconds,
    }


def tau(one: list[float], other: list[float]) -> float:
    """Kendall's tau-b; 0 where one side is constant."""
    value = float(kendalltau(one, other).statistic)
    return 0.0 if math.isnan(value) else value


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Ranking against training every candidate, winner against random search, on unseen tasks."""
    model, budget = generator_named(options.generator), parse_budget(options.budget)
    specs = specs_of(options, model)
    rows: list[dict[str, Any]] = []
    per_split = math.ceil(options.tasks / len(HELD_OUT))
    tasks = [
        task
        for split in zip(*(tasks_of(s, per_split, options.first) for s in HELD_OUT), strict=True)
        for task in split
    ]
    for task in tasks[: options.tasks]:
        resolved = [spec.resolve(classes=task.num_classes, input=task.input_shape) for spec in specs]
        for seed in range(options.seeds):
            truth, judged, full_seconds = train_all(resolved, task, options.steps, seed)
            settings = SelectionSettings(budget=budget, seed=seed)
            found = select(model, task, specs, settings)
            place = {c.spec: -i for i, c in enumerate(found.ranking)}
            hoped = {c.spec: -1.0 if c.predicted is None else c.predicted for c in found.ranking}
            assert found.winner.flat is not None
            own = score(found.winner.spec, found.winner.flat, parts_of(task, seed)[2])
            rows.append(
                {
                    "task": str(task),
                    "seed": seed,
                    "tau_predicted": tau([hoped[s] for s in resolved], truth),
                    "tau_ranking": tau([place[s] for s in resolved], truth),
                    "tau_size": tau([float(multiply_adds(s)) for s in resolved], truth),
                    "tau_zero_shot": tau(
                        [next(c.zero_shot or 0.0 for c in found.ranking if c.spec == s) for s in resolved],
                        truth,
                    ),
                    "predicted": {str(a): hoped[s] for a, s in zip(specs, resolved, strict=True)},
                    "place": {str(a): -place[s] for a, s in zip(specs, resolved, strict=True)},
                    "select": {
                        "accuracy": own,
                        "architecture": str(found.winner.spec),
                        "seconds": found.seconds,
                        "spent": found.spent,
                    },
                    "random_search": random_search(resolved, task, options.steps, seed, budget),
                    "train_all": {
                        "accuracy": truth[max(range(len(truth)), key=judged.__getitem__)],
                        "seconds": full_seconds,
                        "accuracies": dict(zip(map(str, specs), truth, strict=True)),
                    },
                }
            )
            print(
                json.dumps(
                    {k: v for k, v in rows[-1].items() if k not in ("train_all", "predicted", "place")}
                ),
                flush=True,
            )
            if options.keep is not None:  # what is measured so far is never lost
                write_json(options.keep, {"table": summary(rows, budget), "rows": rows})
    return {"table": summary(rows, budget), "rows": rows, "candidates": [str(s) for s in specs]}


def summary(rows: list[dict[str, Any]], budget: float) -> dict[str, Any]:
    """Means over tasks for each seed, then over seeds, of everything measured."""
    truths = defaultdict(list)
    for row in rows:
        truths[row["task"]].append(list(row["train_all"]["accuracies"].values()))
    noise = [tau(a, b) for runs in truths.values() for a, b in combinations(runs, 2)]
    table: dict[str, Any] = {}
    for name in ("tau_predicted", "tau_ranking", "tau_size", "tau_zero_shot"):
        table[name] = over_seeds(rows, lambda row, name=name: row[name])
    # One training of a candidate is a noisy measure of it: the mean over the seeds is the better truth.
    steady: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        truth = [statistics.fmean(values) for values in zip(*truths[row["task"]], strict=True)]
        steady["tau_predicted_of_mean"].append(tau(list(row["predicted"].values()), truth))
        steady["tau_ranking_of_mean"].append(tau([-place for place in row["place"].values()], truth))
    table |= {name: statistics.fmean(values) for name, values in steady.items()}
    table["tau_of_two_trainings"] = statistics.fmean(noise) if noise else None
    for name in ("select", "random_search", "train_all"):
        table[name] = {
            "accuracy": over_seeds(rows, lambda row, name=name: row[name]["accuracy"]),
            "seconds": statistics.fmean(row[name]["seconds"] for row in rows),
            "accuracy_per_second": statistics.fmean(
                row[name]["accuracy"] / row[name]["seconds"] for row in rows
            ),
        }
    gaps = [row["select"]["accuracy"] - row["random_search"]["accuracy"] for row in rows]
    table["select_at_least_random_search"] = sum(gap >= 0 for gap in gaps) / len(gaps)
    table["longest_over_budget"] = max(row["select"]["seconds"] for row in rows) / budget
    return table


def over_seeds(rows: list[dict[str, Any]], value: Any) -> dict[str, float]:
    """Mean over tasks for each seed, then mean and deviation over seeds."""
    seeds = sorted({row["seed"] for row in rows})
    means = [statistics.fmean(value(row) for row in rows if row["seed"] == seed) for seed in seeds]
    return {
        "mean": statistics.fmean(means),
        "sd": statistics.stdev(means) if len(means) > 1 else 0.0,
        "n": len(means),
    }


def calibrate(options: argparse.Namespace) -> dict[str, Any]:
    """Weights of the prediction from training tasks, and Kendall's tau on tasks left out of the fit."""
    model = generator_named(options.generator)
    specs = specs_of(options, model)
    settings = SelectionSettings()
    rows: list[dict[str, Any]] = []
    for number, task in enumerate(tasks_of("train", options.tasks, options.first)):
        train, held, test = parts_of(task, number)
        names = task.class_names
        support = draw_support(train, names, names, settings.shots, ("selection", number))
        for spec in specs:
            spec = spec.resolve(classes=task.num_classes, input=task.input_shape)
            made = model.generate_many(spec, support=support, num_samples=settings.samples, seed=number)
            start = best_of(made).flat
            fit = settings.fit(settings.probe_steps)
            *_, probed = fit_population(spec, start[None], [train], fit, seed=number)
            row = signals(
                score(spec, start, held),
                score(spec, probed.flats[0], held),
                multiply_adds(spec),
                spec.num_parameters(),
            )
            trained = score(spec, fully(spec, train, options.steps, number), test)
            rows.append({"task": str(task), "family": spec.family, "trained": trained, **row})
            print(json.dumps(rows[-1]), flush=True)
    return {"table": fitted(rows), "rows": rows, "candidates": [str(s) for s in specs]}


def fitted(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Ridge regression within tasks on signals and families; tau where each task is left out in turn."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["task"]].append(row)
    names = [name for name in WEIGHTS if name != "zero_shot"]  # it added nothing beside the probe

    def matrix(group: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
        x = np.array([[*(r[n] for n in names), *(float(r["family"] == f) for f in FAMILIES)] for r in group])
        y = np.array([log_odds(r["trained"]) for r in group])
        return x - x.mean(0), y - y.mean()

    def weights(chosen: list[list[dict[str, Any]]]) -> np.ndarray:
        parts = [matrix(group) for group in chosen]
        x, y = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
        found: np.ndarray = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ y)
        return found

    taus = []
    for task, group in groups.items():
        others = [g for t, g in groups.items() if t != task]
        if others:
            taus.append(tau(list(matrix(group)[0] @ weights(others)), [r["trained"] for r in group]))
    final = weights(list(groups.values()))
    return {
        "weights": {"zero_shot": 0.0} | {n: round(float(w), 3) for n, w in zip(names, final, strict=False)},
        "families": {f: round(float(w), 3) for f, w in zip(FAMILIES, final[len(names) :], strict=True)},
        "gain": round(statistics.fmean(log_odds(r["trained"]) - r["probe"] for r in rows), 3),
        "tau_left_out": statistics.fmean(taus) if taus else None,
        "taus": taus,
    }


TABLES = {"measure": ("selection", measure), "calibrate": ("selection-calibration", calibrate)}


def main() -> None:
    """Make one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=sorted(TABLES))
    parser.add_argument("--generator", default="layerwise-tiny", help="a name, a folder, or `fresh`")
    parser.add_argument("--arch", action="append", help="a candidate; may be repeated")
    parser.add_argument("--tasks", type=int, default=6)
    parser.add_argument("--first", type=int, default=0, help="number of the first task")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", default="60s")
    parser.add_argument("--steps", type=int, default=800, help="of a full training")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--name", help="of the file, without .json")
    parser.add_argument("--keep", type=Path, help="write here after every row of `measure`")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    name, make = TABLES[options.table]
    result = make(options)
    command = f"python benchmarks/selection.py {options.table} --generator {options.generator}"
    command += "".join(f" --arch '{text}'" for text in options.arch or ())
    command += f" --tasks {options.tasks} --steps {options.steps} --threads {options.threads}"
    if options.table == "measure":
        command += f" --seeds {options.seeds} --budget {options.budget}"
    if options.first:
        command += f" --first {options.first}"
    if options.name:
        command += f" --name {options.name}"
    about = {
        "command": command,
        "seconds": round(time.perf_counter() - start, 1),
        "torch": torch.__version__.split("+")[0],
        "machine": f"{platform.machine()}, {options.threads} thread(s)",
    }
    write_json(options.out / f"{options.name or name}.json", {**about, **result})
    print(json.dumps(result["table"], indent=1))


if __name__ == "__main__":
    main()
