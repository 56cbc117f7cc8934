from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.consolidation.conftest import small, small_forward, small_inputs, small_state  # noqa: F401

from weightloom.consolidation.catalogue import Published
from weightloom.consolidation.compress import relative_error
from weightloom.errors import CheckpointError, InputError, UnknownNameError
from weightloom.generators.consolidated import Consolidated, is_consolidated
from weightloom.io import load_tensors, parse_json
from weightloom.training.consolidated import build
from weightloom.training.recipe import ConsolidatedRecipe

RECIPE = ConsolidatedRecipe(
    kind="generator",
    generator="consolidated",
    name="three",
    checkpoints=["near", "small", "plain"],
    settings={"calibration": 128, "tuning": 64, "target": 0.01},
)


@pytest.fixture
def made(small: dict[str, Published], tmp_path: Path) -> Path:  # noqa: F811
    build(RECIPE, tmp_path / "made", lambda *_: None)
    return tmp_path / "made"


def test_a_paraphrase_finds_the_checkpoint(made: Path, tmp_path: Path) -> None:
    model = Consolidated.from_pretrained(made)
    assert is_consolidated(made) and not is_consolidated(tmp_path)
    sample = model.generate("a tiny net that tells birds apart")
    assert sample.report["checkpoint"] == "small"
    assert 0.5 < sample.report["similarity"] < 1
    assert {m["checkpoint"] for m in sample.report["runners_up"]} == {"near", "plain"}
    assert model.generate("forecast the weather of tomorrow").report["checkpoint"] == "plain"
    assert model.generate("near").report["checkpoint"] == "near"
    true, x = small_state(), small_inputs("evaluation", 100, None, {})
    assert relative_error(small_forward(sample.state_dict, x), small_forward(true, x)) < 0.015
    assert sample.report["bits_per_weight"] < 16


def test_what_is_saved_is_what_was_made(made: Path, tmp_path: Path) -> None:
    sample = Consolidated.from_pretrained(made).generate("the bird network")
    tensors, metadata = load_tensors(sample.save(tmp_path / "birds.safetensors"))
    assert all(torch.equal(tensors[name], sample.state_dict[name]) for name in small_state())
    assert parse_json("x", metadata["report"].encode(), what="report")["checkpoint"] == "small"


def test_nothing_alike_is_said(made: Path) -> None:
    model = Consolidated.from_pretrained(made)
    with pytest.raises(InputError, match="three holds nothing like 'translate Latin poems'; the nearest are"):
        model.generate("translate Latin poems")
    with pytest.raises(InputError, match="the instruction is empty"):
        model.generate("  ")
    with pytest.raises(UnknownNameError, match="did you mean 'small'"):
        model.state("smal")


def test_a_broken_file_is_one_sentence(made: Path) -> None:
    model = Consolidated.from_pretrained(made)
    for part in ("header", "stream", "shorts", "whole"):
        kept = model.packed["small"][part]
        for wrong in (kept[:-4], torch.cat([kept, kept[:4]])):
            model.packed["small"][part] = wrong
            with pytest.raises(CheckpointError, match="the checkpoint small is broken"):
                model.state("small")
        model.packed["small"][part] = kept
    (made / "config.json").write_text('{"kind": "consolidated", "name": "x", "checkpoints": [{}]}')
    with pytest.raises(CheckpointError, match="is not the config of consolidated checkpoints"):
        Consolidated.from_pretrained(made)
