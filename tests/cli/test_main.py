"""The face of the command line: which commands and flags there are, how it starts and how it fails."""

from __future__ import annotations

import errno
import resource
import sqlite3
import subprocess
import sys
import time

import pytest
import typer
from tests.faults.running import Running

from weightloom.cli.failures import explain
from weightloom.cli.main import app

FACE = {
    "generate": {
        "INSTRUCTION", "--task", "--data", "--skip-broken", "--arch", "--classes", "--generator", "--samples",
        "--seed",
        "--shots", "--temperature", "--top-k", "--top-p", "--guidance",
        "--batch-norm", "--out", "--plot", "--steps", "--compare",
        "--no-compare", "--explain", "--json", "--unlabelled", "--budget", "--max-params", "--target",
    },
    "evaluate": {
        "FILE...", "--task", "--data", "--test-data", "--skip-broken", "--arch", "--key", "--workers",
        "--engine", "--address", "--json",
    },
    "predict": {
        "FILE", "PICTURES...", "--top", "--reject", "--skip-broken", "--arch", "--key", "--csv", "--json",
    },
    "finetune": {
        "FILE", "--task", "--data", "--skip-broken", "--arch", "--key", "--budget", "--steps", "--lr",
        "--batch-size", "--seed", "--out", "--plot", "--from-random", "--json",
    },
    "export": {
        "FILE", "--out", "--to", "--int8", "--max-loss", "--probabilities", "--task", "--data",
        "--skip-broken", "--arch", "--key", "--json",
    },
    "stream": {
        "--arch", "--out", "--task", "--data", "--skip-broken", "--generator", "--shots", "--seed",
        "--shard-mb", "--overwrite", "--json", "INSTRUCTION",
    },
    "select": {
        "--task", "--data", "--skip-broken", "--budget", "--arch", "--generator", "--instruction",
        "--samples", "--shots", "--seed", "--out", "--plot", "--state", "--json",
    },
    "zoo build": {"RECIPE", "--out", "--workers", "--engine", "--address", "--json"},
    "zoo list": {
        "DIR", "--arch", "--task", "--dataset", "--split", "--classes", "--min-accuracy", "--final",
        "--not-final", "--limit", "--json",
    },
    "zoo show": {"DIR", "ID", "--json"},
    "zoo verify": {"DIR", "--json"},
    "zoo repair": {"DIR", "--json"},
    "zoo import": {
        "DIR", "SOURCES...", "--task", "--arch", "--match", "--format", "--key", "--epochs", "--accuracy",
        "--strict", "--dry-run", "--json",
    },
    "zoo export": {"DIR", "ID", "--out", "--json"},
    "train": {
        "RECIPE", "--zoo", "--out", "--objective", "--task", "--data", "--skip-broken", "--arch", "--shots",
        "--seed", "--json",
    },
    "audit": {
        "GENERATOR", "--zoo", "--samples", "--tasks", "--arch", "--task", "--images", "--seed", "--out",
        "--plot", "--work", "--workers", "--engine", "--address", "--json",
    },
    "bench": {
        "--out", "--generator", "--zoo", "--tasks", "--seeds", "--samples", "--images", "--finetuned",
        "--epoch-steps", "--arch", "--dataset", "--quick", "--workers", "--engine", "--address", "--json",
    },
    "map": {
        "ZOO", "--generator", "--arch", "--samples", "--method", "--seed", "--out", "--plot", "--json",
    },
    "data list": {"--json"},
    "data fetch": {"NAMES...", "--all", "--json"},
    "data show": {"TASK", "--data", "--skip-broken", "--out", "--shots", "--json"},
    "info": {"X...", "--arch", "--key", "--json"},
}  # fmt: skip


def commands():
    """Every command with its words."""

    def walk(group, words):
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from walk(command, [*words, name])
            else:
                yield " ".join([*words, name]), command

    return dict(walk(typer.main.get_command(app), []))


def flags(command):
    found = set()
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            found.add(parameter.metavar)
        else:
            found |= {*parameter.opts, *parameter.secondary_opts}
    return found - {"--help", "-h"}


def test_the_face_is_pinned():
    assert {name: flags(command) for name, command in commands().items()} == FACE


@pytest.mark.parametrize("name", sorted(FACE))
def test_every_help_has_an_example(call, name):
    answer = call(*name.split(), "--help")
    assert answer.code == 0
    assert f"weightloom {name}" in " ".join(answer.out.split())
    for flag in FACE[name]:
        assert flag in answer.out


