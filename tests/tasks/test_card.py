"""What a network says of itself: written wherever one is saved, read again, refused where it is broken."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

import weightloom as wl
from weightloom.architectures import parse_architecture
from weightloom.errors import CheckpointError
from weightloom.fitting import initial_flats
from weightloom.fitting.calibration import LEAST, MOST
from weightloom.generators import Sample, Validity
from weightloom.generators.base import ANY_ARCHITECTURE
from weightloom.generators.random_init import RandomInit
from weightloom.io import load_tensors, save_tensors
from weightloom.tasks import FolderTask, NetworkCard, SupportSet, ValueRanges, parse_task
from weightloom.tasks.card import LEAST_TEMPERATURE, MOST_TEMPERATURE

SPEC = parse_architecture("mlp(depth=1,width=4,classes=3,input=1x8x8)")
CARD = NetworkCard(
    class_names=("ant", "bee", "cat\x1b[31m"), input=(1, 8, 8), ranges=ValueRanges(sixteen=(0, 4095)),
    licence="CC0", temperature=1.5, calibration="40 pictures", made_by="a test",
)  # fmt: skip


@pytest.fixture(scope="module")
def flat():
    return initial_flats(SPEC, [0])[0]


@pytest.fixture
def spoilt(flat, tmp_path):
    """A network's file with something else in its header."""

    def make(**changes):
        path = Sample(SPEC, flat, {}, CARD).save(tmp_path / "net.safetensors")
        tensors, metadata = load_tensors(path)
        for name, value in changes.items():
            if value is None:
                del metadata[name]
            else:
                metadata[name] = value if isinstance(value, str) else json.dumps(value)
        save_tensors(path, tensors, metadata)
        return path

    return make


def test_a_card_comes_back_from_a_file(flat, tmp_path):
    sample = Sample(SPEC, flat, {"generator": "mine", "class_names": ["x", "y", "z"]}, CARD)
    network = wl.load_network(sample.save(tmp_path / "net.safetensors"))
    assert network.card == sample.card == CARD and network.class_names == CARD.class_names
    assert NetworkCard.from_metadata("x", CARD.to_metadata()) == CARD


def test_files_without_a_card_say_what_their_report_says(spoilt):
    report = {"class_names": ["x", "y", "z"], "generator": "old"}
    network = wl.load_network(spoilt(card=None, report=report))
    assert network.class_names == ("x", "y", "z") and network.card.made_by == "old"
    assert network.card.input == (1, 8, 8) and network.card.temperature is None
    assert wl.load_network(spoilt(card=None, report={"task": "digits[3,1,7]"})).class_names == ("3", "1", "7")
    for report in ({"task": "folder:photos"}, {"class_names": ["x", "y"]}, {"class_names": 3}, [], "{"):
        assert wl.load_network(spoilt(card=None, report=report)).class_names is None
    assert wl.load_network(spoilt(card=None, report=None)).class_names is None
    assert wl.load_network(spoilt(card="rubbish", weightloom=None)).class_names is None, "another's word"


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ("{", "is not JSON"),
        ([1], "list where names"),
        ({"class_names": "abc"}, "class names"),
        ({"class_names": ["a", "a", "b"]}, "different texts"),
        ({"class_names": ["a", "b"]}, "names 2 classes, but its network has 3"),
        ({"input": [1, 2]}, "three sides"),
        ({"value_range": [1, -1]}, "range of values"),
        ({"ranges": {"bytes": [0, 1]}}, "ranges of pictures"),
        ({"ranges": {"sixteen": [1, 0]}}, "lower one first"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 1e-9}, "temperature is no number from 0.001 to 1000"),
        ({"temperature": 1001}, "temperature"),
        ({"value_range": [-1e300, 1e300]}, "within 1,000,000 of 0"),
        ({"value_range": [0, 1e-7]}, "range of values"),
        ('{"licence": "\\ud800"}', "licence"),
        ('{"class_names": ["a", "b", "\\udce9"]}', "class names"),
        ({"temperature": 10**400}, "too large"),
        ({"ranges": {"sixteen": [0, 10**400]}}, "too large"),
        ({"value_range": [0, None]}, "range of values"),
        ({"licence": 3}, "licence"),
        ({"made_by": "x" * 30_000}, "made_by"),
    ],
)
def test_a_broken_card_is_one_sentence(spoilt, card, said):
    with pytest.raises(CheckpointError, match=said):
        wl.load_network(spoilt(card=card))


def test_every_temperature_that_is_measured_can_be_read(spoilt):
    assert (LEAST_TEMPERATURE, MOST_TEMPERATURE) == (LEAST, MOST)
    for temperature in (LEAST, MOST):
        assert wl.load_network(spoilt(card={"temperature": temperature})).card.temperature == temperature


def test_entries_of_later_versions_are_passed_over(spoilt):
    assert wl.load_network(spoilt(card={"later": [1], "class_names": ["a", "b", "c"]})).class_names == (
        "a", "b", "c",
    )  # fmt: skip


def test_the_architecture_decides_what_is_read(spoilt):
    assert wl.load_network(spoilt(card={"input": [3, 99, 99]})).card.input == (1, 8, 8)


def test_examples_hand_on_names_depth_and_licence(tmp_path):
    for name, low in (("ant", 100), ("bee", 2000)):
        (tmp_path / name).mkdir()
        for number in range(3):
            pixels = np.full((8, 8), low + number, np.uint16)
            pixels[0, 0] = 3000
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    task = FolderTask(tmp_path, size=16, channels=3)
    support = task.support(2)
    assert support.ranges == task.ranges == ValueRanges(sixteen=(0, 4095)) and support.licence is None
    assert support.to("cpu").ranges == support.ranges
    reads = {"input": (3, 16, 16), "min_classes": 2, "max_classes": 9}
    generator = RandomInit(Validity(architectures=(ANY_ARCHITECTURE,), **reads))
    sample = generator.generate("mlp(depth=1,width=8)", support=support)
    assert sample.card.class_names == ("ant", "bee") and sample.card.ranges == task.ranges
    assert sample.card.made_by == "random-init, from 2 examples of each class"
    (read,) = sample.predict(tmp_path / "bee" / "0.png")
    whole = FolderTask(tmp_path, test_fraction=1).data("test")
    own = sample.module(whole.batch([3])[0]).softmax(1).max()
    assert read.probability == pytest.approx(float(own.detach())), "by the range of all, not by its own"
    unnamed = SupportSet.from_labelled(*support.flat())
    assert generator.generate("mlp(depth=1,width=8)", support=unnamed).card.class_names is None
    assert "BSD" in parse_task("digits").support(1).licence


def test_a_network_stays_an_ordinary_module(flat):
    network = Sample(SPEC, flat, {}, CARD).module
    plain = SPEC.build()
    assert list(network.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(network.state_dict())
    images = torch.rand(5, 1, 8, 8) * 2 - 1
    assert torch.equal(plain.eval()(images), network(images))
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        with torch.no_grad():
            twin.head.bias += torch.tensor([0.0, 0.0, 99.0])
        assert twin.predict(images)[0].name == CARD.class_names[2], "its own weights"
    assert network.predict(images)[0].probability < 0.99
    network.train()
    network.predict(images)
    assert network.training and all(p.grad is None and p.requires_grad for p in network.parameters())
    torch.export.export(network.eval(), (images,))
