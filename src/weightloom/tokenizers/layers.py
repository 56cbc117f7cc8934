"""One token a layer: the decoder that makes the trunk of any depth and width of a family from few codes.

A dictionary has, for every role that a layer can have in its family (:meth:`ArchitectureSpec.place`), the
weights of the widest layer of that role and R rank-one *atoms*; a layer's code says how much of each atom is
added. It may also have E *experts*, whole layers' worth of differences, mixed in shares. A narrower network
takes the first rows and columns, a wider one repeats channels in such a way that it computes the same
function, and a role of which a deep network has several layers is interpolated between *anchors* along the
depth. The dictionary is learned through the networks that it makes, so its networks of all sizes share what
they know. Heads are not its business. Knows nothing of priors.

Shapes: B networks, T tokens (layers with weights, without the head), R codes a token, A anchors, P values.
Sources: one set of weights for all widths, Yu and Huang (arXiv 1903.05134), section 3; wider networks with
the same function, Chen et al., "Net2Net" (arXiv 1511.05641), section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from weightloom.architectures import ArchitectureSpec
from weightloom.errors import SpecError, UnsupportedRequestError
from weightloom.seeding import torch_generator
from weightloom.weights import Layer, layout_of

ATOM_SCALE = 0.3
"""Size of an atom's vectors at the start, in units of the weights that it moves."""


@dataclass(frozen=True)
class LayerPlace:
    """A layer with weights and the norm after it, if any; ``shape`` of its weight."""

    weighted: Layer
    norm: Layer | None
    role: str
    position: float
    shape: tuple[int, ...]


@lru_cache(maxsize=512)
def places(spec: ArchitectureSpec) -> tuple[LayerPlace, ...]:
    """The trunk of a resolved ``spec`` layer by layer.

    Raises:
        UnsupportedRequestError: the family does not say what its layers do, or has layers of other kinds.
    """
    found: list[LayerPlace] = []
    for layer in layout_of(spec).layers:
        if layer.kind == "head":
            continue
        place = spec.place(layer.name)
        if place is None or layer.kind not in ("conv", "linear", "norm"):
            raise UnsupportedRequestError(f"{spec.family} networks cannot be made layer by layer")
        if layer.kind == "norm":
            assert found and found[-1].norm is None, layer.name
            found[-1] = replace(found[-1], norm=layer)
        else:
            role, position = place
            found.append(LayerPlace(layer, None, role, position, layer.slots[0].shape))
    return tuple(found)


