"""Networks made of other networks without any learning: noise, independent Gaussians, mixtures.

What every generator of weights has to beat, as plain functions. Variances are handled in the log domain, so
that what comes back is a network. Knows nothing of zoos and generators.

Shapes: N networks, M results, P values of a network.
Source: the baselines of Zeng et al. (arXiv 2506.07998): noise added to training checkpoints, per-parameter
Gaussians, averages.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weightloom.errors import SpecError
from weightloom.weights.normalise import BoundStatistics


def add_noise(
    bound: BoundStatistics, flats: Tensor, streams: Sequence[torch.Generator], size: float
) -> Tensor:
    """(N, P) networks with Gaussian noise, network n's from its own stream.

    ``size`` is in units of the zoo's spread: the root mean square, tensor by tensor, of how far its networks
    are from their mean. 1 moves a network as far as another one of its zoo is from the middle.

    Raises:
        SpecError: the size is negative or not finite.
    """
    check_size("noise", size)
    noise = torch.stack([torch.randn(flats.shape[1], generator=stream) for stream in streams])
    return bound.denormalise(bound.normalise(flats) + size * noise)


def gaussian(bound: BoundStatistics, flats: Tensor, streams: Sequence[torch.Generator]) -> Tensor:
    """(M, P) networks whose every value is drawn by itself, with its mean and spread over (N, P) networks."""
    values = bound.normalise(flats)
    mean, spread = values.mean(0), values.std(0, correction=0)
    noise = torch.stack([torch.randn(flats.shape[1], generator=stream) for stream in streams])
    return bound.denormalise(mean + spread * noise)


def interpolate(one: Tensor, other: Tensor, share: float | Tensor) -> Tensor:
    """(..., P) on the straight line from ``one`` (share 0) to ``other`` (share 1), raw values.

    Variances between two positive ones are positive.
    """
    return torch.lerp(one, other, torch.as_tensor(share, dtype=one.dtype))


def check_size(what: str, size: float) -> float:
    """``size``, or :class:`SpecError` where it is no number from 0 to 100."""
    if isinstance(size, bool) or not isinstance(size, (int, float)) or not 0 <= size <= 100:
        raise SpecError(f"{what} must be a number from 0 to 100, not {size!r}")
    return float(size)
