"""A compact index of the zoo behind a generator: what it was trained on, small enough to ship with it.

It holds the codes of the zoo's final training checkpoints, their tasks and accuracies and the descriptions
of their support sets. From it come the nearest checkpoint and each sample's novelty without the zoo.

Shapes: M checkpoints of one architecture and class count, T tokens, D codes, C classes, F features.
Source: nearest-neighbour distance against the training set's own spacing, Zeng et al. (arXiv 2506.07998).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.conditioning import TEXT_WIDTH
from weightloom.errors import CheckpointError, WeightloomError
from weightloom.io import load_tensors, read_json, save_tensors, write_json
from weightloom.tasks import parse_task
from weightloom.tokenizers import WeightTokenizer, architecture_key

_WHOLE_BONUS = 0.2
"""Cosine similarity that a dataset's own task is ahead by when there are only words."""


NEIGHBOURS = 12
"""Checkpoints whose mean trunk a task without checkpoints of its own starts from."""


def _summary(classes: Tensor) -> Tensor:
    """(..., 4F) mean and spread over the classes of (..., C, 2F): the same for every order of labels."""
    return torch.cat([classes.mean(-2), classes.std(-2, correction=0)], dim=-1)


@lru_cache(maxsize=4096)
def _is_whole(task: str) -> bool:
    return parse_task(task).canonical


@dataclass(frozen=True)
class FingerprintGroup:
    """Checkpoints of one resolved architecture: codes (M, T, D), classes (M, C, 2F), rows of plain facts."""

    spec: ArchitectureSpec
    codes: Tensor
    classes: Tensor
    rows: list[dict[str, Any]]
    words: Tensor | None = None
    """(M, 384): the mean of the encoded wordings of every checkpoint's task."""
    memories: Mapping[str, Tensor] = field(default_factory=dict)
    """(T, D) codes that the generator itself keeps for a task; see :mod:`weightloom.training.memories`."""

    def known(self, row: int) -> tuple[Tensor, str]:
        """(T, D) codes for the task of checkpoint ``row``, and what they are: memory or checkpoint."""
        facts = self.rows[row]
        if facts["task"] in self.memories:
            return self.memories[facts["task"]], f"memory of {facts['task']}"
        return self.codes[row], f"checkpoint {facts['id']}"


