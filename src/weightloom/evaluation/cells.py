"""Results kept in a folder as they are measured, so that an interrupted measurement goes on where it stopped.

A cell is a small measurement; its name follows from all that decides its numbers. Knows nothing of what is
measured.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from weightloom.errors import CheckpointError, WeightloomError
from weightloom.generators import Generator
from weightloom.generators.zoo_index import ZooIndex
from weightloom.io import dump_json, read_json, write_json

MEASURING = 1
"""Raised when the same generator and settings are measured in another way: older cells are then not taken."""

Result = dict[str, Any]
"""What a cell holds: numbers, or ``refused`` with the generator's own sentence."""


class Cells:
    """Results in a folder, one file each, named after what decides them."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, key: dict[str, Any]) -> Path:
        """Where the result of ``key`` is kept."""
        said = dump_json({**key, "measuring": MEASURING})
        return self.folder / f"{hashlib.sha256(said.encode()).hexdigest()[:24]}.json"

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

    def keep(self, key: dict[str, Any], result: Result) -> None:
        """Write down the result of ``key``."""
        write_json(self.path(key), {"key": key, "result": result})

    def or_measure(self, key: dict[str, Any], measure: Callable[[], Result]) -> Result:
        """What is kept of ``key``, or what ``measure`` finds, which is kept."""
        held = self.get(key)
        if held is None:
            held = measure()
            self.keep(key, held)
        return held


def version_of(model: Generator) -> str:
    """Changes with all that decides what a generator makes, so that results of another one are not taken for
    its own: weights, options, checkpoints and what is kept with them.
    """
    digest = hashlib.sha256(model.kind.encode())

    def add(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            digest.update(name.encode() + value.detach().cpu().double().numpy().tobytes())
        elif isinstance(value, nn.Module):
            for key, held in sorted(value.state_dict().items()):
                add(f"{name}.{key}", held)
        elif isinstance(value, ZooIndex):
            for spec, group in value.groups.items():
                add(f"{name}.{spec.full_text()}", group.rows)
                for key, held in (("weights", group.flats), ("classes", group.classes)):
                    add(f"{name}.{key}", held)
        elif is_dataclass(value) and not isinstance(value, type):
            add(name, asdict(value))
        else:
            with suppress(WeightloomError):  # what is not plain data is made of what is
                digest.update(name.encode() + dump_json(value).encode())

    if isinstance(model, nn.Module):
        add("", model)
    for name, value in sorted(vars(model).items()):
        if name not in ("name", "training") and not name.startswith("_"):
            add(name, value)
    return digest.hexdigest()[:16]
