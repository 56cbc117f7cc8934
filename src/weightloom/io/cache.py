"""Where downloaded and derived files are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir(*parts: str) -> Path:
    """The cache folder, or a place below it: ``$WEIGHTLOOM_CACHE``, else ``~/.cache/weightloom``.

    The variable is read on every call. Nothing is created.

    Example:
        >>> cache_dir("datasets", "mnist").parts[-2:]
        ('datasets', 'mnist')
    """
    root = os.environ.get("WEIGHTLOOM_CACHE")
    base = Path(root).expanduser() if root else Path.home() / ".cache" / "weightloom"
    return base.joinpath(*parts)
