"""How sure an accuracy is that was counted on so many images. Knows nothing of networks."""

from __future__ import annotations

import math

_Z = 1.959963984540054
"""Of a normal distribution, 95 % lie within so many standard deviations."""


def accuracy_interval(share: float, images: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy that was counted on ``images`` images, by Wilson's score.

    It stays within 0 and 1 and has a width where all answers were right, or none. Of the mean over several
    networks on the same images it is an upper bound: what they share, their images, is what it is about.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference" (1927), equation 4.

    Example:
        >>> [round(end, 3) for end in accuracy_interval(1.0, 3)]
        [0.439, 1.0]
        >>> [round(end, 3) for end in accuracy_interval(0.9, 1000)]
        [0.88, 0.917]
    """
    assert images > 0
    share = min(max(share, 0.0), 1.0)
    shrink = 1 + _Z**2 / images
    centre = (share + _Z**2 / (2 * images)) / shrink
    reach = _Z / shrink * math.sqrt(share * (1 - share) / images + _Z**2 / (4 * images**2))
    # Rounding must not leave out the share itself at the ends.
    return max(0.0, min(centre - reach, share)), min(1.0, max(centre + reach, share))


def counted(share: float | None, images: int | None) -> dict[str, object]:
    """An accuracy as reports have it, with how sure it is: ``accuracy``, ``interval`` and ``num_images``.

    Example:
        >>> sorted(counted(1.0, 3))
        ['accuracy', 'interval', 'num_images']
        >>> counted(None, None)
        {'accuracy': None, 'interval': None, 'num_images': None}
    """
    return {"accuracy": share, "interval": interval_of(share, images), "num_images": images}


def interval_of(share: float | None, images: int | None) -> list[float] | None:
    """:func:`accuracy_interval` as JSON has it; None without an accuracy, or of unknown images."""
    return None if share is None or not images else [*accuracy_interval(share, images)]
