"""Guards at every border: no weight that is not finite passes. Knows nothing of files."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from weightloom.errors import InputError
from weightloom.finite import all_finite


def require_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise :class:`InputError` naming the first tensor of ``what`` that holds NaN or infinity.

    Example:
        >>> require_finite({"head.bias": torch.tensor([0.0, float("nan")])}, "checkpoint 7")
        Traceback (most recent call last):
        ...
        weightloom.errors.InputError: checkpoint 7: tensor 'head.bias' holds 1 of 2 values that are not finite
    """
    for name, tensor in tensors.items():
        if not all_finite(tensor):
            bad = int((~torch.isfinite(tensor)).sum())
            raise InputError(
                f"{what}: tensor {name!r} holds {bad} of {tensor.numel()} values that are not finite"
            )
