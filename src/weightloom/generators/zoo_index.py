"""The index that a generator carries of its zoo: what it was trained on, small enough to ship with it.

It holds the zoo's final training checkpoints in half precision, their tasks and accuracies, and the
descriptions of their support sets. From it come the nearest checkpoint and each sample's novelty without the
zoo.

Shapes: M checkpoints of one architecture and class count, P values of a network, C classes, F features.
Source: nearest-neighbour distance against the training set's own spacing, Zeng et al. (arXiv 2506.07998).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.errors import CheckpointError, UnsupportedRequestError, WeightloomError
from weightloom.io import load_tensors, read_json, save_tensors, write_json
from weightloom.tokenizers import architecture_key
from weightloom.weights import BoundStatistics, WeightStatistics, layout_of

ANEW = "Weightloom 0.1.0 wrote such folders, this version reads none of them; train the generator anew"

NEIGHBOURS = 12
"""Checkpoints whose mean trunk a task without checkpoints of its own starts from."""


def _summary(classes: Tensor) -> Tensor:
    """(..., 4F) mean and spread over the classes of (..., C, 2F): the same for every order of labels."""
    return torch.cat([classes.mean(-2), classes.std(-2, correction=0)], dim=-1)


@dataclass(frozen=True)
class ZooIndexGroup:
    """Checkpoints of one resolved architecture: weights (M, P), classes (M, C, 2F), rows of plain facts."""

    spec: ArchitectureSpec
    flats: Tensor
    classes: Tensor
    rows: list[dict[str, Any]]

    def rounded(self) -> ZooIndexGroup:
        """In the precision of the file: what was just trained then finds what is loaded later."""
        return ZooIndexGroup(self.spec, _stored(self.flats).float(), _stored(self.classes).float(), self.rows)


class ZooIndex:
    """Nearest checkpoints and novelty, in units of the checkpoints' own spread."""

    def __init__(self, groups: Sequence[ZooIndexGroup]) -> None:
        self.groups = {group.spec: group for group in groups}
        self._statistics = lru_cache(maxsize=64)(self._measured)
        self._spaced = lru_cache(maxsize=8)(self._spacing)

    def _alike(self, key: str) -> list[ZooIndexGroup]:
        """The groups of one architecture, whatever their class count, that have checkpoints."""
        return [g for spec, g in self.groups.items() if architecture_key(spec) == key and g.rows]

    def _measured(self, key: str) -> WeightStatistics:
        groups = self._alike(key)
        if not groups:
            known = sorted({architecture_key(spec) for spec, group in self.groups.items() if group.rows})
            raise UnsupportedRequestError(
                f"the zoo has no checkpoint of {key}; it has: {'; '.join(known) or 'none'}"
            )
        return WeightStatistics.measure([(layout_of(group.spec), group.flats) for group in groups])

    def bind(self, spec: ArchitectureSpec) -> BoundStatistics:
        """Centre and spread of the checkpoints of this architecture, whatever their class count.

        Raises:
            UnsupportedRequestError: there is none.
        """
        return self._statistics(architecture_key(spec)).bind(layout_of(spec))

    def head_rms(self, spec: ArchitectureSpec) -> float:
        """Root mean square of the heads' weights around their mean row."""
        return self._statistics(architecture_key(spec)).head_rms(layout_of(spec))

    def _spacing(self, spec: ArchitectureSpec) -> tuple[Tensor, float]:
        """(M, P) normalised checkpoints, and how far they usually are from the nearest other one."""
        zoo = self.bind(spec).normalise(self.groups[spec].flats)
        apart = torch.cdist(zoo, zoo) / zoo.shape[1] ** 0.5
        apart.fill_diagonal_(torch.inf)
        return zoo, float(apart.min(1).values.median())

    def nearest(self, spec: ArchitectureSpec, classes: Tensor) -> tuple[dict[str, Any], Tensor] | None:
        """The checkpoint whose task looks most like ``classes`` (C, 2F): its facts and weights (P,).

        None when no checkpoint has this architecture and class count.
        """
        group = self.groups.get(spec)
        if group is None or not group.rows:
            return None
        row = int((group.classes - classes).flatten(1).norm(dim=1).argmin())
        return group.rows[row], group.flats[row]

    @torch.no_grad()
    def trunk_near(self, spec: ArchitectureSpec, classes: Tensor) -> Tensor | None:
        """(P,) the mean trunk of the checkpoints whose pictures look most like ``classes`` (C, 2F), whatever
        their labels' order and number, with the mean head; None when no checkpoint has this architecture.
        """
        alike = self._alike(architecture_key(spec))
        if not alike:
            return None
        distances = torch.cat(
            [(_summary(g.classes) - _summary(classes)).norm(dim=-1) for g in alike]
        )  # (M',)
        trunk = layout_of(spec).trunk_size
        trunks = torch.cat([group.flats[:, :trunk] for group in alike])  # (M', trunk)
        near = distances.topk(min(NEIGHBOURS, len(distances)), largest=False).indices
        return torch.cat([trunks[near].mean(0), self.bind(spec).mean_network()[trunk:]])

    def trained_accuracy(self, task: str, spec: ArchitectureSpec) -> float | None:
        """Mean accuracy of the zoo's own checkpoints of this task and architecture, if it has any."""
        group = self.groups.get(spec)
        found = [row["accuracy"] for row in group.rows if row["task"] == task] if group else []
        return sum(found) / len(found) if found else None

    def held_by(
        self,
        holds: Callable[[ArchitectureSpec, Mapping[str, Any]], bool],
        among: Collection[ArchitectureSpec] | None = None,
    ) -> tuple[int, int]:
        """How many of its checkpoints another place holds, and how many there are.

        Of the resolved architectures ``among``, or of all. ``holds`` is asked for an architecture and a
        checkpoint's facts; it has to look at more than ``id``: zoos of one shape number theirs alike.
        """
        told = [
            holds(spec, row)
            for spec, group in self.groups.items()
            if among is None or spec in among
            for row in group.rows
        ]
        return sum(told), len(told)

    @torch.no_grad()
    def novelty(self, spec: ArchitectureSpec, flats: Tensor) -> list[dict[str, Any]] | None:
        """Distance of each (M', P) network to the nearest checkpoint, against the checkpoints' own spacing.

        Distances are root mean squares of normalised weights (1: as far as the zoo's networks spread).
        """
        group = self.groups.get(spec)
        if group is None or len(group.rows) < 2:
            return None
        zoo, spacing = self._spaced(spec)
        own = self.bind(spec).normalise(flats)
        distances = torch.cdist(own, zoo) / zoo.shape[1] ** 0.5
        values, rows = distances.min(1)
        return [
            {
                "distance": float(value),
                "nearest": group.rows[int(row)]["id"],
                "nearest_task": group.rows[int(row)]["task"],
                "zoo_spacing": spacing,
            }
            for value, row in zip(values, rows, strict=True)
        ]

    def save(self, folder: Path) -> None:
        """Write ``zoo-index.safetensors`` and ``zoo-index.json``."""
        tensors: dict[str, Tensor] = {}
        facts = []
        for number, group in enumerate(self.groups.values()):
            tensors[f"weights.{number}"] = _stored(group.flats)
            tensors[f"classes.{number}"] = _stored(group.classes)
            facts.append({"architecture": group.spec.full_text(), "rows": group.rows})
        save_tensors(folder / "zoo-index.safetensors", tensors, {})
        write_json(folder / "zoo-index.json", {"groups": facts})

    @classmethod
    def load(cls, folder: Path, features: int) -> ZooIndex | None:
        """Read what :meth:`save` wrote; None where there is none. ``features`` is F of the classes.

        Raises:
            CheckpointError: the two files do not fit each other, or the generator.
        """
        if (folder / "fingerprint.json").is_file():
            raise CheckpointError(folder, f"holds a fingerprint of its zoo; {ANEW}")
        if not (folder / "zoo-index.json").is_file():
            return None
        tensors, _ = load_tensors(folder / "zoo-index.safetensors")
        facts = read_json(folder / "zoo-index.json")
        groups = []
        try:
            for number, item in enumerate(facts["groups"]):
                spec = parse_architecture(item["architecture"])
                flats, classes = tensors[f"weights.{number}"].float(), tensors[f"classes.{number}"].float()
                rows = [_facts(row) for row in item["rows"]]
                size = layout_of(spec).size
                if flats.shape != (len(rows), size) or classes.shape != (
                    len(rows),
                    spec.classes,
                    2 * features,
                ):
                    raise CheckpointError(folder, f"the zoo index's tables of {spec} do not fit each other")
                if not bool(flats.isfinite().all() and classes.isfinite().all()):
                    raise CheckpointError(folder, f"the zoo index's tables of {spec} are not finite")
                groups.append(ZooIndexGroup(spec, flats, classes, rows))
        except CheckpointError:
            raise
        except (KeyError, TypeError, AttributeError, WeightloomError) as error:
            raise CheckpointError(folder / "zoo-index.json", f"not a zoo index ({error})") from None
        return cls(groups)


def _facts(row: dict[str, Any]) -> dict[str, Any]:
    """What is told of a checkpoint, if that is its name, its task and perhaps its accuracy."""
    accuracy = row.get("accuracy")
    named = isinstance(row["id"], str) and isinstance(row["task"], str)
    if not named or isinstance(accuracy, bool) or not isinstance(accuracy, float | int | None):
        raise TypeError(f"{str(row)[:80]} is no checkpoint")
    return row


def _stored(values: Tensor) -> Tensor:
    """As they go to the file: in half precision, if that has a place for each of them."""
    half = values.half()
    return (half if bool(half.isfinite().all()) else values).contiguous()
