"""Not a test: good files of every kind that is read, each with its reader, for files that are changed.

Used by test_mutations.py (changes at random) and fuzz.py (changes that reach new lines of the readers).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from tests.faults.kept_readers import KEPT, RECIPES, kept_readers
from tests.faults.reader import Reader
from tests.faults.writers import SPEC, record_of, tiny_generator

from weightloom.architectures import parse_architecture
from weightloom.errors import CheckpointError, WeightloomError
from weightloom.fitting import initial_flats
from weightloom.generators import Sample
from weightloom.generators.load import load_generator, save_generator
from weightloom.io import (
    COMMIT_FILE,
    load_legacy,
    load_rows,
    load_tensors,
    read_header,
    read_json,
    read_yaml,
    save_tensors,
    verify_folder,
    write_json,
)
from weightloom.tasks import parse_task
from weightloom.training.loop import LoopSettings, run_loop
from weightloom.training.recipe import LayerwiseRecipe
from weightloom.zoo import Zoo, ZooRecipe, repair
from weightloom.zoo.importing import read_network

READERS = (
    "safetensors", "rows of safetensors", "pt", "sample", "json", "zoo recipe", "recipe", "architecture",
    "task", "commit", "config", "weights", "index", "repair", "shard", "run", *KEPT,
)  # fmt: skip


def read_zoo(folder: Path) -> None:
    zoo = Zoo(folder)
    zoo.about()
    for one in zoo.records():
        try:
            zoo.load([one])
            one.parsed_task()
        except WeightloomError:
            pass
    zoo.records(architecture="mlp(depth=1,width=4)", min_accuracy=0.1)
    zoo.summary()
    if problems := zoo.verify():
        raise CheckpointError(folder, problems[0])


def train(folder: Path) -> None:
    run_loop("a line", torch.nn.Linear(2, 1), _objective, LoopSettings(steps=2, save_every=1), folder=folder)


def _objective(step: int) -> tuple[torch.Tensor, dict[str, float]]:
    raise CheckpointError("here", "as far as reading goes")


def some_rows(path: Path) -> None:
    load_rows(path, [1], {"weight": ((4,), torch.float32)})


def good_readers(root: Path) -> dict[str, Reader]:
    """Write the files into ``root``, and say what reads each."""
    flat = initial_flats(SPEC, [0])[0]
    save_tensors(root / "t.safetensors", {"weight": torch.ones(3, 4), "bias": torch.zeros(2)}, {"a": "b"})
    torch.save({"weight": torch.ones(3, 4), "step": 3}, root / "old.pt")
    Sample(SPEC, flat, {"seed": 1}).save(root / "network.safetensors")
    write_json(root / "result.json", {"rows": [{"accuracy": 0.5, "task": "digits"}] * 3, "seed": 1})
    (root / "zoo.yaml").write_text((RECIPES / "zoo-tiny.yaml").read_text())
    layerwise = next(
        path
        for path in sorted(RECIPES.glob("*.yaml"))
        if yaml.safe_load(path.read_text()).get("generator") == "layerwise"
    )
    (root / "layerwise.yaml").write_text(layerwise.read_text())
    (root / "architecture.txt").write_text("cnn(depth=4,width=32,kernel=5,norm=group,activation=gelu)")
    (root / "task.txt").write_text("fashion-mnist[3,1,7]+rot90@16c3")
    tiny_generator(1).save_pretrained(root / "generator")
    save_generator(tiny_generator(1), root / "kept")
    zoo = Zoo(root / "zoo", create=True)
    zoo.add("s", SPEC, initial_flats(SPEC, [0, 1]), [record_of(SPEC, "s", n, row=n) for n in range(2)])
    zoo.set_about("recipe", {"name": "x"})
    model = torch.nn.Linear(2, 1)
    run_loop(
        "a line", model, lambda step: (model.weight.square().sum(), {}),
        LoopSettings(steps=2, save_every=1, warmup=0), folder=root / "run",
    )  # fmt: skip

    def text(read: Callable[[str], Any]) -> Callable[[Path], Any]:
        return lambda path: read(path.read_bytes().decode("utf-8", "surrogateescape"))

    found = {
        "safetensors": Reader(root / "t.safetensors", lambda path: (load_tensors(path), read_header(path))),
        "rows of safetensors": Reader(root / "t.safetensors", some_rows),
        "pt": Reader(root / "old.pt", load_legacy),
        "sample": Reader(root / "network.safetensors", read_network),
        "json": Reader(root / "result.json", read_json),
        "zoo recipe": Reader(root / "zoo.yaml", lambda path: read_yaml(path, ZooRecipe), 20, 0.04),
        "recipe": Reader(root / "layerwise.yaml", lambda path: read_yaml(path, LayerwiseRecipe), 20, 0.04),
        "architecture": Reader(root / "architecture.txt", text(parse_architecture), 100, 0.2),
        "task": Reader(root / "task.txt", text(parse_task), 100, 0.2),
        "commit": Reader(root / "kept" / COMMIT_FILE, lambda path: verify_folder(path.parent)),
        "config": Reader(root / "generator" / "config.json", lambda p: load_generator(p.parent), 40, 0.005),
        "weights": Reader(
            root / "generator" / "model.safetensors", lambda p: load_generator(p.parent), 20, 0.005
        ),
        "index": Reader(
            root / "zoo" / "zoo.sqlite3", lambda p: read_zoo(p.parent), 40, 0.004, root / "zoo"
        ),
        "repair": Reader(
            root / "zoo" / "zoo.sqlite3", lambda p: repair(p.parent), 40, 0.004, root / "zoo", False
        ),
        "shard": Reader(
            root / "zoo" / "shards" / "s.safetensors", lambda p: read_zoo(p.parents[1]), 20, 0.004,
            root / "zoo",
        ),
        "run": Reader(root / "run" / "state.json", lambda p: train(p.parent), 40, 0.02, root / "run"),
    }  # fmt: skip
    (root / "kept-readers").mkdir()
    found |= kept_readers(root / "kept-readers")
    assert tuple(found) == READERS
    return found
