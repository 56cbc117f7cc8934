"""Processes of this machine: every job is answered once, whoever dies; failures keep their sentence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.engines.recipe import RECIPE

import weightloom
from weightloom import errors
from weightloom.engines import engines, open_engine
from weightloom.engines.base import TRIES, about_worker, answer_of, call_job
from weightloom.errors import InputError, TrainingError, UnknownNameError, WeightloomError
from weightloom.zoo import ZooRecipe, build_zoo
from weightloom.zoo.build import train_shard


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The zoo that this process makes alone."""
    return build_zoo(ZooRecipe(**RECIPE), tmp_path_factory.mktemp("plain") / "zoo")


@pytest.fixture
def same(plain):
    """Fails unless a zoo has the very bytes of the plain one, and its rows."""

    def check(zoo):
        assert zoo.records() == plain.records() and zoo.about() == plain.about()
        files = {p.name: p.read_bytes() for p in (zoo.path / "shards").iterdir()}
        assert files == {p.name: p.read_bytes() for p in (plain.path / "shards").iterdir()}
        assert zoo.verify() == []

    return check


def test_engines_are_found_by_name():
    assert engines.names() == ["local", "ray"]
    with pytest.raises(UnknownNameError, match="did you mean 'local'"):
        open_engine("locla")
    with pytest.raises(InputError, match="belongs to the engine ray"):
        open_engine("local", address="localhost:6379")
    with pytest.raises(InputError, match="workers must be a whole number from 1 to 1,024"):
        open_engine("local", workers=0)


def test_one_worker_is_this_process_and_several_are_others():
    with open_engine("local") as engine:
        assert list(engine.map(about_worker, [{}] * 2)) == [(n, {"process": os.getpid()}) for n in range(2)]
    with open_engine("local", workers=2) as engine:
        assert list(engine.map(about_worker, [])) == []
        first = dict(engine.map(about_worker, [{}] * 5))
        assert sorted(first) == list(range(5))
        found = {answer["process"] for answer in first.values()}
        assert os.getpid() not in found and 1 <= len(found) <= 2
        again = {answer["process"] for _, answer in engine.map(about_worker, [{}] * 4)}
        assert len(found | again) <= 2, "workers stay between maps"
        assert engine.processes() == []
    for process in found | again:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_a_name_of_no_job_is_not_called():
    for name in ("os:getpid", "weightloom.zoo.build:build_zoo", "weightloom.nowhere:job"):
        with pytest.raises((InputError, RuntimeError), match=r"no job|unknown job|ModuleNotFound"):
            answer_of(call_job(name, {}))


@pytest.mark.parametrize(
    "error",
    [
        TrainingError("the loss is not finite"),
        errors.CheckpointError("zoo/a", "is broken"),
        UnknownNameError("dataset", "digitz", ["digits"]),
        OSError(28, "No space left on device", "zoo/a"),
        KeyError("a defect"),
    ],
)
def test_what_a_job_raises_keeps_its_type_and_its_sentence(monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr("weightloom.zoo.build._train_shard", fail)
    payload = {"recipe": RECIPE, "shard": "", "architecture": "", "group": "", "tasks": [], "starts": {}}
    with pytest.raises((WeightloomError, OSError, RuntimeError)) as caught:
        answer_of(call_job("weightloom.zoo.build:train_shard", payload))
    family = isinstance(error, WeightloomError | OSError)
    assert type(caught.value) is (type(error) if family else RuntimeError)
    assert str(error) in str(caught.value) and "in fail" in caught.value.__notes__[0]


def test_a_failed_job_ends_the_map_and_its_workers():
    broken = {"recipe": {**RECIPE, "datasets": ("digitz",)}}
    with open_engine("local", workers=2) as engine:
        with pytest.raises(RuntimeError, match="digitz"):
            list(engine.map(train_shard, [broken] * 3))
        assert engine.processes() == []
        assert len(list(engine.map(about_worker, [{}] * 3))) == 3, "and the engine still works"


def test_a_killed_worker_costs_its_task_alone(plain, same, tmp_path):
    """Two workers are shot while they train; their shards are made again, and all are the same."""
    killed, told = [], []

    def shoot(what, done, total):
        told.append((what, done))
        busy = engine.processes()
        if len(killed) < 2 and busy:
            killed.append(busy[-1])
            os.kill(busy[-1], signal.SIGKILL)

    with open_engine("local", workers=2) as engine:
        same(build_zoo(ZooRecipe(**RECIPE), tmp_path / "zoo", shoot, engine=engine))
    assert len(set(killed)) == 2
    names = [what for what, _ in told]
    assert len(names) == len(set(names)) + 4, "the start is told of step by step, every other shard once"


def test_a_job_that_ends_its_worker_every_time_is_given_up(monkeypatch):
    import weightloom.engines.local as room

    dead = []
    real = room._start

    def start():
        worker = real()
        worker.process.kill()
        worker.process.join()
        dead.append(worker)
        return worker

    monkeypatch.setattr(room, "_start", start)
    with open_engine("local", workers=2) as engine:
        with pytest.raises(WeightloomError, match=f"ended its worker {TRIES} times"):
            list(engine.map(about_worker, [{}] * 2))
    assert TRIES <= len(dead) <= 2 * (TRIES + 1)


BUILD = """
import sys, threading, time
from weightloom.engines import open_engine
from weightloom.zoo import ZooRecipe, build_zoo

if __name__ == "__main__":
    with open_engine("local", workers=2) as engine:
        def tell():
            while len(engine.processes()) < 2:
                time.sleep(0.05)
            print(*engine.processes(), flush=True)
        threading.Thread(target=tell).start()
        build_zoo(ZooRecipe(**RECIPE), sys.argv[1], engine=engine)
"""


def test_workers_do_not_outlive_a_killed_build(tmp_path):
    endless = {**RECIPE, "initialisation": "independent", "fit": {"steps": 1_000_000}}
    script = tmp_path / "build.py"
    script.write_text(f"RECIPE = {endless!r}\n{BUILD}")
    env = os.environ | {"PYTHONPATH": str(Path(weightloom.__file__).parents[1])}
    parent = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "zoo")], stdout=subprocess.PIPE, text=True, env=env
    )
    assert parent.stdout is not None
    with parent:
        workers = [int(text) for text in parent.stdout.readline().split()]
        assert len(workers) == 2
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while any(_lives(worker) for worker in workers):
        assert time.monotonic() < deadline, "a worker goes on without the build"
        time.sleep(0.05)


def _lives(process):
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # dead; whoever inherited it has not looked yet
