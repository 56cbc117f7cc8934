"""The figures of graph hypernetworks: `python benchmarks/ghn.py TABLE [options]`.

TABLE is one of
  unseen      accuracy of predicted networks of every split, beside copies, random weights and training;
  finetune    predicted, copied and He's weights after 0, 1 and 5 epochs, on all images and on 100 a class;
  properties  Kendall's tau of what graph embeddings say of unseen networks;
  ablations   the recipe without its parts, each trained for a share of its steps;
  predict     seconds and memory of one prediction for a ResNet-50 (needs torchvision; weights do not matter).

Every table prints itself and writes benchmarks/results/ghn-TABLE.json (ablations-STEPS for ablations). Batch
norms of all methods are measured on the same unlabelled training images; test images are used for nothing but
the accuracies. Trained networks are kept in --references and made once.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from resizing import RESIZINGS, resized_by_graph
from torch import Tensor

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.architectures.capture import capture_graph, graph_of
from weightloom.architectures.deepnet import DeepNetSpec
from weightloom.evaluation.measures import peak_mb, summary
from weightloom.fitting import (
    FitSettings,
    accuracy,
    closed_form_network,
    fit_population,
    initial_flats,
    recalibrate,
    run_networks,
)
from weightloom.generators.ghn import GHN, GHNConfig, make_validity
from weightloom.generators.load import load_generator
from weightloom.io import load_tensors, read_yaml, save_tensors, write_json
from weightloom.seeding import seed_for, torch_generator
from weightloom.tasks import DatasetTask, TaskData, parse_task
from weightloom.training.ghn import train_ghn
from weightloom.training.recipe import GHNRecipe
from weightloom.weights import layout_of

RESULTS = Path(__file__).parent / "results"
SPLITS = ("test", "wide", "deep", "dense", "bn-free")
OTHERS = {
    "resnet": "resnet(depth=20,width=16)",
    "vit": "vit(depth=4,width=32)",
    "cnn": "cnn(depth=3,width=16)",
    "mobilenet": "mobilenet(depth=6,width=8)",
}
BATCH = 128
CALIBRATION = 512
RATE = 3e-3


@dataclass(frozen=True)
class Bench:
    """One task, its images, and the networks that were trained on it."""

    task: DatasetTask
    options: argparse.Namespace

    @cached_property
    def data(self) -> TaskData:
        """Training images."""
        return self.task.data("train")

    @cached_property
    def calibration(self) -> Tensor:
        """Unlabelled images for batch norms."""
        order = torch.randperm(len(self.data), generator=torch_generator("benchmark"))
        return self.data.batch(order[:CALIBRATION])[0]

    @cached_property
    def test(self) -> tuple[Tensor, Tensor]:
        """Test images and labels."""
        test = self.task.data("test")
        chosen = torch.randperm(len(test), generator=torch_generator("benchmark", str(self.task)))
        return test.batch(chosen[: self.options.images])

    @property
    def epoch(self) -> int:
        """Steps of an epoch."""
        return len(self.data) // BATCH

    def spec(self, split: str, index: int) -> DeepNetSpec:
        """A random network for the task."""
        shape = {"classes": self.task.num_classes, "input": self.task.input_shape}
        return DeepNetSpec(space=self.options.space, split=split, index=index, **shape)

    def other(self, text: str) -> ArchitectureSpec:
        """A network of a family that is no cell network."""
        return parse_architecture(text).resolve(classes=self.task.num_classes, input=self.task.input_shape)

    def scored(self, spec: ArchitectureSpec, flat: Tensor) -> float:
        """Test accuracy of weights (P,), batch norms measured on the unlabelled images."""
        return float(accuracy(spec, recalibrate(spec, flat[None], self.calibration), *self.test)[0])

    def scored_by_batch(self, spec: ArchitectureSpec, flat: Tensor) -> float:
        """The same, batch norms using the statistics of 64 test images at a time."""
        images, labels = self.test
        right = [
            (run_networks(spec, flat[None], some, training=True)[0].argmax(1) == wanted).float()
            for some, wanted in zip(images.split(64), labels.split(64), strict=True)
        ]
        return float(torch.cat(right).mean())

    def trained(self, spec: ArchitectureSpec, epochs: int) -> Tensor:
        """(P,) the network after so many epochs from He's initialisation; made once."""
        return self._course(spec, epochs * self.epoch, ())[f"step-{epochs * self.epoch}"]

    def course(self, spec: ArchitectureSpec) -> tuple[Tensor, Tensor]:
        """(P,) weights after a quarter of an epoch and after the whole of it, of one training; made once."""
        early, late = self.epoch // 4, self.epoch
        found = self._course(spec, late, (early,))
        return found[f"step-{early}"], found[f"step-{late}"]

    def _course(self, spec: ArchitectureSpec, steps: int, early: tuple[int, ...]) -> dict[str, Tensor]:
        name = f"{seed_for(str(spec), str(self.task), steps, *early):016x}.safetensors"
        path = Path(self.options.references) / name
        if not path.is_file():
            settings = FitSettings(steps=steps, batch_size=BATCH, learning_rate=RATE, snapshots=early)
            snapshots = fit_population(spec, initial_flats(spec, [0]), [self.data], settings)
            held = {f"step-{snapshot.step}": snapshot.flats[0] for snapshot in snapshots}
            path.parent.mkdir(parents=True, exist_ok=True)
            save_tensors(path, held, {"network": str(spec)})
        return load_tensors(path)[0]

    def copied(self, spec: ArchitectureSpec, bank: Sequence[ArchitectureSpec], images: Tensor) -> Tensor:
        """(P,) of the bank's network that is most alike: cropped and tiled or interpolated.

        The better of the two on ``images``, which are training images, with their labels in ``self``.
        """
        graph = graph_of(spec)
        source = max(bank, key=lambda other: _likeness(graph_of(other), graph))
        layout = layout_of(source)
        state = layout.unflatten(self.trained(source, self.options.epochs))
        target = layout_of(spec)
        found = []
        for how in RESIZINGS:
            made = target.unflatten(initial_flats(spec, [0])[0])
            made = {**made, **resized_by_graph(graph_of(source), state, graph, how)}
            flat = recalibrate(spec, target.flatten(made)[None], self.calibration)
            found.append((float(accuracy(spec, flat, *self.judging)[0]), flat[0]))
        return max(found, key=lambda pair: pair[0])[1]

    @cached_property
    def judging(self) -> tuple[Tensor, Tensor]:
        """Training images with labels, for the choices that baselines make."""
        order = torch.randperm(len(self.data), generator=torch_generator("benchmark", "judging"))
        return self.data.batch(order[:1000])