class LayerDictionary(nn.Module):
    """The decoder; see the file's first lines.

    Example:
        >>> from weightloom.architectures import parse_architecture
        >>> largest = parse_architecture("cnn(depth=4,width=8,classes=2,input=3x16x16)")
        >>> dictionary = LayerDictionary([largest], codes=4)
        >>> narrow = parse_architecture("cnn(depth=5,width=6,classes=2,input=3x16x16)")
        >>> dictionary.decode(narrow, torch.zeros(1, dictionary.num_tokens(narrow), 4)).shape[1]
        1628
    """

    def __init__(
        self, largest: Sequence[ArchitectureSpec], codes: int, anchors: int = 3, experts: int = 0
    ) -> None:
        """
        Args:
            largest: for every family its widest and deepest network, resolved.
            codes: R.
            anchors: A, of each role that a network can have several layers of.
            experts: E.

        Raises:
            SpecError: a family is named twice.
        """
        super().__init__()
        self.codes, self.anchors, self.experts = codes, anchors, experts
        self.largest = {spec.family: spec for spec in largest}
        if len(self.largest) != len(largest):
            raise SpecError("a layer dictionary has one largest network for each family")
        self.tables = nn.ParameterDict()
        self.roles: dict[str, int] = {}
        for spec in largest:
            state = spec.initialise(0).state_dict()
            members: dict[str, list[LayerPlace]] = {}
            for place in places(spec):
                members.setdefault(place.role, []).append(place)
            for role, layers in members.items():
                key = self._key(spec.family, role)
                self.roles[key] = len(self.roles)
                self._add(key, layers, state)

    @staticmethod
    def _key(family: str, role: str) -> str:
        return f"{family}/{role}".replace(".", "-")

    def _add(self, key: str, layers: list[LayerPlace], state: dict[str, Tensor]) -> None:
        place, count = layers[0], 1 if len(layers) == 1 else self.anchors
        generator = torch_generator("layer dictionary", key)
        weight = state[place.weighted.slots[0].name]
        # In the units of the largest network itself: an optimiser's steps then are what they are elsewhere.
        base = torch.stack([weight] * count)
        if count > 1 and weight.shape[0] == weight.shape[1]:
            base = 0.5 * base + _identity(weight)  # layers in between change little at first
        self.tables[f"{key}/weight"] = nn.Parameter(base)
        if self.experts:
            self.tables[f"{key}/experts"] = nn.Parameter(torch.zeros(self.experts, *weight.shape))
        rows, columns = weight.shape[0], tuple(weight.shape[1:])
        size = float(base.std()) * ATOM_SCALE
        self.tables[f"{key}/rows"] = nn.Parameter(
            torch.randn(self.codes, rows, generator=generator) * ATOM_SCALE
        )
        self.tables[f"{key}/columns"] = nn.Parameter(
            torch.randn(self.codes, *columns, generator=generator) * size
        )
        if len(place.weighted.slots) > 1:
            bias = state[place.weighted.slots[1].name]
            self.tables[f"{key}/bias"] = nn.Parameter(torch.stack([bias] * count))
            self.tables[f"{key}/bias-atoms"] = nn.Parameter(
                0.05 * torch.randn(self.codes, rows, generator=generator)
            )
        if place.norm is not None:
            self.tables[f"{key}/gain"] = nn.Parameter(torch.ones(count, rows))
            shift = 0.5 if count > 1 else 0.0
            self.tables[f"{key}/shift"] = nn.Parameter(torch.full((count, rows), shift))
            for part in ("gain", "shift"):
                self.tables[f"{key}/{part}-atoms"] = nn.Parameter(
                    0.05 * torch.randn(self.codes, rows, generator=generator)
                )

    def refusal(self, spec: ArchitectureSpec) -> str | None:
        """Why networks like ``spec`` cannot be made; None where they can."""
        largest = self.largest.get(spec.family)
        names = ", ".join(sorted(self.largest))
        if largest is None:
            return f"networks of any depth and width are made of {names} only"
        ours, asked = largest.to_json(), spec.to_json()
        for option in sorted(ours.keys() - {"depth", "width", "classes"}):
            if ours[option] != asked[option]:
                return f"{spec.family} networks are made with {option}={ours[option]}, not {asked[option]}"
        for place in places(spec):
            if self._key(spec.family, place.role) not in self.roles:
                return f"{spec.family} networks are not made this deep ({place.role})"
        return None

    def check(self, spec: ArchitectureSpec) -> None:
        """Raise :class:`UnsupportedRequestError` unless networks like ``spec`` can be made."""
        refusal = self.refusal(spec)
        if refusal is not None:
            raise UnsupportedRequestError(refusal)

    def num_tokens(self, spec: ArchitectureSpec) -> int:
        """T."""
        return len(places(spec))

    def describe(self, spec: ArchitectureSpec) -> tuple[Tensor, Tensor]:
        """Roles (T,) int64, and plain numbers (T, 5) about every token: where it stands among its role and
        in the network, its rows, its fan-in, and the depth, the last three as logarithms.
        """
        layers = places(spec)
        roles = torch.tensor([self.roles[self._key(spec.family, p.role)] for p in layers])
        numbers = [
            [
                p.position,
                i / max(1, len(layers) - 1),
                math.log2(p.shape[0]) / 4 - 1,
                math.log2(math.prod(p.shape[1:])) / 4 - 1.5,
                math.log2(len(layers)) / 2 - 1,
            ]
            for i, p in enumerate(layers)
        ]
        return roles, torch.tensor(numbers)

    def decode(self, spec: ArchitectureSpec, latents: Tensor, *, seed: int = 0) -> Tensor:
        """(B, P) networks of latents (B, T, R + E), codes in [-1, 1] and then shares; differentiable.

        Heads are zero and batch norms have no statistics yet (mean 0, variance 1). ``seed`` decides how the
        repeated channels of a network wider than the dictionary share their inputs.
        """
        layout = layout_of(spec)
        lead = latents.shape[0]
        state: dict[str, Tensor] = {}
        for number, place in enumerate(places(spec)):
            state |= self.decode_layer(spec, place, latents[:, number], seed=seed)
        for slot in layout.slots:
            if slot.name not in state:
                made = torch.ones if slot.is_variance else torch.zeros
                state[slot.name] = made(lead, *slot.shape, device=latents.device)
        return layout.flatten(state)

    def decode_layer(
        self, spec: ArchitectureSpec, place: LayerPlace, codes: Tensor, *, seed: int = 0
    ) -> dict[str, Tensor]:
        """The tensors of one layer, with a leading B, from latents (B, R + E): memory of one layer only."""
        key, tables = self._key(spec.family, place.role), self.tables
        codes, shares = codes[:, : self.codes], codes[:, self.codes :]
        held = tables[f"{key}/weight"]
        rows = _taken(place.shape[0], held.shape[1])
        columns = _taken(place.shape[1], held.shape[2])
        base = self._between(held, place.position)[: len(rows)][:, : len(columns)]  # (rows, columns, ...)
        atoms = tables[f"{key}/columns"][:, : len(columns)]
        # (B, rows, R) @ (R, columns*...) -> (B, rows, columns, ...)
        moved = (codes[:, None] * tables[f"{key}/rows"].T[: len(rows)]) @ atoms.flatten(1)
        if self.experts:
            whole = tables[f"{key}/experts"][:, : len(rows)][:, :, : len(columns)]
            base = base + torch.einsum("be,e...->b...", shares, whole)
        # Fewer inputs, larger weights: sums stay as large.
        larger = (math.prod(held.shape[2:]) / math.prod(atoms.shape[1:])) ** 0.5
        weight = (base + moved.unflatten(-1, atoms.shape[1:])) * larger
        if place.norm is not None and any(slot.is_variance for slot in place.norm.slots):
            weight = _as_initialised(weight)
        weight = widen(weight, place.shape, (place.role, seed))
        state = {place.weighted.slots[0].name: weight}

        def vector(part: str) -> Tensor:
            own = self._between(tables[f"{key}/{part}"], place.position)
            made = (own + codes @ tables[f"{key}/{part}-atoms"])[:, : len(rows)]
            return made[:, torch.arange(place.shape[0], device=made.device) % len(rows)]

        if len(place.weighted.slots) > 1:
            state[place.weighted.slots[1].name] = vector("bias")
        if place.norm is not None:
            state[place.norm.slots[0].name], state[place.norm.slots[1].name] = vector("gain"), vector("shift")
        return state

    def _between(self, table: Tensor, position: float) -> Tensor:
        """The entry of an anchored table (A, ...) at ``position``, 0 to 1."""
        if len(table) == 1:
            return table[0]
        place = position * (len(table) - 1)
        below = min(int(place), len(table) - 2)
        return torch.lerp(table[below], table[below + 1], place - below)


