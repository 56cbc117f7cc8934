"""The tensors of one network in a file, whatever wraps them and whatever lies beside them.

What decides is the architecture: a network is where all of its tensors stand under one prefix, with its names
and its shapes. So no list of wrappers is needed (``module.``, ``model_ema.``, ``student.module.`` and what
others will think of), and a dictionary inside another is a prefix like any other. Tensors beside the prefix
are left out and named. Two places that fit and hold the same numbers are one network; where they differ,
nobody can know which is meant, and the caller has to say it. Knows layouts; no formats.
"""

from __future__ import annotations

import hashlib
import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightloom.architectures import ArchitectureSpec
from weightloom.errors import CheckpointError
from weightloom.io.kinds import plain_words, quoted
from weightloom.io.legacy import BIN_NAME
from weightloom.io.shards import SHARD_NAME
from weightloom.weights import Layout, layout_of
from weightloom.zoo.contents import Contents
from weightloom.zoo.folding import Entry, folded_entries, plain_entries, unfolded

SHOWN = 8
"""Names and dictionaries that a message lists."""

# What is counted or noted beside weights: one value, which no layer multiplies anything by.
_NOTES = re.compile(
    r"(?:^|[._/])(?:n_averaged|num_updates|num_batches_tracked|(?:global_)?step|epoch|iteration|decay|seed|loss|lr|"
    r"(?:best_|test_|val_|train_)?(?:acc(?:uracy)?\d?|loss)|total_ops|total_params|version|updates)$"
)
_LOSSES = re.compile(r"(?:criterion|loss|loss_fn|loss_func(?:tion)?|metrics?)[.]")
_COUNTER = re.compile(r"num_batches_tracked$")


@dataclass(frozen=True)
class Network:
    """One network's tensors in a file.

    Attributes:
        prefix: what stands before its names, keys of dictionaries included; such as ``model.module.``.
        entries: its tensors by the architecture's names.
        container: the path of the dictionary that it stands in.
    """

    prefix: str
    entries: dict[str, Entry]
    container: str

    @property
    def key(self) -> str:
        """What chooses it: the prefix without its last dot; ``.`` where there is none."""
        return self.prefix.rstrip("./") or "."

    def names(self) -> set[str]:
        """Its tensors' names in the file."""
        return {name for entry in self.entries.values() for name in entry.names()}

    def folded(self) -> list[str]:
        """Which weights are made of others, and by which rule."""
        return [f"{name} ({entry.what})" for name, entry in self.entries.items() if entry.rule is not None]


def networks_in(contents: Contents, spec: ArchitectureSpec, *, in_order: bool = False) -> list[Network]:
    """Every place in a file where exactly this architecture's tensors stand, in the file's order.

    Args:
        contents: of the file.
        spec: a resolved architecture.
        in_order: compare shapes one after another, and no names.
    """
    layout = layout_of(spec)
    plain = plain_entries(contents.tensors)
    if in_order:
        return list(_fitting_in_order(plain, spec))
    fitting = list(_fitting(plain, layout))
    folded = folded_entries(contents.tensors)
    if folded.keys() != plain.keys():  # the same network may fit with a wrapper's name and without it
        seen = {frozenset(network.names()) for network in fitting}
        fitting += [network for network in _fitting(folded, layout) if frozenset(network.names()) not in seen]
    return fitting


def unwrap(
    contents: Contents, spec: ArchitectureSpec, *, in_order: bool = False, key: str | None = None
) -> tuple[Network, dict[str, Tensor]]:
    """The one network of this architecture in a file, and its floating-point tensors (float32).

    Args:
        contents: of the file.
        spec: a resolved architecture.
        in_order: compare shapes one after another, and no names.
        key: where it is, if several fit: a dictionary's path, a prefix of names, or ``.`` for the outermost.

    Raises:
        CheckpointError: none fits, several fit and differ, or values are not floats or not finite.
    """
    fitting = [network for network in networks_in(contents, spec, in_order=in_order) if _chosen(network, key)]
    if not fitting:
        raise CheckpointError(contents.path, _why_none(contents, spec, in_order, key))
    layout = layout_of(spec)
    values = _values(contents, fitting[0], layout)
    if len(fitting) == 1:
        return fitting[0], values
    by_values = {_digest(values): fitting[0]}
    for network in fitting[1:]:
        by_values.setdefault(_digest(_values(contents, network, layout)), network)
    if len(by_values) > 1:
        keys = [network.key for network in by_values.values()]
        shown = ", ".join(map(quoted, keys[:SHOWN]))
        more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
        raise CheckpointError(
            contents.path,
            f"holds {len(keys)} networks of {spec} that differ: {shown}{more}; choose one with --key, for "
            f"example --key {plain_words(keys[0])} (key= in Python)",
        )
    return fitting[0], values


