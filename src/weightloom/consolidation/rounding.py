"""Weights to whole numbers: steps by what an output can bear, and rounding that makes up for itself.

A weight matrix W (m, n) becomes codes Q with ``W_ij ~ Q_ij 2^((r_i + c_j) / 4)``: whole numbers r for rows
and c for columns, so that steps cost a few bits each. The columns are rounded one after another, and the
error of each is taken to those that are still to come, where the layer's inputs say that they can make up
for it (GPTQ, Frantar et al., arXiv 2210.17323, algorithm 1). What a column cannot pass on is weighted by a
pivot of the inputs' moments; with an entropy coder behind it the best steps are those where energy times
pivot times squared step is the same for all weights (reverse water-filling). Knows nothing of networks.

Shapes: m rows, n columns, g groups of rows that read inputs of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weightloom.consolidation.sensitivity import Layer

OCTAVE = 4
"""Steps are powers of 2^(1/4)."""


@dataclass(frozen=True)
class Codes:
    """A matrix in whole numbers: codes (m, n), exponents of rows (m,) and of columns (n,), all int32."""

    codes: Tensor
    rows: Tensor
    columns: Tensor

    def matrix(self) -> Tensor:
        """(m, n) the weights that the codes stand for, float32."""
        return self.codes.float() * step_of(self.rows)[:, None] * step_of(self.columns)[None, :]


def step_of(exponents: Tensor) -> Tensor:
    """2^(k / 4) as float32."""
    return torch.exp2(exponents.double() / OCTAVE).float()


def exponents_of(steps: Tensor) -> Tensor:
    """The whole k whose 2^(k / 4) is nearest to each of ``steps``."""
    return (steps.double().clamp(1e-30, 1e30).log2() * OCTAVE).round().int()


def round_plain(weight: Tensor, steps: Tensor) -> Codes:
    """Every value to its nearest code, with one step (m,) for each row."""
    rows = exponents_of(steps)
    columns = torch.zeros(weight.shape[1], dtype=torch.int32)
    return Codes((weight / step_of(rows)[:, None]).round().int(), rows, columns)


def factors(moments: Tensor, rows: int, shrink: float) -> tuple[Tensor, Tensor]:
    """Upper factors U (g, n, n) with ``inverse(A) = U^T U`` scaled to a unit diagonal, and pivots (g, n).

    A is drawn to its diagonal first, the more the fewer rows it was measured on for its size.
    """
    a = moments.double()
    n = a.shape[-1]
    share = min(0.5, 0.002 + shrink * n / max(rows, 1))
    diagonal = a.diagonal(dim1=1, dim2=2)  # (g, n)
    floor = 1e-6 * diagonal.mean(1, keepdim=True) + 1e-20
    a = (1 - share) * a + torch.diag_embed(share * diagonal + floor)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(a))
    upper = torch.linalg.cholesky(inverse, upper=True)  # inverse = U^T U
    d = upper.diagonal(dim1=1, dim2=2)
    return (upper / d[:, :, None]).float(), d.square().reciprocal().float()


def round_layer(weight: Tensor, layer: Layer, constant: float, *, shrink: float = 0.1, feedback: bool = True) -> Codes:
    """Codes of a weight matrix whose output error is near the smallest for its bits.

    Args:
        weight: (m, n), a convolution's weight flattened.
        layer: what its inputs and its output's gradient are.
        constant: ``step^2 = constant^2 / (energy * pivot)``.
        shrink: see :func:`factors`.
        feedback: take errors to later columns.
    """
    m, n = weight.shape
    rms = weight.square().mean(1).sqrt().clamp(min=1e-12)  # (m,)
    if layer.table:
        energy = layer.energy.clamp(min=1e-3 * float(layer.energy.mean()) + 1e-30)
        columns = exponents_of(constant / energy.sqrt())
        codes = (weight / step_of(columns)).round().int()
        return Codes(codes, torch.zeros(m, dtype=torch.int32), columns)
    energy = layer.energy.clamp(min=1e-4 * float(layer.energy.mean()) + 1e-30)  # (m,)
    parts = [factors(block, layer.rows, shrink) for block in layer.moments]
    groups = layer.moments[0].shape[0]
    pivots = torch.cat([p for _, p in parts], 1)  # (g, n)
    pivots = pivots.clamp(min=1e-6 * float(pivots.mean()) + 1e-30)
    middle = pivots.log().mean(1).exp()  # (g,) geometric means
    per_row = middle.repeat_interleave(m // groups)
    # No step is so large that it says nothing of a row, nor so small that codes do not fit.
    wanted = (constant / (energy * per_row).sqrt()).clamp(max=2 * rms, min=rms * 2**-14)
    rows = exponents_of(wanted)
    columns = torch.zeros(n, dtype=torch.int32)
    if groups == 1 and m >= 8:
        columns = exponents_of((middle[0] / pivots[0]).sqrt()).clamp(-40, 40)
    by_row, by_column = step_of(rows), step_of(columns)
    codes = torch.empty(m, n, dtype=torch.int32)
    first = 0
    for upper, _ in parts:
        width = upper.shape[-1]
        left = weight[:, first : first + width].clone().reshape(groups, m // groups, width)
        steps = by_row.reshape(groups, -1)
        for low in range(0, width, 64):
            high = min(low + 64, width)
            errors = torch.zeros(groups, m // groups, high - low)
            for j in range(low, high):
                column, step = left[:, :, j], steps * by_column[first + j]
                code = (column / step).round()
                codes[:, first + j] = code.reshape(-1).int()
                if not feedback:
                    continue
                error = column - code * step
                errors[:, :, j - low] = error
                left[:, :, j + 1 : high] -= error[:, :, None] * upper[:, None, j, j + 1 : high]
            if feedback and high < width:
                left[:, :, high:] -= errors @ upper[:, low:high, high:]
        first += width
    return Codes(codes, rows, columns)
