"""What a network answers to pictures of every kind, and how sure it may be."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

import weightloom as wl
from weightloom.architectures import parse_architecture
from weightloom.errors import BrokenPicturesError, InputError, UnsupportedRequestError
from weightloom.fitting import calibration, fit_temperature, initial_flats, predict
from weightloom.fitting.predicting import with_card
from weightloom.generators import Sample
from weightloom.tasks import FolderTask, NetworkCard, ValueRanges
from weightloom.tasks.inputs import network_inputs, single_pictures

CARD = NetworkCard(class_names=("dark", "light"), input=(3, 8, 8))


def light(images):
    """Logits (N, 2): how light the pictures are."""
    mean = images.mean((1, 2, 3))
    return torch.stack([-mean, mean], 1)


def seen(picture, card=CARD):
    ((_, found),) = network_inputs([picture], card)
    return found


@pytest.fixture
def photo():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 20, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def test_pictures_of_every_kind_are_one(photo, tmp_path):
    photo.save(tmp_path / "a.png")
    (tmp_path / "photos" / "x").mkdir(parents=True)
    (tmp_path / "photos" / "y").mkdir()
    photo.save(tmp_path / "photos" / "x" / "a.png")
    photo.rotate(90).save(tmp_path / "photos" / "y" / "b.png")
    array = np.asarray(photo)
    expected = FolderTask(tmp_path / "photos", size=8, test_fraction=1).data("test").batch([0])[0][0]
    kinds = [
        str(tmp_path / "a.png"), tmp_path / "a.png", (tmp_path / "a.png").read_bytes(), photo, array,
        array.transpose(2, 0, 1), torch.from_numpy(array.copy()).permute(2, 0, 1), expected, expected.numpy(),
        expected.double().permute(1, 2, 0).numpy(),
    ]  # fmt: skip
    for kind in kinds:
        assert torch.equal(seen(kind), expected), type(kind)
    assert len(single_pictures(torch.zeros(4, 3, 8, 8))) == len(single_pictures([photo] * 4)) == 4
    grey = NetworkCard(input=(1, 8, 8))
    assert seen(array[..., 0], grey).shape == (1, 8, 8) and seen(array[..., :1]).shape == (3, 8, 8)
    rough = seen(array.astype(np.float32) / 127.5 - 1)
    assert (rough - expected).abs().max() < 0.01, "floats of another size are cut and resized too"
    assert torch.equal(seen(np.dstack([array, np.zeros((30, 20), np.uint8)])), torch.ones(3, 8, 8)), "white"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_floats_of_16_bits_are_pictures_too(dtype):
    values = torch.rand(3, 8, 8).to(dtype)
    assert torch.equal(seen(values), values.float())
    assert torch.equal(seen(values[:, :6, :6]), seen(values[:, :6, :6].float()))


def test_a_prediction_leaves_every_part_in_its_mode():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(192), torch.nn.Linear(192, 2)).train()
    net[1].eval()  # frozen
    with_card(net, CARD).predict(torch.zeros(3, 8, 8))
    assert [part.training for part in net.modules()] == [True, True, False, True]


def test_deep_pictures_are_read_by_the_range_of_the_card(tmp_path):
    pixels = np.full((8, 8), 2048, np.uint16)
    pixels[0, 0] = 0
    known = NetworkCard(input=(3, 8, 8), ranges=ValueRanges(sixteen=(0, 65535)))
    assert float(seen(pixels, known)[0, 4, 4]) < -0.9 < -0.1 < float(seen(pixels)[0, 4, 4])
    places = [place for place, _ in network_inputs([pixels, np.zeros((8, 8), np.uint8)], CARD)]
    assert places == [1, 0], "the range follows from all of them"
    assert "outside the range" in seen(
        pixels, NetworkCard(input=(3, 8, 8), ranges=ValueRanges(sixteen=(0, 9)))
    )


def test_answers(photo, tmp_path):
    photo.save(tmp_path / "a.png")
    white, black = np.full((8, 8), 255, np.uint8), np.zeros((8, 8), np.uint8)
    one, two, three = predict(light, CARD, [white, black, tmp_path / "a.png"], top=9, reject=0.6)
    assert (one.name, two.name, three.name) == ("light", "dark", None) and three.rejected
    assert one.file is None and three.file == str(tmp_path / "a.png")
    assert [answer.name for answer in two.answers] == ["dark", "light"]
    assert one.probability == pytest.approx(torch.tensor([1.0, -1.0]).softmax(0)[0].item())
    (cooler,) = predict(light, NetworkCard(input=(3, 8, 8), temperature=0.1), white, 1)
    assert cooler.probability > 0.99 and cooler.name == "class 1" and len(cooler.answers) == 1
    assert predict(light, CARD, []) == []
    told = []
    predict(light, CARD, np.zeros((600, 8, 8, 3), np.uint8), progress=lambda *now: told.append(now))
    assert told[-1] == ("pictures", 600, 600) and len(told) > 1


def test_pictures_that_cannot_be_read(tmp_path, photo):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    photo.save(tmp_path / "b.png")
    both = [tmp_path / "a.png", tmp_path / "b.png"]
    with pytest.raises(BrokenPicturesError, match="1 of 2 pictures cannot be read"):
        predict(light, CARD, both)
    broken, read = predict(light, CARD, both, skip_broken=True)
    assert broken.problem and broken.name is None and broken.probability is None
    assert read.problem is None and read.name in CARD.class_names
    with pytest.raises(InputError, match="png: this image cannot be read"):
        predict(light, CARD, tmp_path / "a.png")


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (np.zeros((8, 8), np.int64), "array of int64"),
        (np.zeros((0, 8), np.uint8), "empty"),
        (np.zeros((5, 6, 7), np.uint8), "not \\(H, W\\)"),
        (np.zeros((8, 8, 3), np.uint16), "grey ones uint16"),
        (np.full((8, 8), 200.0), "hand over bytes as uint8"),
        (np.full((8, 8), np.nan), "NaN"),
        (np.zeros((8, 8, 4), np.float32), "4 channels of floats"),
        (b"<html>", "web page"),
        (b"", "it is empty"),
        ("nothing.png", "nothing.png: this image cannot be read"),
        (3, "a picture is a path"),
        ([None], "picture 0: a picture is a path"),
        (torch.zeros(8, 8).to_sparse(), "picture 0"),
    ],
)
def test_what_is_no_picture(picture, said):
    with pytest.raises(InputError, match=said):
        predict(light, CARD, picture)


def test_questions_that_have_no_answer():
    for options in ({"top": 0}, {"top": 1.5}, {"reject": 2}, {"reject": float("nan")}, {"reject": "0.5"}):
        with pytest.raises(InputError):
            predict(light, CARD, np.zeros((8, 8), np.uint8), **options)
    for sides in ((3, 8, 9), (4, 8, 8), (3, 2, 2), (3, 999, 999)):
        with pytest.raises(UnsupportedRequestError, match="the network reads"):
            predict(light, NetworkCard(input=sides), "a.png")
    with pytest.raises(UnsupportedRequestError, match="nothing says"):
        predict(light, NetworkCard(), "a.png")
    with pytest.raises(InputError, match="not finite"):
        predict(lambda images: light(images) * torch.nan, CARD, np.zeros((8, 8), np.uint8))


def test_a_temperature_makes_probabilities_true():
    torch.manual_seed(0)
    true = torch.randn(4000, 3) * 2
    labels = torch.multinomial(true.softmax(1), 1).flatten()
    assert fit_temperature(true * 5, labels) == pytest.approx(5, rel=0.08)
    assert fit_temperature(true / 5, labels) == pytest.approx(0.2, rel=0.08)
    # That all of a few answers are right makes none of them certain.
    sure = torch.eye(2).repeat(10, 1) * 100
    found = calibration(sure, torch.arange(2).repeat(10), "pictures")
    assert found["on"] == "20 pictures" and (sure / found["temperature"]).softmax(1).max() < 0.97
    assert calibration(sure[:10], torch.arange(2).repeat(5), "pictures") is None


def test_a_sample_is_calibrated_on_pictures_that_it_was_not_made_from():
    task = wl.parse_task("digits[3,1]@8c1")
    spec = parse_architecture("mlp(depth=1,width=4)").resolve(classes=2, input=(1, 8, 8))
    sample = Sample(spec, initial_flats(spec, [0])[0], {}).for_task(task, task.support(16))
    rest = len(task.data("train")) - 32
    assert sample.card.calibration == f"{rest} training pictures that it was not made from"
    assert sample.card.class_names == ("3", "1") and sample.card.temperature > 0
    assert Sample(spec, sample.flat, {}).for_task(None, None).card.temperature is None
    images, labels = task.data("test").all()
    found = sample.predict(images, top=2)
    shares = torch.tensor([[dict(one.answers)[name] for name in task.class_names] for one in found])
    loss = torch.nn.functional.nll_loss(shares.log(), labels)
    assert loss < torch.nn.functional.cross_entropy(sample.module(images), labels)
    buffer = io.BytesIO()
    torch.save(sample.module.state_dict(), buffer)
