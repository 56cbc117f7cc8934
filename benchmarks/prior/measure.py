"""Does it pay to write layers in order, in view of what those before do to the examples?"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from words.common import pools

from weightloom.architectures import parse_architecture
from weightloom.conditioning import encode_text
from weightloom.conditioning.names import encode_names
from weightloom.fitting import copies_of
from weightloom.generators.examples_part import ExamplesPart
from weightloom.generators.load import load_generator
from weightloom.generators.words import Words
from weightloom.generators.words_part import WordsConfig
from weightloom.io import read_yaml
from weightloom.seeding import numpy_generator, torch_generator
from weightloom.tasks import DatasetTask, TaskSampler
from weightloom.training.loop import LoopSettings, run_loop
from weightloom.training.recipe import WordsRecipe
from weightloom.training.words_objectives import ExamplesObjective, WordsObjectiveSettings
from weightloom.training.words_tasks import PictureSource, known_stems, names_of_split, open_sources

Config = dict[str, Any]
Rows = list[dict[str, Any]]
ROOT = Path(__file__).parents[2]


@cache
def recipe(path: str) -> WordsRecipe:
    return read_yaml(ROOT / path, WordsRecipe)


@cache
def _opened(path: str, size: int) -> Any:
    held = recipe(path)
    sources = tuple(PictureSource(**source.model_dump()) for source in held.sources)
    return open_sources(sources, held.salt, size, held.channels, 64)


def part_of(config: Config, view: str, width: int, seed: int) -> ExamplesPart:
    """An arm of as many parameters as that with activations."""
    text = f"cnn(depth={config['depth']},width={width})"
    spec = parse_architecture(text).resolve(input=(3, config["size"], config["size"]), classes=2)

    def made(kind: Any, hidden: int) -> ExamplesPart:
        return ExamplesPart(WordsConfig(view=kind, hidden=hidden), spec, seed=seed)

    def count(part: ExamplesPart) -> int:
        return sum(p.numel() for p in part.parameters())

    wanted = count(made("activations", config["hidden"]))
    low, high = 8, 4 * config["hidden"]
    while low < high:  # the widest that has not more
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(made(view, middle)) <= wanted else (low, middle - 1)
    return made(view, low)


@dataclass(frozen=True)
class Posed:
    """A task as it is measured: names' vectors, a sentence, examples (C, 16, ...), test images and labels."""

    names: Tensor | None
    sentence: Tensor | None
    support: Tensor
    images: Tensor
    labels: Tensor


def posed(task: DatasetTask, config: Config) -> Posed:
    data = task.data("test")
    order = torch.randperm(len(data), generator=torch_generator("prior", str(task)))[: config["images"]]
    images, labels = data.batch(order)
    sentence = encode_text(task.instructions(1, seed=0))[0]
    shots = max(config["shots"])
    return Posed(encode_names(task.class_names), sentence, task.support(shots, seed=7).images, images, labels)


def named_task(config: Config, pool: list[int], address: tuple[Any, ...]) -> DatasetTask:
    chosen = numpy_generator("prior", *address).choice(pool, 5, replace=False)
    classes = tuple(int(label) for label in chosen)
    return DatasetTask(dataset="quickdraw", classes=classes, size=config["size"], channels=3)


@cache
def _tasks(text: str) -> list[Posed]:
    config = json.loads(text)
    salt = recipe(config["recipe"]).salt
    pool = pools(config)["quickdraw"]["unseen"]
    found = [posed(named_task(config, pool, ("names", n)), config) for n in range(config["name_tasks"])]
    for number in range(config["subset_tasks"]):
        dataset = ("mnist", "fashion-mnist", "cifar10")[number % 3]
        drawn = TaskSampler([dataset], salt, "held-out-subset", (2, 9)).task(number)
        task = DatasetTask(dataset=dataset, classes=drawn.classes, size=config["size"], channels=3)
        found.append(posed(task, config))
    return found


@cache
def _tuning_tasks(text: str) -> list[Posed]:
    config = json.loads(text)
    held = recipe(config["recipe"])
    known = known_stems(tuple(PictureSource(**source.model_dump()) for source in held.sources))
    pool = names_of_split("quickdraw", "choices", held.salt, known)
    return [posed(named_task(config, pool, ("choices", n)), config) for n in range(config["tuning_tasks"])]


def train(config: Config, view: str, width: int, seed: int, rate: float) -> ExamplesPart:
    """An arm, trained on words and examples together, 0 to 16 a class."""
    return trained(config, part_of(config, view, width, seed), [0, 1, 2, 4, 8, 16], seed, rate)


