"""``weightloom bench``: a whole leaderboard at tiny size, and mistakes that are found before any work."""

from __future__ import annotations

import json

import pytest

QUICK = ("--quick", "--images", "40", "--epoch-steps", "1")


def test_a_leaderboard_of_a_zoo(call, zoo, generator, tmp_path):
    out = tmp_path / "bench"
    told = call("bench", "--zoo", zoo, "--generator", generator, "--out", out, *QUICK, "--json").json
    names = {entry["name"] for entry in told["table"]}
    assert {"tiny-test", "nearest", "average", "random-init", "diffusion", "ghn"} <= names
    assert (out / "leaderboard.png").is_file() and "# Leaderboard" in (out / "leaderboard.md").read_text()
    assert json.loads((out / "leaderboard.json").read_text())["ground"] == "test-zoo"
    # The same again takes everything from the cells, and prints a table.
    kept = {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    answer = call("bench", "--zoo", zoo, "--generator", generator, "--out", out, *QUICK)
    assert answer.code == 0 and "seen tasks" in answer.out
    assert {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()} == kept


def test_a_recipe_stands_for_a_zoo_that_is_elsewhere(call, recipe, generator, tmp_path):
    told = call("bench", "--zoo", recipe, "--generator", generator, "--out", tmp_path / "b", *QUICK, "--json")
    assert told.json["ground"] == "test-zoo"


def cells_of(out):
    """What is kept, but for timings and what is only on the way."""
    found = [json.loads(path.read_text()) for path in (out / "cells").iterdir()]
    return {
        json.dumps(one["key"]): one["result"] for one in found if one["key"]["what"] not in ("speed", "usual")
    }


@pytest.mark.parametrize(("engine", "by_recipe"), [("local", False), ("local", True), ("ray", False)])
def test_several_workers_measure_the_same(call, zoo, recipe, generator, tmp_path, request, engine, by_recipe):
    if engine == "ray":
        request.getfixturevalue("ray_here")
    command = ("bench", "--zoo", recipe if by_recipe else zoo, "--generator", generator, *QUICK, "--json")
    one = call(*command, "--out", tmp_path / "one").json
    two = call(*command, "--out", tmp_path / "two", "--workers", "2", "--engine", engine).json
    assert cells_of(tmp_path / "one") == cells_of(tmp_path / "two") and len(cells_of(tmp_path / "two")) > 10
    assert one["trials"] == two["trials"]
    for mine, other in zip(one["table"], two["table"], strict=True):
        assert mine["figures"] == other["figures"]


def test_mistakes(call, zoo, generator, tmp_path):
    out = ("--out", tmp_path / "bench")
    assert "no unseen dataset" in call(
        "bench", "--zoo", zoo, "--generator", generator, *out, "--dataset", "digits"
    ).sentence(2)
    assert "seeds" in call("bench", *out, "--seeds", "0").sentence(2)
    assert "zoo-tiny" in call("bench", *out, "--zoo", "zoo-tinny").sentence(2)
    assert "not those of" in call("bench", *out, "--zoo", "zoo-duo").sentence(2)
    taken = tmp_path / "file"
    taken.write_text("")
    assert "is a file" in call("bench", "--out", taken).sentence(2)
    assert not (tmp_path / "bench").exists()
