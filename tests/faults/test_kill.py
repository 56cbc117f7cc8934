"""A writer that is killed with SIGKILL loses nothing, tears nothing, and what it was at can go on."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from weightloom.generators.load import load_generator
from weightloom.io import load_tensors, read_json, sweep, verify_folder
from weightloom.zoo import Zoo, repair
from weightloom.zoo.importing import read_network

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")


def sample(folder: Path) -> int:
    _, flat, metadata = read_network(folder / "network.safetensors")
    version = int(flat[0])
    assert bool((flat == version).all()) and f'"version": {version}' in metadata["report"], "torn"
    return version


def result(folder: Path) -> int:
    value = read_json(folder / "result.json")
    assert value["rows"] == [value["version"]] * 500, "torn"
    return value["version"]


def generator(folder: Path) -> int:
    model = load_generator(folder / "generator")
    version = int(model.name.removeprefix("version-"))
    assert all(bool((parameter == version).all()) for parameter in model.parameters()), "torn"
    verify_folder(folder / "generator", required=["config.json", "model.safetensors"])
    return version


def zoo(folder: Path) -> int:
    held = Zoo(folder / "zoo")
    versions = []
    for record in held.records():
        assert bool((held.load([record]) == record.provenance["version"]).all()), "torn"
        versions.append(record.provenance["version"])
    if not any(record.shard == "same" for record in held.records()):
        assert sorted(versions) == list(range(1, len(versions) + 1)), "one is lost"
    problems = held.verify()
    assert all("on disk but not in the index" in problem for problem in problems), problems
    return max(versions, default=0)


READERS = {"sample": sample, "result": result, "generator": generator, "zoo": zoo, "same-shard": zoo}


def some(count: int, full: bool) -> list[int]:
    """All instants, or a dozen from the first to the last."""
    return list(range(count)) if full else sorted({round(i * (count - 1) / 11) for i in range(12)})


def allowed(kind: str, version: int) -> set[int]:
    """What may be there when the writing of ``version`` was killed.

    A shard that is being replaced by another one may be gone for the moment; nothing else may.
    """
    return {version - 1, version} | ({0} if kind == "same-shard" else set())


@pytest.mark.parametrize("kind", sorted(READERS))
def test_killed_at_targeted_instants(ask, tmp_path, kind, full, record_property):
    read = READERS[kind]
    assert ask(tmp_path / "count", kind, 1) == "done"
    count = int(ask(tmp_path / "count", kind, 2, "count").removeprefix("count "))
    assert count > 10, "an artefact that is written without touching the disk"
    assert ask(tmp_path, kind, 1) == "done" and read(tmp_path) == 1
    for version, instant in enumerate(some(count, full), start=2):
        assert ask(tmp_path, kind, version, instant) == "killed", instant
        assert read(tmp_path) in allowed(kind, version)
        assert ask(tmp_path, kind, version) == "done", "it cannot go on"
        assert read(tmp_path) == version
        for place in (tmp_path, *tmp_path.iterdir()):
            sweep(place)
    record_property("kills", len(some(count, full)))
    left = sorted(entry.name for entry in tmp_path.rglob("*") if ".tmp-" in entry.name)
    assert left == [], "litter that nothing removes"
    if read is zoo:
        assert Zoo(tmp_path / "zoo").verify() == []


@pytest.mark.parametrize("kind", sorted(READERS))
def test_killed_at_random(ask, tmp_path, kind, full, record_property):
    read = READERS[kind]
    assert ask(tmp_path, kind, 1) == "done"
    delays = np.random.default_rng(0).uniform(0, 0.05, size=100 if full else 2)
    kills = 0
    for version, delay in enumerate(delays, start=2):
        ended = ask(tmp_path, kind, version, f"after:{delay}")
        assert ended in ("killed", "done")
        kills += ended == "killed"
        assert read(tmp_path) in allowed(kind, version)
        assert ask(tmp_path, kind, version) == "done" and read(tmp_path) == version
    record_property("kills", kills)


def state_of(folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    note = read_json(folder / "state.json")
    tensors, metadata = load_tensors(folder / note["file"])
    assert metadata["step"] == str(note["step"])
    return note, tensors


def test_a_killed_training_ends_where_the_uninterrupted_one_does(ask, tmp_path, full, record_property):
    assert ask(tmp_path, "training", 0) == "done"
    wanted, weights = state_of(tmp_path / "run-0")
    count = int(ask(tmp_path, "training", 1, "count").removeprefix("count "))
    for version, instant in enumerate(some(count, full), start=2):
        folder = tmp_path / f"run-{version}"
        assert ask(tmp_path, "training", version, instant) == "killed"
        if (folder / "state.json").exists():
            state_of(folder)
        assert ask(tmp_path, "training", version) == "done"
        note, found = state_of(folder)
        assert note["step"] == wanted["step"] and found.keys() == weights.keys()
        assert all(torch.equal(found[name], weights[name]) for name in weights)
        losses = [{k: v for k, v in entry.items() if k != "seconds"} for entry in note["log"]]
        assert losses == [{k: v for k, v in entry.items() if k != "seconds"} for entry in wanted["log"]]
        assert not any(".tmp-" in entry.name for entry in folder.iterdir())
    record_property("kills", len(some(count, full)))


def test_many_writers_of_one_zoo(ask, tmp_path):
    assert ask(tmp_path, "crowd", 0) == "done"
    held = Zoo(tmp_path / "zoo")
    assert {record.shard for record in held.records()} == {"all"} | {
        f"w{number}-{turn}" for number in range(3) for turn in range(4)
    }
    zoo_values = {record.shard: record.provenance["version"] for record in held.records()}
    assert all(bool((held.load([r]) == zoo_values[r.shard]).all()) for r in held.records())
    assert held.verify() == []


def test_a_writer_killed_beside_others_costs_only_its_own(ask, tmp_path):
    assert ask(tmp_path, "crowd", 1) == "done"
    held = Zoo(tmp_path / "zoo")
    found = {record.shard for record in held.records()}
    assert found >= {"all"} | {f"w{number}-{turn}" for number in (1, 2) for turn in range(4)}
    assert all(bool((held.load([r]) == r.provenance["version"]).all()) for r in held.records())
    repair(tmp_path / "zoo")
    assert held.verify() == [] and {record.shard for record in held.records()} == found
