"""Photographs: CIFAR-10 by published trunks, six folders of all kinds, many classes, times.

Accuracies are in per cent. Examples and pictures without labels are training pictures; all test pictures
measure.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from photos.page import render
from PIL import Image
from torch import Tensor

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.conditioning.names import no_names
from weightloom.fitting.floors import pixel_rows, plain_classifiers
from weightloom.fitting.heads import Labelled, fit_head
from weightloom.generators import router
from weightloom.generators.load import load_generator
from weightloom.generators.sample import Sample
from weightloom.generators.trunks import CHUNK, PUBLISHED, features_of
from weightloom.seeding import torch_generator
from weightloom.tasks import DatasetTask, SupportSet, Task, parse_task

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
    for draw in range(config["draws"]):
        chosen, reached, seconds = routed(config, parse_task(config["dataset"]), 16, draw, None)
        rows.append(
            {"draw": draw, "accuracy": round(100 * reached, 2), "seconds": seconds} | chosen.to_json()
        )
        print(rows[-1]["accuracy"], rows[-1]["tried"], flush=True)
    return rows


def routed(
    config: Config, whole: DatasetTask, shots: int, draw: int, images: int | None
) -> tuple[router.Routed, float, float]:
    """What is chosen, its accuracy on test pictures, and the seconds that choosing took."""
    shown = router.Shown(task=lambda shape: whole.resized(shape[1], shape[0]), shots=shots, seed=draw)
    begun = time.perf_counter()
    chosen = router.route(shown, router.Limits(budget=config["budget"]))
    seconds = time.perf_counter() - begun
    spec = chosen.sample.architecture
    if spec.family in PUBLISHED:
        return chosen, right(chosen.sample, seen(spec, chosen.task, images)), seconds
    data = chosen.task.data("test")
    order = torch.randperm(len(data), generator=torch_generator("photos", str(chosen.task)))[:images]
    return chosen, float(chosen.model.accuracies([chosen.sample], data.part(order))[0]), seconds


def folders(config: Config) -> Rows:
    """Pictures of other kinds: the default's choice against what a user would do in the same seconds."""
    rows: Rows = []
    spec = parse_architecture(config["trunks"][0])
    for text in config["folders"]:
        whole = parse_task(text)
        for draw in range(config["draws"]):
            shots, images = config["folder_shots"], config["folder_images"]
            chosen, reached, seconds = routed(config, whole, shots, draw, images)
            row: dict[str, Any] = {
                "folder": text, "draw": draw, "chosen": str(chosen.sample.architecture), "ours": reached,
                "left_out": {one.architecture: one.loss for one in chosen.tried},
                "seconds": round(seconds, 1),
            }  # fmt: skip
            row |= plain(whole, shots, draw, images)
            row["frozen trunk, logistic head"] = frozen(spec, whole, shots, draw, images)
            row["fresh network, same seconds"] = fresh(whole, shots, draw, images, seconds)
            rows.append(
                {
                    k: round(100 * v, 2) if isinstance(v, float) and k != "seconds" else v
                    for k, v in row.items()
                }
            )
            print(rows[-1], flush=True)
    return rows


def tested(task: Task, images: int | None) -> tuple[Tensor, Tensor]:
    data = task.data("test")
    order = torch.randperm(len(data), generator=torch_generator("photos", str(task)))[:images]
    return data.batch(order)


def plain(whole: DatasetTask, shots: int, draw: int, images: int | None) -> dict[str, float]:
    """Logistic regression and SVM on pixels, at 16 or 32 pixels a side, whichever is better in the end."""
    found: dict[str, float] = {}
    for side in (16, 32):
        task = whole.resized(side, 3)
        shown, labels = task.support(shots, draw).flat()
        test, answers = tested(task, images)
        for name, model in plain_classifiers().items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model.fit(pixel_rows(shown, side), labels.numpy())
            share = float((model.predict(pixel_rows(test, side)) == answers.numpy()).mean())
            found[name] = max(share, found.get(name, 0.0))
    return found


