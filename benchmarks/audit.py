"""The figures of the audit page: `python benchmarks/audit.py calibration --zoo DIR [--zoo DIR ...]`.

Networks whose novelty is known are told apart, or not: copies, copies with noise, averages, and networks that
were trained and then held back. Every copy, noisy copy and average has its units permuted at random. Prints
itself and writes benchmarks/results/audit-calibration.json.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightloom.architectures import ArchitectureSpec
from weightloom.evaluation import Checkpoints, verdict_of, wrong_answers
from weightloom.evaluation.audit import _test_images
from weightloom.io import write_json
from weightloom.seeding import torch_generator
from weightloom.weights import WeightStatistics, align, layout_of, permute, random_permutations
from weightloom.weights.mixing import add_noise
from weightloom.zoo import Record, Zoo

RESULTS = Path(__file__).parent / "results"
WANTED = {
    "copy": "retrieves",
    "noise": "retrieves",
    "average": "interpolates",
    "trained": "novel",
    "trained, of a pair": "novel",
}
NOISE = (0.1, 0.2, 0.3)
EVERY = 4
"""One of so many checkpoints of a task is held back, each in its turn."""


def split(records: list[Record], turn: int = 0) -> tuple[list[int], dict[str, list[int]]]:
    """Rows that stay in the training set, and rows that are held back at this turn.

    Of tasks with two checkpoints one is held back too, and counted apart: how far two trainings of a task lie
    apart is then known from nothing in the training set.
    """
    counts: dict[str, int] = {}
    for record in records:
        counts[record.task] = counts.get(record.task, 0) + 1
    seen: dict[str, int] = {}
    kept: list[int] = []
    held: dict[str, list[int]] = {"trained": [], "trained, of a pair": []}
    for row, record in enumerate(records):
        number = seen.get(record.task, 0)
        seen[record.task] = number + 1
        if counts[record.task] == 2 and number == turn:
            held["trained, of a pair"].append(row)
        elif counts[record.task] > 2 and number % EVERY == turn:
            held["trained"].append(row)
        else:
            kept.append(row)
    return kept, held


def networks(spec: ArchitectureSpec, flats: Tensor, tasks: list[str], limit: int) -> dict[str, list[Any]]:
    """Copies, noisy copies and averages of (N, P) checkpoints: pairs of network and task."""
    bound = WeightStatistics.measure([(layout_of(spec), flats)]).bind(layout_of(spec))
    made: dict[str, list[Any]] = {"copy": [], "noise": [], "average": []}
    for number in range(min(limit, len(flats))):
        row = number * len(flats) // min(limit, len(flats))
        own = [r for r, task in enumerate(tasks) if task == tasks[row]]
        others = own if len(own) > 1 else list(range(len(flats)))
        order = torch.randperm(len(others), generator=torch_generator("calibration", number)).tolist()
        stream = torch_generator("calibration", "noise", number)
        noisy = add_noise(bound, flats[row : row + 1], [stream], NOISE[number % len(NOISE)])[0]
        group = [others[place] for place in order[: 2 + number % 3]]
        average = align(spec, flats[group[0]], flats[group]).mean(0)
        found = {"copy": (flats[row], tasks[row]), "noise": (noisy, tasks[row])}
        if len(own) > 1:  # of different tasks an average is nothing
            found["average"] = (average, tasks[row])
        for name, (flat, task) in found.items():
            made[name].append((permute(spec, flat, random_permutations(spec, number)), task))
    return made


def calibration(zoo: Zoo, limit: int) -> list[dict[str, Any]]:
    """One row for each architecture and kind of network: how many got the right verdict."""
    rows = []
    for spec, records in zoo.by_architecture(split="train", final=True):
        for turn in range(EVERY):
            rows += _turn(zoo, spec, records, turn, limit)
    return rows


def _turn(
    zoo: Zoo, spec: ArchitectureSpec, records: list[Record], turn: int, limit: int
) -> list[dict[str, Any]]:
    """The rows of one choice of what is held back; what is made of checkpoints is made at the first only."""
    rows = []
    flats = zoo.load(records)
    kept, held = split(records, turn)
    tasks = [records[row].task for row in kept]
    known = Checkpoints(spec, flats[kept])
    usual = known.usual()
    made = networks(spec, flats[kept], tasks, limit) if turn == 0 else {}
    for name, own in held.items():
        made[name] = [(flats[row], records[row].task) for row in own[:limit]]
    parsed = {record.task: record.parsed_task() for record in records}
    images = {task: _test_images(one, 2000) for task, one in parsed.items()}
    trained: dict[str, float] = {}
    for task in set(tasks):
        own = flats[kept][[r for r, name in enumerate(tasks) if name == task]]
        trained[task] = 1 - float(wrong_answers(spec, own, *images[task]).float().mean())
    for name, pairs in made.items():
        verdicts = []
        if pairs:
            found = known.compare(torch.stack([flat for flat, _ in pairs]))
            for one, (flat, task) in zip(found, pairs, strict=True):
                accuracy = 1 - float(wrong_answers(spec, flat[None], *images[task]).float().mean())
                chance = 1 / (spec.classes or 1)
                verdicts.append(
                    verdict_of(one, usual, accuracy=accuracy, trained=trained[task], chance=chance)
                )
        if not pairs:
            continue
        # A mixture that no longer works was not mistaken for a new network.
        mixed = name in ("noise", "average")
        right = sum(v == WANTED[name] or (mixed and v == "fails") for v in verdicts)
        rows.append(
            {
                "zoo": zoo.about()["recipe"]["name"],
                "architecture": str(spec),
                "checkpoints": len(kept),
                "network": name,
                "wanted": WANTED[name],
                "networks": len(pairs),
                "right": right,
                "verdicts": {v: verdicts.count(v) for v in sorted(set(verdicts))},
                "usual": usual.to_json(),
            }
        )
        print(f"{spec!s:45s} {name:18s} {right:3d} of {len(pairs):3d}  {rows[-1]['verdicts']}")
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=["calibration"])
    parser.add_argument("--zoo", type=Path, action="append", required=True)
    parser.add_argument("--limit", type=int, default=20, help="networks of each kind and architecture")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    rows = [row for path in options.zoo for row in calibration(Zoo(path), options.limit)]
    totals = {}
    for name in WANTED:
        own = [row for row in rows if row["network"] == name]
        right, count = sum(row["right"] for row in own), sum(row["networks"] for row in own)
        totals[name] = {"right": right, "networks": count, "share": right / max(1, count)}
        print(f"{name:18s} {right} of {count}: {100 * right / max(1, count):.1f} %")
    result = {"rows": rows, "totals": totals, "seconds": round(time.perf_counter() - started)}
    write_json(RESULTS / "audit-calibration.json", result)


if __name__ == "__main__":
    main()
