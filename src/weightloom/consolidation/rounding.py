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


def factors(moments: Tensor, share: float, ridge: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Upper factors U (g, n, n) with ``inverse(A) = U^T D^-1 U`` and a unit diagonal, and pivots D (g, n).

    ``share`` of A is drawn to its diagonal first, and ``ridge`` times its mean diagonal is added.
    """
    a = moments.double()
    diagonal = a.diagonal(dim1=1, dim2=2)  # (g, n)
    floor = ridge * diagonal.mean(1, keepdim=True) + 1e-30
    a = (1 - share) * a + torch.diag_embed(share * diagonal + floor)
    # To a unit diagonal and back, so that channels of very different size do not spoil the factors.
    scale = a.diagonal(dim1=1, dim2=2).rsqrt()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(a * scale[:, :, None] * scale[:, None, :]))
    inverse = inverse * scale[:, :, None] * scale[:, None, :]
    # A relative jitter keeps the second factorisation from failing where the first was close to it.
    inverse = inverse + torch.diag_embed(1e-9 * inverse.diagonal(dim1=1, dim2=2))
    upper = torch.linalg.cholesky(inverse, upper=True)
    d = upper.diagonal(dim1=1, dim2=2)
    return (upper / d[:, :, None]).float(), d.square().reciprocal().float()


def share_of(size: int, rows: int, shrink: float, most: float) -> float:
    """How much of a matrix of moments is drawn to its diagonal: the more, the fewer rows it is made of."""
    return min(most, 0.002 + shrink * size / max(rows, 1))


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """How a layer is rounded.

    ``shrink``: see :func:`share_of`; ``feedback``: errors go to later columns; ``both``: and to later rows.
    """

    shrink: float = 0.2
    feedback: bool = True
    both: bool = False
    ridge: float = 0.03
    quiet: float = 0.3


BOTH = 2e10
"""Largest m n (m + n) for which errors go to later rows too: it takes that many operations."""


def round_layer(weight: Tensor, layer: Layer, constant: float, how: Rounding | None = None) -> Codes:
    """Codes of a weight matrix whose output error is near the smallest for its bits.

    Args:
        weight: (m, n), a convolution's weight flattened.
        layer: what its inputs and its output's gradient are.
        constant: squared steps are ``constant^2`` over the pivots of a row and a column.
        how: see :class:`Rounding`.
    """
    how = how or Rounding()
    m, n = weight.shape
    parts = [
        factors(block, share_of(block.shape[-1], layer.rows, how.shrink, 0.5), how.ridge)
        for block in layer.moments
    ]
    groups = layer.moments[0].shape[0]
    pivots = torch.cat([p for _, p in parts], 1)  # (g, n)
    pivots = pivots.clamp(min=1e-6 * float(pivots.mean()) + 1e-30)
    middle = pivots.log().mean(1).exp()  # (g,) geometric means
    square = layer.gradient.dim() == 2
    energy = layer.gradient.diagonal() if square else layer.gradient  # (m,)
    under: Tensor | None = None
    if square and how.both and how.feedback and m * n * (m + n) <= BOTH:
        lower, energy = (f[0] for f in factors(layer.gradient[None], share_of(m, layer.places, 0.5, 0.95)))
        under = lower
    # What is silent on the inputs seen may speak on others, or once its weights are moved.
    energy = energy + how.quiet * energy.mean() + 1e-30
    # No step is so large that it says nothing of a row, nor so small that codes do not fit.
    rms = weight.square().mean(1).sqrt()
    rms = rms.clamp(min=1e-3 * float(rms.max()) + 1e-12)
    wanted = constant / (energy * middle.repeat_interleave(m // groups)).sqrt()
    rows = exponents_of(wanted.clamp(max=2 * rms, min=rms * 2**-14))
    columns = torch.zeros(n, dtype=torch.int32)
    if groups == 1 and m >= 8:
        columns = exponents_of((middle[0] / pivots[0]).sqrt()).clamp(-40, 40)
    codes = torch.empty(m, n, dtype=torch.int32)
    first = 0
    for upper, _ in parts:
        here = slice(first, first + upper.shape[-1])
        steps = step_of(rows)[:, None] * step_of(columns[here])  # (m, n')
        if under is not None:
            codes[:, here] = _round_both(weight[:, here], steps, upper[0], under)
        else:
            codes[:, here] = _round_columns(weight[:, here], steps, upper, how.feedback)
        first = here.stop
    return Codes(codes, rows, columns)


def _round_columns(weight: Tensor, steps: Tensor, upper: Tensor, feedback: bool) -> Tensor:
    """(m, n) codes, column by column, with upper (g, n, n): GPTQ."""
    if not feedback:
        return (weight / steps).round().int()
    groups, n = upper.shape[:2]
    left = weight.reshape(groups, -1, n).clone()  # (m, n) -> (g, m / g, n)
    by = steps.reshape(groups, -1, n)
    codes = torch.empty_like(left)
    for low in range(0, n, 64):
        high = min(low + 64, n)
        errors = torch.zeros(*left.shape[:2], high - low)
        for j in range(low, high):
            codes[:, :, j] = (left[:, :, j] / by[:, :, j]).round()
            error = left[:, :, j] - codes[:, :, j] * by[:, :, j]
            errors[:, :, j - low] = error
            left[:, :, j + 1 : high] -= error[:, :, None] * upper[:, None, j, j + 1 : high]
        left[:, :, high:] -= errors @ upper[:, low:high, high:]
    return codes.reshape(-1, n).int()


def _round_both(weight: Tensor, steps: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """(m, n) codes; errors go to later columns by ``across`` (n, n), to later rows by ``down`` (m, m).

    A value depends on those to its left in its row and above it in its column, so that all of one diagonal
    of the matrix can be rounded at once.
    """
    m, n = weight.shape
    # Row j of these: by how much each earlier column (row) moves this one. Columns turned around, so that a
    # diagonal, on which rows rise as columns fall, is a plain slice.
    from_left = (across - torch.eye(n)).T.flip(0).contiguous()
    from_above = (down - torch.eye(m)).T.contiguous()
    residual = torch.zeros(m, n)  # towards a value's last target
    error = torch.zeros(n, m)  # towards its row's target; transposed, columns turned around
    codes = torch.zeros(m, n)
    for diagonal in range(m + n - 1):
        low, high = max(0, diagonal - n + 1), min(m, diagonal + 1)
        i = torch.arange(low, high)
        j = diagonal - i
        turned = slice(n - 1 - diagonal + low, n - 1 - diagonal + high)  # n - 1 - j
        target = weight[i, j] - torch.linalg.vecdot(error[turned, :high], from_above[low:high, :high])
        moved = target - torch.linalg.vecdot(residual[low:high], from_left[turned])
        step = steps[i, j]
        code = (moved / step).round()
        codes[i, j] = code
        residual[i, j] = moved - code * step
        error[n - 1 - j, i] = target - code * step
    return codes.int()
