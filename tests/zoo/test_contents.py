from __future__ import annotations

import json

import pytest
import torch

from weightloom.errors import CheckpointError
from weightloom.io import save_tensors, write_shards
from weightloom.zoo.contents import contents_of, format_of


def test_one_form_for_every_format(tmp_path):
    tensors = {"body.weight": torch.randn(3, 2), "head.bias": torch.randn(3)}
    save_tensors(tmp_path / "a", tensors, {"note": "x"})
    torch.save(tensors, tmp_path / "b")
    torch.save(tensors, tmp_path / "c", _use_new_zipfile_serialization=False)
    plan = {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}
    write_shards(tmp_path / "d", plan, tensors.items(), shard_bytes=30)
    (tmp_path / "e").mkdir()
    torch.save({"body.weight": tensors["body.weight"]}, tmp_path / "e" / "pytorch_model-00001-of-00002.bin")
    torch.save({"head.bias": tensors["head.bias"]}, tmp_path / "e" / "pytorch_model-00002-of-00002.bin")
    where = {
        "body.weight": "pytorch_model-00001-of-00002.bin",
        "head.bias": "pytorch_model-00002-of-00002.bin",
    }
    (tmp_path / "e" / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    for name in ("a", "b", "c", "d", "e", "d/model.safetensors.index.json", "e/pytorch_model.bin.index.json"):
        contents = contents_of(tmp_path / name)
        assert {n: stored.shape for n, stored in contents.tensors.items()} == {
            n: tuple(value.shape) for n, value in tensors.items()
        }
        assert torch.equal(contents.load(["head.bias"])["head.bias"], tensors["head.bias"]), name
        assert list(contents.load(["head.bias"])) == ["head.bias"]
        assert list(contents.not_finite()) == [] and contents.dictionaries() == {".": 2}
    assert [format_of(tmp_path / n) for n in "abcde"] == [
        "safetensors",
        "pytorch",
        "pytorch",
        "shards",
        "shards",
    ]


def test_dictionaries_become_parts_of_names(tmp_path):
    moments = {"exp_avg": torch.ones(1)}
    value = {
        "a.b": {"c": torch.ones(2)},
        "list": [1, {"d": torch.ones(3)}, (torch.ones(4),)],
        7: moments,
        "e": 3,
    }
    torch.save(value, tmp_path / "x")
    contents = contents_of(tmp_path / "x")
    assert {name: (stored.shape, stored.container) for name, stored in contents.tensors.items()} == {
        "a.b.c": ((2,), "a.b"), "list.1.d": ((3,), "list.1"), "list.2.0": ((4,), "list.2"),
        "7.exp_avg": ((1,), "7"),
    }  # fmt: skip
    assert contents.places["list.1"].parent == "list" and contents.places[""].entries["e"] == 3
    torch.save(torch.ones(2), tmp_path / "x")
    assert list(contents_of(tmp_path / "x").tensors) == ["tensor"]


@pytest.mark.parametrize("file", ["x.pt", "x.safetensors", "folder"])
def test_values_that_are_not_finite_are_named(tmp_path, file):
    from safetensors.torch import save_file

    tensors = {
        "a": torch.tensor([1.0, torch.nan]),
        "b": torch.ones(2),
        "c": torch.tensor(torch.inf).bfloat16(),
    }
    if file == "folder":
        (tmp_path / "folder").mkdir()
        save_file(tensors, tmp_path / "folder" / "model.safetensors")
    elif file.endswith(".pt"):
        torch.save({"net": tensors, "z": torch.tensor([1j * torch.inf])}, tmp_path / file)
    else:
        save_file(tensors, tmp_path / file)
    broken = list(contents_of(tmp_path / file).not_finite())
    assert broken == (["net.a", "net.c", "z"] if file == "x.pt" else ["a", "c"])


def test_a_dictionary_in_many_places(tmp_path):
    state = {"w": torch.ones(2)}
    torch.save({"a": state, "b": state, "c": [state]}, tmp_path / "x")
    assert list(contents_of(tmp_path / "x").tensors) == ["a.w", "b.w", "c.0.w"]
    value = [torch.ones(1)]
    for _ in range(60):
        value = [value, value]  # 2^60 paths lead to one tensor
    torch.save({"steps": [(n, n) for n in range(20_000)], "w": value}, tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"dictionaries with tensors|names of more than"):
        contents_of(tmp_path / "x")
    ring: dict = {"w": torch.ones(1)}
    ring["self"] = ring
    torch.save(ring, tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"dictionaries with tensors|names of more than"):
        contents_of(tmp_path / "x")


def test_what_it_costs_to_have_nothing(tmp_path):
    torch.save({"w": [torch.ones(1)], "loss": [0.5] * 100_000}, tmp_path / "x")
    assert list(contents_of(tmp_path / "x").tensors) == ["w.0"]
    torch.save({"a": {"w": torch.ones(1)}, "a.w": torch.ones(2)}, tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"two tensors of one name, 'a.w'"):
        contents_of(tmp_path / "x")