def _likeness(a: Any, b: Any) -> float:
    """Cosine between the counts of two graphs' kinds and kernels."""
    counts: list[dict[Any, int]] = []
    for graph in (a, b):
        held: dict[Any, int] = defaultdict(int)
        for node in graph.nodes:
            held[node.kind, node.shape[2:] if node.shape else None] += 1
        counts.append(held)
    keys = sorted(set(counts[0]) | set(counts[1]), key=str)
    first, second = (np.array([held[key] for key in keys], dtype=float) for held in counts)
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


def hypernetwork(options: argparse.Namespace) -> tuple[GHN, Bench]:
    """The generator and the task that it was trained for."""
    model = load_generator(options.generator)
    assert isinstance(model, GHN)
    (name,) = model.validity.tasks
    task = parse_task(name)
    assert isinstance(task, DatasetTask)
    return model, Bench(task, options)


def _groups(bench: Bench) -> dict[str, list[ArchitectureSpec]]:
    count = {"test": bench.options.networks, "wide": bench.options.wide}
    found: dict[str, list[ArchitectureSpec]] = {
        split: [bench.spec(split, i) for i in range(count.get(split, bench.options.others))]
        for split in SPLITS
    }
    return found | {name: [bench.other(text)] for name, text in OTHERS.items()}


def _mean(scores: Sequence[float]) -> dict[str, float]:
    return {**summary(scores), "max": max(scores)}


