"""How new is a network? Distances to the training checkpoints it may come from, and what they say together.

Numbers of a network against a set of checkpoints, each also taken of every checkpoint against the
others, which says what is usual:

- *distance* to the nearest checkpoint, after permutation alignment;
- *hull*: distance to the nearest mixture of checkpoints (weights that are not negative and sum to one);
- *largest weight* of a checkpoint in that mixture: a copy has 1 whatever noise lies on top of it, because
  noise in thousands of dimensions is orthogonal to every other checkpoint; an average of k has 1/k;
- *structure* of what the mixture leaves over: how much of it lies in directions that the checkpoints vary in,
  over what chance gives. Noise has 1; what training adds has more where networks share their start;
- *overlap* of wrong answers, |A and B| / |A or B|, with the most alike checkpoint.

Distances are root mean squares over trainable parameters in units of the zoo's spread, tensor by tensor
(batch norm statistics are measured anew for a sample and are left out). Knows nothing of generators and
tasks.

Shapes: N checkpoints, M networks, P values of a network, Q trainable ones, B images.
Sources: nearest distances and overlap of errors, Zeng et al. (arXiv 2506.07998); that interpolation is the
bar, arXiv 2605.18632, section 3.5. The mixture is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from weightloom.architectures import ArchitectureSpec
from weightloom.errors import InputError
from weightloom.fitting import run_networks
from weightloom.weights import WeightStatistics, align, layout_of

LEAST = 3
"""Checkpoints without which nothing can be said of what is usual."""

_CANDIDATES = 8
_MANY = 64
_PARTS = 3
_MIXED = 0.6
"""Largest weight up to which a network may be a mixture."""
_TELLING = 1.2
"""Structure below which what training leaves over cannot be told from noise."""
_SUM = 1e3
"""How much the sum of a mixture's weights counts against its distance."""


@dataclass(frozen=True)
class Novelty:
    """One network against the checkpoints; see the top of this file.

    ``distance_before`` is the distance without alignment, ``nearest`` the row of the nearest checkpoint.
    """

    distance: float
    distance_before: float
    nearest: int
    hull: float
    largest_weight: float
    structure: float = 1.0


@dataclass(frozen=True)
class Usual:
    """The same of the training set against itself: medians, and the highest largest weight but one in 20."""

    distance: float
    distance_before: float
    hull: float
    largest_weight: float
    structure: float = 1.0

    def to_json(self) -> dict[str, float]:
        """Plain numbers."""
        return asdict(self)


