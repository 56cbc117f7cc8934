"""Published model zoos, and what hostile ones try."""

from __future__ import annotations

import pickle

import pytest
import torch
from tests.zoo.foreign import SMALL, Ran, published, reasons, trial

from weightloom.architectures import parse_architecture
from weightloom.errors import CheckpointError, InputError
from weightloom.fitting import accuracy
from weightloom.tasks import parse_task
from weightloom.zoo import Zoo
from weightloom.zoo.importing import carry_out, plan_import
from weightloom.zoo.sources import find_networks


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
         "is a pickle", "names", "not finite"), start=1,
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
