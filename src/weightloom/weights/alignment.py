"""Permutation alignment: bring the units of one network into the order of another one's.

Two networks whose hidden units are permuted compute the same function and look far apart. Here the
permutation is found that brings a network's weights (or its activations on some images) nearest to a
reference's, one assignment problem a group of units, until nothing moves. What may be permuted comes from the
computation graph (``symmetry.py``). Knows nothing of zoos and generators.

Shapes: N networks, P values of a network, n units of a group, B images.
Source: Git Re-Basin (arXiv 2209.04836), sections 3.1 (activations) and 3.2 (weights, algorithm 1). Ours:
tensors count by their own size, and a first pass compares units by what no other permutation can change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from weightloom.architectures import ArchitectureSpec
from weightloom.defaults import with_plain_defaults
from weightloom.errors import InputError
from weightloom.seeding import check_seed, torch_generator
from weightloom.weights.guard import require_finite
from weightloom.weights.layout import layout_of
from weightloom.weights.symmetry import Axis, PermutationSpec, permutation_spec

Method = Literal["weights", "activations"]
Permutations = tuple[Tensor, ...]
"""For every group (n,) int64: place i holds what was unit ``permutation[i]``."""

_MAX_SWEEPS = 50


@with_plain_defaults
def random_permutations(spec: ArchitectureSpec, seed: int = 0) -> Permutations:
    """One permutation of every group of ``spec``'s units, drawn from ``seed``."""
    stream = torch_generator("permutations", spec.full_text(), check_seed(seed))
    return tuple(torch.randperm(size, generator=stream) for size in permutation_spec(spec).sizes)


@lru_cache(maxsize=64)
@with_plain_defaults
def _places(spec: ArchitectureSpec) -> dict[str, Tensor]:
    """Where every value of every tensor stands in the vector, with factored axes."""
    layout, symmetry = layout_of(spec), permutation_spec(spec)
    numbered = layout.unflatten(torch.arange(layout.size))
    return {
        name: numbered[name].reshape([axis.size for axis in axes])
        for name, axes in symmetry.weights.items()
        if name in numbered
    }


@with_plain_defaults
def permute(spec: ArchitectureSpec, flats: Tensor, permutations: Permutations) -> Tensor:
    """(..., P) networks with their units in another order; the same functions.

    Example:
        >>> from weightloom.architectures import parse_architecture
        >>> from weightloom.fitting import initial_flats, run_networks
        >>> spec = parse_architecture("cnn(depth=2,width=4,classes=3,input=1x8x8)")
        >>> flats, images = initial_flats(spec, [0]), torch.randn(5, 1, 8, 8)
        >>> other = permute(spec, flats, random_permutations(spec))
        >>> torch.equal(flats, other)
        False
        >>> torch.allclose(run_networks(spec, flats, images), run_networks(spec, other, images), atol=1e-5)
        True
    """
    layout, symmetry = layout_of(spec), permutation_spec(spec)
    state = layout.unflatten(torch.arange(layout.size))
    for name, places in _places(spec).items():
        state[name] = _permuted(places, symmetry.weights[name], permutations).reshape(state[name].shape)
    return flats[..., layout.flatten(state)]


def _permuted(tensor: Tensor, axes: Sequence[Axis], permutations: Permutations) -> Tensor:
    """A factored tensor with every movable axis in its new order."""
    for place, axis in enumerate(axes):
        if axis.group is not None:
            tensor = tensor.index_select(place, permutations[axis.group])
    return tensor


def match_weights(spec: ArchitectureSpec, reference: Tensor, flat: Tensor) -> Permutations:
    """Permutations that bring ``flat`` (P,) near ``reference`` (P,), by their weights.

    Every tensor is divided by its root mean square in the reference, so that a batch norm's variances do not
    outvote the filters.

    Raises:
        InputError: a weight is not finite.
    """
    require_finite({"reference": reference, "network": flat}, "alignment")
    symmetry = permutation_spec(spec)
    pairs = [
        _Pair(reference[places].double(), flat[places].double(), symmetry.weights[name])
        for name, places in _places(spec).items()
    ]
    return _match(symmetry, pairs)


def match_activations(
    spec: ArchitectureSpec, reference: Tensor, flat: Tensor, images: Tensor
) -> Permutations:
    """Permutations that bring ``flat`` (P,) near ``reference`` (P,), by what units answer to images.

    Args:
        spec: resolved architecture.
        reference: (P,) weights.
        flat: (P,) weights of the network that is to be permuted.
        images: (B, channels, height, width); labels are not needed.

    Raises:
        InputError: a weight or pixel is not finite, or there are no images.
    """
    if images.dim() != 4 or not len(images) or tuple(images.shape[1:]) != spec.input:
        raise InputError(f"images for {spec} are (B, {', '.join(map(str, spec.input or ()))}), at least one")
    require_finite({"reference": reference, "network": flat, "images": images}, "alignment")
    symmetry, layout = permutation_spec(spec), layout_of(spec)
    a, b = (symmetry.run(layout.unflatten(one), images) for one in (reference, flat))
    pairs = [_Pair(a[name].double(), b[name].double(), axes) for name, axes in symmetry.activations.items()]
    return _match(symmetry, pairs)