class Fingerprint:
    """Nearest checkpoints and novelty, decoded with the generator's own tokenizer."""

    def __init__(self, tokenizer: WeightTokenizer, groups: Sequence[FingerprintGroup]) -> None:
        self.tokenizer = tokenizer
        self.groups = {group.spec: group for group in groups}
        self._flats = lru_cache(maxsize=8)(self._decode)
        self._spaced = lru_cache(maxsize=8)(self._spacing)

    @torch.no_grad()
    def _decode(self, spec: ArchitectureSpec) -> Tensor:
        return self.tokenizer.decode(spec, self.groups[spec].codes)

    def _spacing(self, spec: ArchitectureSpec) -> tuple[Tensor, float]:
        """(M, P) normalised checkpoints, and how far they usually are from the nearest other one."""
        zoo = self.tokenizer.bind(spec)[2].normalise(self._flats(spec))
        apart = torch.cdist(zoo, zoo) / zoo.shape[1] ** 0.5
        apart.fill_diagonal_(torch.inf)
        return zoo, float(apart.min(1).values.median())

    def nearest(self, spec: ArchitectureSpec, classes: Tensor) -> tuple[dict[str, Any], Tensor] | None:
        """The checkpoint whose task looks most like ``classes`` (C, 2F): its facts and weights (P,).

        None when no checkpoint has this architecture and class count.
        """
        group = self.groups.get(spec)
        if group is None:
            return None
        row = self.nearest_row(spec, classes)
        return group.rows[row], self._flats(spec)[row]

    def row_by_words(self, spec: ArchitectureSpec, instruction: Tensor) -> int | None:
        """The row of ``spec``'s group whose task is worded most like ``instruction`` (384,), or None.

        Words seldom say an order of labels or a transform: a dataset's own task (all classes in their own
        order, pictures as they are) is taken where it is nearly as much alike as the best.
        """
        group = self.groups.get(spec)
        if group is None or group.words is None or not group.rows:
            return None
        alike = torch.cosine_similarity(group.words, instruction[None], dim=1)  # (M,)
        whole = torch.tensor([_is_whole(str(row["task"])) for row in group.rows])
        return int((alike + _WHOLE_BONUS * whole).argmax())

    def nearest_row(self, spec: ArchitectureSpec, classes: Tensor) -> int:
        """The row of ``spec``'s group whose task looks most like ``classes`` (C, 2F)."""
        return int((self.groups[spec].classes - classes).flatten(1).norm(dim=1).argmin())

    @torch.no_grad()
    def trunk_near(self, spec: ArchitectureSpec, classes: Tensor) -> Tensor | None:
        """(P,) the mean trunk of the checkpoints whose pictures look most like ``classes`` (C, 2F), whatever
        their labels' order and number, with the mean head; None when no checkpoint has this architecture.
        """
        key = architecture_key(spec)
        alike = [group for held, group in self.groups.items() if architecture_key(held) == key and group.rows]
        if not alike:
            return None
        distances = torch.cat(
            [(_summary(g.classes) - _summary(classes)).norm(dim=-1) for g in alike]
        )  # (M',)
        trunk = self.tokenizer.trunk_size(spec)
        trunks = torch.cat([self._flats(group.spec)[:, :trunk] for group in alike])  # (M', trunk)
        near = distances.topk(min(NEIGHBOURS, len(distances)), largest=False).indices
        return torch.cat([trunks[near].mean(0), self.tokenizer.centre(spec)[trunk:]])

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
        own = self.tokenizer.bind(spec)[2].normalise(flats)
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
        """Write ``fingerprint.safetensors`` and ``fingerprint.json``."""
        tensors: dict[str, Tensor] = {}
        facts = []
        for number, group in enumerate(self.groups.values()):
            tensors[f"codes.{number}"] = _packed(self.tokenizer, group.spec, group.codes)
            tensors[f"classes.{number}"] = group.classes.half().contiguous()
            if group.words is not None:
                tensors[f"words.{number}"] = group.words.half().contiguous()
            if group.memories:
                kept = torch.stack(list(group.memories.values()))
                tensors[f"memories.{number}"] = _packed(self.tokenizer, group.spec, kept)
            tasks = list(group.memories)
            facts.append({"architecture": group.spec.full_text(), "rows": group.rows, "memories": tasks})
        save_tensors(folder / "fingerprint.safetensors", tensors, {})
        write_json(folder / "fingerprint.json", {"groups": facts})

    @classmethod
    def load(cls, folder: Path, tokenizer: WeightTokenizer, features: int) -> Fingerprint | None:
        """Read what :meth:`save` wrote; None where there is none. ``features`` is F of the classes.

        Raises:
            CheckpointError: the two files do not fit each other, or the generator.
        """
        if not (folder / "fingerprint.json").is_file():
            return None
        tensors, _ = load_tensors(folder / "fingerprint.safetensors")
        facts = read_json(folder / "fingerprint.json")
        groups = []
        try:
            for number, item in enumerate(facts["groups"]):
                spec = parse_architecture(item["architecture"])
                classes = tensors[f"classes.{number}"].float()
                codes = _unpacked(tokenizer, spec, tensors[f"codes.{number}"], folder)
                tasks = [str(task) for task in item.get("memories", [])]
                kept = codes[:0]
                if tasks:
                    kept = _unpacked(tokenizer, spec, tensors[f"memories.{number}"], folder)
                rows = [_facts(row) for row in item["rows"]]
                if len(rows) != len(codes) or classes.shape != (len(codes), spec.classes, 2 * features):
                    raise CheckpointError(folder, f"the fingerprint's tables of {spec} do not fit each other")
                if len(kept) != len(tasks):
                    raise CheckpointError(
                        folder, "the fingerprint's memories and their tasks differ in number"
                    )
                words = tensors.get(f"words.{number}")
                if words is not None and words.shape != (len(codes), TEXT_WIDTH):
                    raise CheckpointError(folder, "the fingerprint's words do not fit its checkpoints")
                words = None if words is None else words.float()
                memories = dict(zip(tasks, kept, strict=True))
                groups.append(FingerprintGroup(spec, codes, classes, rows, words, memories))
        except CheckpointError:
            raise
        except (KeyError, TypeError, AttributeError, WeightloomError) as error:
            raise CheckpointError(folder / "fingerprint.json", f"not a fingerprint ({error})") from None
        return cls(tokenizer, groups)


def _facts(row: dict[str, Any]) -> dict[str, Any]:
    """What is told of a checkpoint, if that is its name, its task and perhaps its accuracy."""
    accuracy = row.get("accuracy")
    named = isinstance(row["id"], str) and isinstance(row["task"], str)
    if not named or isinstance(accuracy, bool) or not isinstance(accuracy, float | int | None):
        raise TypeError(f"{str(row)[:80]} is no checkpoint")
    return row


def _packed(tokenizer: WeightTokenizer, spec: ArchitectureSpec, codes: Tensor) -> Tensor:
    """(M, F) of codes (M, T, D): those that can differ from one network to another."""
    narrow = torch.uint8 if tokenizer.vocabulary <= 256 else torch.int16
    return codes[:, tokenizer.allowed(spec).sum(-1) > 1].to(narrow).contiguous()


def _unpacked(tokenizer: WeightTokenizer, spec: ArchitectureSpec, packed: Tensor, folder: Path) -> Tensor:
    """(M, T, D) of what :func:`_packed` made."""
    allowed = tokenizer.allowed(spec)  # (T, D, V)
    free = allowed.sum(-1) > 1  # (T, D)
    if packed.dim() != 2 or packed.shape[1] != int(free.sum()):
        raise CheckpointError(folder, f"the fingerprint's codes are not those of {spec}")
    if packed.numel() and int(packed.max()) >= tokenizer.vocabulary:
        raise CheckpointError(folder, "it holds codes that the tokenizer does not have")
    codes = allowed.long().argmax(-1).repeat(len(packed), 1, 1)  # the only value of a code that is not free
    codes[:, free] = packed.long()
    return codes
