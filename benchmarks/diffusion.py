"""The figures of the diffusion page: `python benchmarks/diffusion.py --zoo DIR --generator DIR`.

Mean accuracy of samples (no best-of) on seen and held-out tasks beside every baseline over the same zoo,
the autoencoder's round trip, and speed. Prints itself and writes benchmarks/results/diffusion.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightloom.evaluation.measures import TEST_IMAGES, test_batch
from weightloom.fitting import accuracy
from weightloom.generators import Generator, Sampling
from weightloom.generators.average import AverageCheckpoint
from weightloom.generators.closed_form import ClosedForm
from weightloom.generators.diffusion import LatentDiffusion
from weightloom.generators.gaussian import GaussianWeights
from weightloom.generators.interpolation import AlignedInterpolation, Interpolation
from weightloom.generators.kde import KernelDensity
from weightloom.generators.load import load_generator
from weightloom.generators.nearest import NearestCheckpoint
from weightloom.generators.noisy import NoisyCheckpoint
from weightloom.generators.random_init import RandomInit
from weightloom.io import write_json
from weightloom.seeding import torch_generator
from weightloom.tokenizers import architecture_key
from weightloom.training.tokenizer import Population, held_out_populations, load_populations, round_trip
from weightloom.weights import layout_of
from weightloom.zoo import Zoo

RESULTS = Path(__file__).parent / "results"
Make = Callable[[Any, Any, int], Tensor]
"""(spec, support or None, seed) to (M, P) networks."""


def methods(model: LatentDiffusion, samples: int) -> dict[str, Make]:
    """Every method by the name that the table prints."""

    def of(generator: Generator, **options: Any) -> Make:
        def make(spec: Any, support: Any, seed: int) -> Tensor:
            made = generator.generate_many(spec, support=support, num_samples=samples, seed=seed, **options)
            return torch.stack([sample.flat for sample in made])

        return make

    def unconditional(spec: Any, support: Any, seed: int) -> Tensor:
        made = model.generate_many(spec, num_samples=samples, seed=seed)
        return torch.stack([sample.flat for sample in made])

    closed = ClosedForm.from_generator(model)
    over_zoo = (
        NearestCheckpoint, AverageCheckpoint, KernelDensity, GaussianWeights, NoisyCheckpoint,
        Interpolation, AlignedInterpolation,
    )  # fmt: skip
    found = {
        "diffusion": of(model),
        "diffusion, guidance 2": of(model, sampling=Sampling(guidance=2.0)),
        "diffusion, unconditional": unconditional,
        "closed-form": of(closed),
    }
    for kind in over_zoo:
        found[kind.kind] = of(kind.from_generator(model))
    return found | {"random-init": of(RandomInit(model.validity))}


def score(populations: list[Population], make: Make, tasks: int, seeds: int) -> dict[str, list[float]]:
    """By architecture: mean accuracy of samples over the zoo's own, for each task and seed."""
    ratios: dict[str, list[float]] = {}
    for population in populations:
        chosen: dict[str, list[float]] = {}
        for record in population.records:
            if record.final and record.accuracy is not None:
                chosen.setdefault(record.task, []).append(record.accuracy)
        order = torch.randperm(len(chosen), generator=torch_generator("benchmark", str(population.spec)))
        names = list(chosen)
        for name in (names[place] for place in order[:tasks].tolist()):
            task = next(r for r in population.records if r.task == name).parsed_task()
            images, labels = test_batch(task)
            for seed in range(seeds):
                flats = make(population.spec, task.support(16, seed=seed), seed)
                reached = float(accuracy(population.spec, flats, images, labels).mean())
                key = architecture_key(population.spec).split("(")[0]
                ratios.setdefault(key, []).append(reached / statistics.mean(chosen[name]))
    return ratios


def speed(model: LatentDiffusion, populations: list[Population]) -> list[dict[str, Any]]:
    """Parameters per CPU-second on one thread, one network and 64 together."""
    rows = []
    specs = {architecture_key(p.spec): p.spec for p in populations}
    for key, spec in specs.items():
        for count in (1, 64):
            model.generate_many(spec, num_samples=count)
            times = []
            for seed in range(3):
                begin = time.process_time()
                model.generate_many(spec, num_samples=count, seed=seed)
                times.append(time.process_time() - begin)
            seconds = statistics.median(times)
            made = count * layout_of(spec).num_parameters
            rows.append(
                {
                    "architecture": key,
                    "batch": count,
                    "cpu_seconds": seconds,
                    "parameters_per_cpu_second": made / seconds,
                }
            )
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--generator", type=Path, required=True)
    parser.add_argument("--tasks", type=int, default=10, help="of every architecture and class count")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    zoo, model = Zoo(options.zoo), load_generator(options.generator)
    assert isinstance(model, LatentDiffusion)
    seen, unseen = load_populations(zoo, final=True), held_out_populations(zoo)
    table: dict[str, dict[str, Any]] = {}
    for name, make in methods(model, options.samples).items():
        table[name] = {}
        for split, populations in (("seen", seen), ("unseen", unseen)):
            ratios = score(populations, make, options.tasks, options.seeds)
            every = [value for values in ratios.values() for value in values]
            table[name][split] = {
                "mean": statistics.mean(every),
                "std": statistics.stdev(every),
                **{family: statistics.mean(values) for family, values in ratios.items()},
            }
        shown = "  ".join(f"{s} {v['mean']:.3f} ± {v['std']:.3f}" for s, v in table[name].items())
        print(f"{name:26s} {shown}")
    trips = round_trip(model.tokenizer, unseen, limit=12, images=TEST_IMAGES)
    kept = sum(float(r["rebuilt"]) for r in trips) / sum(float(r["original"]) for r in trips)
    print(f"round trip of held-out checkpoints: {kept:.4f}")
    rows = speed(model, seen)
    for row in rows:
        print(f"{row['architecture']:40s} batch {row['batch']:3d}: {row['parameters_per_cpu_second']:,.0f}/s")
    write_json(
        RESULTS / "diffusion.json",
        {
            "accuracy": table,
            "round_trip": kept,
            "speed": rows,
            "zoo": zoo.about()["recipe"]["name"],
            "samples": options.samples,
            "seeds": options.seeds,
        },
    )


if __name__ == "__main__":
    main()
