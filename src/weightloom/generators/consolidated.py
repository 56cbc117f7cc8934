"""Published checkpoints in one file, found by what is asked for: one prior for many architectures.

This is no :class:`~weightloom.generators.base.Generator`: nothing is drawn, there is no architecture of ours
to resolve and no support set to score on. It keeps what a user knows of generators: ``generate`` with an
instruction gives a sample with ``state_dict``, ``report`` and ``save``; ``save_pretrained`` and
``from_pretrained`` keep it in a folder. Knows nothing of how codes are found.

Shapes: W wordings, D = 384.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weightloom import __version__
from weightloom.conditioning.text import check_instruction, encode_text
from weightloom.consolidation.coding import CONTEXTS, SYMBOLS
from weightloom.consolidation.packing import size_of, unpack
from weightloom.defaults import with_plain_defaults
from weightloom.errors import CheckpointError, InputError, UnknownNameError
from weightloom.io import dump_json, load_tensors, read_json, save_tensors, write_json
from weightloom.tasks import NetworkCard
from weightloom.weights import require_finite

MIN_SIMILARITY = 0.48
"""Sentences that are less alike than this are about something else."""
_PARTS = ("header", "stream", "shorts", "whole")


@dataclass(frozen=True)
class Match:
    """A checkpoint's name and how alike its likest wording is to the instruction (cosine)."""

    name: str
    similarity: float


@dataclass(frozen=True)
class ConsolidatedSample:
    """A retrieved checkpoint.

    Attributes:
        state_dict: its tensors, under the names that it was published with.
        report: which one it is, how alike it is to what was asked, what it cost and how near it is.
    """

    state_dict: dict[str, Tensor]
    report: dict[str, Any]

    @property
    def card(self) -> NetworkCard:
        """Where it is from and its licence; what it reads is told by whoever published it."""
        made_by, licence = f"published as {self.report['checkpoint']}", self.report.get("licence")
        return NetworkCard(value_range=None, resize=None, made_by=made_by, licence=licence)

    def save(self, path: str | Path) -> Path:
        """Write the state dict as safetensors with its provenance in the header.

        Raises:
            CheckpointError: the file cannot be written.
        """
        require_finite(self.state_dict, "this checkpoint")
        metadata = {"weightloom": __version__, "report": dump_json(self.report), **self.card.to_metadata()}
        path = Path(path)
        save_tensors(path, {k: v.contiguous() for k, v in self.state_dict.items()}, metadata)
        return path


