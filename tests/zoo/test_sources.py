"""Folders, published model zoos and repositories on a hub, and what hostile ones try."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pickle
import shutil
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
import torch

from weightloom.architectures import parse_architecture
from weightloom.errors import CheckpointError, DataUnavailableError, InputError
from weightloom.fitting import accuracy, initial_flats
from weightloom.io import save_tensors, write_shards
from weightloom.tasks import parse_task
from weightloom.weights import layout_of
from weightloom.zoo import Zoo
from weightloom.zoo.hub import parse_address
from weightloom.zoo.importing import carry_out, import_checkpoints, plan_import
from weightloom.zoo.sources import find_networks

SPEC = parse_architecture("mlp(depth=1,width=4,classes=10,input=3x8x8)")
SMALL = parse_architecture("tinycnn(variant=small,activation=tanh,classes=10,input=1x28x28)")


def tensors_of(spec, seed):
    flat = initial_flats(spec, [seed])[0]
    return flat, {name: value.contiguous() for name, value in layout_of(spec).unflatten(flat).items()}


def write(path, number=0, spec=SPEC, **metadata):
    """A safetensors file of ours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flat, tensors = tensors_of(spec, number)
    save_tensors(path, tensors, {"architecture": spec.full_text(), **metadata})
    return flat


def reasons(plan):
    return {entry.name: entry.reason for entry in plan.skipped}


@pytest.fixture
def zoo(tmp_path):
    return Zoo(tmp_path / "zoo", create=True)


class Ran:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


# -- folders -----------------------------------------------------------------------------------


def test_a_folder(tmp_path, zoo):
    """Files of every kind, in sub-folders, two of one name, beside others."""
    flats = [write(tmp_path / "in" / "a.safetensors", 0), write(tmp_path / "in" / "b" / "a.safetensors", 1)]
    flat, tensors = tensors_of(SPEC, 2)
    extra = {"epoch": 7, "acc": 91.5, "seed": torch.tensor(3), "train_loss": float("nan"), "best_acc": 99.0}
    torch.save({"net": tensors, **extra}, tmp_path / "in" / "c.pth")
    (tmp_path / "in" / "notes.txt").write_text("x")
    (tmp_path / "in" / ".hidden.safetensors").write_text("x")
    found = find_networks(tmp_path / "in")
    assert found.format == "folder" and found.skipped == []
    plan = plan_import([found], zoo=zoo, architecture=SPEC)
    records = carry_out(zoo, plan)
    assert [r.provenance["file"] for r in records] == ["a.safetensors", "c.pth", "b/a.safetensors"]
    assert torch.equal(zoo.load(records), torch.stack([flats[0], flat, flats[1]]))
    assert len({record.id for record in records}) == 3 and zoo.verify() == []
    third = records[1]
    assert (third.step, third.accuracy, third.loss) == (7, 0.915, None)
    assert third.provenance["seed"] == 3 and third.provenance["accuracy"] == "reported"
    again = plan_import([found], zoo=zoo, architecture=SPEC)
    assert again.networks == () and len(again.held) == 3
    assert carry_out(zoo, again) == []


def test_headers_tell_facts(tmp_path, zoo):
    report = json.dumps({"accuracy": 0.75, "seed": 5, "step": 400})
    write(tmp_path / "in" / "a.safetensors", 0, report=report)
    write(tmp_path / "in" / "b.safetensors", 1, epoch="3", test_accuracy="0.5", seed="nan", loss="x")
    write(tmp_path / "in" / "c.safetensors", 2, report="{", accuracy="1e999", epoch="-1")
    a, b, c = carry_out(zoo, plan_import([find_networks(tmp_path / "in")]))
    assert (a.accuracy, a.step, a.provenance["seed"]) == (0.75, 400, 5)
    assert (b.accuracy, b.step, b.provenance.get("seed")) == (0.5, 3, None)
    assert (c.accuracy, c.step, c.provenance.get("accuracy")) == (None, 0, None)


