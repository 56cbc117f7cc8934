"""What grows and what does not: `python benchmarks/scaling.py start|stream|zoo|page`.

`start` is the time of `weightloom --help`. `stream` writes networks of one to a thousand million parameters
layer by layer and measures memory and time. `zoo` makes a zoo of 100,000
checkpoints and measures opening, one random checkpoint, filters and memory. Every measurement is made in a
process of its own, and gives the seconds that passed and the processor's: on a machine that does something
else too, only the second are those of the work. Each prints what it found and writes
benchmarks/results/scaling-NAME.json; `page` puts their tables into docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
START, END = "<!-- figures:start -->", "<!-- figures:end -->"
WIDTHS = {1: 126, 10: 398, 100: 1260, 1000: 4096}
"""Width of cnn(depth=8) by its millions of parameters, roughly."""

REPEATS = 6
"""Further writings of a network, two of the largest; the median counts."""

ARCHITECTURES = ("cnn(depth=2,width=4)", "cnn(depth=3,width=6)", "cnn(depth=3,width=8)")
DATASETS = ("mnist", "fashion-mnist", "cifar10", "quickdraw", "digits")
PER_SHARD = 256
MIB = 1 << 20


def memory(field: str) -> float:
    """MiB of this process: ``VmRSS`` now, ``VmHWM`` at its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise AssertionError(field)


def forget_peak() -> None:
    """Set the peak back to what is held now."""
    Path("/proc/self/clear_refs").write_text("5")