def table_unseen(options: argparse.Namespace) -> dict[str, Any]:
    """Accuracies of each group of unseen networks."""
    model, bench = hypernetwork(options)
    bank = [bench.spec("train", i) for i in range(options.bank)]
    few = bench.task.support(16, seed=0).images
    many = bench.task.support(options.shots, seed=0).images
    table, rows = {}, []
    for group, specs in _groups(bench).items():
        scores: dict[str, list[float]] = defaultdict(list)
        for spec in specs:
            ghn, random = model.generate_many(spec)[0].flat, initial_flats(spec, [0])[0]
            copy = bench.copied(spec, bank, bench.calibration)
            row = {
                "predicted": bench.scored(spec, ghn),
                "predicted, batch statistics": bench.scored_by_batch(spec, ghn),
                "random": bench.scored(spec, random),
                "copied": bench.scored(spec, copy),
                **{
                    f"{name}, {label}": float(
                        accuracy(spec, closed_form_network(spec, flat, support)[None], *bench.test)[0]
                    )
                    for name, flat in (("predicted", ghn), ("random", random), ("copied", copy))
                    for label, support in (("head of 16", few), (f"head of {options.shots}", many))
                },
                "one_epoch": bench.scored(spec, bench.trained(spec, 1)),
                "trained": bench.scored(spec, bench.trained(spec, options.epochs)),
            }
            rows.append({"group": group, "network": str(spec), "nodes": len(graph_of(spec)), **row})
            for method, score in row.items():
                scores[method].append(score)
        table[group] = {method: _mean(found) for method, found in scores.items()}
        table[group]["ratio"] = table[group]["predicted"]["mean"] / table[group]["trained"]["mean"]
        shown = "  ".join(f"{m} {v['mean']:.3f}" for m, v in table[group].items() if m != "ratio")
        print(f"{group:8} ratio {table[group]['ratio']:.3f}  {shown}", flush=True)
    return {
        "generator": model.name, "task": str(bench.task), "epochs": options.epochs,
        "steps_of_an_epoch": bench.epoch, "test_images": len(bench.test[1]), "table": table, "rows": rows,
    }  # fmt: skip


