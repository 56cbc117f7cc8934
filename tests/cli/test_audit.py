"""audit with several workers: the same report, bit for bit."""

from __future__ import annotations

import json
import os
import sys

import pytest
from tests.cli.conftest import RECIPE

from weightloom.zoo import Zoo, ZooRecipe, build_zoo


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """Three training tasks of the networks that the tiny generator makes, three networks of each."""
    recipe = {**RECIPE, "groups": ({"classes": 4, "tasks": 3, "repeats": 3},)}
    return build_zoo(ZooRecipe(**recipe), tmp_path_factory.mktemp("audited") / "zoo").path


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_several_workers_find_the_same(call, larger, generator, tmp_path, monkeypatch, engine):
    if engine == "ray":
        pytest.importorskip("ray")
        # Ray's workers start anew: they find the package where this process has it, and are not put last.
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        monkeypatch.setenv("RAY_worker_niceness", "0")
    sizes = ("--samples", "3", "--tasks", "2", "--images", "200")
    command = ("audit", generator, "--zoo", larger, *sizes, "--json")
    one = call(*command).json
    two = call(*command, "--workers", "2", "--engine", engine).json
    assert {**one, "seconds": 0} == {**two, "seconds": 0} and len(
        {row["task"] for row in one["networks"]}
    ) > 1
    # With a folder, what is there already is not measured again.
    work = tmp_path / "work"
    three = call(*command, "--work", work, "--workers", "2", "--engine", engine).json
    cells = {path: path.stat().st_mtime_ns for path in work.iterdir()}
    for path in cells:
        held = json.loads(path.read_text())
        if held["key"]["what"] == "audited":
            held["result"]["rows"] = held["result"]["rows"][:-1]
            path.write_text(json.dumps(held))
            break
    four = call(*command, "--work", work, "--workers", "2", "--engine", engine).json
    assert three["networks"] == one["networks"] and len(four["networks"]) == len(one["networks"]) - 1


def test_workers_that_find_something_else_say_so(call, larger, generator, tmp_path, monkeypatch):
    real = Zoo.load
    monkeypatch.setattr(Zoo, "load", lambda self, records: real(self, records) + 1)  # in this process alone
    command = ("audit", generator, "--zoo", larger, "--samples", "2", "--workers", "2")
    assert "other checkpoints" in call(*command).sentence(2)
