"""Seeds by address, never by state: ``(salt, split, index)`` names one stream of random numbers.

Nothing here touches the global random state of torch, numpy or Python.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch

from weightloom.whole import whole_number


def check_seed(seed: Any) -> int:
    """``seed`` as an ``int``: a whole number of any sign and size, of Python, numpy or torch.

    Every seed that a caller hands in goes through here, so that ``np.int64(3)`` draws what ``3`` draws.

    Raises:
        InputError: it is something else: a truth value, a fraction, text or nothing.

    Example:
        >>> check_seed(np.uint8(3)), check_seed(-(10**30))
        (3, -1000000000000000000000000000000)
        >>> check_seed(1.5)
        Traceback (most recent call last):
        ...
        weightloom.errors.InputError: a seed must be a whole number, not 1.5
    """
    return whole_number(seed, "a seed")


def seed_for(*address: str | int) -> int:
    """A 63-bit seed that depends on every part of ``address`` and on nothing else.

    Raises:
        InputError: a part that is neither text nor a whole number.

    Example:
        >>> seed_for("tasks", "train", 3) == seed_for("tasks", "train", np.int64(3))
        True
        >>> seed_for("tasks", "train", 3) == seed_for("tasks", "held-out", 3)
        False
    """
    text = "\x1f".join(_part(part) for part in address)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 1


def _part(part: Any) -> str:
    """Kinds of numbers, and of text, that stand for the same are the same part of an address."""
    if isinstance(part, str):
        return f"str:{part}"
    short = type(part) is int and part.bit_length() < 64
    return f"int:{part if short else check_seed(part)}"


def torch_generator(*address: str | int) -> torch.Generator:
    """A private CPU :class:`torch.Generator` for ``address``. Raises as :func:`seed_for`."""
    return torch.Generator().manual_seed(seed_for(*address))


def numpy_generator(*address: str | int) -> np.random.Generator:
    """A private :class:`numpy.random.Generator` for ``address``. Raises as :func:`seed_for`."""
    return np.random.default_rng(seed_for(*address))