class Consolidated:
    """Checkpoints by name: what is told of each, and its bytes.

    Args:
        name: of the whole.
        about: for each checkpoint its ``wordings`` and whatever else is known of it.
        packed: for each its tensors as :func:`weightloom.consolidation.packing.pack` made them.
        prior: (S, V) the logarithms of the prior that all share.
    """

    kind: ClassVar[str] = "consolidated"

    def __init__(
        self,
        name: str,
        about: Mapping[str, Mapping[str, Any]],
        packed: Mapping[str, Mapping[str, Tensor]],
        prior: NDArray[np.float16],
    ) -> None:
        assert set(about) == set(packed)
        self.name, self.prior = name, prior
        self.about = {key: dict(value) for key, value in about.items()}
        self.packed = {key: dict(value) for key, value in packed.items()}

    # ------------------------------------------------------------------ finding

    @cached_property
    def _wordings(self) -> tuple[list[str], Tensor]:
        """Whose each wording is, and (W, D) what it says."""
        pairs = [(name, text) for name, about in self.about.items() for text in about["wordings"]]
        return [name for name, _ in pairs], encode_text([text for _, text in pairs])

    def find(self, instruction: str) -> list[Match]:
        """All checkpoints, the likest first. A checkpoint's own name finds it for certain.

        Raises:
            InputError: the instruction is empty or too long.
            DataUnavailableError: the sentence encoder is not installed.
        """
        instruction = check_instruction(instruction)
        owners, vectors = self._wordings
        alike = vectors @ encode_text([instruction])[0]  # (W, D) @ (D,) -> (W,)
        best: dict[str, float] = {}
        for owner, value in zip(owners, alike.tolist(), strict=True):
            best[owner] = max(best.get(owner, -1.0), value)
        if instruction in best:
            best[instruction] = 1.0
        ranked = sorted(best, key=lambda name: (name != instruction, -best[name], name))
        return [Match(name, best[name]) for name in ranked]

    @with_plain_defaults
    def generate(self, instruction: str) -> ConsolidatedSample:
        """The checkpoint that the instruction asks for.

        Raises:
            InputError: nothing is alike enough; the message says what there is.
            CheckpointError: its bytes are broken.
        """
        start = time.perf_counter()
        ranked = self.find(instruction)
        best = ranked[0]
        if best.similarity < MIN_SIMILARITY:
            near = ", ".join(match.name for match in ranked[:3])
            raise InputError(
                f"{self.name} holds nothing like {instruction.strip()[:80]!r}; the nearest are {near} "
                f"(similarity {best.similarity:.2f} where {MIN_SIMILARITY} is asked for)"
            )
        state = self.state(best.name)
        about = {key: value for key, value in self.about[best.name].items() if key != "wordings"}
        report = {
            "generator": self.name,
            "kind": self.kind,
            "instruction": instruction.strip(),
            "checkpoint": best.name,
            "similarity": best.similarity,
            "runners_up": [{"checkpoint": m.name, "similarity": m.similarity} for m in ranked[1:4]],
            "seconds": time.perf_counter() - start,
            **about,
        }
        return ConsolidatedSample(state, report)

    @with_plain_defaults
    def state(self, name: str) -> dict[str, Tensor]:
        """The tensors of the checkpoint called ``name``.

        Raises:
            UnknownNameError: there is none.
            CheckpointError: its bytes are broken.
        """
        if name not in self.packed:
            raise UnknownNameError("consolidated checkpoint", name, self.packed)
        try:
            parts = unpack(self.packed[name], self.prior)
            if parts.base == name or (parts.base is not None and parts.base not in self.packed):
                raise ValueError("a checkpoint under it that is not there")
            state = parts.state(None if parts.base is None else self.state(parts.base))
        except (
            ValueError,
            KeyError,
            TypeError,
            IndexError,
            RuntimeError,
            AssertionError,
            OverflowError,
        ) as error:
            raise CheckpointError(
                self.name, f"the checkpoint {name} is broken ({str(error)[:200]})"
            ) from None
        except Exception as error:  # zlib's own, and RecursionError of checkpoints that rest on each other
            if isinstance(error, CheckpointError) or type(error).__module__.startswith("weightloom"):
                raise
            raise CheckpointError(
                self.name, f"the checkpoint {name} is broken ({type(error).__name__})"
            ) from None
        require_finite(state, name)
        return state

    def sizes(self, name: str) -> dict[str, int]:
        """Bytes of each part of a checkpoint."""
        return size_of(self.packed[name])

    # ------------------------------------------------------------------ files

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"prior": torch.from_numpy(self.prior.copy())}
        for number, packed in enumerate(self.packed.values()):
            tensors |= {f"{number}.{part}": packed[part] for part in _PARTS if packed[part].numel()}
        save_tensors(folder / "model.safetensors", tensors, {"kind": self.kind})
        about = [{"name": name, **self.about[name]} for name in self.packed]
        write_json(folder / "config.json", {"kind": self.kind, "name": self.name, "checkpoints": about})

    @classmethod
    @with_plain_defaults
    def from_pretrained(cls, folder: str | Path) -> Consolidated:
        """Read what :meth:`save_pretrained` wrote. Raises CheckpointError where it is broken."""
        folder = Path(folder)
        config = read_json(folder / "config.json")
        tensors, _ = load_tensors(folder / "model.safetensors")
        nothing = {part: torch.zeros(0, dtype=torch.uint8) for part in _PARTS}
        try:
            about, packed = {}, {}
            for number, entry in enumerate(config["checkpoints"]):
                name = str(entry["name"])
                about[name] = {key: value for key, value in entry.items() if key != "name"}
                if not all(isinstance(text, str) for text in about[name]["wordings"]):
                    raise ValueError("wordings that are not text")
                packed[name] = {part: tensors.get(f"{number}.{part}", nothing[part]) for part in _PARTS}
                if any(packed[name][part].dtype != nothing[part].dtype for part in _PARTS):
                    raise ValueError(f"parts of {name} of another type")
            prior = tensors["prior"]
            if prior.dtype != torch.float16 or prior.shape != (CONTEXTS, SYMBOLS) or not packed:
                raise ValueError("a prior of another shape, or no checkpoint")
            return cls(str(config["name"]), about, packed, prior.numpy())
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                folder / "config.json", f"is not the config of consolidated checkpoints ({error})"
            ) from None


def is_consolidated(folder: str | Path) -> bool:
    """Whether a folder says that it holds consolidated checkpoints."""
    path = Path(folder) / "config.json"
    try:
        if not path.is_file():
            return False
    except (OSError, ValueError):  # a name that is too long, or has a NUL in it
        return False
    config = read_json(path)
    return isinstance(config, dict) and config.get("kind") == Consolidated.kind