class Checkpoints:
    """Training checkpoints of one architecture and class count, (N, P), made ready for comparisons.

    Raises:
        InputError: there are fewer than :data:`LEAST`.

    Example:
        >>> from weightloom.architectures import parse_architecture
        >>> from weightloom.fitting import initial_flats
        >>> from weightloom.weights import permute, random_permutations
        >>> spec = parse_architecture("mlp(depth=1,width=8,classes=3,input=1x4x4)")
        >>> flats = initial_flats(spec, list(range(6)))
        >>> known = Checkpoints(spec, flats)
        >>> (copy,) = known.compare(permute(spec, flats[4:5], random_permutations(spec)))
        >>> copy.nearest, round(copy.distance, 3), round(copy.largest_weight, 3), copy.distance_before > 0.5
        (4, 0.0, 1.0, True)
    """

    def __init__(self, spec: ArchitectureSpec, flats: Tensor) -> None:
        if len(flats) < LEAST:
            raise InputError(
                f"{len(flats)} training checkpoints of {spec} say nothing of what is usual; "
                f"at least {LEAST} are needed"
            )
        self.spec, self.flats = spec, flats
        layout = layout_of(spec)
        trained = torch.tensor([not slot.is_buffer for slot in layout.slots])
        self._trained = trained[layout.slot_of_value]  # (P,)
        scale = WeightStatistics.measure([(layout, flats)]).bind(layout).scale
        self._scale = scale[self._trained]  # (Q,)
        self._slot = layout.slot_of_value[self._trained]
        self._raw = self._scaled(flats)
        self._common = self._scaled(align(spec, flats[0], flats))
        self._profiles = self._profile(self._raw)

    def __len__(self) -> int:
        return len(self.flats)

    def _scaled(self, flats: Tensor) -> Tensor:
        """(M, Q) trainable values in units of the zoo's spread."""
        return flats[:, self._trained] / self._scale

    def _profile(self, scaled: Tensor) -> Tensor:
        """(M, Q) the values of every tensor in order of size: no permutation changes them.

        Distances between profiles are never above those of the best alignment.
        """
        order = scaled.argsort(dim=1)
        by_slot = self._slot[order].argsort(dim=1, stable=True)
        return scaled.gather(1, order.gather(1, by_slot))

    def compare(
        self, flats: Tensor, *, without: Sequence[int] | None = None, step: Callable[[], None] = lambda: None
    ) -> list[Novelty]:
        """Every one of (M, P) networks against the checkpoints.

        Args:
            flats: raw weights.
            without: a row for each network that it is not compared with (itself).
            step: called after each network.
        """
        scaled, found = self._scaled(flats), []
        common = self._scaled(align(self.spec, self.flats[0], flats))
        profiles = self._profile(scaled)
        for number in range(len(flats)):
            rows = [r for r in range(len(self)) if without is None or r != without[number]]
            before = _rms(self._raw[rows] - scaled[number])
            bound = _rms(self._profiles[rows] - profiles[number])
            near = {*before.argsort()[:_CANDIDATES].tolist(), *bound.argsort()[:_CANDIDATES].tolist()}
            likely = [rows[place] for place in sorted(near)]
            aligned = self._scaled(align(self.spec, flats[number], self.flats[likely]))
            after = torch.minimum(_rms(aligned - scaled[number]), _rms(self._raw[likely] - scaled[number]))
            frames = (
                (self._raw[rows], scaled[number]),
                (self._common[rows], common[number]),
                (aligned, scaled[number]),
            )
            hull, weight, structure = min(_mixture(columns, one) for columns, one in frames)
            if weight <= _MIXED:
                # A mixture may have been made in the order of units of any of its parts, and these are not
                # what looks most alike before alignment: values of a mean are smaller than its parts'.
                many = [rows[place] for place in bound.argsort()[:_MANY].tolist()]
                turned = align(self.spec, flats[number], self.flats[many])
                apart = _rms(self._scaled(turned) - scaled[number])
                if float(apart.min()) < float(after.min()):
                    likely, after = many, apart
                for part in apart.argsort()[:_PARTS].tolist():
                    reference = self.flats[many[part]]
                    others = self._scaled(align(self.spec, reference, self.flats[many]))
                    own = self._scaled(align(self.spec, reference, flats[number : number + 1]))[0]
                    hull, weight, structure = min((hull, weight, structure), _mixture(others, own))
            found.append(
                Novelty(
                    distance=float(after.min()),
                    distance_before=float(before.min()),
                    nearest=likely[int(after.argmin())],
                    hull=hull,
                    largest_weight=weight,
                    structure=structure,
                )
            )
            step()
        return found

    def usual(self, *, limit: int = 64, step: Callable[[], None] = lambda: None) -> Usual:
        """The checkpoints against each other, each without itself; at most ``limit``, evenly spread."""
        stride = max(1, -(-len(self) // limit))
        rows = list(range(0, len(self), stride))
        own = self.compare(self.flats[rows], without=rows, step=step)

        def middle(name: str, share: float = 0.5) -> float:
            return float(torch.tensor([getattr(one, name) for one in own]).quantile(share))

        return Usual(
            distance=middle("distance"),
            distance_before=middle("distance_before"),
            hull=middle("hull"),
            largest_weight=middle("largest_weight", 0.95),
            structure=middle("structure"),
        )


def _rms(differences: Tensor) -> Tensor:
    """(N,) root mean squares of (N, Q)."""
    return differences.square().mean(1).sqrt()


def _mixture(columns: Tensor, one: Tensor) -> tuple[float, float, float]:
    """Distance from ``one`` (Q,) to the nearest mixture of ``columns`` (N, Q), its largest weight, and the
    structure of what is left.
    """
    from scipy.optimize import nnls

    apart = (columns - one).double() / len(one) ** 0.5
    # |apart.T w| = |root.T w| with the (N, N) root of the Gram matrix: the problem is as small as the zoo.
    values, vectors = torch.linalg.eigh(apart @ apart.T)
    root = vectors * values.clamp_min(0).sqrt()  # (N, N)
    ones = torch.full((1, len(columns)), _SUM, dtype=torch.float64)
    weights, _ = nnls(torch.cat([root.T, ones]).numpy(), [0.0] * len(columns) + [_SUM], maxiter=50 * len(one))
    share = torch.from_numpy(weights / weights.sum())
    left = apart.T @ share  # (Q,)
    distance = float(left.norm())
    if distance < 1e-6:
        return distance, float(share.max()), 1.0
    # The part of what is left that lies among the directions of the columns around their mean.
    around = apart - apart.mean(0)
    values, vectors = torch.linalg.eigh(around @ around.T)
    kept = values > 1e-8 * values[-1].clamp_min(1e-30)
    along = (vectors[:, kept].T @ (around @ left)).square() / values[kept]
    by_chance = distance**2 * int(kept.sum()) / len(one)
    return distance, float(share.max()), float(along.sum() / by_chance)


# ------------------------------------------------------------------------------------- behaviour


@torch.no_grad()
def wrong_answers(spec: ArchitectureSpec, flats: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """(M, B) bool: where each of (M, P) networks is wrong on images (B, channels, height, width)."""
    parts = []
    for x, y in zip(images.split(1000), labels.split(1000), strict=True):
        parts.append(run_networks(spec, flats, x).argmax(-1) != y)
    return torch.cat(parts, dim=1)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """(M, N) intersection over union of wrong answers, (M, B) and (N, B) bool; 0 where neither is wrong.

    Example:
        >>> overlap(torch.tensor([[True, True, False]]), torch.tensor([[True, False, False], [False] * 3]))
        tensor([[0.5000, 0.0000]])
    """
    a, b = a.float(), b.float()
    both = a @ b.T
    either = a.sum(1)[:, None] + b.sum(1)[None] - both
    return both / either.clamp_min(1)


# ------------------------------------------------------------------------------------- verdict


VERDICTS = ("fails", "retrieves", "interpolates", "novel")

RULE = (
    "fails: accuracy below half-way from chance to the trained networks'. "
    "interpolates: no checkpoint has more than 0.6 of the nearest mixture, and that mixture is nearer than "
    "half of what is usual in the training set. "
    "retrieves: otherwise, the nearest checkpoint is nearer than half of what is usual; or one checkpoint "
    "makes up more of the nearest mixture than is usual (at least 0.6, never above 0.9), unless the training "
    "set's own go beyond 0.9 and what is left over has a structure that is usual there (by a third at least) "
    "and noise has not; or the wrong answers overlap with a checkpoint's by 0.95 and more than those of any "
    "two checkpoints do. "
    "novel: otherwise."
)
"""How :func:`verdict_of` decides, in words."""


def verdict_of(
    novelty: Novelty,
    usual: Usual,
    *,
    accuracy: float,
    trained: float,
    chance: float,
    overlap: float | None = None,
    usual_overlap: float | None = None,
) -> str:
    """One of :data:`VERDICTS` by :data:`RULE`.

    Args:
        novelty: the network's numbers.
        usual: the training set's own.
        accuracy: of the network, in [0, 1].
        trained: mean accuracy of trained networks of the task.
        chance: accuracy of guessing.
        overlap: highest overlap of its wrong answers with a checkpoint's, where known.
        usual_overlap: the same between two checkpoints.
    """
    if accuracy < chance + 0.5 * (trained - chance):
        return "fails"
    if novelty.largest_weight <= _MIXED and novelty.hull < 0.5 * usual.hull:
        return "interpolates"
    limit = min(0.9, max(0.6, usual.largest_weight))
    if novelty.distance < 0.5 * usual.distance:
        return "retrieves"
    # Few checkpoints a task, from a common start: a network trained anew is mostly its task's only one.
    telling = usual.largest_weight <= 0.9 or usual.structure < _TELLING
    trained_anew = not telling and novelty.structure > 1 + (usual.structure - 1) / 3
    if novelty.largest_weight > limit and not trained_anew:
        return "retrieves"
    if overlap is not None and overlap >= 0.95 and overlap > (usual_overlap or 0.0):
        return "retrieves"
    return "novel"


def shares(verdicts: Sequence[str]) -> dict[str, Any]:
    """How many of each verdict, as shares.

    Example:
        >>> shares(["novel", "novel", "retrieves", "novel"])
        {'fails': 0.0, 'retrieves': 0.25, 'interpolates': 0.0, 'novel': 0.75}
    """
    return {name: verdicts.count(name) / max(1, len(verdicts)) for name in VERDICTS}
