from __future__ import annotations

import numpy as np
import pytest

from weightloom.errors import InputError
from weightloom.tasks.depth import Picture, ValueRanges, fit_ranges, scaled


def picture(kind: str, low: float, high: float) -> Picture:
    pixels = np.linspace(low, high, 16, dtype=np.float32).reshape(1, 4, 4)
    return Picture(pixels=pixels, kind=kind, low=low, high=high, size=(4, 4))


@pytest.mark.parametrize(
    ("kind", "low", "high", "wanted"),
    [
        ("sixteen", 0, 218, (0, 1023)),
        ("sixteen", 0, 262, (0, 1023)),
        ("sixteen", 0, 1024, (0, 4095)),
        ("sixteen", 100, 4095, (0, 4095)),
        ("sixteen", 0, 4096, (0, 16383)),
        ("sixteen", 0, 65535, (0, 65535)),
        ("integers", 0, 255, (0, 255)),
        ("integers", 0, 256, (0, 1023)),
        ("integers", 0, 2**32 - 1, (0, 2**32 - 1)),
        ("integers", -1000, 1000, (-1024, 1023)),
        ("integers", -1024, 3071, (-1024, 4095)),
        ("integers", -2000, 2000, (-2048, 2047)),
        ("integers", -128, 127, (-128, 127)),
        ("integers", -32768, 32767, (-32768, 32767)),
        ("integers", -(2**31), 2**31 - 1, (-(2**31), 2**31 - 1)),
        ("floats", 0, 1, (0, 1)),
        ("floats", -0.004, 1.005, (0, 1)),
        ("floats", -1, 1, (-1, 1)),
        ("floats", 0, 255, (0, 255)),
        ("floats", 0, 65535, (0, 65535)),
        ("floats", -2.1, 2.6, (-4, 4)),
        ("floats", -80, 0, (-128, 1)),
        ("floats", 0, 3e38, (0, 4.0**64)),
    ],
)
def test_ranges_in_use(kind, low, high, wanted):
    ranges = fit_ranges([picture(kind, low, high)], "photos")
    assert ranges.of(kind) == wanted
    assert scaled(picture(kind, low, high), ranges, 3).shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [
        ("sixteen", 28_000, 31_000),
        ("floats", 280.5, 309.0),
        ("floats", 0, 0.05),
        ("integers", 0, 9),
        ("sixteen", 0, 9),
    ],
)
def test_values_that_no_usual_range_shows_are_refused_with_theirs(kind, low, high):
    with pytest.raises(InputError, match=f"photos: its .* hold values from {low:g} to {high:g}"):
        fit_ranges([picture(kind, low, high)], "photos")
    known = ValueRanges(**{kind: (low, high)})
    assert fit_ranges([picture(kind, low, high)], "photos", known) == known
    pixels = scaled(picture(kind, low, high), known, 1)
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_one_value_alone_is_no_lack_of_contrast():
    assert fit_ranges([picture("sixteen", 7, 7)], "photos").sixteen == (0, 1023)


def test_all_pictures_of_a_kind_count():
    kinds = [picture("sixteen", 0, 500), picture("floats", 0, 1), picture("sixteen", 30, 9000)]
    ranges = fit_ranges(kinds, "photos")
    assert ranges == ValueRanges(sixteen=(0, 16383), floats=(0, 1)) and ranges.integers is None
    assert ValueRanges.from_json(ranges.to_json()) == ranges


@pytest.mark.parametrize(
    "pair", [(1, 1), (2, 1), (0, float("nan")), (0, float("inf")), ("a", "b"), 3, (1, 2, 3)]
)
def test_what_is_no_range(pair):
    with pytest.raises(InputError, match="two finite numbers"):
        ValueRanges(sixteen=pair)
    for values in ({"eight": (0, 1)}, [0, 1]):
        with pytest.raises(InputError, match="are given for sixteen"):
            ValueRanges.from_json(values)


def test_values_outside_a_known_range_are_refused():
    with pytest.raises(InputError, match="from 0 to 5000, outside the range from 0 to 4095"):
        scaled(picture("sixteen", 0, 5000), ValueRanges(sixteen=(0, 4095)), 3)
    assert scaled(picture("floats", 0, 1.009), ValueRanges(floats=(0, 1)), 3).max() == 255  # overshoot
    with pytest.raises(InputError, match="outside"):
        scaled(picture("floats", 0, 1.02), ValueRanges(floats=(0, 1)), 3)


def test_grey():
    grey = np.repeat(np.arange(16, dtype=np.uint8).reshape(1, 4, 4), 3, 0)
    assert Picture(pixels=grey, size=(4, 4)).grey
    grey[0, 0, 0] += 2  # what JPEG does
    assert Picture(pixels=grey, size=(4, 4)).grey
    grey[0, 0, 0] += 2
    assert not Picture(pixels=grey, size=(4, 4)).grey