def _taken(wanted: int, held: int) -> range:
    return range(min(wanted, held))


def _identity(weight: Tensor) -> Tensor:
    """A weight of the same shape that hands its inputs on."""
    eye = torch.zeros_like(weight)
    if weight.dim() == 2:
        return eye.copy_(torch.eye(len(weight)))
    return nn.init.dirac_(eye)


def _as_initialised(weight: Tensor) -> Tensor:
    """Every filter of (B, rows, columns, ...) at the size of torch's initialisation.

    A batch norm behind it takes any scale out again, so the function is the same; but an optimiser has steps
    of a size of their own, and filters far larger than a fresh network's would hardly move.
    """
    fan_in = math.prod(weight.shape[2:])
    size = weight.flatten(2).square().mean(-1).sqrt().clamp_min(1e-8)  # (B, rows)
    wanted = (1 / (3 * fan_in)) ** 0.5
    return weight * (wanted / size).reshape(*size.shape, *[1] * (weight.dim() - 2))


def widen(
    weight: Tensor, shape: tuple[int, ...], address: tuple[str, int], rows: range | None = None
) -> Tensor:
    """(B, *shape) from a narrower weight: rows are repeated, and the inputs that a repeated channel feeds are
    shared out among its copies in uneven parts, so that training can tell them apart.

    Args:
        weight: (B, rows, columns, ...).
        shape: of the wider weight.
        address: what the uneven parts are drawn from.
        rows: those of the result that are made; all by default. Together the parts are the whole, bit by bit.
    """
    held, columns = weight.shape[1:3]
    if shape[0] > held or rows is not None:
        rows = range(shape[0]) if rows is None else rows
        weight = weight.index_select(1, torch.tensor(rows, device=weight.device) % held)
    if shape[1] <= columns:
        return weight
    share = torch.tensor(_shares(columns, shape[1], math.prod(shape[2:]), address), device=weight.device)
    # (B, R, columns, ...) -> (B, R, 1, columns * each), times (turns, columns * each)
    tiled = weight.flatten(2).unsqueeze(2) * share
    # (B, R, turns, columns * each) -> (B, R, turns * columns, ...), of which the last turn may be in part
    return tiled.reshape(*weight.shape[:2], -1, *shape[2:])[:, :, : shape[1]]


@lru_cache(maxsize=4)
def _shares(columns: int, wide: int, each: int, address: tuple[str, int]) -> np.ndarray:
    """(turns, columns * each) what the ``wide`` copies of ``columns`` channels take of them, turn by turn.

    An array, because a tensor would keep the device, type and mode that it was first made in.
    """
    noise = torch_generator("wider", *address)
    drawn = torch.rand(wide, generator=noise, device="cpu", dtype=torch.float32).numpy() + np.float32(0.5)
    source = np.arange(wide) % columns
    total = np.zeros(columns, np.float32)
    np.add.at(total, source, drawn)
    turns = -(-wide // columns)
    share = np.pad(drawn / total[source], (0, turns * columns - wide))
    # (turns * columns,) -> (turns * columns * each,) -> (turns, columns * each)
    return np.repeat(share, each).reshape(turns, columns * each)