def table_finetune(options: argparse.Namespace) -> dict[str, Any]:
    """Accuracy after 0, 1 and 5 epochs of fine-tuning from each start."""
    model, bench = hypernetwork(options)
    bank = [bench.spec("train", i) for i in range(options.bank)]
    few = bench.data.batch(_first_of_each(bench.data.labels, 100))
    sets = {"all images": (bench.data, bench.epoch), "100 a class": (_Held(*few), len(few[1]) // BATCH)}
    table: dict[str, Any] = {}
    specs: list[ArchitectureSpec] = [bench.spec("test", i) for i in range(options.tuned)]
    for name, (data, epoch) in sets.items():
        scores: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for spec in specs:
            starts = {
                "predicted": model.generate_many(spec)[0].flat,
                "copied": bench.copied(spec, bank, bench.calibration),
                "he": initial_flats(spec, [0])[0],
            }
            for start, flat in starts.items():
                scores[start][0].append(bench.scored(spec, flat))
                # The better of two rates after one epoch, on training images, serves for five as well.
                found = {}
                for rate in (RATE, RATE / 3):
                    tuned = _tuned(spec, flat, data, epoch, rate)
                    found[rate] = (float(accuracy(spec, tuned[None], *bench.judging)[0]), tuned)
                rate = max(found, key=lambda key: found[key][0])
                scores[start][1].append(bench.scored(spec, found[rate][1]))
                scores[start][5].append(bench.scored(spec, _tuned(spec, flat, data, 5 * epoch, rate)))
        table[name] = {
            start: {str(epochs): _mean(found) for epochs, found in held.items()}
            for start, held in scores.items()
        }
        for start, held in table[name].items():
            print(
                name, start, {epochs: round(value["mean"], 3) for epochs, value in held.items()}, flush=True
            )
    return {"generator": model.name, "task": str(bench.task), "table": table}


def _tuned(spec: ArchitectureSpec, flat: Tensor, data: Any, steps: int, rate: float) -> Tensor:
    """(P,) after so many steps from (P,)."""
    settings = FitSettings(steps=steps, batch_size=BATCH, learning_rate=rate)
    (*_, last) = fit_population(spec, flat[None], [data], settings)
    return last.flats[0]


@dataclass(frozen=True)
class _Held:
    """A few images as training data."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels at ``index``."""
        return self.images[index], self.labels[index]


def _first_of_each(labels: Tensor, count: int) -> Tensor:
    return torch.cat([torch.nonzero(labels == c).flatten()[:count] for c in labels.unique()])


def table_properties(options: argparse.Namespace) -> dict[str, Any]:
    """Kendall's tau of ridge regressions on graphs' embeddings, fitted on the validation split's networks."""
    from scipy.stats import kendalltau
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model, bench = hypernetwork(options)
    counts = {"val": options.fitted, "test": options.judged}
    halves = {split: [bench.spec(split, i) for i in range(count)] for split, count in counts.items()}
    held: dict[str, dict[str, list[Any]]] = {}
    for split, specs in halves.items():
        rows: dict[str, list[Any]] = defaultdict(list)
        for spec in specs:
            with torch.no_grad():
                rows["embedding"].append(model.embed_graph(graph_of(spec)).numpy())
            flat = model.generate_many(spec)[0].flat
            rows["predicted accuracy"].append(bench.scored(spec, flat))
            rows["parameter count"].append(spec.num_parameters())
            short, full = bench.course(spec)
            images, labels = bench.test
            noise = torch.randn(images.shape, generator=torch_generator("noise"))
            rows["accuracy"].append(bench.scored(spec, full))
            rows["noisy accuracy"].append(
                float(accuracy(spec, full[None], (images + 0.3 * noise).clamp(-1, 1), labels)[0])
            )
            rows["inference seconds"].append(_seconds(spec, full, images[:256]))
            rows["convergence"].append(bench.scored(spec, short) / max(bench.scored(spec, full), 1e-3))
        held[split] = rows
    table = {}
    for target in ("accuracy", "noisy accuracy", "inference seconds", "convergence"):

        def fitted(upto: int | None, target: str = target) -> Any:
            fit = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 4, 16)))
            seen, new = (np.array(held[split]["embedding"])[:, :upto] for split in ("val", "test"))
            return fit.fit(seen, np.array(held["val"][target])).predict(new)

        guesses = {
            "embedding": fitted(None),
            "its nodes alone": fitted(-1),  # without the logarithm of the network's size
            "parameter count": held["test"]["parameter count"],
            "predicted accuracy": held["test"]["predicted accuracy"],
        }
        truth = held["test"][target]
        table[target] = {name: float(kendalltau(guess, truth).statistic) for name, guess in guesses.items()}
        print(target, {name: round(value, 3) for name, value in table[target].items()}, flush=True)
    return {"generator": model.name, "task": str(bench.task), **counts, "table": table}


def _seconds(spec: ArchitectureSpec, flat: Tensor, images: Tensor) -> float:
    """The fastest of five forward passes."""
    found = []
    for _ in range(5):
        start = time.perf_counter()
        accuracy(spec, flat[None], images, torch.zeros(len(images), dtype=torch.int64))
        found.append(time.perf_counter() - start)
    return min(found)


ABLATIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "full": ({}, {}),
    "no virtual edges": ({"virtual_edges": 1}, {}),
    "no normalisation": ({"normalise": False}, {}),
    "meta-batch 1": ({}, {"meta_batch": 1}),
    "mlp": ({"backbone": "mlp"}, {}),
    "no closed-form loss": ({}, {"features": 0.0}),
    "GHN-3": ({"backbone": "transformer"}, {}),
    "coordinate decoder": ({"decoder": "coordinate"}, {}),
}
"""Changes of GHN-2's config and objective."""


