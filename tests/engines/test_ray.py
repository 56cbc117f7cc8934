"""Ray gives what this machine gives, bit for bit, also where a worker is killed; a sentence without Ray."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml
from tests.conftest import find_ray
from tests.engines.recipe import RECIPE
from tests.faults.running import Running, below, command_of, lives

from weightloom.engines import open_engine
from weightloom.engines.base import about_worker
from weightloom.errors import DataUnavailableError, InputError, TrainingError
from weightloom.zoo import ZooRecipe, build_zoo
from weightloom.zoo.build import train_shard


def test_without_ray_there_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DataUnavailableError, match=r"pip install 'weightloom\[ray\]'"):
        open_engine("ray")


@pytest.fixture(scope="module")
def cluster():
    """A Ray of this machine's own, two jobs at a time."""
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        find_ray(patch)
        with open_engine("ray", workers=2) as engine:
            yield engine


def test_an_address_where_nothing_answers_is_a_sentence():
    pytest.importorskip("ray")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]  # nothing listens
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
            with pytest.raises(InputError, match=f"no Ray cluster at {address} .*refused"):
                open_engine("ray", address=address)
    for address in ("nowhere", "127.0.0.1:", ""):
        with pytest.raises(InputError, match="an address is HOST:PORT"):
            open_engine("ray", address=address)


def test_nothing_is_imported_from_the_folder_that_it_is_called_in(tmp_path):
    pytest.importorskip("ray")
    # Torch imports it where there is one.
    (tmp_path / "opt_einsum.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\n")
    code = (
        "from weightloom.engines import open_engine\n"
        "from weightloom.engines.base import about_worker\n"
        "with open_engine('ray', workers=1) as engine:\n"
        "    print(list(engine.map(about_worker, [{}])))\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        find_ray(patch)
        patch.setenv("PYTHONSAFEPATH", "1")  # -c alone would import from there
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "process" in done.stdout, done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["opt_einsum.py"]


def test_jobs_are_answered_by_other_processes(cluster):
    found = dict(cluster.map(about_worker, [{}] * 5))
    assert sorted(found) == list(range(5)) and list(cluster.map(about_worker, [])) == []
    assert os.getpid() not in {answer["process"] for answer in found.values()}


def test_what_a_job_raises_keeps_its_type_and_its_sentence(cluster):
    apart = {**RECIPE, "initialisation": "independent", "fit": {"steps": 3, "learning_rate": 1.0}}
    payload = {
        "recipe": apart,
        "shard": "a",
        "architecture": "mlp(depth=1,width=4)",
        "group": "0",
        "tasks": ["digits@8c1"],
        "starts": {},
    }
    shared = {**payload, "recipe": RECIPE, "starts": {"digits": [float("inf")] * 310}}
    with pytest.raises(TrainingError, match="not finite at step 1"):
        list(cluster.map(train_shard, [payload, shared]))


def test_a_killed_worker_costs_its_task_alone(cluster, tmp_path):
    plain = build_zoo(ZooRecipe(**RECIPE), tmp_path / "plain")
    killed = []

    def shoot(what, done, total):
        busy = [process for process in _busy(os.getpid()) if process not in killed]
        if len(killed) < 2 and busy:
            killed.append(busy[-1])
            os.kill(busy[-1], signal.SIGKILL)

    zoo = build_zoo(ZooRecipe(**RECIPE), tmp_path / "ray", shoot, engine=cluster)
    assert killed, "nobody was at work"
    assert zoo.records() == plain.records() and zoo.about() == plain.about() and zoo.verify() == []
    files = {p.name: p.read_bytes() for p in (zoo.path / "shards").iterdir()}
    assert files == {p.name: p.read_bytes() for p in (plain.path / "shards").iterdir()}


def test_another_version_elsewhere_is_refused(cluster, monkeypatch):
    import weightloom.engines.ray as room

    monkeypatch.setattr(room, "versions", lambda: {"weightloom": "9.9.9", "torch": "1.0"})
    with pytest.raises(InputError, match=r"has weightloom .* this machine weightloom 9.9.9 and torch 1.0"):
        list(cluster.map(about_worker, [{}]))


DRIVER = """
import sys, time
from weightloom.engines import open_engine
from weightloom.engines.base import about_worker

with open_engine("ray", workers=2) as engine:
    list(engine.map(about_worker, [{}] * 2))
    print("ready", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", ["well", "SIGTERM", "SIGKILL"])
def test_ray_ends_with_its_driver(how, record_property):
    """Its agents too, which Ray itself leaves behind; and nothing stays in the temporary folder."""
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(dir="/tmp") as place:
        find_ray(patch)
        patch.setenv("TMPDIR", place)
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            start_new_session=True, cwd=place,
        )  # fmt: skip
        try:
            assert driver.stdout is not None and driver.stdin is not None
            assert driver.stdout.readline() == "ready\n"
            started = _below(driver.pid)
            assert any("raylet" in command for _, command in started), started
            if how == "well":
                driver.stdin.write("end\n")
                driver.stdin.flush()
            else:
                driver.send_signal(getattr(signal, how))
            driver.wait(timeout=120)
            begun = time.monotonic()
            while left := [command for process, command in started if lives(process)]:
                assert time.monotonic() - begun < 60, left
                time.sleep(0.05)
            record_property("seconds", round(time.monotonic() - begun, 1))
            while os.listdir(place):
                assert time.monotonic() - begun < 60, os.listdir(place)
                time.sleep(0.05)
        finally:
            driver.kill()
            driver.communicate()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize("instant", [0.2, 1.0, 3.0, 6.0, 10.0])
def test_an_interrupt_ends_a_command_and_its_ray(instant, tmp_path):
    """While Ray starts, and while it works."""
    pytest.importorskip("ray")
    endless = {**RECIPE, "initialisation": "independent", "fit": {"steps": 1_000_000}}
    (tmp_path / "endless.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(endless))))
    with pytest.MonkeyPatch.context() as patch:
        find_ray(patch)
        words = ("zoo", "build", tmp_path / "endless.yaml", "--out", tmp_path / "zoo", "--engine", "ray")
        with Running(*words, "--workers", "2", folder=tmp_path) as run:
            run.until_watched()
            time.sleep(instant)
            started = _below(run.process.pid)
            run.signal(group=False)
            run.end()
            assert run.code == 1 and run.err.count("\n") == 1, run.err
            assert run.err.startswith("weightloom: interrupted; "), run.err
            assert run.seconds < 30
            begun = time.monotonic()
            while left := [command for process, command in started if lives(process)]:
                assert time.monotonic() - begun < 60, left
                time.sleep(0.05)
            assert run.left() == []


def _below(root):
    """Processes below ``root``, with their commands."""
    return [(process, command_of(process)) for process in below(root)]


def _busy(root):
    """Processes below ``root`` in which Ray is at one of our jobs: it says so in their titles."""
    found = []
    for process in below(root):
        try:
            title = Path(f"/proc/{process}/cmdline").read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::_call_there"):
            found.append(process)
    return found