def align(
    spec: ArchitectureSpec,
    reference: Tensor,
    flats: Tensor,
    *,
    method: Method = "weights",
    images: Tensor | None = None,
) -> Tensor:
    """(N, P) networks, each with its units in the order that brings it nearest to ``reference`` (P,).

    Never farther from the reference than before, in the measure of :func:`match_weights`, by weights.

    Raises:
        InputError: the method needs images and there are none, a weight is not finite, or networks are of
            another size.

    Example:
        >>> from weightloom.architectures import parse_architecture
        >>> from weightloom.fitting import initial_flats
        >>> spec = parse_architecture("resnet(depth=8,width=4,classes=3,input=1x8x8)")
        >>> reference = initial_flats(spec, [0])[0]
        >>> hidden = permute(spec, reference, random_permutations(spec, seed=5))
        >>> torch.equal(align(spec, reference, hidden[None])[0], reference)
        True
    """
    if method not in ("weights", "activations"):
        raise InputError(f"networks are aligned by 'weights' or 'activations', not {method!r}")
    if method == "activations" and images is None:
        raise InputError("alignment by activations needs images")
    size = layout_of(spec).size
    if reference.shape != (size,) or flats.shape[1:] != (size,):
        raise InputError(
            f"networks of {spec} are (N, {size}) values and the reference ({size},), not "
            f"{tuple(flats.shape)} and {tuple(reference.shape)}"
        )
    result = []
    for flat in flats:
        if images is not None and method == "activations":
            found = match_activations(spec, reference, flat, images)
        else:
            found = match_weights(spec, reference, flat)
        result.append(permute(spec, flat, found))
    return torch.stack(result) if result else flats.clone()


# ------------------------------------------------------------------------------------- matching


@dataclass
class _Pair:
    """The same tensor of the reference and of the other network, with factored axes."""

    a: Tensor
    b: Tensor
    axes: tuple[Axis, ...]

    def __post_init__(self) -> None:
        size = self.a.square().mean().sqrt().clamp_min(1e-12)
        self.a, self.b = self.a / size, self.b / size


def _match(symmetry: PermutationSpec, pairs: Sequence[_Pair]) -> Permutations:
    """The better of two descents: from a comparison of units by themselves, and from no change."""
    identity = tuple(torch.arange(size) for size in symmetry.sizes)
    starts = (_first_pass(symmetry, pairs), identity)
    best, value = identity, -torch.inf
    for start in starts:
        found = _descend(symmetry, pairs, start)
        reached = _likeness(pairs, found)
        if reached > value:
            best, value = found, reached
    return best


def _likeness(pairs: Sequence[_Pair], permutations: Permutations) -> float:
    """Sum of products of the reference's values with the permuted ones: high where the two are near."""
    return sum(float((pair.a * _permuted(pair.b, pair.axes, permutations)).sum()) for pair in pairs)


def _descend(symmetry: PermutationSpec, pairs: Sequence[_Pair], start: Permutations) -> Permutations:
    """Solve one group after another until a whole sweep changes none."""
    current = list(start)
    of_group = [
        [p for p in pairs if any(axis.group == g for axis in p.axes)] for g in range(len(symmetry.sizes))
    ]
    stream = torch_generator("alignment", len(current))
    for _ in range(_MAX_SWEEPS):
        moved = False
        for group in torch.randperm(len(current), generator=stream).tolist():
            table = _table(symmetry, of_group[group], group, current)
            found = _assign(table)
            if torch.equal(found, current[group]):
                continue
            # A group that stands twice in one tensor makes the problem quadratic: keep gains only.
            changed = [*current[:group], found, *current[group + 1 :]]
            before = _likeness(of_group[group], tuple(current))
            after = _likeness(of_group[group], tuple(changed))
            if after > before + 1e-9 * max(1.0, abs(before)):
                current, moved = changed, True
        if not moved:
            break
    return tuple(current)


def _first_pass(symmetry: PermutationSpec, pairs: Sequence[_Pair]) -> Permutations:
    """A start that does not depend on the order the network comes in.

    Groups in the order of the graph. Where another axis is not matched yet, values are sorted along it: a
    sorted row is the same whatever that axis' permutation, so a permuted copy is found as it is.
    """
    known: list[Tensor | None] = [None] * len(symmetry.sizes)
    for group in range(len(known)):
        own = [p for p in pairs if any(axis.group == group for axis in p.axes)]
        known[group] = _assign(_table(symmetry, own, group, known))
    return tuple(found for found in known if found is not None)


def _table(
    symmetry: PermutationSpec, pairs: Sequence[_Pair], group: int, known: Sequence[Tensor | None]
) -> Tensor:
    """(n, n) likeness of every unit of the reference to every unit of the other network."""
    size = symmetry.sizes[group]
    table = torch.zeros(size, size, dtype=torch.float64)
    for pair in pairs:
        for place, axis in enumerate(pair.axes):
            if axis.group != group:
                continue
            loose = []
            b = pair.b
            for other, beside in enumerate(pair.axes):
                if other == place or beside.group is None:
                    continue
                permutation = known[beside.group]
                if permutation is None:
                    loose.append(other)
                else:
                    b = b.index_select(other, permutation)
            table += _rows(pair.a, place, loose) @ _rows(b, place, loose).T
    return table


def _rows(tensor: Tensor, place: int, loose: Sequence[int]) -> Tensor:
    """(n, values) with one row a unit; values along ``loose`` axes are sorted together."""
    tight = [d for d in range(tensor.dim()) if d != place and d not in loose]
    moved = tensor.permute(place, *tight, *loose)
    if loose:
        # (n, tight..., loose...) -> (n, tight..., product of the loose ones), in order of size
        moved = moved.flatten(1 + len(tight)).sort(-1).values
    return moved.reshape(len(moved), -1)


def _assign(table: Tensor) -> Tensor:
    """(n,) the units of the other network in the order of the reference's."""
    from scipy.optimize import linear_sum_assignment  # a slow import, for what few commands need

    return torch.from_numpy(linear_sum_assignment(table.numpy(), maximize=True)[1]).long()