def table_ablations(options: argparse.Namespace) -> dict[str, Any]:
    """The recipe with a gated backbone and without its parts, all for the same steps and images."""
    recipe = read_yaml(Path(options.recipe), GHNRecipe)
    task = parse_task(recipe.task)
    assert isinstance(task, DatasetTask)
    bench = Bench(task, options)
    table: dict[str, Any] = {}
    chosen = options.only.split(",") if options.only else list(ABLATIONS)
    for name in chosen:
        config, objective = ABLATIONS[name]
        loop = recipe.loop.model_copy(update={"steps": options.steps, "log_every": 100, "save_every": 200})
        changed = recipe.model_copy(
            update={
                "loop": loop,
                "evaluate_every": options.steps,
                "config": {**recipe.config, "backbone": "gated", **config},
                "objective": {**recipe.objective, **objective},
            }
        )
        out = Path(options.references) / f"ablations-{options.steps}" / name.replace(" ", "-")
        model = load_generator(out) if (out / "config.json").is_file() else train_ghn(changed, out)
        assert isinstance(model, GHN)
        support = task.support(options.shots, seed=0).images
        for split in ("test", "deep", "dense", "wide", "bn-free"):
            count = options.networks if split == "test" else options.others
            plain, fitted = [], []
            for spec in (bench.spec(split, i) for i in range(count)):
                flat = model.generate_many(spec)[0].flat
                plain.append(bench.scored(spec, flat))
                head = closed_form_network(spec, flat, support)
                fitted.append(float(accuracy(spec, head[None], *bench.test)[0]))
            table.setdefault(name, {})[split] = {"predicted": _mean(plain), "fitted": _mean(fitted)}
        shown = {s: [round(v[k]["mean"], 3) for k in v] for s, v in table[name].items()}
        print(f"{name:22} {shown}", flush=True)
    return {"task": str(task), "steps": options.steps, "table": table}


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
        model = GHN(config, make_validity((3, 32, 32))).eval()
        model.generate(module)  # what is imported and cached once is no prediction
        before = peak_mb(reset=True)
        made = model.generate(module)
        peak = 2**20 * (peak_mb() - before)
        del made
        wall, busy, graphs = [], [], []
        for _ in range(options.repeats):
            start, spent = time.perf_counter(), time.process_time()
            model.generate(module)
            wall.append(time.perf_counter() - start)
            busy.append(time.process_time() - spent)
            start = time.perf_counter()
            capture_graph(module, (3, 32, 32))
            graphs.append(time.perf_counter() - start)
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


TABLES = {
    "unseen": table_unseen,
    "finetune": table_finetune,
    "properties": table_properties,
    "ablations": table_ablations,
    "predict": table_predict,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("table", choices=sorted(TABLES))
    parser.add_argument("--generator", default="ghn-cifar10-tiny", help="a name or a folder")
    parser.add_argument("--recipe", default="recipes/ghn-cifar10-start.yaml", help="of the ablations")
    parser.add_argument("--references", default="runs/ghn-references", help="where trained networks are kept")
    parser.add_argument("--space", default="tiny")
    parser.add_argument("--networks", type=int, default=8, help="networks of the split test")
    parser.add_argument("--others", type=int, default=2, help="networks of each other split")
    parser.add_argument("--wide", type=int, default=2, help="networks of the split wide, which take longest")
    parser.add_argument("--tuned", type=int, default=2, help="networks that are fine-tuned")
    parser.add_argument("--bank", type=int, default=4, help="trained networks that copies are made of")
    parser.add_argument("--fitted", type=int, default=200, help="networks that properties are learned from")
    parser.add_argument("--judged", type=int, default=100, help="networks that properties are judged on")
    parser.add_argument("--epochs", type=int, default=5, help="of ordinary training")
    parser.add_argument("--shots", type=int, default=200, help="examples a class of the larger closed form")
    parser.add_argument("--steps", type=int, default=1500, help="of each ablation")
    parser.add_argument("--only", default="", help="these ablations only, by name, with commas")
    parser.add_argument("--images", type=int, default=2000, help="test images")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    start = time.perf_counter()
    result = TABLES[options.table](options)
    asked = {name: value for name, value in vars(options).items() if name != "table"}
    name = f"ablations-{options.steps}" if options.table == "ablations" else options.table
    write_json(
        RESULTS / f"ghn-{name}.json",
        {"asked": asked, "seconds": time.perf_counter() - start, **result},
    )


if __name__ == "__main__":
    main()
