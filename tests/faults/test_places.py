"""A full disk, a folder that cannot be written, a clock that goes back: clear errors, nothing lost."""

from __future__ import annotations

import os
import resource
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from tests.faults.writers import SPEC, flat_of, record_of, tiny_generator, train

from weightloom.architectures import parse_architecture
from weightloom.errors import WeightloomError
from weightloom.fitting import initial_flats
from weightloom.generators.load import load_generator, save_generator
from weightloom.training.loop import LoopSettings, run_loop
from weightloom.zoo import Zoo

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs the limits and users of a Unix system")


@contextmanager
def full_disk(most):
    """No file can grow beyond ``most`` bytes meanwhile, which to a writer is a full disk.

    Lifted before the test ends: a log that pytest writes to may be larger than that.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def small_zoo(tmp_path):
    zoo = Zoo(tmp_path / "zoo", create=True)
    zoo.add("s1", SPEC, flat_of(1)[None], [record_of(SPEC, "s1", 1)])
    return zoo


def test_a_zoo_on_a_full_disk(small_zoo):
    large = parse_architecture("mlp(depth=1,width=512,classes=3,input=1x8x8)")
    with full_disk(1 << 16), pytest.raises(WeightloomError, match="cannot write") as caught:
        small_zoo.add("s2", large, initial_flats(large, [0]), [record_of(large, "s2", 2)])
    assert caught.value.exit_code == 1
    assert [record.shard for record in small_zoo.records()] == ["s1"]
    assert small_zoo.verify() == [] and not list((small_zoo.path / "shards").glob("*.tmp-*"))


def test_an_index_on_a_full_disk(small_zoo):
    with full_disk(1 << 16), pytest.raises(WeightloomError, match="index cannot be used now") as caught:
        small_zoo.set_about("recipe", "x" * (1 << 18))
    assert caught.value.exit_code == 1
    assert small_zoo.about() == {} and small_zoo.verify() == []


def test_a_training_on_a_full_disk_keeps_its_last_state(tmp_path):
    model, limit = torch.nn.Linear(256, 256), ExitStack()

    def objective(step):
        if step == 2:
            limit.enter_context(full_disk(1 << 16))
        return model(torch.ones(1, 256)).square().mean(), {}

    settings = LoopSettings(steps=4, warmup=0, log_every=1, save_every=1)
    with limit, pytest.raises(WeightloomError, match="cannot write"):
        run_loop("a square", model, objective, settings, folder=tmp_path)
    log = run_loop("a square", model, lambda step: (model.weight.sum(), {}), settings, folder=tmp_path)
    assert [entry["step"] for entry in log] == [1, 2, 3, 4]


def test_a_generator_on_a_full_disk(tmp_path):
    save_generator(tiny_generator(1), tmp_path)
    with full_disk(1 << 10), pytest.raises(WeightloomError, match="cannot write"):
        save_generator(tiny_generator(2), tmp_path)
    assert load_generator(tmp_path).name == "version-1"


@pytest.fixture
def shared():
    """A folder that everybody can read, outside pytest's own, which are private."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    yield place
    for entry in (place, *place.rglob("*")):
        if entry.is_dir():
            entry.chmod(0o755)
    shutil.rmtree(place)


def test_a_read_only_folder(ask, shared):
    for kind in ("sample", "result", "generator", "zoo"):
        assert ask(shared, kind, 1) == "done"
    for entry in (shared, *shared.rglob("*")):
        if entry.is_dir():
            entry.chmod(0o555)
    before = {path: path.read_bytes() for path in shared.rglob("*") if path.is_file()}
    for kind in ("sample", "result", "generator", "training", "zoo"):
        answer = ask(shared, kind, 2, "nobody")
        assert answer.startswith("error InputError: cannot write"), answer
    assert ask(shared, "read-zoo", 1, "nobody") == "done", "a zoo that cannot be written can be read"
    assert {path: path.read_bytes() for path in shared.rglob("*") if path.is_file()} == before


def test_a_clock_that_goes_back(tmp_path, monkeypatch):
    """Nothing that is read or resumed goes by the clock or by the times of files."""
    now = [2e9]

    def backwards():
        now[0] -= 1e6
        return now[0]

    train(tmp_path, 0)
    monkeypatch.setattr(time, "time", backwards)
    zoo = Zoo(tmp_path / "zoo", create=True)
    for version in range(1, 4):
        zoo.add(f"s{version}", SPEC, flat_of(version)[None], [record_of(SPEC, f"s{version}", version)])
        save_generator(tiny_generator(version), tmp_path / "generator")
        for entry in tmp_path.rglob("*"):
            os.utime(entry, (2e9 - 1e8 * version, 2e9 - 1e8 * version))
    assert zoo.verify() == [] and len(zoo.records()) == 3
    assert load_generator(tmp_path / "generator").name == "version-3"
    for entry in (tmp_path / "run-0").iterdir():
        os.utime(entry, (0, 0))
    train(tmp_path, 0)  # goes on from its last state, after which there is nothing to do
