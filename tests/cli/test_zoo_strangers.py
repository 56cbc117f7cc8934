"""A zoo from a stranger: every command that opens one refuses it in one sentence, and soon."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.zoo.strangers import PLACES, SCHEMAS

import weightloom
from weightloom.zoo import Zoo


@pytest.fixture
def copy(zoo, tmp_path):
    shutil.copytree(zoo, tmp_path / "copy")
    (tmp_path / "outside").write_bytes(b"mine")
    return tmp_path / "copy"


@pytest.fixture
def commands(zoo, copy, recipe, network, generator, tmp_path):
    """Every command that opens a zoo, on the copy."""
    name = Zoo(zoo).records()[0].id
    return {
        "list": ("zoo", "list", copy),
        "list filtered": ("zoo", "list", copy, "--final", "--arch", "mlp(depth=1,width=4)"),
        "show": ("zoo", "show", copy),
        "show one": ("zoo", "show", copy, name),
        "verify": ("zoo", "verify", copy),
        "repair": ("zoo", "repair", copy),
        "export": ("zoo", "export", copy, name, "--out", tmp_path / "a.safetensors"),
        "import": ("zoo", "import", copy, network),
        "import dry": ("zoo", "import", copy, network, "--dry-run"),
        "build": ("zoo", "build", recipe, "--out", copy),
        "info": ("info", copy),
        "train": ("train", "layerwise-tiny", "--zoo", copy, "--out", tmp_path / "out"),
        "map": ("map", copy, "--generator", generator, "--samples", "0"),
        "audit": ("audit", generator, "--zoo", copy),
        "bench": ("bench", "--zoo", copy, "--generator", generator, "--out", tmp_path / "bench"),
    }


def state_of(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.fixture
def no_longer_than():
    """SIGALRM ends the test: not from inside SQLite, but between two rows."""

    def late(*_):
        raise AssertionError("it goes on for ever")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "what",
    [
        "a view in place of the checkpoints", "a trigger that empties the zoo", "a trigger on deleting",
        "one more view", "a virtual table",
    ],
)  # fmt: skip
def test_what_no_zoo_holds_is_refused_by_every_command(call, copy, commands, what, no_longer_than):
    SCHEMAS[what](copy)
    before = state_of(copy)
    for name, command in commands.items():
        sentence = call(*command).sentence(2)
        assert "no zoo has one" in sentence, (name, sentence)
    assert state_of(copy) == before, "nothing is run, and nothing is lost"


@pytest.mark.parametrize("what", ["an endless view of checkpoints", "an endless view of shards"])
def test_an_endless_view_is_refused_by_every_command(call, copy, commands, what, no_longer_than):
    """In another process first, which can be ended where this one could not."""
    SCHEMAS[what](copy)
    source = str(Path(weightloom.__file__).parents[1])
    first = subprocess.run(
        [sys.executable, "-m", "weightloom.cli", "zoo", "list", str(copy)],
        env=os.environ | {"PYTHONPATH": source}, cwd=copy, timeout=90, capture_output=True, check=False,
    )  # fmt: skip
    assert first.returncode == 2 and b"no zoo has one" in first.stderr
    for name, command in commands.items():
        assert "no zoo has one" in call(*command).sentence(2), name


@pytest.mark.parametrize("what", ["an index with an expression", "a generated column", "one more table"])
def test_another_schema_is_refused_and_can_be_repaired(call, zoo, copy, commands, what):
    SCHEMAS[what](copy)
    for name, command in commands.items():
        if name != "repair":
            assert "is no zoo's" in call(*command).sentence(2), name
    assert "kept in" in call("zoo", "repair", copy).out
    assert Zoo(copy).records() == Zoo(zoo).records() and call("zoo", "verify", copy).code == 0


@pytest.mark.parametrize("what", PLACES)
def test_what_is_no_plain_file(call, copy, commands, what, tmp_path, no_longer_than):
    PLACES[what](copy)
    for name in ("verify", "export", "train", "import", "repair"):
        answer = call(*commands[name])
        if name == "repair" and any(word in what for word in ("beside", "log", "journal")):
            assert answer.code == 0 and "kept in" in answer.out  # it is put aside
        else:
            assert any(words in answer.sentence(2) for words in ("plain", "lies beside")), (name, answer)
    assert (tmp_path / "outside").read_bytes() == b"mine"


def test_a_shard_that_leads_out(call, copy, commands, tmp_path):
    shard = sorted((copy / "shards").iterdir())[0]
    os.replace(shard, tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    answer = call("zoo", "verify", copy)
    assert answer.code == 1 and "plain file" in answer.out
    assert "plain file" in call(*commands["train"]).sentence(2)
    assert "kept in" in call("zoo", "repair", copy).out and (tmp_path / "elsewhere").is_file()
