from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from weightloom.errors import CheckpointError, InputError
from weightloom.io import (
    load_rows,
    read_shards,
    save_tensors,
    shards,
    shards_metadata,
    verify_folder,
    write_shards,
)
from weightloom.io.atomic import atomic_folder
from weightloom.io.shards import INDEX_FILE, ONE_FILE

PLAN = {
    "count": ((), torch.int64),
    "a.weight": ((5, 3), torch.float32),
    "a.bias": ((5,), torch.float32),
    "b.weight": ((2, 5, 2), torch.float32),
}


def tensors():
    generator = torch.Generator().manual_seed(0)
    made = {name: torch.randn(shape, generator=generator) for name, (shape, _) in PLAN.items()}
    return made | {"count": torch.tensor(3)}


def in_pieces(values):
    for name, value in values.items():
        yield from ((name, part) for part in (value.split(2) if value.dim() else [value]))


@pytest.mark.parametrize("block", [16, 40, 1 << 20])
@pytest.mark.parametrize(("shard_bytes", "files"), [(1 << 20, 1), (100, 2), (1, 4)])
def test_what_is_written_in_pieces_is_read_by_us_and_by_the_library(
    tmp_path, shard_bytes, files, block, monkeypatch
):
    monkeypatch.setattr(shards, "BLOCK_BYTES", block)
    wanted = tensors()
    names = write_shards(
        tmp_path / "x", PLAN, in_pieces(wanted), metadata={"format": "pt"}, shard_bytes=shard_bytes
    )
    many = [f"model-{i:05d}-of-{files:05d}.safetensors" for i in range(1, files + 1)]
    assert names == (many if files > 1 else ["model.safetensors"])
    found = dict(read_shards(tmp_path / "x"))
    theirs = {}
    for name in names:
        theirs |= safetensors.torch.load_file(tmp_path / "x" / name)
        with safetensors.safe_open(tmp_path / "x" / name, "pt") as handle:
            assert handle.metadata() == {"format": "pt"}
    for read in (found, theirs):
        assert read.keys() == wanted.keys()
        assert all(torch.equal(read[name], wanted[name]) for name in wanted)
    assert shards_metadata(tmp_path / "x")["format"] == "pt"
    assert set(verify_folder(tmp_path / "x")) == {*names, *([INDEX_FILE] if files > 1 else [])}
    if files > 1:
        index = json.loads((tmp_path / "x" / INDEX_FILE).read_text())
        assert index["weight_map"].keys() == wanted.keys()
        assert index["metadata"]["total_size"] == sum(value.nbytes for value in wanted.values())


@pytest.mark.parametrize(
    "change",
    [
        lambda pieces: pieces[:-1],
        lambda pieces: [*pieces, ("more", torch.zeros(1))],
        lambda pieces: [pieces[1], pieces[0], *pieces[2:]],
        lambda pieces: [(name, part.double()) if part.dim() else (name, part) for name, part in pieces],
        lambda pieces: [*pieces[:1], ("a.weight", torch.zeros(6, 3)), *pieces[4:]],
        lambda pieces: [*pieces[:1], ("a.weight", torch.zeros(0, 3)), *pieces[1:]],
        lambda pieces: [*pieces[:1], ("a.weight", torch.zeros(5, 4)), *pieces[4:]],
    ],
)
def test_pieces_that_do_not_fit_the_plan_leave_nothing(tmp_path, change):
    with pytest.raises(InputError, match=r"expected|not part of the plan"):
        write_shards(tmp_path / "x", PLAN, change(list(in_pieces(tensors()))))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("block", [16, 1 << 20])
@pytest.mark.parametrize("name", ["a.weight", "a.bias", "b.weight"])
def test_values_that_are_not_finite_leave_nothing(tmp_path, name, block, monkeypatch):
    monkeypatch.setattr(shards, "BLOCK_BYTES", block)
    broken = tensors()
    broken[name][1] = torch.nan
    with pytest.raises(CheckpointError, match=f"tensor '{name}' has values that are not finite"):
        write_shards(tmp_path / "x", PLAN, in_pieces(broken))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("block", [16, 1 << 20])
def test_pieces_may_share_one_memory(tmp_path, block, monkeypatch):
    """None is held when the next one is asked for."""
    monkeypatch.setattr(shards, "BLOCK_BYTES", block)

    def pieces():
        memory = torch.empty(1, 3)
        for row in range(5):
            yield "a", memory.fill_(row)

    write_shards(tmp_path / "x", {"a": ((5, 3), torch.float32)}, pieces())
    assert dict(read_shards(tmp_path / "x"))["a"].tolist() == [[row] * 3 for row in range(5)]


