"""One pass over extremes tells the same as asking every value."""

from __future__ import annotations

import pytest
import torch

from weightloom.finite import all_finite

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 31, 100, 4099])
def test_no_place_hides_a_value_that_is_not_finite(dtype, size):
    good = torch.linspace(-2, 2, size).to(dtype)
    assert all_finite(good) and all_finite(good.reshape(size, 1).expand(size, 3).t())
    places = range(size) if size <= 100 else (0, 1, 17, size // 2, size - 2, size - 1)
    for value in (float("nan"), float("inf"), float("-inf")):
        if not bool(torch.tensor([value]).to(dtype).float().isfinite().all()):
            for place in places:
                bad = good.float()
                bad[place] = value
                assert not all_finite(bad.to(dtype)), (value, place)


def test_complex_numbers_whole_numbers_and_none_at_all():
    assert (
        all_finite(torch.tensor([1 + 2j]))
        and all_finite(torch.tensor([1, 2]))
        and all_finite(torch.empty(0, 3))
    )
    assert not all_finite(torch.tensor([1 + 2j, complex(0.0, float("nan"))]))
    assert not all_finite(torch.tensor([complex(float("inf"), 0.0)]))
    assert all_finite(torch.tensor([1 + 2j]).conj())
    assert all_finite(torch.tensor([True])) and all_finite(torch.tensor(3.0, requires_grad=True))
    assert not all_finite(torch.tensor(float("nan")))
