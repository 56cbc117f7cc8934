"""Products of matrices by oneDNN, where torch has it and would itself take a slower library.

torch computes products in single precision on CPUs with the BLAS that it was built with. For a few rows, or
on processors that this BLAS was not made for, oneDNN (which torch's own LSTM uses) is up to three times as
fast. It is reached through the operators that torch's compiler uses; without them the products are torch's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

FEW = 16
"""Below so many uses of a matrix, bringing it into oneDNN's order costs more than is gained."""


def product(a: Tensor, b: Tensor) -> Tensor:
    """(R, K) and (C, K) -> (R, C): a b^T, for large matrices; without gradients.

    Example:
        >>> product(torch.ones(2, 3), torch.ones(4, 3)).shape
        torch.Size([2, 4])
    """
    if not _has_onednn(a, b):
        return a @ b.t()
    return _linear(a, b.contiguous())


def repeated_product(b: Tensor, rows: int, times: int) -> Callable[[Tensor], Tensor]:
    """What turns a (R, K) into a b^T (R, C), for one b (C, K) and ``times`` products of ``rows`` R.

    Example:
        >>> times_b = repeated_product(torch.ones(4, 3), rows=2, times=100)
        >>> times_b(torch.ones(2, 3)).sum()
        tensor(24.)
    """
    if times < FEW or not _has_onednn(b):
        transposed = b.t()
        return lambda a: a @ transposed
    packed = torch.ops.mkldnn._reorder_linear_weight(b.contiguous(), rows)
    return lambda a: _linear(a, packed)


def _linear(a: Tensor, b: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")


def _has_onednn(*tensors: Tensor) -> bool:
    return (
        all(tensor.dtype is torch.float32 and tensor.device.type == "cpu" for tensor in tensors)
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