def test_one_network_in_several_files(tmp_path, zoo):
    flat, tensors = tensors_of(SPEC, 0)
    plan = {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}
    write_shards(
        tmp_path / "in" / "big", plan, tensors.items(),
        metadata={"architecture": SPEC.full_text()}, shard_bytes=1000,
    )  # fmt: skip
    write(tmp_path / "in" / "small.safetensors", 1)
    found = find_networks(tmp_path / "in")
    assert [c.name for c in found.candidates] == ["small.safetensors", "big"]
    records = carry_out(zoo, plan_import([found]))
    assert torch.equal(zoo.load(records)[1], flat)
    assert plan_import([found], zoo=zoo).networks == ()
    index = tmp_path / "in" / "big" / "model.safetensors.index.json"
    held = json.loads(index.read_text())
    held["weight_map"]["head.bias"] = "../../elsewhere.safetensors"
    index.write_text(json.dumps(held))
    plan = plan_import([find_networks(tmp_path / "in")])
    assert "which is no shard" in reasons(plan)["big"]


def test_what_does_not_fit_is_skipped_and_said(tmp_path, zoo):
    root = tmp_path / "in"
    write(root / "good.safetensors", 0)
    (root / "copy.safetensors").write_bytes((root / "good.safetensors").read_bytes())
    write(root / "other.safetensors", 0, parse_architecture("mlp(depth=2,width=4,classes=10,input=3x8x8)"))
    (root / "cut.safetensors").write_bytes((root / "good.safetensors").read_bytes()[:-8])
    _, tensors = tensors_of(SPEC, 1)
    torch.save({**tensors, "head.bias": torch.full((10,), torch.inf)}, root / "infinite.pt")
    torch.save({**tensors, "extra": torch.zeros(1)}, root / "more.pt")
    torch.save({1: tensors["head.bias"], "1": tensors["head.bias"]}, root / "twice.pt")
    torch.save({**tensors, "x": Ran(tmp_path / "ran")}, root / "code.pt")
    (root / "old.pt").write_bytes(pickle.dumps(Ran(tmp_path / "ran")))
    with zipfile.ZipFile(root / "names.pt", "w") as archive:
        archive.writestr("../../up", b"x")
    os.mkfifo(root / "pipe.pt")
    plan = plan_import([find_networks(root)], zoo=zoo, architecture=SPEC)
    assert [n.candidate.name for n in plan.networks] == ["copy.safetensors"]
    said = reasons(plan)
    for name, words in {
        "good.safetensors": "same bytes as copy.safetensors",
        "other.safetensors": "not mlp(depth=1",
        "cut.safetensors": "",
        "infinite.pt": "not finite",
        "more.pt": "extra",
        "twice.pt": "two tensors of one name",
        "code.pt": "names",
        "old.pt": "not a PyTorch zip file",
        "names.pt": "",
        "pipe.pt": "not a regular file",
    }.items():
        assert words in said.pop(name), name
    assert said == {}
    assert not (tmp_path / "ran").exists(), "a file's code was run"
    with pytest.raises(CheckpointError):
        plan_import([find_networks(root)], zoo=zoo, architecture=SPEC, strict=True)
    assert zoo.records() == []
    assert len(carry_out(zoo, plan)) == 1 and zoo.verify() == []


def test_nothing_outside_the_folder_is_read(tmp_path):
    write(tmp_path / "outside" / "secret.safetensors", 0)
    root = tmp_path / "in"
    write(root / "mine.safetensors", 1)
    (root / "link.safetensors").symlink_to(tmp_path / "outside" / "secret.safetensors")
    (root / "folder").symlink_to(tmp_path / "outside")
    (root / "up").symlink_to(tmp_path)
    (root / "ring.safetensors").symlink_to(root / "ring.safetensors")
    (root / "again.safetensors").symlink_to("mine.safetensors")
    (root / "zoo").mkdir()
    (root / "zoo" / "zoo.sqlite3").write_bytes(b"")
    plan = plan_import([find_networks(root)])
    assert [n.candidate.name for n in plan.networks] == ["again.safetensors"]
    said = reasons(plan)
    assert said.pop("mine.safetensors") == "has the same bytes as again.safetensors"
    assert said.pop("link.safetensors") == "is a link that leads out of the folder"
    assert said.pop("folder") == said.pop("up") == "is a link to a folder"
    assert said.pop("zoo") == "is a zoo already"
    assert list(said) == ["ring.safetensors"]


