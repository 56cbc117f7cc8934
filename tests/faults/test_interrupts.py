"""An interrupt at any instant ends every command within seconds: one sentence, code 1, nothing left behind.

The full size sends two hundred of them, half of them while the machine has far more to do than it can.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tests.faults.conftest import FULL
from tests.faults.running import Running, below, litter, lives, members

import weightloom as wl
from weightloom.fitting import initial_flats
from weightloom.generators import Sample

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="looks for processes in /proc, and sends signals"
)

LIMIT = 5.0 if FULL else 30.0
"""Seconds from the signal to the end; the quick size shares its machine with whatever else is tested."""

ARCH = "mlp(depth=1,width=4)"
ZOO = {
    "kind": "zoo", "name": "tiny", "salt": "interrupts", "datasets": ["digits"], "architectures": [ARCH],
    "size": 8, "channels": 3, "initialisation": "independent",
    "fit": {"steps": 20, "batch_size": 16}, "groups": [{"classes": 4, "tasks": 40, "repeats": 2}],
}  # fmt: skip
STATIC = {
    "kind": "generator", "generator": "static_hypernetwork", "name": "static-test",
    "config": {"embedding_size": 8, "block": 4, "task_size": 4, "image_features": 8, "image_width": 8},
    "tasks": {4: 4}, "shots": 4, "queries": 8,
    "loop": {"steps": 400, "warmup": 1, "log_every": 10, "save_every": 10},
}  # fmt: skip
NPM = """#!/bin/sh
echo half > half-a-package.tgz
sleep 50 &
sleep 50
"""


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    """A zoo, a network, recipes, pictures, and a package client that is slow: all read, never written."""
    folder = tmp_path_factory.mktemp("ground")
    small = {**ZOO, "groups": [{"classes": 4, "tasks": 2, "repeats": 2}]}
    wl.build_zoo(wl.ZooRecipe(**small), folder / "zoo")
    (folder / "zoo.yaml").write_text(yaml.safe_dump(ZOO))
    (folder / "static.yaml").write_text(yaml.safe_dump(STATIC))
    spec = wl.parse_architecture("cnn(depth=3,width=16,classes=10,input=3x16x16)")
    Sample(spec, initial_flats(spec, [0])[0], {"task": "digits"}).save(folder / "net.safetensors")
    (folder / "photos").mkdir()
    for number in range(200):
        pixels = np.full((400, 300, 3), number, np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{number}.png")
    client = folder / "bin" / "npm"
    client.parent.mkdir()
    client.write_text(NPM)
    client.chmod(0o755)
    return folder


NET = "{ground}/net.safetensors"
COMMANDS = {
    "info": ("info",),
    "generate": ("generate", "Read digits", "--task", "digits", "--out", "new.safetensors", "--json"),
    "evaluate": ("evaluate", NET, NET, NET, "--task", "digits", "--workers", "2", "--json"),
    "predict": ("predict", NET, "{ground}/photos", "--json"),
    "finetune": (
        "finetune", NET, "--task", "digits", "--steps", "100", "--out", "tuned.safetensors", "--json",
    ),
    "export": ("export", NET, "--task", "digits", "--out", "net.py", "--json"),
    "select": ("select", "--task", "digits", "--budget", "4s", "--out", "best.safetensors", "--json"),
    "zoo build": ("zoo", "build", "{ground}/zoo.yaml", "--out", "zoo", "--workers", "2", "--json"),
    "zoo import": ("zoo", "import", "imported", NET, "--task", "digits", "--json"),
    "train": ("train", "{ground}/static.yaml", "--zoo", "{ground}/zoo", "--out", "static", "--json"),
    "fetch": ("data", "fetch", "mnist", "--json"),
    "stream": ("stream", "--arch", "cnn(depth=4,width=64)", "--task", "digits", "--out", "wide", "--json"),
}  # fmt: skip


def start(name: str, ground: Path, folder: Path) -> Running:
    words = [word.format(ground=ground) for word in COMMANDS[name]]
    path = f"{ground / 'bin'}:{os.environ['PATH']}"
    return Running(*words, folder=folder, env={"PATH": path, "WEIGHTLOOM_CACHE": str(folder / "cache")})


@pytest.fixture(scope="module")
def lasts(ground, tmp_path_factory):
    """Seconds that a command takes from when it watches, up to six, measured once."""
    found: dict[str, float] = {}

    def seconds(name: str) -> float:
        if name not in found:
            with start(name, ground, tmp_path_factory.mktemp("lasts")) as run:
                run.until_watched()
                begun = time.monotonic()
                while run.process.poll() is None and time.monotonic() - begun < 6:
                    time.sleep(0.01)
                found[name] = time.monotonic() - begun
        return found[name]

    return seconds


@pytest.fixture(params=["calm", "crowded"] if FULL else ["calm"])
def crowd(request) -> Iterator[str]:
    """Whether other processes want every processor several times over."""
    count = 3 * (os.cpu_count() or 1) if request.param == "crowded" else 0
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    yield request.param
    for process in busy:
        process.kill()
        process.wait()


def check(run: Running, folder: Path) -> None:
    """One sentence and code 1, or the work was done before the signal came; nothing is left either way."""
    assert "Traceback" not in run.err and "Error" not in run.err, run.err
    lines = run.err.splitlines()
    if run.code == 0:
        assert json.loads(run.out) if run.out.startswith("{") else run.out
        assert not [line for line in lines if line.startswith("weightloom:")], run.err
    else:
        said = [line for line in lines if line.startswith("weightloom: ")]
        assert run.code == 1 and len(said) == 1 and lines[-1] == said[0], (run.code, run.err)
        assert said[0].startswith("weightloom: interrupted; "), run.err
    assert run.left() == []
    assert litter(folder) == []


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_an_interrupt_at_any_instant(name, ground, lasts, crowd, tmp_path, record_property):
    count = 10 if FULL else 1
    whole = lasts(name) if FULL else 2.0
    # From the first instant on; where commands differ is spread over all of their time.
    draw = np.random.default_rng(sorted(COMMANDS).index(name))
    instants = [0.0, *np.sort(draw.uniform(0, whole, count - 1))] if FULL else [draw.uniform(0, whole)]
    slowest, ended = 0.0, 0
    for number, instant in enumerate(instants):
        folder = tmp_path / str(number)
        with start(name, ground, folder) as run:
            run.until_watched()
            time.sleep(float(instant))
            run.signal()
            run.end()
            check(run, folder)
            slowest = max(slowest, run.seconds)
            ended += run.code == 1
    assert slowest < LIMIT, f"it took {slowest:.1f} s"
    record_property("interrupts", len(instants))
    record_property("ended", ended)
    record_property("slowest", round(slowest, 2))


@pytest.mark.parametrize("name", sorted({*COMMANDS} - {"fetch", "zoo build"}) if FULL else ["finetune"])
def test_nothing_is_left_after_the_work(name, ground, tmp_path):
    """What libraries put into the temporary folder when a process imports them counts too."""
    with start(name, ground, tmp_path) as run:
        run.end()
        assert run.code == 0, run.err
        assert run.left() == [] and litter(tmp_path) == []


def test_the_interpreter_s_own_start(tmp_path, record_property):
    """Before our first line an interrupt is Python's: with whatever it says, it ends at once."""
    watched = []
    for instant in [0.0, 0.005, 0.01, 0.02] * (5 if FULL else 1):
        with Running("--version", folder=tmp_path) as run:
            time.sleep(instant)
            run.signal()
            run.end()
            assert run.seconds < LIMIT and run.code in (0, 1, -signal.SIGINT, 130), (run.code, run.err)
            assert run.left() == []
    for _ in range(3):
        with Running("--version", folder=tmp_path) as run:
            begun = time.monotonic()
            assert run.until_watched()
            watched.append(time.monotonic() - begun)
    record_property("watched_after_ms", round(1000 * min(watched)))


