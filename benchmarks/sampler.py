"""Seconds for a random network's graph: `python benchmarks/sampler.py [--networks N]`.

For each space the time of one training network: drawn and its graph emitted from the genotype, its shortest
paths, and for comparison the same graph by tracing the module on the meta device. Also how many different
structures there are, and that none of the evaluation's is in training. Prints a table and writes
benchmarks/results/ghn-sampler.json. The public generator of DeepNets-1M takes 1.48 s a network on 2 cores.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from weightloom.architectures.capture import capture_graph
from weightloom.architectures.deepnet import DeepNetSpec, genotype_of
from weightloom.architectures.genotype import SPACES, SPLITS
from weightloom.io import write_json

RESULTS = Path(__file__).parent / "results"
PUBLIC_SECONDS = 1.48


def specs(space: str, split: str, count: int) -> list[DeepNetSpec]:
    return [
        DeepNetSpec(space=space, split=split, index=i, classes=10, input=(3, 32, 32)) for i in range(count)
    ]


def measure(space: str, count: int) -> dict[str, Any]:
    """One row."""
    genotype_of.cache_clear()
    emitted, paths, nodes, found = [], [], [], {}
    for split in SPLITS:
        for spec in specs(space, split, count if split == "train" else count // 4):
            start = time.perf_counter()
            graph = spec.graph()
            middle = time.perf_counter()
            reached = int((graph.distances[0] > 0).sum())
            end = time.perf_counter()
            assert reached == len(graph) - 1
            found.setdefault(split, set()).add(graph.structure)
            if split == "train":
                emitted.append(middle - start)
                paths.append(end - middle)
                nodes.append(len(graph))
    traced = []
    for spec in specs(space, "train", max(count // 10, 2)):
        start = time.perf_counter()
        with torch.device("meta"):
            module = spec.build()
        capture_graph(module, (3, 32, 32))
        traced.append(time.perf_counter() - start)
    training = found.pop("train")
    shared = sum(len(training & held) for held in found.values())
    per_network = statistics.fmean(emitted) + statistics.fmean(paths)
    return {
        "networks": count,
        "nodes_mean": statistics.fmean(nodes),
        "nodes_range": [min(nodes), max(nodes)],
        "seconds_draw_and_graph": statistics.fmean(emitted),
        "seconds_paths": statistics.fmean(paths),
        "seconds_traced": statistics.fmean(traced),
        "times_faster_than_the_public_generator": PUBLIC_SECONDS / per_network,
        "structures_in_training": len(training),
        "structures_in_evaluation": len(set().union(*found.values())),
        "structures_in_both": shared,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=200)
    options = parser.parse_args()
    rows = {space: measure(space, options.networks) for space in SPACES}
    for space, row in rows.items():
        print(space)
        for name, value in row.items():
            print(f"  {name:42} {value if not isinstance(value, float) else round(value, 4)}")
    machine = {"cpu_count": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    write_json(
        RESULTS / "ghn-sampler.json", {"machine": {**machine, "python": platform.python_version()}, **rows}
    )


if __name__ == "__main__":
    main()
