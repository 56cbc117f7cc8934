"""A writer that is killed with SIGKILL loses nothing, tears nothing, and what it was at can go on."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.faults import tracer
from tests.zoo.old import old_zoo

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


def some(count: int, full: bool, quick: int = 12) -> list[int]:
    """All instants, or a few from the first to the last."""
    return (
        list(range(count)) if full else sorted({round(i * (count - 1) / (quick - 1)) for i in range(quick)})
    )


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


# -- making and mending a zoo ------------------------------------------------------------------


def traced(ask, folder: Path, kind: str, version: int, full: bool) -> list[str]:
    """The instants at which the writing of ``kind`` into ``folder`` is killed: all of them, or a few.

    They are the system's calls where a process can be traced, and Python's where it cannot.
    """
    calls = "calls" if tracer.works() else "count"
    count = int(ask(folder, kind, version, calls).removeprefix("count "))
    assert count > 20
    chosen = some(count, full, 8)
    return [f"call:{number}" if calls == "calls" else str(number) for number in chosen]


def whole(folder: Path) -> dict:
    """What a zoo holds, by id, where it is whole; nothing where there is none."""
    place = folder / "zoo"
    if not place.exists():
        return {}
    held = Zoo(place)
    assert held.verify() == []
    return {record.id: (record, held.load([record])[0]) for record in held.records()}


def litter(folder: Path) -> list[str]:
    return [entry.name for entry in folder.rglob("*") if ".tmp-" in entry.name or entry.name == "zoo.adding"]


def assert_same(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for key, (record, flat) in wanted.items():
        assert found[key][0] == record and torch.equal(found[key][1], flat)


@pytest.mark.parametrize("kind", ["build", "import"])
def test_a_zoo_whose_making_is_killed_is_none_or_whole_and_the_same_command_goes_on(
    ask, tmp_path, kind, full, record_property
):
    def folder(name: object) -> Path:
        place = tmp_path / str(name)
        assert ask(place, "sources", 1) == "done"
        return place

    wanted_folder = folder("wanted")
    assert ask(wanted_folder, kind, 1) == "done"
    wanted = whole(wanted_folder)
    assert len(wanted) == {"build": 2, "import": 4}[kind]
    chosen = traced(ask, folder("count"), kind, 1, full)
    seen = set()
    for instant in chosen:
        place = folder(instant.replace(":", "-"))
        assert ask(place, kind, 1, instant) == "killed", instant
        found = whole(place)
        seen.add(len(found))
        assert_same(found, {key: value for key, value in wanted.items() if key in found})
        assert ask(place, kind, 1) == "done", instant
        assert_same(whole(place), wanted)
        assert litter(place) == []
    assert 0 in seen and len(seen) >= (3 if full else 2)
    record_property("kills", len(chosen))
    record_property("do not resume", 0)


def test_a_second_import_that_is_killed_costs_nothing(ask, tmp_path, full, record_property):
    start = tmp_path / "start"
    assert ask(start, "sources", 1) == "done" and ask(start, "import", 2) == "done"
    first = whole(start)
    chosen = traced(ask, shutil.copytree(start, tmp_path / "count"), "import", 3, full)
    digests = {record.provenance["sha256"] for record, _ in whole(tmp_path / "count").values()}
    assert len(first) == 2 and len(digests) == 4
    for instant in chosen:
        place = shutil.copytree(start, tmp_path / instant.replace(":", "-"))
        assert ask(place, "import", 3, instant) == "killed", instant
        found = whole(place)
        assert_same({key: found[key] for key in first}, first)
        assert ask(place, "import", 3) == "done"
        after = [record.provenance["sha256"] for record, _ in whole(place).values()]
        assert sorted(after) == sorted(digests) and litter(place) == [], "once each"
    record_property("kills", len(chosen))


def test_imports_at_once_make_one_zoo_with_each_network_once(ask, tmp_path, full):
    for turn in range(20 if full else 3):
        place = tmp_path / str(turn)
        assert ask(place, "sources", 1) == "done"
        assert ask(place, "imports at once", 1) == "done"
        names = [record.provenance["file"] for record, _ in whole(place).values()]
        assert sorted(names) == [f"{number}.safetensors" for number in range(4)] and litter(place) == []
        assert sorted(entry.name for entry in place.iterdir()) == ["in", "recipe.yaml", "zoo"]


@pytest.mark.parametrize("kind", ["first", "sealed"])
def test_an_old_zoo_whose_first_writing_is_killed(ask, tmp_path, kind, full, record_property):
    start = tmp_path / "start"
    assert ask(start, "sources", 1) == "done" and ask(start, "import", 1) == "done"
    wanted = whole(start)
    os.rename(start / "zoo", tmp_path / "new")
    old_zoo(tmp_path / "new", start / "zoo", kind, log=True)
    chosen = traced(ask, shutil.copytree(start, tmp_path / "count"), "note", 1, full)
    for instant in chosen:
        place = shutil.copytree(start, tmp_path / instant.replace(":", "-"))
        assert ask(place, "note", 1, instant) == "killed", instant
        assert_same(whole(place), wanted)
        assert ask(place, "note", 1) == "done"
        assert_same(whole(place), wanted)
        assert Zoo(place / "zoo").about() == {"note": 1} and litter(place) == []
    record_property("kills", len(chosen))


@pytest.mark.parametrize("damage", ["shard", "index"])
def test_a_repair_that_is_killed_loses_nothing(ask, tmp_path, damage, full, record_property):
    start = tmp_path / "start"
    assert ask(start, "sources", 1) == "done" and ask(start, "import", 1) == "done"
    shards = sorted((start / "zoo" / "shards").iterdir())
    good = whole(start)
    if damage == "shard":
        broken = bytearray(shards[0].read_bytes())
        broken[-3] ^= 1
        shards[0].write_bytes(broken)
    else:
        index = start / "zoo" / "zoo.sqlite3"
        data = bytearray(index.read_bytes())
        data[7 * 4096 : 8 * 4096] = bytes(4096)
        index.write_bytes(data)
    written = {file.read_bytes() for file in (start / "zoo" / "shards").iterdir()}
    chosen = traced(ask, shutil.copytree(start, tmp_path / "count"), "repair", 1, full)
    for instant in chosen:
        place = shutil.copytree(start, tmp_path / instant.replace(":", "-"))
        assert ask(place, "repair", 1, instant) == "killed", instant
        assert {file.read_bytes() for file in (place / "zoo").rglob("*.safetensors")} == written
        assert ask(place, "repair", 1) == "done"
        found = whole(place)
        gone = {key for key, (record, _) in good.items() if record.shard == shards[0].stem}
        assert_same(found, {k: v for k, v in good.items() if damage == "index" or k not in gone})
        assert litter(place) == []
    record_property("kills", len(chosen))


# -- training ----------------------------------------------------------------------------------


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


def test_a_writer_killed_beside_others_costs_only_its_own(ask, tmp_path, full, record_property):
    delays = range(1, 151) if full else (30,)  # milliseconds
    for delay in delays:
        place = tmp_path / str(delay)
        assert ask(place, "crowd", delay) == "done"
        held = Zoo(place / "zoo")
        found = {record.shard for record in held.records()}
        assert found >= {"all"} | {f"w{number}-{turn}" for number in (1, 2) for turn in range(4)}
        assert all(bool((held.load([r]) == r.provenance["version"]).all()) for r in held.records())
        repair(place / "zoo")
        assert held.verify() == [] and {record.shard for record in held.records()} == found
    record_property("kills", len(delays))
