"""Not a test: good files of what generators, runs and other people leave, each with its reader.

The second half of readers.py: every family that is saved, made to generate; states that measurements and
trainings go on from; other people's layouts; recipes of every kind.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tests.contracts.test_contracts import GENERATORS, TASKS, examples, resolved, tiny_layerwise
from tests.faults.reader import Reader
from tests.faults.writers import SPEC

from weightloom.cli.info import _describe
from weightloom.evaluation import SelectionSettings, select
from weightloom.evaluation.candidates import predict
from weightloom.evaluation.cells import Cells
from weightloom.evaluation.halving import _Run
from weightloom.fitting import initial_flats
from weightloom.generators import Sample, Sampling, Validity
from weightloom.generators.base import ANY_ARCHITECTURE
from weightloom.generators.load import load_generator
from weightloom.generators.random_init import RandomInit
from weightloom.io import (
    dump_json,
    read_shards,
    read_yaml,
    save_tensors,
    shards_metadata,
    write_json,
    write_shards,
)
from weightloom.tasks import FolderTask, parse_task, read_picture
from weightloom.tasks.store import fetch_dataset, read_split
from weightloom.training.recipe import (
    CarriedDiffusionRecipe,
    ConsolidatedRecipe,
    GeneratorRecipe,
    GHNRecipe,
    LayerwiseSetRecipe,
    RewardRecipe,
    StaticHypernetworkRecipe,
)
from weightloom.training.reward import RewardSettings, steer
from weightloom.weights import layout_of
from weightloom.zoo.importing import plan_import
from weightloom.zoo.modelzoos import read_trial
from weightloom.zoo.reading import read_checked
from weightloom.zoo.sources import find_networks

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SAVED = tuple(kind for kind, promise in GENERATORS.items() if promise.saves)
RECIPE_KINDS = {
    "igpg-tiny": GeneratorRecipe,
    "layerwise-tiny": LayerwiseSetRecipe,
    "diffusion-tiny": CarriedDiffusionRecipe,
    "ghn-cifar10-start": GHNRecipe,
    "static-tiny": StaticHypernetworkRecipe,
    "reward-tiny": RewardRecipe,
    "consolidated": ConsolidatedRecipe,
}
PICTURES = ("JPEG", "TIFF", "WEBP", "AVIF", "GIF")
KEPT = (
    *(f"{part} of {kind}" for kind in SAVED for part in ("config", "weights")),
    "zoo index", "weights of the zoo index", "tokenizer",
    *(f"recipe of {name}" for name in RECIPE_KINDS),
    "parts of a network", "state dict in order", "what a file is", "trial", "results of a trial",
    "wrapped checkpoint", "checkpoint before 1.6", "weight norm in safetensors", "what a checkpoint is",
    "parts of PyTorch", "NumPy's archive", "file without a name", "bytes of other kinds",
    "cell", "selection", "steering", "picture", *(f"picture as {kind}" for kind in PICTURES),
    "images of a dataset",
)  # fmt: skip


def generate(folder: Path) -> None:
    model = load_generator(folder)
    model.generate(resolved(), support=examples(), seed=1)


def generators_of(root: Path) -> dict[str, Reader]:
    found = {}
    for kind in SAVED:
        GENERATORS[kind].make().save_pretrained(root / kind)
        if kind == "pretrained":  # its networks are large: what is read is enough
            for part, name in (("config", "config.json"), ("weights", "names.safetensors")):
                found[f"{part} of {kind}"] = Reader(
                    root / kind / name, lambda path: load_generator(path.parent), 15, 0.002
                )
            continue
        for part, name in (("config", "config.json"), ("weights", "model.safetensors")):
            found[f"{part} of {kind}"] = Reader(
                root / kind / name, lambda path: generate(path.parent), 15, 0.002
            )
    folder = root / "igpg"
    for name, file in (
        ("zoo index", "zoo-index.json"),
        ("weights of the zoo index", "zoo-index.safetensors"),
        ("tokenizer", "tokenizer/config.json"),
    ):
        found[name] = Reader(folder / file, lambda _: generate(folder), 15, 0.002)
    return found


def recipes_of(root: Path) -> dict[str, Reader]:
    found = {}
    for name, kind in RECIPE_KINDS.items():
        file = root / f"{name}.yaml"
        file.write_text((RECIPES / file.name).read_text())
        found[f"recipe of {name}"] = Reader(file, partial(read_yaml, model=kind), 15, 0.01)
    return found


def wrapped(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """A checkpoint as a training leaves it: a prefix, an optimizer, plain values of every kind."""
    moments = {
        n: {"step": torch.tensor(3.0), "exp_avg": value * 0.5} for n, value in enumerate(state.values())
    }
    groups = [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0, 1]}]
    return {
        "epoch": 3,
        "state_dict": {"n_averaged": torch.tensor(1), **{f"module.{k}": v for k, v in state.items()}},
        "optimizer": {"state": moments, "param_groups": groups},
        "names": {"a", "b"}, "size": torch.Size([1, 2]), "half": torch.ones(2).half(), "z": 1j, "raw": b"ab",
    }  # fmt: skip


def with_norms(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same network, its weights in parts."""
    parts = {}
    for name, value in state.items():
        if name.endswith("weight"):
            lengths = value.flatten(1).norm(dim=1).reshape(-1, *[1] * (value.dim() - 1))
            parts |= {f"{name}_v": value.contiguous(), f"{name}_g": lengths}
        else:
            parts[name] = value.contiguous()
    return parts


