from __future__ import annotations

import pytest
import torch

from weightloom.errors import InputError
from weightloom.tasks.data import SupportSet, TaskData, draw_support, resize_pixels


def toy(channels: int = 3) -> TaskData:
    pixels = torch.arange(6, dtype=torch.uint8).reshape(6, 1, 1, 1).expand(6, 1, 4, 4) * 51
    return TaskData(pixels, torch.tensor([0, 5, 3]), torch.tensor([0, 1, 1]), channels=channels)


def test_batches_select_convert_and_repeat_grey():
    images, labels = toy().batch([1, 0, 1])
    assert images.shape == (3, 3, 4, 4) and images.dtype == torch.float32 and images.is_contiguous()
    assert images[:, :, 0, 0].tolist() == [[1] * 3, [-1] * 3, [1] * 3]
    assert labels.tolist() == [1, 0, 1] and labels.dtype == torch.int64
    assert toy(1).all()[0].shape == (3, 1, 4, 4)


@pytest.mark.parametrize("channels", [1, 3])
def test_large_pictures_are_made_batch_by_batch(channels):
    """The same bytes as resizing all of them first, in every way to reach them."""
    pixels = torch.randint(0, 256, (9, channels, 12, 12), generator=torch.Generator().manual_seed(0))
    pixels = pixels.to(torch.uint8)
    rows, labels = torch.arange(8, -1, -1), torch.arange(9) % 3
    for transform in ("id", "rot90", "invert"):
        lazy = TaskData(pixels, rows, labels, transform=transform, channels=channels, side=20)
        whole = TaskData(
            resize_pixels(pixels, 20, channels), rows, labels, transform=transform, channels=channels
        )
        assert lazy.all()[0].shape == (9, channels, 20, 20) and len(lazy) == 9
        index = torch.tensor([4, 0, 4])
        for one, other in (
            (lazy, whole), (lazy.part(index), whole.part(index)), (lazy.to("cpu"), whole.to("cpu")),
        ):  # fmt: skip
            assert all(torch.equal(a, b) for a, b in zip(one.all(), other.all(), strict=True))
        assert torch.equal(lazy.batch(index)[0], whole.batch(index)[0])
    empty = lazy.part(torch.tensor([], dtype=torch.int64))
    assert len(empty) == 0


def test_moving_keeps_the_images():
    before, after = toy().all(), toy().to("cpu").all()
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])


def test_a_batch_cannot_change_the_data():
    data = toy()
    data.all()[0].zero_()
    assert data.all()[0].min() == -1


def test_resizing_is_smooth_and_keeps_a_flat_image_flat():
    flat = torch.full((2, 3, 32, 32), 77, dtype=torch.uint8)
    assert (resize_pixels(flat, 16, 3) == 77).all() and resize_pixels(flat, 16, 1).shape == (2, 1, 16, 16)
    stripes = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    stripes[..., ::2] = 255
    assert abs(resize_pixels(stripes, 8, 1).float().mean() - 127.5) < 3  # not aliased to black or white


def test_support_repeats_a_small_class_and_checks_its_shape():
    support = draw_support(toy(), ["a", "b"], ["a", "b"], 4, ("t",))
    assert support.images.shape == (2, 4, 3, 4, 4) and support.shots == 4 and support.num_classes == 2
    assert support.to("cpu").images.shape == support.images.shape
    images, labels = support.flat()
    assert images.shape == (8, 3, 4, 4) and labels.tolist() == [0] * 4 + [1] * 4
    assert (support.images[0] == -1).all() and {
        round(v, 3) for v in support.images[1].flatten().tolist()
    } == {0.2, 1}
    with pytest.raises(InputError, match="a class must be a whole number from 1"):
        draw_support(toy(), ["a", "b"], ["a", "b"], 0, ("t",))
    with pytest.raises(InputError, match="class names"):
        SupportSet(images=torch.zeros(3, 1, 3, 4, 4), class_names=("a", "b"))


def test_labelled_examples_become_a_support_set():
    images = torch.arange(5.0).reshape(5, 1, 1, 1).expand(5, 1, 4, 4) / 4
    support = SupportSet.from_labelled(images, [1, 0, 1, 1, 0], ["cup", "spoon"])
    assert support.class_names == ("cup", "spoon") and support.images.shape == (2, 3, 1, 4, 4)
    assert (4 * support.images[:, :, 0, 0, 0]).tolist() == [[1, 4, 1], [0, 2, 3]]
    assert SupportSet.from_labelled(images[:2], torch.tensor([1, 0])).class_names == ("class 0", "class 1")


@pytest.mark.parametrize(
    ("labels", "names", "words"),
    [
        ([0], None, "at least two classes, but there is 1"),
        ([], None, "at least two classes, but there are 0"),
        ([0, 2, 2], None, "no example of class 'class 1'"),
        ([0, 10**15], None, "no example of class 'class 1'"),
        ([0, 1, 1], ["a", "b", "c"], "no example of class 'c'"),
        ([0, 1, 2], ["a", "b"], "label 2, but there are 2 classes"),
        ([0, -1], None, "label -1; labels count from 0"),
        ([0.0, 1.0], None, "these are of type torch.float32"),
        ([0, 1.5], None, "these are of type torch.float32"),
        (["a", "b"], None, "labels are integers"),
        ([None, 1], None, "labels are integers"),
        ([[0, 1], [1, 0]], None, "labels of shape"),
        ([0, 1, 1, 1], None, "3 images"),
    ],
)
def test_bad_labels_are_one_sentence(labels, names, words):
    count = 3 if labels == [0, 1, 1, 1] else len(labels)
    with pytest.raises(InputError, match=words) as caught:
        SupportSet.from_labelled(torch.zeros(count, 1, 4, 4), labels, names)
    assert "\n" not in str(caught.value)


def test_what_is_no_support_set():
    with pytest.raises(InputError, match="one tensor, not list"):
        SupportSet(images=[[1.0]], class_names=("a",))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="one tensor of images"):
        SupportSet.from_labelled(torch.zeros(4, 4), [0, 1])
    with pytest.raises(InputError, match=r"these are of type torch.float32"):
        TaskData(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.arange(2), torch.tensor([0.5, 1]))
    with pytest.raises(InputError, match="class 'c' has no image"):
        draw_support(toy(), ["a", "b", "c"], ["a", "b", "c"], 4, ("t",))


def test_a_part_of_the_data():
    part = toy().part(torch.tensor([2, 0]))
    assert len(part) == 2 and part.labels.tolist() == [1, 0]
    assert torch.equal(part.all()[0], toy().batch([2, 0])[0])
