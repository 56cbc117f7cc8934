"""The page that is made from the JSON: ``docs/results/photos.md``."""

from __future__ import annotations

from typing import Any


def render(results: dict[str, Any], config: dict[str, Any]) -> str:
    parts = ["# Photographs"]
    return "\n\n".join(parts) + "\n"
