from __future__ import annotations

import contextlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightloom.errors import DataUnavailableError, InputError, SpecError, WeightloomError
from weightloom.tasks import DatasetTask, dataset_info, dataset_names, parse_task, transform_names


@st.composite
def dataset_tasks(draw: st.DrawFn) -> DatasetTask:
    name = draw(st.sampled_from(dataset_names()))
    count = dataset_info(name).num_classes
    classes = draw(st.lists(st.integers(0, count - 1), min_size=2, max_size=12, unique=True))
    return DatasetTask(
        dataset=name,
        classes=tuple(classes) if draw(st.booleans()) else (),
        transform=draw(st.sampled_from(transform_names())),
        size=draw(st.sampled_from([8, 16, 28, 32])),
        channels=draw(st.sampled_from([1, 3])),
    )


@given(dataset_tasks())
def test_text_round_trips(task):
    assert parse_task(str(task)) == task
    assert str(parse_task(str(task))) == str(task)
    assert hash(parse_task(str(task))) == hash(task)


@given(dataset_tasks())
def test_class_names_can_be_written_for_numbers(task):
    assert parse_task(f"{task.dataset}[{', '.join(task.class_names)}]").classes == task.classes


def test_defaults():
    task = parse_task("fashion-mnist")
    assert task.num_classes == 10 and task.input_shape == (3, 16, 16) and task.canonical and task.whole
    assert str(parse_task("mnist[0,1,2,3,4,5,6,7,8,9]+id@16c3")) == "mnist"
    assert parse_task("mnist@28").input_shape == (3, 28, 28)
    assert parse_task("mnist").resized(28, 1) == parse_task("mnist@28c1")
    assert not parse_task("mnist+flip").canonical


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("mnist[3", "cannot read"),
        ("mnist[3,4]@", "cannot read"),
        ("mnist@28c1+flip", "cannot read"),
        ("mnist" * 19_999, "cannot read"),
        ("mnist[3]", "at least 2 classes"),
        ("mnist[]", "empty place"),
        ("mnist[1,2,]", "empty place"),
        ("mnist[3,3]", "repeats one"),
        ("mnist[3,10]", "classes 0 to 9, not 10"),
        ("mnist[3,-1]", "unknown class of mnist '-1'"),
        ("mnist@2", "pixels wide"),
        ("mnist@999999", "pixels wide"),
        ("mnist@28c2", "1 or 3 channels"),
        ("mnist+rot90+rot180", "one rotation"),
        ("mnits", "did you mean 'mnist'"),
        ("mnist+rot91", "did you mean 'rot90'"),
        ("fashion-mnist[bag,cat]", "did you mean 'coat'|unknown class of fashion-mnist 'cat'"),
    ],
)
def test_bad_texts_are_one_sentence(text, words):
    with pytest.raises(InputError, match=words) as caught:
        parse_task(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_text_that_is_no_text():
    with pytest.raises(SpecError):
        parse_task(None)  # type: ignore[arg-type]


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(WeightloomError):
        parse_task(text)


def test_digits_are_there_without_a_network():
    train, test = parse_task("digits").data("train"), parse_task("digits").data("test")
    assert (len(train), len(test)) == (1297, 500)
    assert test.labels.bincount().min() >= 48
    images, labels = train.batch(torch.arange(100))
    assert images.shape == (100, 3, 16, 16) and images.min() >= -1 and images.max() <= 1
    assert labels.unique().tolist() == list(range(10))


def test_subsets_relabel_in_order_and_transform():
    whole, part = (
        parse_task("digits@8c1").data("test"),
        parse_task("digits[7,2]+rot180+invert@8c1").data("test"),
    )
    images, labels = part.all()
    every, native = whole.all()
    for label, digit in enumerate((7, 2)):
        wanted = torch.rot90(-every[native == digit], 2, (2, 3))
        assert torch.allclose(images[labels == label], wanted, atol=1e-6)
    assert len(part) == ((native == 7) | (native == 2)).sum()


def test_data_is_made_once_and_splits_are_named():
    task = parse_task("digits")
    assert task.data("train") is task.data("train")
    with pytest.raises(InputError, match="no 'valid'"):
        task.data("valid")


def test_missing_data_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTLOOM_CACHE", str(tmp_path))
    with pytest.raises(DataUnavailableError, match="weightloom data fetch mnist"):
        parse_task("mnist[1,2]").support()


def test_support_is_deterministic_and_follows_the_classes():
    one, two = parse_task("digits[3,5,8]").support(4, seed=1), parse_task("digits[8,3,5]").support(4, seed=1)
    assert one.images.shape == (3, 4, 3, 16, 16) and one.class_names == ("3", "5", "8")
    assert torch.equal(one.images[0], two.images[1]) and torch.equal(one.images[2], two.images[0])
    assert torch.equal(one.images, parse_task("digits[3,5,8]").support(4, seed=1).images)
    assert not torch.equal(one.images, parse_task("digits[3,5,8]").support(4, seed=2).images)


def test_support_comes_from_train_images():
    task = parse_task("digits@8c1")
    images, labels = task.data("train").all()
    support = task.support(3)
    for label in range(10):
        known = {tuple(row.flatten().tolist()) for row in images[labels == label]}
        assert all(tuple(shot.flatten().tolist()) in known for shot in support.images[label])


def test_descriptions():
    assert parse_task("fashion-mnist[8,4]+rot90").describe() == (
        "grey-scale pictures of clothing, 2 classes: bag and coat, rotated by 90 degrees"
    )
    assert "333 more" in parse_task("quickdraw").describe()


@pytest.mark.parametrize("text", ["mnist", "cifar10[3,5]+rot90+flip+invert", "quickdraw", "glyphs[0,1,2]"])
def test_instructions_differ_and_repeat(text):
    task = parse_task(text)
    first = task.instructions(100, seed=3)
    assert len(set(first)) == 100 and all(line.strip() for line in first)
    assert first == task.instructions(100, seed=3) != task.instructions(100, seed=4)
    assert first[:10] == task.instructions(10, seed=3)
    assert not any("{" in line for line in first)


def test_instructions_name_the_transform_and_the_classes():
    lines = parse_task("fashion-mnist[8,4]+invert").instructions(200)
    assert sum("bag" in line.lower() for line in lines) > 100
    assert all(any(w in line.lower() for w in ("invert", "negative", "swapped")) for line in lines)
    assert any("clothing" in line for line in parse_task("fashion-mnist").instructions(50))
    with pytest.raises(InputError):
        parse_task("mnist").instructions(3, misspelt=2.0)


def test_large_pictures_are_the_same_whether_all_are_held_or_not(monkeypatch):
    held = parse_task("digits[3,1,7]+rot90@24c3")
    images, support = held.data("test").all(), held.support(2).images
    monkeypatch.setattr("weightloom.tasks.task._MOST_PIXELS", 0)
    made = parse_task("digits[3,1,7]+rot90@24c3")
    assert made.data("test")._side == 24 and held.data("test")._side is None
    assert all(torch.equal(a, b) for a, b in zip(images, made.data("test").all(), strict=True))
    assert torch.equal(support, made.support(2).images)