def test_names_cannot_talk_to_the_terminal(tmp_path):
    write(tmp_path / "in" / "a\x1b[2J\n.safetensors", 0)
    (candidate,) = find_networks(tmp_path / "in").candidates
    assert candidate.name == "a\\x1b[2J\\n.safetensors"


def test_what_a_source_is(tmp_path, built):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "a.safetensors", 0)
    with pytest.raises(InputError, match="holds no file that ends in"):
        find_networks(tmp_path / "empty")
    with pytest.raises(InputError, match="holds no trial"):
        find_networks(tmp_path, format="modelzoos")
    with pytest.raises(InputError, match="is a folder, not a file"):
        find_networks(tmp_path, format="file")
    with pytest.raises(InputError, match="is no folder"):
        find_networks(tmp_path / "a.safetensors", format="folder")
    with pytest.raises(InputError, match="is on a hub"):
        find_networks("hf://a/b", format="folder")
    with pytest.raises(InputError, match="a format is one of"):
        find_networks(tmp_path, format="onnx")
    with pytest.raises(InputError, match="is a zoo already"):
        find_networks(built.path)
    with pytest.raises(CheckpointError, match="does not exist"):
        plan_import([find_networks(tmp_path / "nothing.pt")], architecture=SPEC)


def test_nothing_that_fits(tmp_path, zoo):
    root = tmp_path / "in"
    root.mkdir()
    for number in range(3):
        torch.save(tensors_of(SPEC, number)[1], root / f"{number}.pt")
    with pytest.raises(CheckpointError, match=r"give it with --arch \(and 2 more\)"):
        plan_import([find_networks(root)])
    with pytest.raises(CheckpointError, match="nothing can be imported"):
        plan_import([find_networks(root)], architecture=SMALL)


