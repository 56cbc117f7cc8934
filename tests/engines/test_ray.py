"""Ray gives what this machine gives, bit for bit, also where a worker is killed; a sentence without Ray."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import find_ray
from tests.engines.recipe import RECIPE

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


def _busy(root):
    """Processes below ``root`` in which Ray is at one of our jobs: it says so in their titles."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = []
    for process in parents:
        above = process
        while above in parents and above != root:
            above = parents[above]
        try:
            title = Path(f"/proc/{process}/cmdline").read_bytes()
        except OSError:
            continue
        if above == root and title.startswith(b"ray::_call_there"):
            found.append(process)
    return found
