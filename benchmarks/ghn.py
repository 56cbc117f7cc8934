"""The figures of the graph hypernetwork: `python benchmarks/ghn.py TABLE [--generator DIR] [options]`.

TABLE is one of
  zero-shot  accuracy of predicted networks of every split, beside random weights and short training;
  predict    seconds and memory of one prediction for a ResNet-50 (needs torchvision; weights do not matter).

Every table prints itself and writes benchmarks/results/ghn-TABLE.json. Batch norms of all methods are
measured on the same unlabelled training images; test images are used for nothing but the accuracies.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.architectures.capture import capture_graph, graph_of
from weightloom.architectures.deepnet import DeepNetSpec
from weightloom.fitting import FitSettings, accuracy, fit_population, initial_flats, recalibrate
from weightloom.generators.ghn import GHN, GHNConfig, make_validity
from weightloom.generators.load import load_generator
from weightloom.io import write_json
from weightloom.seeding import torch_generator
from weightloom.tasks import Task, parse_task

RESULTS = Path(__file__).parent / "results"
SPLITS = ("test", "wide", "deep", "dense", "bn-free")
OTHERS = ("resnet(depth=20,width=16)", "vit(depth=4,width=32)", "cnn(depth=3,width=16)")
BATCH = 64


def networks(model: GHN, space: str, count: int) -> dict[str, list[ArchitectureSpec]]:
    """The networks of every row: unseen ones of each split, and families that are in no split."""
    shape = {"classes": model.config.classes, "input": model.validity.input}
    found: dict[str, list[ArchitectureSpec]] = {
        split: [DeepNetSpec(space=space, split=split, index=i, **shape) for i in range(count)]
        for split in SPLITS
    }
    return found | {text: [parse_architecture(text).resolve(**shape)] for text in OTHERS}


def trained(spec: ArchitectureSpec, task: Task, steps: int) -> Tensor:
    """(1, P) the network after ``steps`` steps of ordinary training."""
    start = initial_flats(spec, [0])
    settings = FitSettings(steps=steps, batch_size=BATCH, learning_rate=3e-3)
    return list(fit_population(spec, start, [task.data("train")], settings))[-1].flats


def table_zero_shot(options: argparse.Namespace) -> dict[str, Any]:
    """Mean, best and worst accuracy of each split."""
    model = load_generator(options.generator)
    assert isinstance(model, GHN)
    (name,) = model.validity.tasks
    task = parse_task(name)
    data, test = task.data("train"), task.data("test")
    calibration, _ = data.batch(torch.randperm(len(data), generator=torch_generator("benchmark"))[:512])
    chosen = torch.randperm(len(test), generator=torch_generator("benchmark", name))[: options.images]
    images, labels = test.batch(chosen)
    table, rows = {}, []
    for group, specs in networks(model, options.space, options.networks).items():
        scores: dict[str, list[float]] = {}
        for spec in specs:
            flats = {
                "ghn": model.generate_many(spec)[0].flat[None],
                "random_init": initial_flats(spec, [0]),
            }
            flats = {method: recalibrate(spec, flat, calibration) for method, flat in flats.items()}
            if options.sgd_steps:
                flats[f"trained_{options.sgd_steps}_steps"] = trained(spec, task, options.sgd_steps)
            row = {method: float(accuracy(spec, flat, images, labels)[0]) for method, flat in flats.items()}
            rows.append({"group": group, "network": str(spec), "nodes": len(graph_of(spec)), **row})
            for method, score in row.items():
                scores.setdefault(method, []).append(score)
        table[group] = {
            method: {"mean": statistics.fmean(s), "min": min(s), "max": max(s), "n": len(s)}
            for method, s in scores.items()
        }
        shown = "  ".join(
            f"{method} {value['mean']:.3f} (best {value['max']:.3f})"
            for method, value in table[group].items()
        )
        print(f"{group:28} {shown}", flush=True)
    return {"generator": model.name, "task": name, "test_images": len(labels), "table": table, "rows": rows}


def table_predict(options: argparse.Namespace) -> dict[str, Any]:
    """One prediction, graph included, in a process whose peak memory is only this."""
    library = torch.library.Library("torchvision", "DEF")  # a CPU-only torch lacks what its wheel asks for
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

    module = torchvision.models.resnet50(num_classes=10)
    size = sum(t.numel() * t.element_size() for t in module.state_dict().values())
    table = {}
    for backbone, decoder in (("gated", "tiling"), ("transformer", "tiling"), ("gated", "coordinate")):
        config = GHNConfig(classes=10, backbone=backbone, decoder=decoder)  # type: ignore[arg-type]
        model = GHN(config, make_validity((3, 32, 32), 10)).eval()
        model.generate(module)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        wall, busy, graphs = [], [], []
        for _ in range(options.repeats):
            start, spent = time.perf_counter(), time.process_time()
            model.generate(module)
            wall.append(time.perf_counter() - start)
            busy.append(time.process_time() - spent)
            start = time.perf_counter()
            capture_graph(module, (3, 32, 32))
            graphs.append(time.perf_counter() - start)
        peak = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        table[f"{backbone}, {decoder}"] = {
            "parameters_of_the_ghn": sum(p.numel() for p in model.parameters()),
            "seconds_median": statistics.median(wall),
            "cpu_seconds_median": statistics.median(busy),
            "graph_seconds_median": statistics.median(graphs),
            "further_peak_bytes_over_model_bytes": peak / size,
        }
        print(backbone, decoder, {k: round(v, 4) for k, v in table[f"{backbone}, {decoder}"].items()})
    with torch.device("meta"):
        twin, picture = torchvision.models.resnet50(num_classes=10).eval(), torch.empty(2, 3, 32, 32)
    exported, recorded = [], []
    for _ in range(options.repeats):
        spent = time.process_time()
        torch.export.export(twin, (picture,), strict=False)
        exported.append(time.process_time() - spent)
        spent = time.process_time()
        capture_graph(twin, (3, 32, 32))
        recorded.append(time.process_time() - spent)
    graph = {
        "recorded_cpu_seconds_median": statistics.median(recorded),
        "torch_export_cpu_seconds_median": statistics.median(exported),
    }
    print(graph)
    machine = {"cpu_count": os.cpu_count(), "threads": torch.get_num_threads(), "load": os.getloadavg()[0]}
    return {"machine": {**machine, "python": platform.python_version()}, "graph": graph, "table": table}


TABLES = {"zero-shot": table_zero_shot, "predict": table_predict}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("table", choices=sorted(TABLES))
    parser.add_argument("--generator", default="runs/ghn-cifar10-tiny")
    parser.add_argument("--space", default="tiny")
    parser.add_argument("--networks", type=int, default=20, help="networks of each split")
    parser.add_argument("--images", type=int, default=2000, help="test images")
    parser.add_argument("--sgd-steps", type=int, default=0, help="also train each network for so many steps")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    result = TABLES[options.table](options)
    asked = {name: value for name, value in vars(options).items() if name != "table"}
    write_json(RESULTS / f"ghn-{options.table}.json", {"asked": asked, **result})


if __name__ == "__main__":
    main()
