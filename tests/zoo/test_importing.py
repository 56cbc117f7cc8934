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
from weightloom.zoo.importing import carry_out, import_checkpoints, plan_import, read_network
from weightloom.zoo.sources import find_networks

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


@pytest.fixture
def files(tmp_path):
    """Five networks of one architecture, one a file."""
    found = []
    for number in range(5):
        found.append(tmp_path / f"{number}.safetensors")
        tensors = layout_of(SPEC).unflatten(initial_flats(SPEC, [number])[0])
        state = {name: value.contiguous() for name, value in tensors.items()}
        save_tensors(found[-1], state, {"architecture": SPEC.full_text()})
    return found


def names(zoo):
    return sorted(record.provenance["file"] for record in zoo.records())


def test_two_imports_at_once_store_each_network_once(files, tmp_path):
    """Both have looked at the zoo before either has added anything; the zoo is not there yet."""
    zoos = [Zoo.planned(tmp_path / "zoo") for _ in range(2)]
    plans = [
        plan_import([find_networks(file) for file in chosen], zoo=zoo)
        for zoo, chosen in zip(zoos, (files[:3], files[1:]), strict=True)
    ]
    assert [len(plan.networks) for plan in plans] == [3, 4] and not (tmp_path / "zoo").exists()
    told = []
    first = carry_out(zoos[0], plans[0])
    second = carry_out(zoos[1], plans[1], progress=lambda *step: told.append(step))
    assert [len(first), len(second)] == [3, 2] and told[-1][1:] == (4, 4)
    zoo = Zoo(tmp_path / "zoo")
    assert names(zoo) == [file.name for file in files] and zoo.verify() == []
    assert [record.row for record in second] == [0, 1]
    for record in zoo.records():
        number = int(record.provenance["file"][0])
        assert torch.equal(zoo.load([record]), initial_flats(SPEC, [number]))
    assert carry_out(zoos[0], plans[0]) == [] and len(zoo.records()) == 5


def test_an_import_into_a_zoo_that_another_process_makes_meanwhile(files, tmp_path, monkeypatch):
    """Each builds the zoo aside; the one that comes second goes on with the one that is there."""
    first, second = (Zoo.planned(tmp_path / "zoo") for _ in range(2))
    plans = [plan_import([find_networks(file) for file in chosen]) for chosen in (files[:2], files[1:])]
    real = Zoo._imported
    calls = []

    def meanwhile(self, db, architecture):
        calls.append(1)
        if len(calls) == 1:  # inside the transaction that makes the zoo
            carry_out(second, plans[1])
        return real(self, db, architecture)

    monkeypatch.setattr(Zoo, "_imported", meanwhile)
    added = carry_out(first, plans[0])
    assert [record.provenance["file"] for record in added] == [files[0].name]
    zoo = Zoo(tmp_path / "zoo")
    assert names(zoo) == [file.name for file in files] and zoo.verify() == []
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["zoo"]


def test_an_import_that_fails_leaves_no_zoo(files, tmp_path):
    zoo = Zoo.planned(tmp_path / "zoo")
    plan = plan_import([find_networks(file) for file in files], zoo=zoo)
    files[3].write_bytes(files[0].read_bytes())
    with pytest.raises(CheckpointError, match="was changed while it was imported"):
        carry_out(zoo, plan)
    assert not (tmp_path / "zoo").exists()


def test_measured_accuracies_do_not_depend_on_threads(files, tmp_path):
    task, before, found = parse_task("digits@8c3"), torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            zoo = Zoo(tmp_path / str(threads), create=True)
            found.append(import_checkpoints(zoo, files, task=task))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] and all(record.accuracy is not None for record in found[0])
