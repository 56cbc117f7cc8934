"""Several layer-wise generators as one, each asked before those after it, and an index of a zoo beside them.

A dictionary for one architecture alone makes better networks of it than one that many sizes share; the one
for any size comes last. All read examples with one encoder. The zoo index changes nothing that is made: it
says how far a network is from what the zoo holds, and is what baselines look among. Knows nothing of
training.

Shapes: M samples, P values of a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from weightloom.architectures import ArchitectureSpec
from weightloom.errors import CheckpointError, SpecError, UnsupportedRequestError, WeightloomError
from weightloom.generators.base import ANY_ARCHITECTURE, Generator, Request, Validity, generators
from weightloom.generators.layerwise import Layerwise, LayerwiseConfig
from weightloom.generators.zoo_index import ZooIndex
from weightloom.io import load_tensors, read_json, save_tensors, write_json
from weightloom.tokenizers.base import load_strictly, narrowed

MAX_PARTS = 64


@generators.register("layerwise-set")
class LayerwiseSet(nn.Module, Generator):
    """Layer-wise generators in the order in which they are asked."""

    kind: ClassVar[str] = "layerwise-set"
    reads_words: ClassVar[bool] = Layerwise.reads_words
    makes_statistics: ClassVar[bool] = Layerwise.makes_statistics
    heeds: ClassVar[frozenset[str]] = Layerwise.heeds

    def __init__(
        self,
        parts: Sequence[Layerwise],
        zoo_index: ZooIndex | None = None,
        *,
        name: str = "layerwise-set",
    ) -> None:
        """
        Raises:
            SpecError: no parts or too many, or parts with pictures of other sizes or other encoders.
        """
        super().__init__()
        if not 1 <= len(parts) <= MAX_PARTS:
            raise SpecError(f"a layer-wise set has 1 to {MAX_PARTS} parts, not {len(parts)}")
        first = parts[0]
        if any(part.validity.input != first.validity.input for part in parts):
            raise SpecError("the parts of a layer-wise set must be for pictures of one size")
        if not all(_same(part.images, first.images) for part in parts):
            raise SpecError(
                "the parts of a layer-wise set must have one image encoder, the same weights in each"
            )
        self.parts = nn.ModuleList(parts)
        self.images = first.images
        for part in parts:
            part.images = self.images  # once in memory
        self.zoo_index, self.name = zoo_index, name
        self.validity = _united([part.validity for part in parts])

    def part_for(self, spec: ArchitectureSpec) -> Layerwise | None:
        """The first part that makes networks like ``spec``, resolved; None where none does."""
        return next((part for part in self.ordered if part.refusal(spec) is None), None)

    @property
    def ordered(self) -> list[Layerwise]:
        """The parts, in the order in which they are asked."""
        return list(self.parts)  # type: ignore[arg-type]

    def check(self, *arguments: Any, **options: Any) -> Request:
        """As every generator's, and what no part makes is refused, in the words of the last."""
        request = super().check(*arguments, **options)
        if self.part_for(request.architecture) is None:
            raise UnsupportedRequestError(str(self.ordered[-1].refusal(request.architecture)))
        return request

    def sample_flats(self, request: Request) -> tuple[Tensor, list[dict[str, Any]]]:
        """(M, P) networks of the part that makes them, which the reports name."""
        part = self.part_for(request.architecture)
        assert part is not None
        flats, reports = part.sample_flats(request)
        return flats, [{**report, "part": part.name} for report in reports]

    # ---------------------------------------------------------------- files

    def _own(self) -> dict[str, Tensor]:
        """The state with the encoder once."""
        return {
            name: value
            for name, value in self.state_dict().items()
            if not (name.startswith("parts.") and name.split(".")[2] == "images")
        }

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json``, ``model.safetensors`` in half precision, and the zoo index if it has one."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(folder / "model.safetensors", narrowed(self._own()), {"kind": self.kind})
        if self.zoo_index is not None:
            self.zoo_index.save(folder)
        parts = [
            {"name": part.name, "config": asdict(part.config), "validity": asdict(part.validity)}
            for part in self.ordered
        ]
        about = {"kind": self.kind, "name": self.name, "validity": asdict(self.validity)}
        write_json(folder / "config.json", {**about, "parts": parts})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> LayerwiseSet:
        """Read what :meth:`save_pretrained` wrote.

        Raises:
            CheckpointError: a file is missing, broken, or not what the config says.
        """
        folder = Path(folder)
        held = read_json(folder / "config.json")
        try:
            parts = [
                Layerwise(
                    LayerwiseConfig(**one["config"]),
                    Validity.from_json(one["validity"]),
                    name=str(one["name"]),
                )
                for one in held["parts"][: MAX_PARTS + 1]
            ]
            for part in parts[1:]:
                part.images = parts[0].images
            model = cls(parts, name=str(held["name"]))
            if Validity.from_json(held["validity"]) != model.validity:
                raise SpecError("it says otherwise than its parts what can be asked for")
        except (AttributeError, KeyError, TypeError, ValueError, WeightloomError) as error:
            raise CheckpointError(
                folder / "config.json", f"not the config of a layer-wise set ({error})"
            ) from None
        tensors, _ = load_tensors(folder / "model.safetensors")
        shared = {name: value for name, value in tensors.items() if name.startswith("images.")}
        for number in range(len(parts)):
            tensors |= {f"parts.{number}.{name}": value for name, value in shared.items()}
        load_strictly(model, tensors, folder / "model.safetensors")
        model.zoo_index = ZooIndex.load(folder, parts[0].config.image_features)
        return model.eval()


def _same(one: nn.Module, other: nn.Module) -> bool:
    own, others = one.state_dict(), other.state_dict()
    return own.keys() == others.keys() and all(torch.equal(own[name], others[name]) for name in own)


def _united(all_of: Sequence[Validity]) -> Validity:
    """What can be asked for where each of several may answer."""
    architectures = tuple(dict.fromkeys(key for one in all_of for key in one.architectures))
    return Validity(
        architectures=(ANY_ARCHITECTURE,) if ANY_ARCHITECTURE in architectures else architectures,
        input=all_of[0].input,
        min_classes=min(one.min_classes for one in all_of),
        max_classes=max(one.max_classes for one in all_of),
        tasks=tuple(dict.fromkeys(task for one in all_of for task in one.tasks)),
    )
