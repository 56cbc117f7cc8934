"""Nothing is left in the temporary folder by any command, whether it does its work or fails."""

from __future__ import annotations

import tempfile

import pytest


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """A temporary folder that this test has for itself."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def words(request, network, generator, zoo, recipe, photos, tmp_path):
    places = {
        "network": network, "generator": generator, "zoo": zoo, "recipe": recipe, "photos": photos,
        "out": tmp_path / "out",
    }  # fmt: skip
    return [word.format(**places) for word in request.param.split()]


WORK = [
    "info",
    "info {network} {zoo}",
    "generate --generator {generator} --task digits --arch mlp(depth=1,width=4) --out {out}.safetensors",
    "evaluate {network} {network} --task digits --workers 2",
    "predict {network} {photos} --reject 0.9",
    "finetune {network} --task digits --steps 2 --out {out}.safetensors --plot {out}.png",
    "select --generator {generator} --data {photos} --budget 1s --shots 2 --state {out}.safetensors",
    "zoo build {recipe} --out {out} --workers 2",
    "zoo list {zoo}",
    "zoo verify {zoo}",
    "zoo import {out} {network} --task digits",
    "data show digits --out {out}.png",
    "data fetch digits",
    "map {zoo} --generator {generator} --samples 1 --plot {out}.png",
    "audit {generator} --zoo {zoo} --samples 2 --tasks 1 --images 20 --workers 2",
]
FAIL = [
    "info nowhere.safetensors",
    "generate --generator {generator} --task digits --arch mlp(depth=9,width=9)",
    "evaluate {network} --task digits[1,2]",
    "finetune {network} --task nothing",
    "predict {network} {recipe}",
    "evaluate {network} --test-data {photos}",
    "zoo build {network} --out {out}",
    "zoo import {out} {recipe}",
    "audit {generator} --zoo {photos} --workers 2",
    "audit {generator} --zoo {zoo} --samples 2 --task mnist --workers 2",
    "train {recipe} --zoo {zoo} --out {out}",
]


@pytest.mark.parametrize("words", WORK, indirect=True)
def test_after_work(call, words, temporary):
    answer = call(*words)
    assert answer.code == 0, answer.err
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("words", FAIL, indirect=True)
def test_after_a_failure(call, words, temporary):
    answer = call(*words)
    assert answer.code != 0 and "Traceback" not in answer.err
    assert list(temporary.iterdir()) == []
