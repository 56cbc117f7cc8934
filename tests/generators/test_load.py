"""Generators by name: bundled, a directory, a hub; and everything that is none of these."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from weightloom.errors import CheckpointError, DataUnavailableError, UnknownNameError
from weightloom.generators import load


@pytest.fixture
def folder(igpg, tmp_path):
    igpg.save_pretrained(tmp_path / "mine")
    return tmp_path / "mine"


def test_a_directory_by_text_or_path(folder, monkeypatch):
    assert load.load_generator(folder).name == load.load_generator(str(folder)).name == "tiny"
    monkeypatch.chdir(folder.parent)
    assert load.load_generator("mine").name == load.load_generator("./mine").name == "tiny"


def test_bundled_names_come_first(folder, tmp_path, monkeypatch, resolved):
    monkeypatch.setattr(load, "BUNDLED", tmp_path / "bundled")
    assert load.bundled_names() == []
    shutil.copytree(folder, tmp_path / "bundled" / "tiny-one")
    (tmp_path / "bundled" / "rubbish").mkdir()
    assert load.bundled_names() == ["tiny-one"]
    assert torch.isfinite(load.load_generator("tiny-one").generate(resolved()).flat).all()
    with pytest.raises(UnknownNameError, match="did you mean 'tiny-one'"):
        load.load_generator("tiny-onee")


@pytest.mark.parametrize(
    "name", ["nobody", "", "../x/y", "/nowhere/at/all", "a/b/c", "x" * 5000, "two\nlines"]
)
def test_names_that_nobody_has(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UnknownNameError, CheckpointError)):
        load.load_generator(name)


def test_the_hub_that_does_not_answer():
    with pytest.raises(DataUnavailableError, match="'somebody/something' is neither bundled"):
        load.load_generator("somebody/something")


@pytest.mark.parametrize("config", ["[]", "3", '{"kind": "unicorn"}', '{"kind": 3}', "{}", "{", ""])
def test_a_directory_of_something_else(tmp_path, config):
    with pytest.raises(CheckpointError):
        load.load_generator(tmp_path)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointError):
        load.load_generator(tmp_path)


def test_a_baseline_is_made_not_loaded(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"kind": "nearest"}))
    with pytest.raises(CheckpointError, match="is made, not loaded"):
        load.load_generator(tmp_path)
