"""Wilson's interval is that of the textbook, and says something at the ends too."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from weightloom.fitting import accuracy_interval, counted, interval_of


@given(st.integers(1, 20_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_it_is_wilson_s(counts):
    right, images = counts
    low, high = accuracy_interval(right / images, images)
    wanted = binomtest(right, images).proportion_ci(0.95, method="wilson")
    assert (low, high) == pytest.approx((wanted.low, wanted.high), abs=1e-9)
    assert 0 <= low <= right / images <= high <= 1 and low < high


def test_reports_carry_it():
    assert counted(1.0, 3) == {"accuracy": 1.0, "interval": [*accuracy_interval(1.0, 3)], "num_images": 3}
    assert interval_of(None, 3) is None and interval_of(0.5, None) is None and interval_of(0.5, 0) is None
    assert accuracy_interval(1 + 1e-7, 4) == accuracy_interval(1.0, 4), "as float32 sums it up"
