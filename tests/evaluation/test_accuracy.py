"""Networks are counted alike alone, together, and wherever an engine runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from weightloom.architectures import parse_architecture
from weightloom.engines import open_engine
from weightloom.errors import InputError
from weightloom.evaluation.accuracy import confusion, confusions, measure_networks, task_payload
from weightloom.fitting import accuracy, initial_flats
from weightloom.tasks import FolderTask, parse_task
from weightloom.tasks.torchdata import TorchTask


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for label in ("ants", "bees", "cats"):
        (tmp_path / label).mkdir()
        for number in range(5):
            Image.fromarray(random.integers(0, 255, (8, 8), np.uint8)).save(
                tmp_path / label / f"{number}.png"
            )
    return tmp_path


def test_networks_of_several_tasks_keep_their_order(folder):
    first, second = parse_task("digits[3,1,7]@8c1"), FolderTask(folder, size=8, channels=1)
    wanted = []
    for number, task in enumerate([first, second, first, second, first]):
        spec = parse_architecture(f"mlp(depth=1,width={4 + number})").resolve(classes=3, input=(1, 8, 8))
        wanted.append((spec, initial_flats(spec, [number])[0], task))
    seen = []
    with open_engine("local") as engine:
        found = confusions(wanted, engine, progress=lambda _, done, total: seen.append((done, total)))
    assert seen == [(3, 5), (5, 5)], "the images of a task are read once"
    for (spec, flat, task), counts in zip(wanted, found, strict=True):
        assert counts == confusion(spec, flat, task).tolist()
        own = accuracy(spec, flat[None], *task.data("test").all())
        assert torch.tensor(counts).diagonal().sum() / torch.tensor(counts).sum() == pytest.approx(float(own))


def test_a_worker_with_other_images_says_so(folder):
    payload = {**task_payload(FolderTask(folder, size=8, channels=1)), "networks": []}
    assert measure_networks(payload, lambda _: None) == []
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(folder / "ants" / "0.png")
    with pytest.raises(InputError, match="other images"):
        measure_networks(payload, lambda _: None)


def test_a_task_of_this_process_alone_is_not_sent():
    data = [(torch.zeros(1, 8, 8), 0), (torch.ones(1, 8, 8), 1)] * 4
    with pytest.raises(InputError, match="this process alone"):
        task_payload(TorchTask(data, data, ("a", "b")))