def run(*arguments, code=0, **options):
    done = subprocess.run(
        [sys.executable, "-m", "weightloom.cli", *arguments],
        capture_output=True,
        timeout=60,
        check=False,
        **options,
    )
    assert done.returncode == code, (done.returncode, done.stderr)
    return done


def test_help_starts_at_once_and_without_torch():
    program = (
        "import sys\n"
        "from weightloom.cli.main import app\n"
        "try:\n    app(['--help'], prog_name='weightloom')\n"
        "except SystemExit as end:\n    assert end.code == 0, end.code\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'PIL', 'yaml', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "import weightloom\n"
        "dir(weightloom)\n"
        "assert 'torch' not in sys.modules\n"
        "assert weightloom.parse_architecture('mlp').family == 'mlp' and 'torch' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=60)
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    # The promise is 0.5 s on an idle machine; of the processor's time, which a busy one makes longer too.
    assert min(times) < 1.5, times


def test_the_public_face():
    import weightloom

    assert set(weightloom._HOME) == set(weightloom.__all__) - {"__version__"}
    for name in weightloom.__all__:
        assert getattr(weightloom, name) is not None
    assert weightloom.tasks.parse_task is weightloom.parse_task
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = weightloom.nonsense


def test_version(call):
    import weightloom

    assert call("--version").out == f"weightloom {weightloom.__version__}\n"


def test_usage_mistakes(call):
    assert "did you mean 'generate'" in call("genrate").sentence(2).lower()
    assert "--out" in call("generate", "--outt", "x").sentence(2)
    assert "missing" in call("zoo", "build").sentence(2)
    bare = call()
    assert bare.code == 2 and "generate" in bare.out + bare.err and "Traceback" not in bare.err


@pytest.mark.parametrize(
    ("error", "sentence", "code"),
    [
        (KeyboardInterrupt(), "interrupted; ", 1),
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on device", 1),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "a"),
            "a: no such file or directory",
            2,
        ),
        (sqlite3.OperationalError("database or disk is full"), "disk is full", 1),
        (sqlite3.DatabaseError("file is not a database"), "index is broken", 2),
        (MemoryError(), "not enough memory", 1),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), "not enough memory", 1),
        (ZeroDivisionError("division by zero"), "WEIGHTLOOM_DEBUG=1", 1),
    ],
)
def test_every_error_is_a_sentence(error, sentence, code):
    said, given = explain(error)
    assert sentence in said and given == code and "\n" not in said


def test_surprises(call, monkeypatch):
    import weightloom.cli.info as room

    def surprise():
        raise ZeroDivisionError("a surprise\nof two lines")

    monkeypatch.setattr(room, "_everything", surprise)
    assert "ZeroDivisionError: a surprise" in call("info").sentence(1)
    monkeypatch.setenv("WEIGHTLOOM_DEBUG", "1")
    from typer.testing import CliRunner

    with pytest.raises(ZeroDivisionError):
        CliRunner().invoke(app, ["info"], catch_exceptions=False)


def test_no_sentence_is_endless(call):
    assert len(call("evaluate", "x" * 100_000, "--task", "digits").sentence(2)) < 1100


def test_an_interrupt(call, monkeypatch):
    import weightloom.cli.info as room

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(room, "_everything", interrupted)
    assert call("info").sentence(1) == "interrupted; nothing was written"


def test_arguments_that_are_no_text():
    done = run("generate", b"\xff\xfe digits", "--task", "digits", code=2)
    assert b"weightloom: the instruction is not text" in done.stderr and b"Traceback" not in done.stderr
    done = run("info", b"\xff\xfe", code=2)
    assert done.stdout == b"" and b"Traceback" not in done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
def test_ctrl_c_from_a_terminal(recipe, tmp_path):
    """The signal reaches the workers too: still one sentence, no traceback, and the zoo is whole."""
    slow = tmp_path / "slow.yaml"
    slow.write_text(recipe.read_text().replace("steps: 5", "steps: 100000").replace("tasks: 2", "tasks: 40"))
    zoo = tmp_path / "zoo"
    with Running("zoo", "build", slow, "--out", zoo, "--workers", "2", folder=tmp_path) as build:
        assert build.until((zoo / "zoo.sqlite3").exists), build.end().err
        time.sleep(1.0)
        build.signal()
        build.end()
        assert build.code == 1 and build.out == ""
        assert build.err.startswith("weightloom: interrupted; ") and build.err.count("\n") == 1, build.err
        assert build.left() == []
    run("zoo", "verify", zoo)
