from __future__ import annotations

import pytest
import torch

from weightloom.architectures import parse_architecture
from weightloom.errors import CheckpointError, InputError, SpecError
from weightloom.fitting import initial_flats
from weightloom.io import save_tensors
from weightloom.tasks import TaskSampler, parse_task
from weightloom.weights import layout_of
from weightloom.zoo import Zoo
from weightloom.zoo.importing import import_checkpoints, read_network

SPEC = parse_architecture("cnn(depth=1,width=4,classes=10,input=3x8x8)")


@pytest.fixture
def state():
    flat = initial_flats(SPEC, [0])[0]
    return flat, {name: value.contiguous() for name, value in layout_of(SPEC).unflatten(flat).items()}


def test_containers_prefixes_and_half_precision(state, tmp_path):
    flat, tensors = state
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in tensors.items()}}, tmp_path / "a.pt")
    spec, got, metadata = read_network(tmp_path / "a.pt", SPEC)
    assert spec == SPEC and torch.equal(got, flat) and metadata == {}
    half = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    torch.save(half, tmp_path / "b.pth")
    assert torch.allclose(read_network(tmp_path / "b.pth", SPEC)[1], flat, atol=1e-3)


def test_order_skips_counters(state, tmp_path):
    flat, tensors = state
    with torch.device("meta"):
        order = list(SPEC.build().state_dict())
    renamed = {f"layers.{i}.{name.rpartition('.')[2]}": tensors[name] for i, name in enumerate(order)}
    assert any("num_batches_tracked" in name for name in renamed)
    torch.save(renamed, tmp_path / "a.pt")
    assert torch.equal(read_network(tmp_path / "a.pt", SPEC, match="order")[1], flat)
    renamed.popitem()
    torch.save(renamed, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="holds 6 tensors"):
        read_network(tmp_path / "a.pt", SPEC, match="order")


def test_what_is_refused(state, tmp_path):
    _, tensors = state
    path = tmp_path / "a.pt"
    torch.save({**tensors, "head.bias": torch.full((10,), torch.nan)}, path)
    with pytest.raises(CheckpointError, match="not finite"):
        read_network(path, SPEC)
    torch.save({**tensors, "head.bias": torch.ones(10, dtype=torch.int64)}, path)
    with pytest.raises(CheckpointError, match="not floats"):
        read_network(path, SPEC)
    torch.save({"epoch": 3}, path)
    with pytest.raises(CheckpointError, match="no tensors"):
        read_network(path, SPEC)
    torch.save(tensors, path)
    with pytest.raises(SpecError, match="does not say its classes"):
        read_network(path, parse_architecture("cnn(depth=1,width=4)"))


def test_held_out_tasks_stay_held_out(state, tmp_path):
    """A task that the zoo's recipe holds out does not get into the train split by being imported."""
    _, tensors = state
    file = tmp_path / "a.safetensors"
    save_tensors(file, tensors, {"architecture": SPEC.full_text()})
    zoo = Zoo(tmp_path / "zoo", create=True)
    zoo.set_about("recipe", {"datasets": ["digits"], "salt": "s", "name": "x"})
    held = TaskSampler(["digits"], "s", "held-out-order", (10, 10), size=8).task(0)
    assert [record.split for record in import_checkpoints(zoo, [file], task=held)] == ["held-out-order"]
    assert import_checkpoints(zoo, [file], task=held) == [], "the same file is not taken twice"


def test_no_files_and_other_tasks(state, tmp_path):
    zoo = Zoo(tmp_path / "zoo", create=True)
    with pytest.raises(InputError, match="at least one file"):
        import_checkpoints(zoo, [])
    file = tmp_path / "a.safetensors"
    save_tensors(file, state[1], {"architecture": SPEC.full_text()})
    with pytest.raises(SpecError, match="does not fit the task"):
        import_checkpoints(zoo, [file], task=parse_task("digits"))
    assert zoo.records() == []


def test_a_file_that_is_gone(state, tmp_path):
    """Also where the zoo holds networks of that architecture."""
    zoo = Zoo(tmp_path / "zoo", create=True)
    torch.save(state[1], tmp_path / "a.pt")
    import_checkpoints(zoo, [tmp_path / "a.pt"], architecture=SPEC)
    for name in ("b.pt", "b.safetensors", "zoo/a.pt"):
        with pytest.raises(CheckpointError, match="does not exist"):
            import_checkpoints(zoo, [tmp_path / name], architecture=SPEC)
