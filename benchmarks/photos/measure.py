"""Photographs: CIFAR-10 by published trunks, six folders of all kinds, many classes, times.

Accuracies are in per cent. Examples and pictures without labels are training pictures; all test pictures
measure.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from photos.page import render

from weightloom.architectures import parse_architecture
from weightloom.conditioning.names import no_names
from weightloom.generators import router
from weightloom.generators.load import load_generator
from weightloom.generators.sample import Sample
from weightloom.generators.trunks import CHUNK, features_of
from weightloom.seeding import torch_generator
from weightloom.tasks import SupportSet, Task, parse_task

Config = dict[str, Any]
Rows = list[dict[str, Any]]


def nameless(support: SupportSet) -> SupportSet:
    return replace(support, class_names=no_names(support.num_classes))


def spread(values: list[float]) -> dict[str, float]:
    return {"mean": round(100 * float(np.mean(values)), 2), "sd": round(100 * float(np.std(values)), 2)}


def seen(spec: ArchitectureSpec, task: Task, images: int | None = None) -> tuple[Tensor, Tensor]:
    """Features and labels of the test pictures, once for all networks on one trunk."""
    data = task.data("test")
    order = torch.randperm(len(data), generator=torch_generator("photos", str(task)))
    order = torch.arange(len(data)) if images is None else order[:images]
    found, labels = [], []
    for part in order.split(CHUNK):
        images_of_part, own = data.batch(part)
        found.append(features_of(spec, images_of_part))
        labels.append(own)
    return torch.cat(found), torch.cat(labels)


def right(sample: Sample, test: tuple[Tensor, Tensor]) -> float:
    """Share of right answers; the last layer on features is the network, as the tests hold."""
    logits = test[0] @ sample.state_dict["head.weight"].T + sample.state_dict["head.bias"]
    return float((logits.argmax(1) == test[1]).float().mean())


def cifar10(config: Config) -> Rows:
    """One trunk from names, examples and pictures without labels."""
    rows: Rows = []
    model = load_generator("pretrained")
    for text in config["trunks"]:
        spec = parse_architecture(text)
        task = parse_task(config["dataset"]).resized(spec.input[1], 3)
        spec = spec.resolve(classes=task.num_classes)
        data, test = task.data("train"), seen(spec, task)
        found: dict[tuple[int, str], list[float]] = {}
        for draw in range(config["draws"]):
            order = torch.randperm(len(data), generator=torch_generator("unlabelled", draw))
            others, _ = data.batch(order[: config["unlabelled"]])
            for shots in config["shots"]:
                support = task.support(shots, draw) if shots else None
                ways: dict[str, dict[str, Any]] = {}
                if support is not None:
                    ways["examples"] = {"support": nameless(support)}
                    ways["examples, unlabelled"] = {"support": nameless(support), "unlabelled": others}
                    ways["examples, names"] = {"support": support}
                    ways["examples, names, unlabelled"] = {"support": support, "unlabelled": others}
                else:
                    ways["names"] = {"classes": task.class_names}
                    ways["names, unlabelled"] = {"classes": task.class_names, "unlabelled": others}
                for way, told in ways.items():
                    sample = model.generate(spec, **told)
                    reached = right(sample, test)
                    found.setdefault((shots, way), []).append(reached)
                    print(text, draw, shots, way, round(100 * reached, 2), sample.report["head"], flush=True)
        rows += [
            {"trunk": text, "shots": shots, "told": way, **spread(values)}
            for (shots, way), values in found.items()
        ]
    return rows


def default(config: Config) -> Rows:
    """CIFAR-10, 16 examples a class: the network that is chosen where nothing is named."""
    rows: Rows = []
    whole = parse_task(config["dataset"])
    for draw in range(config["draws"]):
        shown = router.Shown(task=lambda shape: whole.resized(shape[1], shape[0]), shots=16, seed=draw)
        chosen = router.route(shown, router.Limits(budget=config["budget"]))
        reached = chosen.model.accuracies([chosen.sample], chosen.task.data("test"))[0]
        rows.append(
            {"draw": draw, "chosen": str(chosen.sample.architecture), "accuracy": round(100 * reached, 2)}
            | chosen.to_json()
        )
        print(rows[-1], flush=True)
    return rows


PARTS = {"cifar10": cifar10, "default": default}


def page(results: dict[str, Any], config: Config) -> str:
    return render(results, config)