def frozen(spec: ArchitectureSpec, whole: DatasetTask, shots: int, draw: int, images: int | None) -> float:
    """The same trunk, its plain averages, and logistic regression with a penalty chosen in four parts."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    task = whole.resized(spec.input[1], 3)
    bare = replace(spec, ending="plain").resolve(classes=task.num_classes)
    shown, labels = task.support(shots, draw).flat()
    rows = features_of(bare, shown).numpy()
    model = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)),
        {"logisticregression__C": [0.001, 0.01, 0.1, 1.0]},
        cv=4,
    )
    model.fit(rows, labels.numpy())
    found, answers = seen(bare, task, images)
    return float((model.predict(found.numpy()) == answers.numpy()).mean())


def fresh(whole: DatasetTask, shots: int, draw: int, images: int | None, seconds: float) -> float:
    """``cnn(depth=3,width=16)`` at 32 pixels from random weights: AdamW, one cycle, on the same examples,
    for as long as choosing took.
    """
    task = whole.resized(32, 3)
    spec = parse_architecture("cnn(depth=3,width=16)").resolve(classes=task.num_classes, input=(3, 32, 32))
    shown, labels = task.support(shots, draw).flat()
    network = spec.initialise(draw).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0.01)
    generator = torch_generator("fresh", draw)
    begun = time.perf_counter()
    while (share := (time.perf_counter() - begun) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = 0.01 * min(share / 0.2, (1 - share) / 0.8)
        rows = torch.randint(len(shown), (64,), generator=generator)
        loss = torch.nn.functional.cross_entropy(network(shown[rows]), labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    test, answers = tested(task, images)
    with torch.no_grad():
        return float((network.eval()(test).argmax(1) == answers).float().mean())


def many(config: Config) -> Rows:
    """345 classes, and forty of them: the default's choice and the alternatives."""
    rows: Rows = []
    spec = parse_architecture(config["trunks"][0])
    for classes in (40, 345):
        text = (
            config["many"] if classes == 345 else f"{config['many']}[{','.join(map(str, range(0, 320, 8)))}]"
        )
        whole = parse_task(text)
        chosen, reached, seconds = routed(config, whole, 16, 0, 1000)
        row: dict[str, Any] = {"classes": classes, "chosen": str(chosen.sample.architecture), "ours": reached}
        row |= plain(whole, 16, 0, 1000)
        row["frozen trunk, logistic head"] = frozen(spec, whole, 16, 0, 1000) if classes == 40 else None
        row["tried"] = {one.architecture: one.loss for one in chosen.tried}
        row["seconds"] = round(seconds, 1)
        rows.append(
            {k: round(100 * v, 2) if isinstance(v, float) and k != "seconds" else v for k, v in row.items()}
        )
        print(rows[-1], flush=True)
    return rows


def speed(config: Config) -> Rows:
    """CPU-seconds of heads in closed form, and the default command on 160 pictures over ``import torch``."""
    rows: Rows = []
    for classes, shots in ((10, 16), (1000, 16)):
        generator = torch_generator("speed", classes)
        middle = torch.randn(classes, 1, 1280, generator=generator)
        features = (middle + torch.randn(classes, shots, 1280, generator=generator)).flatten(0, 1)
        labels = torch.arange(classes).repeat_interleave(shots)
        shown = Labelled(features=features, labels=labels, classes=classes, copies=torch.ones_like(labels))
        begun = time.process_time()
        fit_head(shown, torch.eye(1280))
        rows.append(
            {"what": f"head of {classes} classes x {shots}", "cpu": round(time.process_time() - begun, 2)}
        )
    with tempfile.TemporaryDirectory() as folder:
        task = parse_task(config["dataset"]).resized(32, 3)
        images, labels = task.support(17, 0).flat()  # one a class is held back for testing, or none
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            part = "test" if number % 17 == 16 else "train"
            place = Path(folder) / part / task.class_names[int(label)]
            place.mkdir(parents=True, exist_ok=True)
            pixels = ((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(place / f"{number}.png")
        ratios = []
        for number in range(3):
            environment = {**os.environ, "WEIGHTLOOM_CACHE": f"{folder}/cache-{number}"}
            torch_alone = timed([sys.executable, "-c", "import torch"], environment)
            command = [sys.executable, "-m", "weightloom.cli", "generate", "--data", folder, "--shots", "16"]
            ratios.append(timed(command, environment) / torch_alone)
        rows.append(
            {
                "what": "default command, 160 pictures, over import torch",
                "ratios": [round(r, 1) for r in ratios],
            }
        )
    print(rows, flush=True)
    return rows


def timed(command: list[str], environment: dict[str, str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return time.perf_counter() - begun


PARTS = {"cifar10": cifar10, "default": default, "folders": folders, "many": many, "speed": speed}


def page(results: dict[str, Any], config: Config) -> str:
    return render(results, config)