def files_of_others(root: Path) -> dict[str, Reader]:
    flat = initial_flats(SPEC, [0])[0]
    state = layout_of(SPEC).unflatten(flat)
    plan = {name: (tuple(value.shape), value.dtype) for name, value in state.items()}
    words = {"format": "pt", "architecture": SPEC.full_text()}
    write_shards(root / "parts", plan, iter(state.items()), metadata=words, shard_bytes=400)
    torch.save({f"layers.{i}": value for i, value in enumerate(state.values())}, root / "order.pt")
    Sample(SPEC, flat, {"seed": 1, "accuracy": 0.5}).save(root / "described.safetensors")
    trial = root / "trial"
    (trial / "checkpoint_000001").mkdir(parents=True)
    options = {"model::type": "CNN", "model::nlin": "tanh", "model::channels_in": 1, "seed": 3}
    write_json(trial / "params.json", options)
    lines = [{"training_iteration": n, "test_acc": 0.5, "train_loss": 1.0} for n in range(3)]
    (trial / "result.json").write_text("".join(dump_json(line) + "\n" for line in lines))

    def parts(path: Path) -> None:
        shards_metadata(path.parent)
        dict(read_shards(path.parent))
        read_checked(path.parent)

    torch.save(wrapped(state), root / "wrapped.tar")
    torch.save(wrapped(state), root / "old.ckpt", _use_new_zipfile_serialization=False)
    save_tensors(root / "norm.safetensors", {f"module.{k}": v for k, v in with_norms(state).items()})
    torch.save({**wrapped(state), "odd": torch.tensor([torch.nan])}, root / "described.ckpt")
    (root / "bin").mkdir()
    name = "pytorch_model-00001-of-00001.bin"
    torch.save(state, root / "bin" / name)
    write_json(root / "bin" / "pytorch_model.bin.index.json", {"weight_map": dict.fromkeys(state, name)})
    np.savez(root / "arrays.npz", **{name: value.numpy() for name, value in state.items()})
    torch.save(state, root / "nameless")
    (root / "model.onnx").write_bytes(b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:\x04\n\x02ab")

    def as_network(path: Path) -> None:
        read_checked(path, SPEC)

    return {
        "wrapped checkpoint": Reader(root / "wrapped.tar", as_network, 60, 0.01),
        "checkpoint before 1.6": Reader(root / "old.ckpt", as_network, 60, 0.01),
        "weight norm in safetensors": Reader(root / "norm.safetensors", as_network, 40, 0.01),
        "what a checkpoint is": Reader(
            root / "described.ckpt", lambda path: dump_json(_describe(str(path))[0]), 40, 0.005
        ),
        "parts of PyTorch": Reader(
            root / "bin" / "pytorch_model.bin.index.json",
            lambda path: read_checked(path.parent, SPEC),
            40,
            0.01,
        ),
        "NumPy's archive": Reader(root / "arrays.npz", as_network, 40, 0.01),
        "file without a name": Reader(
            root / "nameless", lambda path: plan_import([find_networks(path)], architecture=SPEC), 40, 0.005
        ),
        "bytes of other kinds": Reader(root / "model.onnx", as_network, 40, 0.02),
        "parts of a network": Reader(root / "parts" / "model.safetensors.index.json", parts, 40, 0.01),
        "state dict in order": Reader(
            root / "order.pt", lambda path: read_checked(path, SPEC, match="order"), 40, 0.02
        ),
        "what a file is": Reader(
            root / "described.safetensors", lambda path: dump_json(_describe(str(path))[0]), 40, 0.01
        ),
        "trial": Reader(trial / "params.json", lambda path: read_trial(path.parent), 40, 0.02),
        "results of a trial": Reader(
            trial / "result.json", lambda path: read_trial(path.parent), 40, 0.02, refuses=False
        ),
    }


def states_of_runs(root: Path) -> dict[str, Reader]:
    cells, key = Cells(root / "cells"), {"what": "zero-shot"}
    cells.or_measure(key, lambda: {"accuracy": 0.5})

    anything = RandomInit(
        Validity(architectures=(ANY_ARCHITECTURE,), input=(1, 8, 8), min_classes=2, max_classes=10)
    )
    task, state = parse_task(TASKS[0]), root / "selection.safetensors"
    asked = ("mlp(depth=1,width=4)", "mlp(depth=1,width=8)")
    settings = SelectionSettings(budget=1.0, shots=4, probe_steps=4, batch_size=16)
    select(anything, task, asked, settings, state=state)

    def selection(path: Path) -> None:
        run = _Run(anything, task, asked, settings, None, path, None, time.perf_counter())
        predict(run.candidates)
        run.ranking()

    model = tiny_layerwise()
    request = model.check("cnn(depth=3,width=4)", None, task.support(4), 1, 0, Sampling(temperature=0.0))
    short = RewardSettings(rounds=2, trunks=2, heads=2, images=20)
    data = task.data("train")
    (root / "steered").mkdir()
    steer(model, request, data, short, folder=root / "steered")

    return {
        "cell": Reader(cells.path(key), lambda _: cells.get(key), 40, 0.02),
        "selection": Reader(state, selection, 15, 0.002),
        "steering": Reader(
            root / "steered" / "steering.safetensors",
            lambda path: steer(model, request, data, short, folder=path.parent), 15, 0.002, root / "steered",
        ),
    }  # fmt: skip


def images_of(root: Path) -> dict[str, Reader]:
    random = np.random.default_rng(0)
    for label in ("ants", "bees"):
        (root / "photos" / label).mkdir(parents=True)
        for number in range(3):
            pixels = random.integers(0, 255, (9, 12, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / "photos" / label / f"{number}.png")
    cache = root / "cache"
    fetch_dataset("digits", cache=cache)
    (images,) = [path for path in cache.rglob("*.safetensors") if "test" in path.name]

    def photos(path: Path) -> None:
        task = FolderTask(path.parents[1], size=8, channels=1)
        for split in ("train", "test"):
            task.data(split).all()

    def alone(path: Path) -> None:
        read_picture(path, 8, 1)

    for kind in PICTURES:
        Image.fromarray(pixels).save(root / f"picture.{kind.lower()}", kind)

    return {
        "picture": Reader(root / "photos" / "ants" / "0.png", photos, 40, 0.01),
        **{
            f"picture as {kind}": Reader(root / f"picture.{kind.lower()}", alone, 40, 0.01)
            for kind in PICTURES
        },
        "images of a dataset": Reader(images, lambda _: read_split("digits", "test", cache), 40, 0.01),
    }


def kept_readers(root: Path) -> dict[str, Reader]:
    """Write the files into ``root``, and say what reads each."""
    made: tuple[Callable[[Path], dict[str, Any]], ...] = (
        generators_of, recipes_of, files_of_others, states_of_runs, images_of,
    )  # fmt: skip
    found = {name: reader for make in made for name, reader in make(root).items()}
    assert set(found) == set(KEPT)
    return {name: found[name] for name in KEPT}