def left_out(contents: Contents, network: Network, layout: Layout) -> list[str]:
    """Names of the file's tensors that are none of the network's; its counters of batches are its own."""
    used = network.names() | {network.prefix + slot.name for slot in layout.counters}
    return [name for name in contents.tensors if name not in used]


def _chosen(network: Network, key: str | None) -> bool:
    if key is None:
        return True
    if key == ".":
        return network.prefix == ""
    wanted = key.rstrip("./")
    return network.key == wanted or network.prefix.startswith((f"{wanted}.", f"{wanted}/"))


def _values(contents: Contents, network: Network, layout: Layout) -> dict[str, Tensor]:
    """The network's tensors by the architecture's names, counters left out, as float32."""
    slots = [slot.name for slot in layout.slots]
    names = {name for slot in slots for name in network.entries[slot].names()}
    tensors = contents.load(names)
    return {slot: network.entries[slot].value(tensors).float() for slot in slots}


def _digest(tensors: Mapping[str, Tensor]) -> bytes:
    digest = hashlib.sha256()
    for tensor in tensors.values():
        digest.update(tensor.contiguous().numpy().data)
    return digest.digest()


# -- by name -----------------------------------------------------------------------------------


def _fitting(entries: Mapping[str, Entry], layout: Layout) -> Iterator[Network]:
    slots, counters = layout.slots, layout.counters
    wanted = {slot.name for slot in (*slots, *counters)}
    ordered = sorted(entries)
    for name in entries:
        prefix = _before(name, slots[0].name)
        if prefix is None:
            continue
        members: dict[str, Entry] = {}
        for slot in slots:
            entry = entries.get(prefix + slot.name)
            if entry is None or entry.stored.shape != slot.shape or not entry.stored.dtype.is_floating_point:
                break
            members[slot.name] = entry
        else:
            containers = {entry.stored.container for entry in members.values()}
            container = containers.pop() if len(containers) == 1 else None
            others = (other for other in _below(ordered, prefix) if other.removeprefix(prefix) not in wanted)
            if not any(_belongs(entries[other], other.removeprefix(prefix), container) for other in others):
                yield Network(prefix, members, container or "")


def _before(name: str, slot: str) -> str | None:
    """The prefix of ``name`` before a slot's own name, if it ends in that."""
    prefix = name.removesuffix(slot)
    return prefix if prefix != name and (not prefix or prefix[-1] in "./") else None


def _below(ordered: Sequence[str], prefix: str) -> Iterator[str]:
    """Names that begin with ``prefix``."""
    for place in range(bisect_left(ordered, prefix), len(ordered)):
        if not ordered[place].startswith(prefix):
            return
        yield ordered[place]


def _belongs(entry: Entry, name: str, container: str | None) -> bool:
    """Whether a tensor that no architecture asks for, beside a network's own, makes it another network.

    A second dictionary is beside it, unless the network itself is spread over dictionaries; so are counters,
    and what by its name belongs to a loss.
    """
    if _LOSSES.match(name):
        return False
    if container is not None and entry.stored.container != container:
        return False
    return math.prod(entry.stored.shape) != 1 or (
        entry.stored.dtype.is_floating_point and not _NOTES.search(name)
    )


# -- in order ----------------------------------------------------------------------------------


def _fitting_in_order(entries: Mapping[str, Entry], spec: ArchitectureSpec) -> Iterator[Network]:
    wanted = _in_order(spec)
    seen: set[str] = set()
    for container, prefix, group in _candidates_in_order(entries, len(wanted)):
        if group[0] not in seen and all(
            entries[name].stored.shape == shape for name, shape in zip(group, wanted.values(), strict=True)
        ):
            seen.add(group[0])
            members = dict(zip(wanted, (entries[name] for name in group), strict=True))
            yield Network(prefix, members, container)


def _in_order(spec: ArchitectureSpec) -> dict[str, tuple[int, ...]]:
    """Shapes by name in the order of the state dict, without counters."""
    counters = {slot.name for slot in layout_of(spec).counters}
    with torch.device("meta"):
        state = spec.build().state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items() if name not in counters}


