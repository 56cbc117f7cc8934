"""What plain classifiers reach on left-out examples."""

from __future__ import annotations

import pytest
import torch

from weightloom.fitting.floors import MOST_SIDE, SIDES, floors, pixel_rows, plain_classifiers
from weightloom.tasks import parse_task


def support(shots: int, task: str = "digits@16c3"):
    return parse_task(task).support(shots).images


def test_real_digits():
    found = {floor.name: floor for floor in floors(support(12))}
    assert set(found) == set(SIDES) == set(plain_classifiers())
    for floor in found.values():
        assert floor.accuracy > 0.8 and floor.judged == 120


def test_the_examples_alone_decide_and_nothing_is_drawn():
    images = support(6, "digits[3,1,7]@16c3")
    before = images.clone()
    assert floors(images) == floors(images) and torch.equal(images, before)


def test_labels_without_content_are_answered_by_chance():
    """Left-out examples: whoever had seen them would know them all."""
    noise = torch.rand(4, 12, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for floor in floors(noise):
        assert floor.accuracy < 0.5


@pytest.mark.parametrize("times", [2, 3])
def test_copies_of_a_picture_are_left_out_together(times):
    """Else a copy on the other side would give every answer away."""
    noise = torch.rand(4, 6, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for floor in floors(noise.repeat(1, times, 1, 1, 1)):
        assert floor.judged == 4 * 6 and floor.accuracy < 0.6


def test_classes_of_one_picture_cannot_be_judged():
    one = support(1, "digits[3,1,7]@8c1")
    assert floors(one) == [] and floors(one.repeat(1, 4, 1, 1, 1)) == []
    two = support(2, "digits[3,1,7]@8c1")
    assert [floor.judged for floor in floors(two)] == [6, 6]


def test_many_examples_are_cut(monkeypatch):
    monkeypatch.setattr("weightloom.fitting.floors.MOST", 30)
    assert [floor.judged for floor in floors(support(14, "digits[3,1,7]@8c1"))] == [30, 30]


def test_rows_are_small_and_grey_pictures_have_one_channel():
    colour = torch.rand(2, 3, 64, 64) * 2 - 1
    assert pixel_rows(colour, MOST_SIDE).shape == (2, 3 * MOST_SIDE**2)
    grey = colour[:, :1].expand(-1, 3, -1, -1)
    assert pixel_rows(grey, 16).shape == (2, 256) and pixel_rows(grey[..., :8, :8], 16).shape == (2, 64)
