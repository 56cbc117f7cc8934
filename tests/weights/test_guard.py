from __future__ import annotations

import pytest
import torch

from weightloom.errors import InputError
from weightloom.weights import require_finite


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_named(bad):
    tensors = {
        "good": torch.ones(3),
        "counter": torch.ones(2, dtype=torch.long),
        "head.weight": torch.ones(2, 2),
    }
    require_finite(tensors, "shard 4")
    tensors["head.weight"][1, 0] = bad
    with pytest.raises(InputError, match=r"shard 4: tensor 'head.weight' holds 1 of 4 values"):
        require_finite(tensors, "shard 4")


def test_half_precision_and_empty_tensors_pass():
    require_finite({"a": torch.zeros(0), "b": torch.ones(2, dtype=torch.bfloat16)}, "x")