def _candidates_in_order(entries: Mapping[str, Entry], size: int) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Dictionary, prefix and names of every ``size`` tensors that stand together."""
    lists: dict[str, list[str]] = {}
    for name, entry in entries.items():
        if not _COUNTER.search(name):
            lists.setdefault(entry.stored.container, []).append(name)
    everything = [name for name in entries if not _COUNTER.search(name)]
    for container, names in (*lists.items(), *([("", everything)] if len(lists) > 1 else [])):
        for start, prefix in _groups(names, size):
            yield container, prefix, names[start : start + size]


def _groups(names: Sequence[str], size: int) -> Iterator[tuple[int, str]]:
    """Where ``size`` neighbours share a beginning that ends in a dot, and no other neighbour does."""
    if len(names) < size:
        return
    shared = [_shared(names[i], names[i + 1]) for i in range(len(names) - 1)]
    for start in range(len(names) - size + 1):
        outside = max(
            shared[start - 1] if start else -1,
            shared[start + size - 1] if start + size < len(names) else -1,
        )
        inside = min(shared[start : start + size - 1], default=names[start].rfind(".") + 1)
        if inside > outside:
            yield start, names[start][:inside]


def _shared(one: str, other: str) -> int:
    """The length of the longest common beginning of two names that ends in a dot."""
    length = 0
    for a, b in zip(one.split(".")[:-1], other.split(".")[:-1], strict=False):
        if a != b:
            break
        length += len(a) + 1
    return length


# -- words -------------------------------------------------------------------------------------


def _why_none(contents: Contents, spec: ArchitectureSpec, in_order: bool, key: str | None) -> str:
    """Why no place in a file holds a network of this architecture, as well as can be said."""
    if not contents.tensors:
        return "holds no tensors"
    layout = layout_of(spec)
    if in_order:
        reason = _nearest_in_order(contents, spec)
    else:
        reason = _nearest(contents, layout, key) + f" ({spec})"
    if key is not None:
        reason += f"; looked for below {quoted(key)}"
    dictionaries = contents.dictionaries()
    if len(dictionaries) > 1 or key is not None:
        shown = ", ".join(f"{quoted(path)} ({count})" for path, count in list(dictionaries.items())[:SHOWN])
        more = f" and {len(dictionaries) - SHOWN} more" if len(dictionaries) > SHOWN else ""
        reason += f"; its dictionaries with tensors are {shown}{more}, and --key chooses one (key= in Python)"
    if SHARD_NAME.fullmatch(contents.path.name) or BIN_NAME.fullmatch(contents.path.name):
        reason += "; the file is one part of a network in several files: name the folder of all of them"
    if not in_order and contents.format != "safetensors" and networks_in(contents, spec, in_order=True):
        reason += "; one after another its tensors fit (--match order of zoo import, match='order' in Python)"
    return reason


def _nearest(contents: Contents, layout: Layout, key: str | None) -> str:
    """What is wrong at the place that holds most of the architecture's names."""
    entries = folded_entries(contents.tensors)
    slots = {slot.name: slot for slot in (*layout.slots, *layout.counters)}
    names = _suffixes(slots)
    counts: Counter[str] = Counter()
    for name in entries:
        for ending in names.get(name.rpartition(".")[2], ()):
            prefix = _before(name, ending)
            if prefix is not None and (key is None or _chosen(Network(prefix, {}, ""), key)):
                counts[prefix] += 1
    if not counts:
        names_in_file = ", ".join(quoted(name) for name in list(contents.tensors)[:3])
        more = ", ..." if len(contents.tensors) > 3 else ""
        return f"tensor {next(iter(slots))!r} is missing, as are all others; it holds {names_in_file}{more}"
    prefix = max(counts, key=lambda prefix: counts[prefix])
    missing = [slot.name for slot in layout.slots if prefix + slot.name not in entries]
    others = [name for name in _below(sorted(entries), prefix) if name.removeprefix(prefix) not in slots]
    if missing:
        odd = unfolded(others)
        of = (
            f"; {quoted(odd)} is part of a parametrization that cannot be folded: remove it where it "
            "was made (torch.nn.utils.parametrize.remove_parametrizations), and save again"
            if odd
            else ""
        )
        return f"tensor {quoted(prefix + missing[0])} is missing{_and_more(missing)}{of}"
    for slot in layout.slots:
        stored = entries[prefix + slot.name].stored
        if stored.shape != slot.shape:
            return f"tensor {quoted(prefix + slot.name)} has shape {stored.shape}, wanted {slot.shape}"
        if not stored.dtype.is_floating_point:
            return f"tensor {quoted(prefix + slot.name)} holds {stored.dtype}, not floats"
    return f"tensor {quoted(others[0])} does not belong to this architecture{_and_more(others)}"


def _nearest_in_order(contents: Contents, spec: ArchitectureSpec) -> str:
    """What is wrong with the first tensors that are as many as the architecture's."""
    wanted = _in_order(spec)
    for _, _, group in _candidates_in_order(plain_entries(contents.tensors), len(wanted)):
        for name, (own, shape) in zip(group, wanted.items(), strict=True):
            given = contents.tensors[name].shape
            if given != shape:
                return (
                    f"tensor {quoted(name)} has shape {given}, but {own!r} of {spec}, which stands "
                    f"there, has {shape}"
                )
    count = sum(not _COUNTER.search(name) for name in contents.tensors)
    return f"holds {count} tensors, and nowhere the {len(wanted)} of {spec} one after another"


def _suffixes(slots: Mapping[str, object]) -> dict[str, list[str]]:
    """The slots by the last part of their names."""
    by_end: dict[str, list[str]] = {}
    for name in slots:
        by_end.setdefault(name.rpartition(".")[2], []).append(name)
    return by_end


def _and_more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
