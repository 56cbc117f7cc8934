"""Tensors of which a weight is made when a network runs, as that weight: weight norm and pruning.

What stays when the parametrization is removed is computed by torch's own function, so that the weight has the
bits that the network has. Names that wrappers put inside others are let go as well. Knows names and shapes;
no architectures, and no files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightloom.zoo.contents import StoredTensor

Rule = Callable[[Sequence[Tensor]], Tensor]

MAX_FOLDS = 4
"""Parametrizations on top of each other; pruning of a weight norm's direction is two."""

# What torch.compile, FSDP and activation checkpointing put between a module's name and its tensors.
_WRAPPERS = re.compile(
    r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
_BASE = "parametrizations."
_UNFOLDED = re.compile(r"(?:^|\.)parametrizations\.|_orig$|_mask$|weight_[uvg]$")


@dataclass(frozen=True)
class Entry:
    """A tensor under the name that a network knows, and what it is made of.

    Attributes:
        stored: its shape and type.
        parts: what it is made of: its name in the file, or other entries.
        rule: how it is made of ``parts``; None where it is one of the file's.
        what: the rule's name, for reports.
    """

    stored: StoredTensor
    parts: tuple[Entry | str, ...]
    rule: Rule | None = None
    what: str = ""

    def names(self) -> list[str]:
        """Names in the file that it is read from."""
        return [name for part in self.parts for name in ([part] if isinstance(part, str) else part.names())]

    def value(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The weight, from the file's tensors by name."""
        values = [tensors[part] if isinstance(part, str) else part.value(tensors) for part in self.parts]
        return values[0] if self.rule is None else self.rule(values)


def plain_entries(tensors: Mapping[str, StoredTensor]) -> dict[str, Entry]:
    """Every tensor as it is."""
    return {name: Entry(stored, (name,)) for name, stored in tensors.items()}


def folded_entries(tensors: Mapping[str, StoredTensor]) -> dict[str, Entry]:
    """The tensors without names of wrappers, and with weights in place of what these are made of.

    Example:
        >>> norm = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 2))
        >>> state = norm.state_dict()
        >>> stored = {name: StoredTensor(tuple(v.shape), v.dtype) for name, v in state.items()}
        >>> entries = folded_entries(stored)
        >>> list(entries), entries["weight"].what
        (['bias', 'weight'], 'weight norm')
        >>> torch.equal(entries["weight"].value(state), norm.weight)
        True
    """
    entries: dict[str, Entry] = {}
    for name, stored in tensors.items():
        short = _WRAPPERS.sub("", name)
        taken = short in tensors or short in entries
        entries[name if short != name and taken else short] = Entry(stored, (name,))
    for _ in range(MAX_FOLDS):
        folded = _folded_once(entries)
        if len(folded) == len(entries):  # each fold makes one of two
            break
        entries = folded
    return entries


def unfolded(names: Sequence[str]) -> str:
    """The first of ``names`` that is part of a parametrization which is not folded; ``""`` if none is."""
    return next((name for name in names if _UNFOLDED.search(name)), "")


def _folded_once(entries: dict[str, Entry]) -> dict[str, Entry]:
    members = Counter(map(_parametrization, entries))
    gone: set[str] = set()
    made: dict[str, tuple[str, Entry]] = {}  # by the name in whose place it stands
    for name, entry in entries.items():
        for ending, other, base, what, make in (
            ("_orig", "_mask", "", "pruning", _pruning),
            ("_v", "_g", "", "weight norm", _weight_norm),
            (".original1", ".original0", _BASE, "weight norm", _weight_norm),
        ):
            stem = name.removesuffix(ending)
            partner = entries.get(stem + other)
            target = stem
            if base:
                head, middle, last = stem.rpartition(base)
                target = head + last
                if not middle or members[stem] != 2:  # a second parametrization has tensors, too
                    continue
            if stem == name or partner is None or target in entries or {name, stem + other} & gone:
                continue
            rule = make(entry.stored, partner.stored)
            if rule is not None:
                gone |= {name, stem + other}
                made[name] = (target, Entry(entry.stored, (entry, partner), rule, what))
                break
    result: dict[str, Entry] = {}
    for name, entry in entries.items():
        if name in made:
            target, weight = made[name]
            result[target] = weight
        elif name not in gone:
            result[name] = entry
    return result


def _parametrization(name: str) -> str:
    """The parametrization that a tensor belongs to; ``""`` if to none."""
    head, middle, last = name.rpartition(_BASE)
    return head + middle + last.partition(".")[0] if middle else ""


def _pruning(weight: StoredTensor, mask: StoredTensor) -> Rule | None:
    if weight.shape != mask.shape:
        return None
    return lambda parts: parts[1].to(parts[0].dtype) * parts[0]


def _weight_norm(direction: StoredTensor, length: StoredTensor) -> Rule | None:
    """The rule of a weight norm of these shapes, or None where they are not such."""
    if not (direction.dtype.is_floating_point and length.dtype.is_floating_point and direction.shape):
        return None
    if not length.shape:
        dim = -1  # one length for the whole weight
    else:
        if len(length.shape) != len(direction.shape):
            return None
        wide = [dim for dim, extent in enumerate(length.shape) if extent != 1]
        # Lengths of one value: along a dimension of one value, all others are the norm's.
        wide = wide or [dim for dim, extent in enumerate(direction.shape) if extent == 1][:1]
        if len(wide) != 1 or length.shape[wide[0]] != direction.shape[wide[0]]:
            return None
        dim = wide[0]

    def rule(parts: Sequence[Tensor]) -> Tensor:
        half = parts[0].element_size() < 4  # which not every build of torch can do here
        v, g = (part.float() if half else part for part in parts)
        return torch._weight_norm(v, g, dim)

    return rule