def trained(config: Config, part: ExamplesPart, shots: list[int], seed: int, rate: float) -> ExamplesPart:
    """A part after the steps of the config."""
    held = recipe(config["recipe"])
    settings = WordsObjectiveSettings(**{**held.objective, "shots": shots, "unlabelled_share": 0})
    objective = ExamplesObjective(
        part, _opened(config["recipe"], config["size"]), settings, steps=config["steps"], seed=seed
    )
    loop = LoopSettings(
        steps=config["steps"], learning_rate=rate, warmup=100, average=0.99, log_every=500, save_every=10**6
    )
    part.train()
    with tempfile.TemporaryDirectory() as folder:
        run_loop("arm", part, objective, loop, folder=Path(folder) / "run", progress=lambda *_: None)
    return part.eval()


@torch.no_grad()
def answered(part: ExamplesPart, task: Posed, shots: int, noise: Tensor | None = None) -> tuple[float, float]:
    """Accuracy on test images, and the loss of the examples left out one at a time (0 without examples)."""
    if not shots:
        written = part.make(task.names, task.sentence, None, noise)
        statistics, rows, biases, loss = written.statistics, written.rows, written.biases, 0.0
    else:
        support = task.support[:, :shots]
        written, images = part.make(task.names, task.sentence, support, noise), support.flatten(0, 1)
        statistics = part.blend(written, images, part.weigh(shots, len(support), torch.zeros(2))[3])
        features, _ = part.run(written.trunk, images, statistics)
        features = features.unflatten(0, support.shape[:2])  # (C*S, H) -> (C, S, H)
        rows, biases = part.head(written, features)
        labels = torch.arange(len(support)).repeat_interleave(shots)
        loss = float(F.cross_entropy(part.fit(written, features, copies_of(support)).left_out, labels))
    features, _ = part.run(written.trunk, task.images, statistics)
    answers = (features @ rows.T + biases).argmax(1)
    return float((answers == task.labels).float().mean()), loss


def tuning(config: Config) -> Rows:
    """Every arm's rate, on names that are kept for choices: mean over examples of each number."""
    rows: Rows = []
    tasks = _tuning_tasks(json.dumps(config))
    for view in config["arms"]:
        for rate in config["rates"]:
            part = train({**config, "steps": config["tuning_steps"]}, view, config["widths"][0], 9, rate)
            reached = {
                str(shots): float(np.mean([answered(part, task, shots)[0] for task in tasks]))
                for shots in config["shots"]
            }
            mean = float(np.mean(list(reached.values())))
            rows.append({"arm": view, "rate": rate, "mean": round(mean, 4),
                         **{k: round(v, 4) for k, v in reached.items()}})  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def rates(config: Config) -> dict[str, float]:
    held = json.loads((Path(__file__).parent / "results.json").read_text(encoding="utf-8"))["tuning"]["rows"]
    return {
        view: max((row for row in held if row["arm"] == view), key=lambda row: row["mean"])["rate"]
        for view in config["arms"]
    }


def compare(config: Config, width: int) -> Rows:
    """All arms at one width: accuracy by kind of task and number of examples; and differences."""
    tasks = _tasks(json.dumps(config))
    best, chosen = rates(config), {}
    rows: Rows = []
    kept: dict[str, dict[int, list[np.ndarray[Any, Any]]]] = {}
    for view in config["arms"]:
        kept[view] = {shots: [] for shots in config["shots"]}
        chosen[view] = {"greedy": [], "best": []}
        for seed in config["seeds"]:
            part = train(config, view, width, seed, best[view])
            for shots in config["shots"]:
                kept[view][shots].append(np.array([answered(part, task, shots)[0] for task in tasks]))
            if view != "nothing":
                greedy, drawn = [], []
                for number, task in enumerate(tasks[: config["best_tasks"]]):
                    generator = torch_generator("prior", "draws", number)
                    shape = (len(part.layers), part.config.codes)
                    tried = [answered(part, task, 4)]
                    greedy.append(tried[0][0])
                    for _ in range(config["best_of"] - 1):
                        noise = config["temperature"] * torch.randn(shape, generator=generator)
                        tried.append(answered(part, task, 4, noise))
                    drawn.append(min(tried, key=lambda one: one[1])[0])
                chosen[view]["greedy"].append(float(np.mean(greedy)))
                chosen[view]["best"].append(float(np.mean(drawn)))
        names, size = config["name_tasks"], sum(p.numel() for p in part.parameters())
        for shots in config["shots"]:
            runs = kept[view][shots]
            by_seed = [100 * float(run.mean()) for run in runs]
            row = {
                "arm": view, "width": width, "shots": shots, "rate": best[view], "parameters": size,
                "mean": round(float(np.mean(by_seed)), 2), "sd": round(float(np.std(by_seed, ddof=1)), 2),
                "names": round(100 * float(np.mean([run[:names].mean() for run in runs])), 2),
                "subsets": round(100 * float(np.mean([run[names:].mean() for run in runs])), 2),
            }  # fmt: skip
            if shots == 4 and view != "nothing":
                row |= {k: round(100 * float(np.mean(v)), 2) for k, v in chosen[view].items()}
            rows.append(row)
            print(row, flush=True)
    for other in config["arms"][:-1]:
        for shots in config["shots"]:
            gain = gained(kept[config["arms"][-1]][shots], kept[other][shots])
            rows.append({"over": other, "width": width, "shots": shots, **gain})
    return rows


