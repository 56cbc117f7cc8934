"""Results kept in a folder as they are measured, so that an interrupted measurement goes on where it stopped.

A cell is a small measurement; its name follows from all that decides its numbers. Knows nothing of what is
measured.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from weightloom.errors import CheckpointError
from weightloom.generators import Generator
from weightloom.generators.fingerprint import Fingerprint
from weightloom.io import dump_json, read_json, write_json

Result = dict[str, Any]
"""What a cell holds: numbers, or ``refused`` with the generator's own sentence."""


class Cells:
    """Results in a folder, one file each, named after what decides them."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, key: dict[str, Any]) -> Path:
        """Where the result of ``key`` is kept."""
        return self.folder / f"{hashlib.sha256(dump_json(key).encode()).hexdigest()[:24]}.json"

    def get(self, key: dict[str, Any]) -> Result | None:
        """What is kept of ``key``, or None.

        Raises:
            CheckpointError: the file is broken.
        """
        path = self.path(key)
        if not path.is_file():
            return None
        try:
            held = read_json(path)
        except CheckpointError as error:
            raise CheckpointError(path, f"{error.reason}; remove it to measure it again") from None
        if not isinstance(held, dict) or not isinstance(held.get("result"), dict):
            raise CheckpointError(path, "is no kept result; remove it to measure it again")
        result: Result = held["result"]
        return result

    def or_measure(self, key: dict[str, Any], measure: Callable[[], Result]) -> Result:
        """What is kept of ``key``, or what ``measure`` finds, which is kept."""
        held = self.get(key)
        if held is None:
            held = measure()
            write_json(self.path(key), {"key": key, "result": held})
        return held


def version_of(model: Generator) -> str:
    """Changes with the generator's weights, so that results of another training are not taken for its own."""
    digest = hashlib.sha256(model.kind.encode())
    fingerprint = getattr(model, "fingerprint", None)
    if isinstance(fingerprint, Fingerprint):
        for group in fingerprint.groups.values():
            digest.update(group.codes.numpy().tobytes())
    for part in getattr(model, "layerwise", ()):  # carried beside it, not in its state
        digest.update(version_of(part).encode())
    if isinstance(model, nn.Module):
        for name, value in sorted(model.state_dict().items()):
            digest.update(name.encode() + value.detach().cpu().double().numpy().tobytes())
    return digest.hexdigest()[:16]
