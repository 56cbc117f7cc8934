"""Zoos are what their recipe says, built once, resumed without loss, the same by any number of workers."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
import yaml

import weightloom
from weightloom.architectures import parse_architecture
from weightloom.errors import InputError, TrainingError, WeightloomError
from weightloom.fitting import accuracy, initial_flats
from weightloom.weights import layout_of
from weightloom.zoo import Zoo, build_zoo
from weightloom.zoo.build import start_network, with_head


def contents(zoo):
    """Every record with its weights."""
    return {record.id: (record, zoo.load([record])[0]) for record in zoo.records()}


def assert_same(a, b):
    a, b = contents(a), contents(b)
    assert a.keys() == b.keys()
    for key, (record, flat) in a.items():
        assert record == b[key][0]
        assert torch.equal(flat, b[key][1]), key


def test_a_zoo_holds_what_its_recipe_says(built, recipe):
    assert built.about()["recipe"] == recipe().model_dump(mode="json")
    for text in recipe().architectures:
        records = built.records(architecture=text)
        start = [r for r in records if r.split == "start"]
        assert len(start) == 1 and start[0].accuracy is None and start[0].task == ""
        trained = [r for r in records if r.split != "start"]
        # (2 tasks x 2 repeats + 1 task) x 2 snapshots
        assert len(trained) == 10 and {r.step for r in trained} == {2, 4}
        assert [r.final for r in trained] == [r.step == 4 for r in trained]
        assert len({r.task for r in trained if r.classes == 3}) == 2
        assert {r.split for r in trained if r.classes == 4} == {"held-out-order"}
        assert {r.split for r in trained if r.classes == 3} == {"train"}
        assert all(0 <= r.accuracy <= 1 and r.loss > 0 for r in trained)
        assert all(r.spec().classes == r.classes == r.parsed_task().num_classes for r in trained)
    assert len({r.id for r in built.records()}) == len(built.records())
    assert built.verify() == []


def test_the_index_tells_the_truth(built):
    record = built.records(classes=3, final=True, architecture="cnn(depth=1,width=4)")[0]
    images, labels = record.parsed_task().data("test").all()
    assert float(accuracy(record.spec(), built.load([record]), images, labels)[0]) == record.accuracy


def test_repeats_differ_and_learn_from_their_common_start(built):
    text = "mlp(depth=1,width=4)"
    records = built.records(architecture=text, split="train", final=True)
    flats = built.load(records)
    by_task = {}
    for record, flat in zip(records, flats, strict=True):
        by_task.setdefault(record.task, []).append(flat)
    for first, second in by_task.values():
        assert not torch.equal(first, second)
    start = start_network(built, records[0].spec())
    layout = layout_of(records[0].spec())
    head = layout.unflatten(start)["head.weight"]
    assert torch.equal(head, torch.zeros_like(head))
    fresh = initial_flats(records[0].spec(), [0, 1])
    trunk = layout.slot_of_value < len(layout.slots) - 2
    assert (flats - start)[:, trunk].norm(dim=1).max() < (fresh - start)[:, trunk].norm(dim=1).min()


def test_with_head_keeps_the_trunk():
    source, target = (parse_architecture(f"cnn(depth=1,width=4,classes={c},input=1x8x8)") for c in (3, 5))
    flat = initial_flats(source, [0])[0]
    a, b = layout_of(source).unflatten(flat), layout_of(target).unflatten(with_head(source, flat, target))
    for name, value in b.items():
        if name.startswith("head"):
            assert not bool(value.any()) and value.shape[0] == 5
        else:
            assert torch.equal(value, a[name])


def test_another_architecture_has_no_start(built):
    with pytest.raises(InputError, match="no common start for cnn"):
        start_network(built, parse_architecture("cnn(depth=1,width=8,classes=3,input=1x8x8)"))


def test_a_built_zoo_is_not_trained_again(built, recipe, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(built.path, copy)
    before = {file.name: file.stat().st_mtime_ns for file in (copy / "shards").iterdir()}
    calls = []
    build_zoo(recipe(), copy, lambda what, done, total: calls.append((done, total)))
    assert {file.name: file.stat().st_mtime_ns for file in (copy / "shards").iterdir()} == before
    assert calls[-1][0] == calls[-1][1]


def test_a_lost_shard_alone_is_made_again_and_the_same(built, recipe, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(built.path, copy)
    with closing(sqlite3.connect(copy / "zoo.sqlite3")) as db, db:
        (last,) = db.execute("SELECT name FROM shards ORDER BY rowid DESC LIMIT 1").fetchone()
        db.execute("DELETE FROM checkpoints WHERE shard = ?", (last,))
        db.execute("DELETE FROM shards WHERE name = ?", (last,))
    before = {file.name: file.stat().st_mtime_ns for file in (copy / "shards").iterdir()}
    assert_same(build_zoo(recipe(), copy), built)
    after = {file.name: file.stat().st_mtime_ns for file in (copy / "shards").iterdir()}
    assert {name for name in after if after[name] != before[name]} == {f"{last}.safetensors"}


def test_an_interrupted_build_goes_on_to_the_same_zoo(built, recipe, tmp_path):
    class Enough(Exception):
        pass

    def stop_after(what, done, total):
        if done > total // 2:
            raise Enough

    with pytest.raises(Enough):
        build_zoo(recipe(), tmp_path / "zoo", stop_after)
    half = Zoo(tmp_path / "zoo")
    assert half.verify() == [] and 0 < len(half.records()) < len(built.records())
    assert_same(build_zoo(recipe(), tmp_path / "zoo"), built)


def test_workers_make_the_same_zoo(recipe, tmp_path):
    calls = []
    one = recipe(architectures=("cnn(depth=1,width=4)",))
    zoo = build_zoo(one, tmp_path / "two", lambda *step: calls.append(step), workers=2)
    assert_same(zoo, build_zoo(one, tmp_path / "one"))
    assert calls[-1][1] == calls[-1][2] and [c[1] for c in calls] == sorted(c[1] for c in calls)


def test_progress_counts_up_to_the_total(recipe, tmp_path, rng_untouched):
    calls = []
    only = recipe(architectures=("mlp(depth=1,width=4)",), groups=({"classes": 3, "tasks": 1},))
    build_zoo(only, tmp_path / "zoo", lambda *step: calls.append(step))
    done = [c[1] for c in calls]
    assert done == sorted(done) and done[-1] == calls[-1][2] == 4 * 2 + 4


def test_independent_networks_start_apart(recipe, tmp_path):
    apart = recipe(
        architectures=("mlp(depth=1,width=4)",),
        initialisation="independent",
        groups=({"classes": 3, "tasks": 1, "repeats": 2},),
        fit={"steps": 1, "batch_size": 8, "learning_rate": 1e-4},
    )
    zoo = build_zoo(apart, tmp_path / "zoo")
    assert {r.split for r in zoo.records()} == {"train"}
    first, second = zoo.load(zoo.records())
    assert (first - second).norm() > 0.5


def test_canonical_groups_take_the_whole_dataset(recipe, tmp_path):
    whole = recipe(
        architectures=("mlp(depth=1,width=4)",),
        initialisation="independent",
        groups=({"classes": 10, "tasks": 1, "canonical": True},),
    )
    records = build_zoo(whole, tmp_path / "zoo").records(final=True)
    assert [r.parsed_task().class_names for r in records] == [list("0123456789")]


def test_a_zoo_of_another_recipe_is_refused(built, recipe, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(built.path, copy)
    with pytest.raises(InputError, match=r"holds a zoo of another recipe \('tiny'\)"):
        build_zoo(recipe(seed=1), copy)
    assert_same(Zoo(copy), built)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"groups": ({"classes": 3, "tasks": 1}, {"classes": 11, "tasks": 1})}, "11"),
        ({"groups": ({"classes": 10, "tasks": 1, "split": "held-out-subset"},)}, "has class subsets of"),
        ({"architectures": ("mlp(depth=1,width=4)", "tinycnn(variant=small)")}, "needs pictures of at least"),
        ({"start": {"tasks": 2, "classes": 11, "steps": 1}}, "11"),
        ({"datasets": ("digits", "mnist")}, "mnist"),
    ],
)
def test_a_recipe_that_cannot_be_built_leaves_nothing_behind(recipe, tmp_path, monkeypatch, changes, words):
    monkeypatch.setenv("WEIGHTLOOM_CACHE", str(tmp_path / "cache"))
    for place in (tmp_path / "zoo", tmp_path / "there" / "zoo"):
        with pytest.raises(WeightloomError, match=words):
            build_zoo(recipe(**changes), place)
        assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == []
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "notes.txt").write_text("mine")
    with pytest.raises(WeightloomError, match=words):
        build_zoo(recipe(**changes), tmp_path / "zoo")
    assert [file.name for file in (tmp_path / "zoo").iterdir()] == ["notes.txt"]
    corrected = recipe(architectures=("mlp(depth=1,width=4)",), groups=({"classes": 3, "tasks": 1},))
    assert build_zoo(corrected, tmp_path / "zoo").verify() == []


@pytest.mark.parametrize("existed", [False, True])
def test_a_first_shard_that_cannot_be_trained_leaves_nothing_behind(recipe, tmp_path, monkeypatch, existed):
    place = tmp_path / "zoo"
    if existed:
        place.mkdir()
    seen = []

    def explode(*_):
        seen.append((place / "zoo.sqlite3").exists())
        raise TrainingError("the loss is not finite")

    with monkeypatch.context() as patch:
        patch.setattr("weightloom.zoo.build._train_shard", explode)
        with pytest.raises(TrainingError):
            build_zoo(recipe(), place)
    assert seen == [True] and place.exists() == existed and (not existed or list(place.iterdir()) == [])
    small = recipe(architectures=("mlp(depth=1,width=4)",), groups=({"classes": 3, "tasks": 1},))
    assert build_zoo(small, place).verify() == []


def test_a_zoo_without_networks_takes_another_recipe(recipe, tmp_path):
    """As an earlier version left it where a recipe was refused."""
    zoo = Zoo(tmp_path / "zoo", create=True)
    zoo.set_about("recipe", recipe(seed=7).model_dump(mode="json"))
    small = recipe(architectures=("mlp(depth=1,width=4)",), groups=({"classes": 3, "tasks": 1},))
    assert build_zoo(small, zoo.path).recipe() == small.model_dump(mode="json")
    with pytest.raises(InputError, match="another recipe"):
        build_zoo(recipe(seed=7), zoo.path)


def test_a_zoo_that_lost_its_recipe_gets_it_back(built, recipe, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(built.path, copy)
    with closing(sqlite3.connect(copy / "zoo.sqlite3")) as db, db:
        db.execute("DELETE FROM about")
        db.execute("DELETE FROM seals WHERE name LIKE 'about/%'")
    assert build_zoo(recipe(), copy).about() == built.about() and Zoo(copy).verify() == []


THREADS = {
    "architectures": ("cnn(depth=2,width=8)", "mlp(depth=1,width=16)"),
    "size": 16,
    "initialisation": "independent",
    "fit": {"steps": 3, "batch_size": 128},
    "groups": ({"classes": 4, "tasks": 2},),
    "members_at_once": 2,
}
"""Large enough for torch to divide its sums among threads: with two of them the bits were others."""


def test_the_threads_of_a_process_change_no_bit(recipe, tmp_path):
    before = torch.get_num_threads()
    try:
        zoos = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            zoos.append(build_zoo(recipe(**THREADS), tmp_path / str(threads)))
            assert torch.get_num_threads() == threads, "the caller's threads are given back"
    finally:
        torch.set_num_threads(before)
    assert_same(*zoos)


@pytest.mark.slow
def test_omp_num_threads_changes_no_bit(recipe, tmp_path):
    """Whoever trains: this process or its workers."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(**THREADS).model_dump(mode="json")))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    one = build_zoo(recipe(**THREADS), tmp_path / "one")
    torch.set_num_threads(before)
    files = {file.name: file.read_bytes() for file in (one.path / "shards").iterdir()}
    assert len(files) == 2
    runs = {}
    for threads, workers in ((2, 1), (3, 2)):
        variables = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        variables["PYTHONPATH"] = str(Path(weightloom.__file__).parents[1])
        place = tmp_path / f"{threads}-{workers}"
        command = [sys.executable, "-m", "weightloom.cli", "zoo", "build", "recipe.yaml", "--out", str(place)]
        command += ["--workers", str(workers)]
        runs[place] = subprocess.Popen(
            command, env=os.environ | variables, cwd=tmp_path, stdout=subprocess.DEVNULL
        )
    for place, run in runs.items():
        assert run.wait() == 0
        assert_same(Zoo(place), one)
        assert {file.name: file.read_bytes() for file in (place / "shards").iterdir()} == files


def test_a_loss_that_explodes_ends_the_build_and_keeps_what_is_done(recipe, tmp_path, monkeypatch):
    real = initial_flats

    def broken(spec, seeds):
        flats = real(spec, seeds)
        return flats * float("inf") if spec.family == "cnn" else flats

    monkeypatch.setattr("weightloom.zoo.build.initial_flats", broken)
    with pytest.raises(TrainingError, match="not finite"):
        build_zoo(recipe(initialisation="independent"), tmp_path / "zoo")
    zoo = Zoo(tmp_path / "zoo")
    assert zoo.verify() == [] and {r.spec().family for r in zoo.records()} == {"mlp"}
