from __future__ import annotations

import pytest
import torch
import yaml
from tests.consolidation.conftest import small, small_state  # noqa: F401
from tests.generators.test_consolidated import RECIPE

from weightloom.io import load_tensors


@pytest.fixture
def folder(call, small, tmp_path):  # noqa: F811
    recipe = tmp_path / "three.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE.model_dump()))
    call("train", recipe, "--out", tmp_path / "made", "--json").json
    return tmp_path / "made"


def test_from_a_recipe_to_a_checkpoint(call, folder, tmp_path):
    out = tmp_path / "birds.safetensors"
    answer = call("generate", "the bird network", "--generator", folder, "--out", out, "--json").json
    assert (answer["checkpoint"], answer["similarity"]) == ("small", pytest.approx(1, abs=1e-4))
    assert len(answer["runners_up"]) == 2 and answer["package"] == "weightloom-small-zoo==1.0"
    tensors, _ = load_tensors(out)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: tensor.shape for name, tensor in small_state().items()
    }
    assert torch.equal(tensors["steps"], small_state()["steps"])
    described = call("info", folder, "--json").json
    assert [c["name"] for c in described["checkpoints"]] == ["small", "near", "plain"]
    for words in (("generate", "the bird network", "--generator", folder), ("info", folder), ("info", out)):
        assert call(*words).code == 0


def test_what_cannot_be_asked_is_one_sentence(call, folder, small):  # noqa: F811
    options = ("--generator", folder)
    assert "found by an instruction" in call("generate", *options).sentence(2)
    assert "holds nothing like" in call("generate", "translate Latin poems", *options).sentence(2)
    assert "comes as it is" in call("generate", "birds", "--task", "digits", *options).sentence(2)
    data = bytearray((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").write_bytes(data[:-1])
    assert "model.safetensors" in call("generate", "the bird network", *options).sentence(2)
    small["plain"].locate().unlink()
    recipe = folder.parent / "three.yaml"
    said = call("train", recipe, "--out", folder.parent / "again").sentence(1)
    assert "pip install --no-deps 'weightloom-small-zoo==1.0'" in said