def timed(call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """The answer of ``call``, and its seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    answer = call()
    return answer, {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def alone(*arguments: object) -> dict[str, Any]:
    """This file in a process of its own, which prints one JSON object."""
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


# -- start -------------------------------------------------------------------------------------


def start(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of `weightloom --help`, beside those of Python that does nothing."""
    rows: dict[str, Any] = {}
    for name, arguments in {
        "weightloom --help": ["-m", "weightloom.cli", "--help"],
        "python that does nothing": ["-c", "pass"],
    }.items():
        walls, cpus = [], []
        for _ in range(options.repeats):
            before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            walls.append(time.perf_counter() - wall)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        rows[name] = {
            "seconds": statistics.median(walls),
            "cpu_seconds": statistics.median(cpus),
            "repeats": options.repeats,
        }
    code = "import sys, weightloom.cli.main; print('torch' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return {"rows": rows, "torch_is_imported": loaded.stdout.strip() == "True"}


# -- networks ----------------------------------------------------------------------------------


def stream(options: argparse.Namespace) -> dict[str, Any]:
    """Memory and time of networks that are written layer by layer."""
    rows = {f"{m} M": alone("stream-one", m) for m in WIDTHS}
    each = [row["writing"]["cpu_seconds_a_million"] for row in rows.values()]
    # What a network takes before its first parameter, if each further one takes what the second size's do.
    small, larger = sorted(rows.values(), key=lambda row: row["parameters"])[:2]
    more = larger["parameters"] - small["parameters"]
    slope = (larger["writing"]["cpu_seconds"] - small["writing"]["cpu_seconds"]) / more
    alike = small["writing"]["cpu_seconds"] - slope * small["parameters"]
    beyond = [(row["writing"]["cpu_seconds"] - alike) / row["parameters"] for row in rows.values()]
    return {
        "rows": rows,
        "largest_by_smallest_cpu_seconds_a_million": max(each) / min(each),
        "cpu_seconds_a_network": alike,
        "beyond_it_largest_by_smallest": max(beyond) / min(beyond),
    }


def stream_one(options: argparse.Namespace) -> dict[str, Any]:
    """One row of `stream`: the file is written to the folder for temporary files and removed."""
    import torch

    from weightloom.generators.load import load_generator
    from weightloom.generators.streaming import stream_network
    from weightloom.tasks import parse_task

    torch.set_num_threads(1)
    generator = load_generator("layerwise-tiny")
    support = parse_task("digits").support(16)
    text = f"cnn(depth=8,width={WIDTHS[options.million]})"
    with tempfile.TemporaryDirectory() as folder:
        stream_network(generator, "cnn(depth=8,width=20)", Path(folder) / "warm", support=support)
        before = memory("VmRSS")
        forget_peak()
        report, took = timed(
            lambda: stream_network(generator, text, Path(folder) / "network", support=support)
        )
        peak = memory("VmHWM")
        nbytes = sum(file.stat().st_size for file in (Path(folder) / "network").iterdir())
        writings = [report["cpu_seconds_writing"]]
        shutil.rmtree(Path(folder) / "network")
        for turn in range(REPEATS if options.million <= 100 else 2):  # milliseconds are noisy
            place = Path(folder) / f"again-{turn}"
            again = stream_network(generator, text, place, support=support)
            writings.append(again["cpu_seconds_writing"])
            shutil.rmtree(place)
    millions = report["parameters"] / 1e6
    writing = statistics.median(writings)
    return {
        "architecture": text, "parameters": report["parameters"], "bytes": nbytes,
        "files": len(report["files"]), "support_accuracy": report["support_accuracy"],
        "generator_mib": before, "peak_mib_above_generator": peak - before, **took,
        "seconds_a_million": took["seconds"] / millions,
        "writing": {"cpu_seconds": writing, "cpu_seconds_a_million": writing / millions},
    }  # fmt: skip


# -- zoos --------------------------------------------------------------------------------------


def zoo(options: argparse.Namespace) -> dict[str, Any]:
    """A zoo of many checkpoints, made of random weights and measured."""
    with tempfile.TemporaryDirectory() as scratch:
        place = options.folder or Path(scratch) / "zoo"
        if not place.is_dir():
            print(f"making {options.checkpoints:,} checkpoints", flush=True)
            alone("zoo-make", options.checkpoints, place)
        return alone("zoo-measure", place)


def zoo_make(options: argparse.Namespace) -> dict[str, Any]:
    """Random weights with records that look like a zoo's."""
    import torch

    from weightloom.architectures import parse_architecture
    from weightloom.weights import layout_of
    from weightloom.zoo import Record, Zoo

    torch.set_num_threads(1)
    held = Zoo(options.folder, create=True)
    generator, wall = torch.Generator().manual_seed(0), time.perf_counter()
    for number in range(0, options.checkpoints, PER_SHARD):
        count = min(PER_SHARD, options.checkpoints - number)
        shard_number = number // PER_SHARD
        spec = parse_architecture(ARCHITECTURES[shard_number % 3]).resolve(
            classes=4 + shard_number % 7, input=(3, 16, 16)
        )
        shard, dataset = f"s{shard_number:06d}", DATASETS[shard_number % 5]
        scores = torch.rand(count, generator=generator).tolist()
        records = [
            Record(
                id=f"{shard}-{row:03d}", shard=shard, row=row, architecture=spec.full_text(),
                task=f"{dataset}[{','.join(map(str, range(spec.classes or 0)))}]+seed{row % 8}",
                dataset=dataset, classes=spec.classes or 0, split="train" if row % 9 else "held-out-order",
                member=row // 2, step=100 * (1 + row % 2), final=bool(row % 2), accuracy=scores[row],
                loss=1.0, provenance={"recipe": "scaling", "salt": "scaling", "initialisation": "shared"},
            )
            for row in range(count)
        ]  # fmt: skip
        held.add(shard, spec, torch.randn(count, layout_of(spec).size, generator=generator), records)
    return {"seconds": time.perf_counter() - wall}


def zoo_measure(options: argparse.Namespace) -> dict[str, Any]:
    """Opening, random checkpoints, filters, memory."""
    import random

    from weightloom.architectures import parse_architecture
    from weightloom.weights import layout_of
    from weightloom.zoo import Zoo

    for text in ARCHITECTURES:  # a layout is made once for an architecture, whatever the zoo
        for classes in range(4, 11):
            layout_of(parse_architecture(text).resolve(classes=classes, input=(3, 16, 16)))
    before = memory("VmRSS")
    forget_peak()
    held, opening = timed(lambda: Zoo(options.folder))
    everything, listing = timed(lambda: held.records())
    dice, walls, cpus = random.Random(0), [], []
    for name in [record.id for record in dice.sample(everything, 200)]:
        _, took = timed(lambda name=name: held.load([held.record(name)]))
        walls.append(took["seconds"])
        cpus.append(took["cpu_seconds"])
    architecture = parse_architecture(ARCHITECTURES[0]).resolve(classes=4, input=(3, 16, 16))
    filters: dict[str, dict[str, Any]] = {
        "architecture with classes and a split": {
            "architecture": str(architecture), "split": "held-out-order"
        },
        "architecture, dataset, final, accuracy of 0.99": {
            "architecture": ARCHITECTURES[1], "dataset": "digits", "final": True, "min_accuracy": 0.99
        },
        "dataset, split, accuracy of 0.99": {
            "dataset": "mnist", "split": "train", "min_accuracy": 0.99
        },
        "one task": {"task": everything[0].task},
        "nothing passes": {"dataset": "mnist", "min_accuracy": 2.0},
    }  # fmt: skip
    found = {}
    for name, values in filters.items():
        rows, took = timed(lambda values=values: held.records(**values))
        found[name] = {"checkpoints": len(rows), **took}
    peak = memory("VmHWM")
    size = sum(file.stat().st_size for file in Path(options.folder).rglob("*") if file.is_file())
    return {
        "checkpoints": len(everything),
        "bytes": size,
        "index_bytes": (Path(options.folder) / "zoo.sqlite3").stat().st_size,
        "open": opening,
        "random_checkpoint": {
            "repeats": len(walls),
            "seconds_median": statistics.median(walls), "seconds_worst": max(walls),
            "cpu_seconds_median": statistics.median(cpus), "cpu_seconds_worst": max(cpus),
        },
        "filters": found,
        "all_records": listing,
        "peak_mib": peak,
        "peak_mib_above_imports": peak - before,
    }  # fmt: skip


# -- the page ----------------------------------------------------------------------------------


def figures() -> str:
    """The tables of docs/scaling.md, from the results that are there."""
    parts = []
    if (found := _result("stream")) is not None:
        lines = [
            "| network | parameters | peak memory above the generator's | seconds | processor's seconds | "
            "of them writing, a million parameters |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        lines += [
            f"| `{row['architecture']}` | {row['parameters']:,} | "
            f"{row['peak_mib_above_generator']:.0f} MiB | {row['seconds']:.1f} | {row['cpu_seconds']:.1f} | "
            f"{1000 * row['writing']['cpu_seconds_a_million']:.1f} ms |"
            for row in found["rows"].values()
        ]
        ratio = found["largest_by_smallest_cpu_seconds_a_million"]
        lines += [
            "",
            f"Writing takes {ratio:.2f} times as long a parameter at its slowest as at its fastest. Every "
            f"network takes {1000 * found['cpu_seconds_a_network']:.1f} ms, small or large; without them it "
            f"is {found['beyond_it_largest_by_smallest']:.2f} times as long.",
        ]
        parts.append(_section("Networks", found, lines))
    if (found := _result("zoo")) is not None:
        one = found["random_checkpoint"]
        lines = [
            f"A zoo of {found['checkpoints']:,} checkpoints, {found['bytes'] / 1e6:.0f} MB of which the "
            f"index has {found['index_bytes'] / 1e6:.0f}, just written and so in the system's cache:",
            "",
            "| what | checkpoints | seconds | processor's seconds |",
            "|---|---:|---:|---:|",
            f"| open | | {_seconds(found['open'])} |",
            f"| one random checkpoint, the median of {one['repeats']} | 1 | "
            f"{1000 * one['seconds_median']:.1f} ms | {1000 * one['cpu_seconds_median']:.1f} ms |",
            f"| one random checkpoint, the slowest | 1 | {1000 * one['seconds_worst']:.1f} ms | "
            f"{1000 * one['cpu_seconds_worst']:.1f} ms |",
            *(
                f"| filter: {name} | {row['checkpoints']:,} | {_seconds(row)} |"
                for name, row in found["filters"].items()
            ),
            f"| every record | {found['checkpoints']:,} | {_seconds(found['all_records'])} |",
            "",
            f"The process took {found['peak_mib']:.0f} MiB at its peak, "
            f"{found['peak_mib_above_imports']:.0f} of them beyond what Python and torch take.",
        ]
        parts.append(_section("Zoos", found, lines))
    if (found := _result("start")) is not None:
        lines = ["| what | seconds | processor's seconds |", "|---|---:|---:|"]
        lines += [f"| `{name}` | {_seconds(row)} |" for name, row in found["rows"].items()]
        parts.append(_section("Start", found, lines))
    return "\n\n".join(parts)


def page() -> None:
    """Put the tables into docs/scaling.md."""
    before, _, rest = PAGE.read_text("utf-8").partition(START)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{START}\n{figures()}\n{END}{after}", "utf-8")


def _result(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"scaling-{name}.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def _section(title: str, found: dict[str, Any], lines: list[str]) -> str:
    machine = found["machine"]
    head = (
        f"`{found['command']}`, one thread of {machine['cpu_count']} {machine['processor']} processors, "
        f"which had {machine['load']:.1f} processes to run."
    )
    return "\n".join([f"### {title}", "", head, "", *lines])


def _seconds(row: dict[str, float]) -> str:
    return f"{1000 * row['seconds']:.1f} ms | {1000 * row['cpu_seconds']:.1f} ms"


# -- what is run -------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True)
    one = commands.add_parser("start")
    one.add_argument("--repeats", type=int, default=10)
    commands.add_parser("stream")
    one = commands.add_parser("zoo")
    one.add_argument("--checkpoints", type=int, default=100_000)
    one.add_argument("--folder", type=Path, help="where the zoo is, or is made and kept")
    commands.add_parser("page")
    one = commands.add_parser("stream-one")
    one.add_argument("million", type=int)
    one = commands.add_parser("zoo-make")
    one.add_argument("checkpoints", type=int)
    one.add_argument("folder", type=Path)
    one = commands.add_parser("zoo-measure")
    one.add_argument("folder", type=Path)
    options = parser.parse_args()
    if options.what == "page":
        page()
        return
    inner = {"stream-one": stream_one, "zoo-make": zoo_make, "zoo-measure": zoo_measure}
    if options.what in inner:
        print(json.dumps(inner[options.what](options)))
        return
    made = {"start": start, "stream": stream, "zoo": zoo}[options.what](options)
    made |= {
        "command": " ".join(["python", "benchmarks/scaling.py", *sys.argv[1:]]),
        "machine": {
            "processor": platform.machine(), "cpu_count": os.cpu_count(), "threads": 1,
            "load": os.getloadavg()[0], "python": platform.python_version(),
        },
    }  # fmt: skip
    print(json.dumps(made, indent=1))
    from weightloom.io import write_json

    write_json(RESULTS / f"scaling-{options.what}.json", made)


if __name__ == "__main__":
    main()
