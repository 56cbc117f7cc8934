"""Guards at every border: no weight that is not finite passes, and no tensor that is no networks of a spec.

Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from weightloom.architectures import ArchitectureSpec
from weightloom.errors import InputError
from weightloom.finite import all_finite, layout_fault
from weightloom.weights.layout import layout_of


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


def checked_flats(
    spec: ArchitectureSpec, flats: Tensor, dtypes: Sequence[torch.dtype] = (torch.float32,)
) -> Tensor:
    """``flats`` in one piece, if they are N networks (N, P) of ``spec``, at least one; gradients go through.

    Raises:
        InputError: they are no plain tensor of that shape and one of ``dtypes``, or ``spec`` is not decided.

    Example:
        >>> from weightloom.architectures import parse_architecture
        >>> spec = parse_architecture("mlp(depth=1,width=4,classes=2,input=1x4x4)")
        >>> checked_flats(spec, torch.zeros(3, 5))
        Traceback (most recent call last):
        ...
        weightloom.errors.InputError: networks of mlp(...) are float32 of shape (N, 78), not ...
    """
    if not spec.resolved:
        raise InputError(f"{spec} does not say its classes and input; add them, or give the task")
    fault, size = layout_fault(flats), layout_of(spec).size
    if fault is not None:
        raise InputError(f"networks must be one plain tensor (N, {size:,}), but it {fault}")
    if flats.dtype not in dtypes or flats.dim() != 2 or flats.shape[1] != size or not len(flats):
        raise InputError(
            f"networks of {spec} are float32 of shape (N, {size:,}), not {flats.dtype} "
            f"of {tuple(flats.shape)}"
        )
    return flats.resolve_neg().contiguous()
