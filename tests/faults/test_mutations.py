"""Every reader, on files that have been changed at random: read or refused, never another kind of failure.

The quick size is the same few inputs each time; ``make faults`` runs a million new ones.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
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

RECIPES = Path(__file__).resolve().parents[2] / "recipes"

# What files are made of, and what has broken readers before.
PIECES = [
    b'"', b"{", b"}", b"[", b"]", b":", b",", b"null", b"true", b"-1", b"0", b"1e999", b"NaN", b"9" * 40,
    b"\\u0000", b"../", b"\x00", b"\xff", b"\xff" * 8, b"\x00" * 16, b"[" * 2000, b"&a", b"*a",
    b"!!python/object:os.system",
]  # fmt: skip
EDITS = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["flip", "set", "piece", "delete", "copy", "cut"]),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=4,
)


def mutated(data: bytes, edits: list[tuple[float, str, int]]) -> bytes:
    changed = bytearray(data)
    for share, kind, value in edits:
        if not changed:
            break
        place = int(share * len(changed))
        if kind == "flip":
            changed[place] ^= 1 << value % 8
        elif kind == "set":
            changed[place] = value
        elif kind == "piece":
            piece = PIECES[value % len(PIECES)]
            changed[place : place + (len(piece) if value % 2 else 0)] = piece
        elif kind == "delete":
            del changed[place : place + 1 + value % 20]
        elif kind == "copy":
            changed[place:place] = changed[place : place + 1 + value % 40]
        else:
            del changed[place:]
    return bytes(changed)


@dataclass(frozen=True)
class Reader:
    """A file that is changed, and what then reads it; ``share`` of the full size's million inputs."""

    file: Path
    read: Callable[[Path], Any]
    quick: int = 60
    share: float = 0.1
    folder: Path | None = None
    """What is put back before each input, where reading itself may write."""


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


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    """Good files of every kind with their readers."""
    root = tmp_path_factory.mktemp("good")
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

    return {
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
        "repair": Reader(root / "zoo" / "zoo.sqlite3", lambda p: repair(p.parent), 40, 0.004, root / "zoo"),
        "shard": Reader(
            root / "zoo" / "shards" / "s.safetensors", lambda p: read_zoo(p.parents[1]), 20, 0.004,
            root / "zoo",
        ),
        "run": Reader(root / "run" / "state.json", lambda p: train(p.parent), 40, 0.02, root / "run"),
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "safetensors", "rows of safetensors", "pt", "sample", "json", "zoo recipe", "recipe", "architecture",
        "task", "commit", "config", "weights", "index", "repair", "shard", "run",
    ],
)  # fmt: skip
def test_a_changed_file_is_read_or_refused(readers, tmp_path, name, full):
    reader = readers[name]
    good = reader.file.read_bytes()
    refused = 0
    kept = tmp_path / "kept"
    if reader.folder is not None:
        shutil.copytree(reader.folder, kept)

    @settings(
        max_examples=int(reader.share * 1_000_000) if full else reader.quick,
        deadline=None,
        derandomize=not full,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(EDITS)
    def try_one(edits):
        if reader.folder is not None:
            shutil.rmtree(reader.folder)
            shutil.copytree(kept, reader.folder)
        reader.file.unlink()  # some file systems flush a file that is written over
        reader.file.write_bytes(mutated(good, edits))
        took = seconds()
        # Once in some hundred thousand times Python's own garbage collection takes a second.
        assert took < 1.0 or seconds() < 1.0, "it hangs"

    def seconds() -> float:
        nonlocal refused
        start = time.process_time()
        try:
            reader.read(reader.file)
        except WeightloomError as error:
            refused += 1
            assert len(str(error)) < 2000
        return time.process_time() - start

    try:
        try_one()
    finally:
        if reader.folder is not None:
            shutil.rmtree(reader.folder)
            shutil.copytree(kept, reader.folder)
        reader.file.write_bytes(good)
    assert refused or name == "repair", "nothing was refused: the changes change nothing that is read"


def test_one_flipped_byte_of_a_zoo_is_found_or_changes_nothing(readers, full):
    """`zoo verify` says so, the zoo cannot be opened, or every record and weight is what it was."""
    root = readers["index"].folder
    assert root is not None
    zoo = Zoo(root)
    records, about, weights = zoo.records(), zoo.about(), zoo.load(zoo.records())
    assert zoo.verify() == []
    found = 0
    for file in (root / "zoo.sqlite3", root / "shards" / "s.safetensors"):
        good = file.read_bytes()
        held = [
            place for place, byte in enumerate(good) if byte
        ]  # mostly the pages' empty middles are left out
        step = 1 if full else max(1, len(held) // 60)
        for place in held[::step]:
            changed = bytearray(good)
            changed[place] ^= 4
            file.unlink()
            file.write_bytes(changed)
            try:
                told = Zoo(root).verify()
            except WeightloomError:
                told = ["it cannot be opened"]
            if not told:
                assert file.suffix == ".sqlite3", f"byte {place} of a shard"
                now = Zoo(root)
                assert now.records() == records and now.about() == about, f"byte {place}"
                assert torch.equal(now.load(now.records()), weights)
            found += bool(told)
        file.write_bytes(good)
    assert found > 30