def test_types_of_every_width_go_together(tmp_path):
    types = (torch.bool, torch.uint8, torch.bfloat16, torch.float16, torch.float64, torch.int16, torch.int64)
    wanted = {str(number): torch.arange(3).to(dtype) for number, dtype in enumerate(types)}
    plan = {name: (tuple(value.shape), value.dtype) for name, value in wanted.items()}
    write_shards(tmp_path / "x", plan, iter(wanted.items()))
    found = dict(read_shards(tmp_path / "x"))
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_an_index_over_one_file_is_read_and_replaced(tmp_path):
    """As earlier versions wrote it."""
    place, wanted = tmp_path / "x", tensors()
    name = "model-00001-of-00001.safetensors"
    index = {"metadata": {"a": "b"}, "weight_map": dict.fromkeys(PLAN, name)}
    with atomic_folder(place) as folder:
        save_tensors(folder / name, wanted)
        (folder / INDEX_FILE).write_text(json.dumps(index))
    found = dict(read_shards(place))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert shards_metadata(place) == {"a": "b"}
    write_shards(place, PLAN, in_pieces(wanted), overwrite=True)
    assert not (place / INDEX_FILE).exists() and dict(read_shards(place)).keys() == wanted.keys()


def test_one_file_goes_before_an_index_as_in_the_hubs_libraries(tmp_path):
    write_shards(tmp_path / "x", PLAN, in_pieces(tensors()), shard_bytes=100)
    save_tensors(tmp_path / "x" / ONE_FILE, {"other": torch.zeros(2)}, {"c": "d"})
    assert list(dict(read_shards(tmp_path / "x"))) == ["other"]
    assert shards_metadata(tmp_path / "x") == {"c": "d"}


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "model.bin", "model-1-of-1.safetensors", 3, None, "a/b"]
)
def test_an_index_names_shards_beside_it_only(tmp_path, name):
    write_shards(tmp_path / "x", PLAN, in_pieces(tensors()), shard_bytes=100)
    (tmp_path / "x" / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": {"a.bias": name}}))
    with pytest.raises(CheckpointError, match="is no shard"):
        list(read_shards(tmp_path / "x"))


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "nothing"])
def test_an_index_that_is_none(tmp_path, text):
    (tmp_path / INDEX_FILE).write_text(text)
    with pytest.raises(CheckpointError):
        list(read_shards(tmp_path))


def test_an_index_of_other_files(tmp_path):
    names = write_shards(tmp_path / "x", PLAN, in_pieces(tensors()), shard_bytes=100)
    save_tensors(tmp_path / "x" / names[0], {"other": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="in the index or in the file only"):
        list(read_shards(tmp_path / "x"))


# -- rows --------------------------------------------------------------------------------------


def test_rows_of_a_stack_in_any_order(tmp_path: Path) -> None:
    stack = {"w": torch.randn(7, 2, 3), "b": torch.randn(7), "other": torch.zeros(2, dtype=torch.int64)}
    save_tensors(tmp_path / "x", stack)
    entries = {"w": ((2, 3), torch.float32), "b": ((), torch.float32)}
    for rows in ([0], [6], [2, 3, 4], [5, 1, 1, 2, 0], [*range(7)], []):
        read = load_rows(tmp_path / "x", rows, entries)
        assert read.keys() == entries.keys()
        assert all(torch.equal(read[name], stack[name][rows]) for name in entries)


@pytest.mark.parametrize(
    ("rows", "entries", "reason"),
    [
        ([7], {"b": ((), torch.float32)}, "has 7 entries"),
        ([-1], {"b": ((), torch.float32)}, "has 7 entries"),
        ([0], {"c": ((), torch.float32)}, "does not fit"),
        ([0], {"b": ((1,), torch.float32)}, "does not fit"),
        ([0], {"b": ((), torch.float64)}, "does not fit"),
        ([0], {"s": ((), torch.float32)}, "does not fit"),
    ],
)
def test_rows_that_are_not_there(tmp_path, rows, entries, reason):
    save_tensors(tmp_path / "x", {"b": torch.randn(7), "s": torch.tensor(1.0)})
    with pytest.raises(CheckpointError, match=reason):
        load_rows(tmp_path / "x", rows, entries)


def test_a_row_that_is_not_finite_is_refused_when_it_is_asked_for(tmp_path):
    safetensors.torch.save_file({"b": torch.tensor([1.0, torch.nan])}, tmp_path / "x")
    entries = {"b": ((), torch.float32)}
    assert load_rows(tmp_path / "x", [0], entries)["b"].tolist() == [1.0]
    with pytest.raises(CheckpointError, match="not finite"):
        load_rows(tmp_path / "x", [0, 1], entries)