def begun_as(config: Config, view: Any, seed: int) -> ExamplesPart:
    """An arm that begins as the bundled part for words alone, as the bundled parts for examples do."""
    model = load_generator(config["begun"]["generator"])
    assert isinstance(model, Words)
    spec = parse_architecture(config["begun"]["architecture"])
    spec = spec.resolve(input=model.validity.input_for(spec), classes=2)
    words = model.part(spec)
    part = ExamplesPart(replace(model.config, view=view), spec, seed=seed)
    part.begin_as(words)
    if view == "nothing":  # its one trunk begins as that of the mean codes of the known datasets
        with torch.no_grad():
            codes = []
            for dataset in ("mnist", "fashion-mnist", "cifar10"):
                task = DatasetTask(dataset=dataset, size=config["size"], channels=3)
                codes.append(words.write(encode_names(task.class_names), None).codes)
            for base, atoms, code in zip(part.base, words.atoms, torch.stack(codes).mean(0), strict=True):
                base += code @ atoms
    return part


def begun(config: Config) -> Rows:
    """Arms that begin as the part for words: with names and without, by kind of task."""
    tasks, names = _tasks(json.dumps(config)), config["name_tasks"]
    nameless = [replace(task, names=None, sentence=None) for task in tasks]
    settings = {**config, "steps": config["begun"]["steps"]}
    rows: Rows = []
    kept: dict[tuple[str, str, int], list[np.ndarray[Any, Any]]] = {}
    for view in config["begun"]["arms"]:
        for seed in config["seeds"]:
            part = trained(
                settings, begun_as(config, view, seed), [1, 2, 4, 8, 16], seed, config["begun"]["rate"]
            )
            for told, shown in (("names", tasks), ("no names", nameless)):
                for shots in config["shots"][1:]:
                    own = np.array([answered(part, task, shots)[0] for task in shown])
                    kept.setdefault((view, told, shots), []).append(own)
        for told in ("names", "no names"):
            for shots in config["shots"][1:]:
                runs = kept[view, told, shots]
                by_seed = [100 * float(run.mean()) for run in runs]
                row = {"arm": view, "told": told, "shots": shots}
                row |= {
                    "mean": round(float(np.mean(by_seed)), 2),
                    "sd": round(float(np.std(by_seed, ddof=1)), 2),
                }
                row["names"] = round(100 * float(np.mean([run[:names].mean() for run in runs])), 2)
                row["subsets"] = round(100 * float(np.mean([run[names:].mean() for run in runs])), 2)
                rows.append(row)
                print(row, flush=True)
    last = config["begun"]["arms"][-1]
    for other in config["begun"]["arms"][:-1]:
        for told in ("names", "no names"):
            for shots in config["shots"][1:]:
                gain = gained(kept[last, told, shots], kept[other, told, shots])
                rows.append({"over": other, "told": told, "shots": shots, **gain})
    return rows


def gained(own: list[np.ndarray[Any, Any]], other: list[np.ndarray[Any, Any]]) -> dict[str, Any]:
    """Mean gain in points with its interval: one difference a task, of the means over seeds."""
    gain = np.mean(own, 0) - np.mean(other, 0)
    by_seed = [100 * float((a - b).mean()) for a, b in zip(own, other, strict=True)]
    half = 196 * float(gain.std(ddof=1)) / len(gain) ** 0.5
    seeds = [round(value, 2) for value in by_seed]
    return {"gain": round(100 * float(gain.mean()), 2), "half": round(half, 2), "seeds": seeds}


PARTS: dict[str, Callable[[Config], Rows]] = {
    "tuning": tuning,
    "width-4": lambda config: compare(config, 4),
    "width-16": lambda config: compare(config, 16),
    "begun": begun,
    "width-8": lambda config: compare(config, 8),
}


def page(results: dict[str, Any], config: Config) -> str:
    """The page."""
    from prior.page import render

    return render(results, config)