def test_a_named_file_must_fit(tmp_path, zoo):
    """Beside a folder whose files may be skipped."""
    write(tmp_path / "in" / "a.safetensors", 0)
    (tmp_path / "cut.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError):
        import_checkpoints(zoo, [tmp_path / "in", tmp_path / "cut.safetensors"])
    assert zoo.records() == []


def test_an_interrupted_import_goes_on(tmp_path, monkeypatch):
    import weightloom.zoo.importing as room

    monkeypatch.setattr(room, "SHARD_NETWORKS", 2)
    for number in range(5):
        write(tmp_path / "in" / f"{number}.safetensors", number)
    found = [find_networks(tmp_path / "in")]
    whole = Zoo(tmp_path / "whole", create=True)
    carry_out(whole, plan_import(found, zoo=whole))
    assert len(list((tmp_path / "whole" / "shards").iterdir())) == 3
    zoo = Zoo(tmp_path / "zoo", create=True)

    def stop(what, done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry_out(zoo, plan_import(found, zoo=zoo), progress=stop)
    assert len(zoo.records()) == 2 and zoo.verify() == []
    rest = plan_import(found, zoo=zoo)
    assert len(rest.networks) == 3 and len(rest.held) == 2
    carry_out(zoo, rest)
    assert zoo.records() == whole.records() and zoo.verify() == []
    assert torch.equal(zoo.load(zoo.records()), whole.load(whole.records()))


def test_a_file_that_changes_meanwhile(tmp_path, zoo):
    write(tmp_path / "in" / "a.safetensors", 0)
    plan = plan_import([find_networks(tmp_path / "in")], zoo=zoo)
    write(tmp_path / "in" / "a.safetensors", 1)
    with pytest.raises(CheckpointError, match="was changed while it was imported"):
        carry_out(zoo, plan)
    assert zoo.records() == [] and zoo.verify() == []


def test_one_file_as_two_architectures(tmp_path, zoo):
    """The same numbers with another activation are another network."""
    tensors = tensors_of(SPEC, 0)[1]
    torch.save(tensors, tmp_path / "a.pt")
    other = parse_architecture("mlp(depth=1,width=4,activation=gelu,classes=10,input=3x8x8)")
    for spec in (SPEC, other, SPEC):
        import_checkpoints(zoo, [tmp_path / "a.pt"], architecture=spec)
    assert sorted(r.architecture for r in zoo.records()) == sorted([SPEC.full_text(), other.full_text()])
    assert zoo.verify() == []


# -- published model zoos ----------------------------------------------------------------------

PARAMS = {
    "model::type": "CNN", "model::channels_in": 1, "model::o_dim": 4, "model::nlin": "tanh",
    "model::dropout": 0.0, "model::init_type": "uniform", "optim::optimizer": "adam", "optim::lr": 0.0003,
    "training::batchsize": 10, "dataset::dump": "/home/somebody/dataset.pt", "cuda": False,
}  # fmt: skip
LAYERS = {"small": (0, 3, 6, 9, 11), "medium": (0, 4, 8, 13, 16)}


def published(spec, seed):
    """A state dict with the names of the published zoos, and its weights."""
    flat, tensors = tensors_of(spec, seed)
    with torch.device("meta"):
        own = list(spec.build().state_dict())
    numbers = iter(range(10))
    names = [
        f"module_list.{LAYERS[spec.variant][next(numbers) // 2]}.{name.rpartition('.')[2]}" for name in own
    ]
    return flat, {name: tensors[mine] for name, mine in zip(names, own, strict=True)}


def trial(root, number, epochs=(0, 1, 2), spec=SMALL, digits=6, **changes):
    folder = root / f"NN_tune_trainable_ab12c_{number:05d}_{number}_seed={number}_2021-10-01_10-00-00"
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps({**PARAMS, "seed": number, **changes}))
    lines = [
        {
            "train_loss": -999 if e == 0 else 2.0 / e, "train_acc": -999 if e == 0 else 0.2, "test_loss": 1.0,
            "test_acc": 0.1 * (e + 1), "training_iteration": e, "config": PARAMS,
        }
        for e in epochs
    ]  # fmt: skip
    (folder / "result.json").write_text("\n".join(map(json.dumps, lines)) + "\n")
    flats = {}
    for epoch in epochs:
        place = folder / f"checkpoint_{epoch:0{digits}d}"
        place.mkdir()
        flats[epoch], state = published(spec, 100 * number + epoch)
        torch.save(state, place / "checkpoints")
        (place / "optimizer").write_bytes(b"never read")
    return folder, flats


def test_a_published_zoo(tmp_path, zoo):
    root = tmp_path / "MNIST" / "tune_zoo_mnist_uniform"
    _, one = trial(root, 1)
    _, two = trial(root, 2, digits=0)  # older trials have checkpoint_2
    (root / "dataset.pt").write_bytes(pickle.dumps(Ran(tmp_path / "ran")))
    (root / "config.json").write_text("{}")
    found = find_networks(tmp_path / "MNIST")
    assert found.format == "modelzoos" and len(found.candidates) == 2
    plan = plan_import([found], zoo=zoo)
    assert plan.skipped == ()
    records = carry_out(zoo, plan)
    assert torch.equal(zoo.load(records), torch.stack([one[2], two[2]]))
    for number, record in enumerate(records, start=1):
        assert record.spec() == SMALL and record.final and record.step == 2
        assert record.accuracy == pytest.approx(0.3) and record.loss == 1.0
        assert record.provenance["seed"] == number and record.provenance["epoch"] == 2
        assert record.provenance["options"]["optim::lr"] == 0.0003
        assert record.provenance["accuracy"] == "reported"
        assert "dataset::dump" not in record.provenance["options"], "a path of another machine"
    every = carry_out(zoo, plan_import([find_networks(root, epochs="all")], zoo=zoo))
    assert [(r.step, r.final, r.loss) for r in every] == [(0, False, None), (1, False, 2.0)] * 2
    assert zoo.verify() == [] and not (tmp_path / "ran").exists()


def test_its_task_and_accuracy(tmp_path, zoo):
    """On a task the published figures stay, because the published pictures are others; or it is measured."""
    _, flats = trial(tmp_path / "in", 1)
    task = parse_task("digits@28c1")
    plan = plan_import([find_networks(tmp_path / "in")], task=task)
    (record,) = carry_out(zoo, plan, task=task)
    assert record.accuracy == pytest.approx(0.3) and record.task == "digits@28c1"
    assert record.provenance["accuracy"] == "reported"
    other = Zoo(tmp_path / "other", create=True)
    (record,) = carry_out(other, plan, task=task, source="measured")
    assert record.accuracy == pytest.approx(
        float(accuracy(SMALL, flats[2][None], *task.data("test").all())[0])
    )
    assert record.provenance["reported_accuracy"] == pytest.approx(0.3)
    with pytest.raises(InputError, match="name the task"):
        carry_out(other, plan, source="measured")
    with pytest.raises(CheckpointError, match="does not fit the task"):
        plan_import([find_networks(tmp_path / "in")], task=parse_task("digits@8c3"))


def test_the_wide_network_and_its_activations(tmp_path, zoo):
    for number, (ours, theirs) in enumerate({"gelu": "gelu", "leaky_relu": "leakyrelu"}.items()):
        spec = parse_architecture(f"tinycnn(variant=medium,activation={ours},classes=10,input=3x32x32)")
        change = {"model::type": "CNN3", "model::nlin": theirs, "model::channels_in": 3}
        trial(tmp_path / "in", number, (50,), spec, **change)
    records = carry_out(zoo, plan_import([find_networks(tmp_path / "in")]))
    assert [r.spec().activation for r in records] == ["gelu", "leaky_relu"]


def test_trials_that_are_skipped(tmp_path, zoo):
    root = tmp_path / "in"
    trial(root, 0)
    trial(root, 1, **{"model::nlin": "sigmoid"})
    trial(root, 2, **{"model::type": "Resnet18"})
    trial(root, 3, **{"model::type": "CNN3"})  # but the weights of the small one
    trial(root, 4, **{"model::channels_in": 10**9})
    folder, _ = trial(root, 5)
    (folder / "params.json").write_text('{"seed": 1, "seed": 2}')
    folder, _ = trial(root, 6)
    (folder / "params.json").write_text("[" * 100_000)
    folder, _ = trial(root, 7)
    (folder / "checkpoint_000002" / "checkpoints").write_bytes(pickle.dumps(Ran(tmp_path / "ran")))
    folder, _ = trial(root, 8)
    torch.save({"x": Ran(tmp_path / "ran")}, folder / "checkpoint_000002" / "checkpoints")
    folder, _ = trial(root, 9)
    _, state = published(SMALL, 0)
    torch.save({**state, "module_list.11.bias": torch.full((10,), torch.nan)},
               folder / "checkpoint_000002" / "checkpoints")  # fmt: skip
    plan = plan_import([find_networks(root)], zoo=zoo)
    assert len(plan.networks) == 1
    said = {name.split("_")[4]: reason for name, reason in reasons(plan).items()}
    for number, words in enumerate(
        ("activation 'sigmoid'", "'Resnet18'", "shape", "1000000000 channels", "'seed' twice", "too deeply",
         "not a PyTorch zip file", "names", "not finite"), start=1,
    ):  # fmt: skip
        assert words in said[f"{number:05d}"], number
    assert not (tmp_path / "ran").exists()
    assert len(carry_out(zoo, plan)) == 1


def test_results_are_no_must(tmp_path, zoo):
    """Half a line, NaN, numbers that cannot be, no file: the network comes without the figure."""
    root = tmp_path / "in"
    for number, text in enumerate(
        ('{"training_iteration": 2, "test_acc": 0.9', '{"training_iteration": 2, "test_acc": NaN}',
         '{"training_iteration": 2, "test_acc": -1}', '{"training_iteration": "2", "test_acc": 0.5}',
         "[1, 2]\n\n3\nnull", "\x00\xff"),
    ):  # fmt: skip
        folder, _ = trial(root, number)
        (folder / "result.json").write_text(text)
    folder, _ = trial(root, 6)
    (folder / "result.json").unlink()
    records = carry_out(zoo, plan_import([find_networks(root)]))
    assert [record.accuracy for record in records] == [None] * 7


def test_epochs(tmp_path):
    from weightloom.zoo.modelzoos import parse_epochs

    root = tmp_path / "in"
    folder, _ = trial(root, 1, (0, 5, 10))
    (folder / "checkpoint_000015").mkdir()  # killed before its weights
    (folder / "checkpoint_5").mkdir()
    (folder / "checkpoint_tmp").mkdir()
    plan = plan_import([find_networks(root)])
    assert [n.facts["epoch"] for n in plan.networks] == [10] and plan.networks[0].candidate.final
    assert list(reasons(plan).values()) == ["is a second checkpoint of one epoch"]
    plan = plan_import([find_networks(root, epochs=(5, 7))])
    assert [n.facts["epoch"] for n in plan.networks] == [5] and not plan.networks[0].candidate.final
    assert "has no weights of epoch 7" in reasons(plan).values()
    for text in ("", "first", "-1", "1,,2", "1e3"):
        with pytest.raises(InputError, match="epochs are"):
            parse_epochs(text)


def test_trials_stay_in_their_folder(tmp_path, zoo):
    outside, _ = trial(tmp_path / "outside", 9)
    root = tmp_path / "in"
    trial(root, 0)
    folder, _ = trial(root, 1)
    (folder / "checkpoint_000002" / "checkpoints").unlink()
    (folder / "checkpoint_000002" / "checkpoints").symlink_to(outside / "checkpoint_000002" / "checkpoints")
    folder, _ = trial(root, 2)
    (folder / "checkpoint_000009").symlink_to(outside / "checkpoint_000002")
    folder, _ = trial(root, 3)
    (folder / "result.json").unlink()
    (folder / "result.json").symlink_to(outside / "result.json")
    (root / "NN_tune_trainable_link").symlink_to(outside)
    plan = plan_import([find_networks(root)])
    assert len(plan.networks) == 1 and len(plan.skipped) == 3
    assert all("out of the folder" in entry.reason for entry in plan.skipped)


def test_another_architecture_is_named(tmp_path, zoo):
    root = tmp_path / "in"
    trial(root, 0)
    trial(root, 1, **{"model::nlin": "relu"})
    trial(root, 2, **{"model::type": "CNN9"})
    wanted = parse_architecture("tinycnn(variant=small,activation=tanh,classes=10,input=1x28x28)")
    plan = plan_import([find_networks(root)], architecture=wanted)
    assert [n.candidate.facts["seed"] for n in plan.networks] == [0, 2], "where the trial does not say it"
    assert "not tinycnn" in next(iter(reasons(plan).values()))


# -- a hub -------------------------------------------------------------------------------------

COMMIT = "1" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine, asked by the real client: ``hub.files[name] = bytes``."""
    import huggingface_hub.constants

    files, asked = {}, []

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = unquote(urlsplit(self.path).path)
            asked.append(path)
            about = "/api/models/someone/networks"
            if path.startswith(about + "/tree/"):
                answer = [
                    {"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                    for n, b in files.items()
                ]
            elif path in (about, about + "/revision/main", about + "/revision/v1"):
                siblings = [{"rfilename": name} for name in files]
                answer = {"id": "someone/networks", "sha": COMMIT, "siblings": siblings}
            elif path.startswith(f"/someone/networks/resolve/{COMMIT}/"):
                return self.answer(200, files[path.split("/", 5)[5]])
            else:
                return self.answer(404, b"{}")
            return self.answer(200, json.dumps(answer).encode())

        def answer(self, code, body):
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/json")
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            if code == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    place = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download",
        functools.partial(huggingface_hub.snapshot_download, endpoint=place, cache_dir=tmp_path / "cache",
                          token=False, max_workers=1),
    )  # fmt: skip
    server.files, server.asked = files, asked
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_repository(tmp_path, zoo, hub):
    flats = [write(tmp_path / "a.safetensors", 0), write(tmp_path / "b.safetensors", 1)]
    hub.files["model.safetensors"] = (tmp_path / "a.safetensors").read_bytes()
    hub.files["more/b.safetensors"] = (tmp_path / "b.safetensors").read_bytes()
    hub.files["pytorch_model.bin"] = pickle.dumps(Ran(tmp_path / "ran"))
    hub.files["modeling.py"] = b"raise SystemExit"
    found = find_networks("hf://someone/networks@v1")
    assert found.format == "hub"
    records = carry_out(zoo, plan_import([found]))
    assert torch.equal(zoo.load(records), torch.stack(flats))
    assert [r.provenance["file"] for r in records] == ["model.safetensors", "more/b.safetensors"]
    assert {(r.provenance["repository"], r.provenance["revision"]) for r in records} == {
        ("someone/networks", COMMIT)
    }
    assert not any(path.endswith((".bin", ".py")) for path in hub.asked), "only safetensors are fetched"
    assert plan_import([find_networks("hf://someone/networks")], zoo=zoo).networks == ()


def test_what_a_hub_may_not(tmp_path, hub):
    with pytest.raises(DataUnavailableError, match="'nobody/nothing' cannot be had"):
        find_networks("hf://nobody/nothing")
    hub.files["pytorch_model.bin"] = b"x"
    with pytest.raises(InputError, match=r"hf://someone/networks: holds no file that ends in \.safetensors"):
        find_networks("hf://someone/networks")
    write(tmp_path / "a.safetensors", 0)
    data = (tmp_path / "a.safetensors").read_bytes()
    for number, name in enumerate(
        ("../../../../up.safetensors", "/up.safetensors", "a/../../up.safetensors")
    ):
        hub.files.clear()
        hub.files[name] = data
        with pytest.raises((DataUnavailableError, InputError)):
            plan_import([find_networks("hf://someone/networks")])
        assert list(tmp_path.rglob("up.safetensors")) == [], number
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)


def test_links_in_a_hubs_cache(tmp_path, hub):
    """They may lead into the repository's own cache and nowhere else."""
    write(tmp_path / "a.safetensors", 0)
    write(tmp_path / "secret.safetensors", 1)
    hub.files["model.safetensors"] = (tmp_path / "a.safetensors").read_bytes()
    find_networks("hf://someone/networks")
    (snapshot,) = (tmp_path / "cache").glob("models--*/snapshots/*")
    (snapshot / "other.safetensors").symlink_to(tmp_path / "secret.safetensors")
    plan = plan_import([find_networks("hf://someone/networks")])
    assert [n.candidate.name for n in plan.networks] == ["model.safetensors"]
    assert reasons(plan) == {"other.safetensors": "is a link that leads out of the folder"}


@pytest.mark.parametrize(
    "text",
    ["hf://", "hf://a", "hf://a/b/c", "hf://../x", "hf://a/..", "hf://a/b@../c", "hf://a/b c", "hf://a/b@",
     "hf://a/.git", "hf://a\n/b", "a/b", "hf://" + "a" * 200 + "/b"],
)  # fmt: skip
def test_addresses(text):
    with pytest.raises(InputError, match="is no address on a hub"):
        parse_address(text)
