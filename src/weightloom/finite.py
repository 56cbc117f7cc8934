"""Whether a tensor has plain values, and whether all of them are finite. Knows nothing of what they mean."""

from __future__ import annotations

import math
from typing import Any

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
    own = tensor.detach()
    flat = (torch.view_as_real(own.resolve_conj()) if own.is_complex() else own).reshape(-1)
    if flat.element_size() == 1:  # torch has no extremes of 8-bit floats
        return all(all_finite(piece.float()) for piece in flat.split(_PIECE))
    return all(math.isfinite(float(value)) for value in torch.aminmax(flat))


def layout_fault(value: Any) -> str | None:
    """Why ``value`` is no tensor whose values lie in memory one by one, or None.

    Sparse, quantised and nested tensors, and those of the meta device, are refused by a sentence: most
    functions of torch do not take them, and say so in terms of its own inside.

    Example:
        >>> layout_fault(torch.zeros(2)), layout_fault(torch.zeros(2, device="meta"))
        (None, 'has no values (it is on the meta device)')
        >>> layout_fault(np.zeros(2))
        'is ndarray, not a torch tensor'
    """
    if not isinstance(value, Tensor):
        return f"is {type(value).__name__}, not a torch tensor"
    if value.is_meta:
        return "has no values (it is on the meta device)"
    if value.layout is not torch.strided or value.is_nested:
        kind = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
        return f"is {kind}; .to_dense() makes a plain tensor of a sparse one"
    if value.is_quantized:
        return "is quantised; .dequantize() makes a plain tensor of it"
    return None


def extremes(tensor: Tensor) -> tuple[float, float]:
    """The least and the greatest value of a tensor of floats that is not empty; NaN where one is."""
    low, high = torch.aminmax(tensor.detach())
    return float(low), float(high)