def test_while_workers_start(ground, tmp_path, record_property):
    """From the first process that is started to the last one that is at work."""
    slowest = 0.0
    for number in range(12 if FULL else 2):
        folder, others = tmp_path / str(number), 1 + number % 3
        with start("zoo build", ground, folder) as run:
            assert run.until(lambda pid=run.process.pid, least=others: len(members(pid)) > least), run.err
            time.sleep(0.01 * (number % 4))
            run.signal()
            run.end()
            check(run, folder)
            made = (folder / "zoo" / "zoo.sqlite3").exists()  # with the first thing that is known of it
            rest = "what was trained before stays in zoo" if made else "nothing was written"
            assert run.code == 1 and rest in run.err, run.err
        slowest = max(slowest, run.seconds)
        if made:
            assert wl.Zoo(folder / "zoo").verify() == []
    assert slowest < LIMIT
    record_property("slowest", round(slowest, 2))


def test_a_download_that_is_interrupted_or_killed_leaves_nothing(ground, tmp_path):
    """By an interrupt at once, with what the client has started; by SIGKILL when it is begun again."""
    for number in (signal.SIGINT, signal.SIGTERM):
        with start("fetch", ground, tmp_path) as run:
            assert run.until(lambda run=run: list(run.temporary.rglob("half-a-package.tgz")))
            # The client's own sleeper starts a moment after the file is there.
            assert run.until(lambda run=run: len(below(run.process.pid)) >= 2)
            sleepers = below(run.process.pid)
            run.signal(number, group=False)
            run.end()
            check(run, tmp_path)
            assert run.code == 1 and "what is fetched already stays in the cache" in run.err
            assert not [pid for pid in sleepers if lives(pid)], "the client goes on"
    with start("fetch", ground, tmp_path) as run:
        assert run.until(lambda: list(run.temporary.rglob("half-a-package.tgz")))
        assert run.until(lambda: len(below(run.process.pid)) >= 2)
        sleepers = below(run.process.pid)
        run.signal(signal.SIGKILL, group=False)
        run.process.wait()
        for pid in sleepers:
            os.kill(pid, signal.SIGKILL)
    (old,) = (tmp_path / "temporary").iterdir()
    with start("fetch", ground, tmp_path) as run:
        found = run.temporary.rglob
        assert run.until(lambda: [p for p in found("half-a-package.tgz") if old not in p.parents])
        assert not old.exists(), "what the killed one left is still there"
        run.signal()
        run.end()
        check(run, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_end_it_in_the_same_way(number, ground, tmp_path):
    with start("zoo build", ground, tmp_path) as run:
        run.until_watched()
        time.sleep(0.3)
        run.signal(number, group=False)
        run.end()
        check(run, tmp_path)
        assert run.code == 1


def test_a_selection_ends_with_the_best_so_far(tmp_path):
    """The one command that goes on; what it saves is there before it measures."""
    words = ("--task", "digits", "--arch", "mlp(depth=1,width=4)", "--arch", "cnn(depth=1,width=4)")
    files = ("--out", "best.safetensors", "--state", "state.safetensors", "--json")
    with Running("select", *words, "--budget", "600s", *files, folder=tmp_path) as run:
        assert run.until((tmp_path / "state.safetensors").exists), run.err
        run.signal()
        run.end()
    assert run.seconds < LIMIT and "Traceback" not in run.err and run.left() == []
    if run.code == 0:
        assert json.loads(run.out)["interrupted"] is True
    else:  # it could not be measured in the time that is left for it
        assert run.code == 1 and run.err.startswith("weightloom: interrupted; written before: ")
    assert torch.isfinite(wl.load_network(tmp_path / "best.safetensors").head.weight).all()


def test_little_is_imported_before_interrupts_are_heard():
    program = (
        "import sys\nbefore = set(sys.modules)\nfrom weightloom.cli import interrupts\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    wanted = {"__future__", "faulthandler", "weightloom", "weightloom.cli"}
    wanted |= {"weightloom.cli.interrupts", "weightloom.unfinished"}
    assert set(done.stdout.split()) <= wanted


def test_a_job_in_the_background_goes_on(tmp_path):
    """Whoever starts a command with interrupts ignored, as a shell does for ``&``, means it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "weightloom.cli", "--version"], stdout=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, before)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and out.startswith("weightloom ")


def test_a_progress_bar_is_cleared(ground, tmp_path):
    """On a terminal the sentence stands alone in its line, and the cursor is there again."""
    ours, theirs = os.openpty()
    words = [word.format(ground=ground) for word in COMMANDS["zoo build"]]
    env = os.environ | {"TERM": "xterm", "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "weightloom.cli", *words], cwd=tmp_path, env=env,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=theirs, start_new_session=True,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)
    os.close(theirs)
    text = b""
    try:
        while b"\x1b[?25l" not in text:  # the bar hides the cursor
            text += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=120)
        while True:
            text += os.read(ours, 4096)
    except OSError:  # the other end is closed, and all is read
        pass
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    last = text.rpartition(b"\r\x1b[2K")[2].decode()
    assert last.startswith("\x1b[?25hweightloom: interrupted; ") and last.count("\n") == 1, text
    assert process.returncode == 1 and text.count(b"interrupted") == 1


STUCK = """
import sys, time
sys.argv = ["weightloom", "info"]
import weightloom.cli.info as room
{what}
from weightloom.cli.__main__ import main
room._everything = stuck
print("ready", file=sys.stderr, flush=True)
main()
"""
HOLDS_UP = {
    "swallows it": "def stuck():\n    while True:\n        try:\n            time.sleep(60)\n"
    "        except BaseException:\n            pass",
    "in a long call": "import hashlib\ndef stuck():\n    hashlib.pbkdf2_hmac('sha256', b'a', b'b', 1 << 30)",
    "in a deletion": "class Slow:\n    def __del__(self):\n        time.sleep(60)\ndef stuck():\n    Slow()",
}


@pytest.mark.parametrize("how", sorted(HOLDS_UP))
def test_nothing_holds_it_up(how, tmp_path):
    """What Python's own exception would not get through."""
    script = tmp_path / "stuck.py"
    script.write_text(STUCK.format(what=HOLDS_UP[how]))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        assert process.stderr is not None and process.stderr.readline() == "ready\n"
        time.sleep(1.5)
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert time.monotonic() - begun < LIMIT
    assert (process.returncode, err) == (1, "weightloom: interrupted; nothing was written\n")


LATE = """
import sys, time
import weightloom.cli.finetune as room
from weightloom.cli.__main__ import main

def late(*_):
    print("saved", flush=True)
    time.sleep(60)

room.emit = late
sys.argv = {words}
main()
"""


def test_a_sentence_says_what_was_written(ground, tmp_path):
    """An interrupt after the file is in its place does not say that nothing was written."""
    script = tmp_path / "late.py"
    out = tmp_path / "out.safetensors"
    words = ["weightloom", "finetune", str(ground / "net.safetensors"), "--task", "digits", "--steps", "2"]
    script.write_text(LATE.format(words=[*words, "--out", str(out), "--json"]))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        assert process.stdout is not None and process.stdout.readline() == "saved\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert err == f"weightloom: interrupted; written before: {out}\n"
    assert torch.isfinite(wl.load_network(out).head.weight).all()
