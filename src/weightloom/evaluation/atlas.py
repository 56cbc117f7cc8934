"""A zoo as a map: where its networks lie in weight space, and what their place says of accuracy.

Every network becomes one vector of its weights, centred and scaled by the zoo's own, cut into tokens. Within
one architecture that is every value of the trunk, and mean and spread of the head's tokens over the classes,
so that networks of different class counts share a space; over several architectures it is mean and spread
over the trunk's tokens as well. Two directions make the map, and a ridge regression on it predicts accuracy,
beside one on plain statistics of the weights. Knows no generator.

Shapes: N networks, T tokens, K values a token, Q values of a vector, P values of a network.
Sources: hyper-representations and their probes (arXiv 2110.15288), section 4; weight statistics as features,
Unterthiner et al. (arXiv 2002.11448), section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weightloom.architectures import ArchitectureSpec
from weightloom.defaults import with_plain_defaults
from weightloom.errors import DataUnavailableError, InputError
from weightloom.evaluation.audit import GENERATED
from weightloom.generators.zoo_index import ZooIndex
from weightloom.seeding import check_seed, seed_for
from weightloom.tasks import TASK_SPLITS, parse_task
from weightloom.tokenizers import architecture_key
from weightloom.weights import Layout, WeightStatistics, chunk_layout, layout_of
from weightloom.zoo import Zoo

Method = Literal["pca", "umap"]
METHODS = ("pca", "umap")
Values = NDArray[np.float64]

CHECKPOINT = "checkpoint"
_TOKEN = 288
"""Values of a token at most."""
_COMPONENTS = 32
_ONE_IN = 5
"""Tasks held back for the prediction where the zoo holds none out."""
_LEAST = 8
"""Networks below which nothing is predicted."""


@dataclass(frozen=True)
class Settlement:
    """Networks of one resolved architecture: raw weights (N, P), and facts of each."""

    spec: ArchitectureSpec
    flats: Tensor
    rows: list[dict[str, Any]]


@torch.no_grad()
@with_plain_defaults
def settlements_of_zoo(zoo: Zoo) -> list[Settlement]:
    """Final checkpoints of every split.

    Raises:
        InputError: there is none.
    """
    found = []
    for split in TASK_SPLITS:
        for spec, records in zoo.by_architecture(split=split, final=True):
            rows = [
                {"task": r.task, "dataset": r.dataset, "accuracy": r.accuracy}
                | {"split": split, "kind": CHECKPOINT}
                for r in records
            ]
            found.append(Settlement(spec, zoo.load(records), rows))
    if not found:
        raise InputError(f"{zoo.path} has no finished network")
    return found


def settlements_of_zoo_index(zoo_index: ZooIndex) -> list[Settlement]:
    """The training checkpoints that a generator carries of its zoo."""
    names = ("task", "dataset", "accuracy")
    return [
        Settlement(
            spec,
            group.flats,
            [
                {**{name: row.get(name) for name in names}, "split": "train", "kind": CHECKPOINT}
                for row in group.rows
            ],
        )
        for spec, group in zoo_index.groups.items()
    ]


def settle(spec: ArchitectureSpec, flats: Tensor, task: str) -> Settlement:
    """Generated networks (M, P) for ``task`` as points of the map."""
    facts = {"task": task, "dataset": parse_task(task).dataset, "accuracy": None, "split": None}
    return Settlement(spec, flats, [{**facts, "kind": GENERATED} for _ in flats])


# ------------------------------------------------------------------------------------- vectors


def spreads(zoo: Sequence[Settlement]) -> dict[str, WeightStatistics]:
    """Centre and scale of a zoo's networks by architecture, whatever their class counts."""
    groups: dict[str, list[tuple[Layout, Tensor]]] = {}
    for people in zoo:
        groups.setdefault(architecture_key(people.spec), []).append((layout_of(people.spec), people.flats))
    return {key: WeightStatistics.measure(group) for key, group in groups.items()}


@torch.no_grad()
@with_plain_defaults
def vectors(zoo: Mapping[str, WeightStatistics], people: Settlement, *, pooled: bool) -> Values:
    """(N, Q) one vector a network; Q is the same for all class counts and, ``pooled``, all architectures.

    ``zoo``: of :func:`spreads`.
    """
    layout = layout_of(people.spec)
    chunking = chunk_layout(layout, _TOKEN)
    values = zoo[architecture_key(people.spec)].bind(layout).normalise(people.flats)
    tokens = chunking.to_tokens(values)  # (N, T, K)
    head = chunking.slots.class_index >= 0  # (T,)
    trunk, own = tokens[:, ~head], tokens[:, head]
    summed = [own.mean(1), own.std(1, correction=0)]
    first = [trunk.mean(1), trunk.std(1, correction=0)] if pooled else [trunk.flatten(1)]
    return torch.cat([*first, *summed], dim=1).double().numpy()


def statistics_of(people: Settlement) -> Values:
    """(N, 7 x tensors) mean, spread and quartiles of every tensor's raw values."""
    layout = layout_of(people.spec)
    quartiles = torch.linspace(0, 1, 5)
    columns = []
    for number in range(len(layout.slots)):
        values = people.flats[:, layout.slot_of_value == number]
        columns.append(torch.stack([values.mean(1), values.std(1, correction=0)]))
        columns.append(values.quantile(quartiles, dim=1))
    return torch.cat(columns).T.double().numpy()


# ------------------------------------------------------------------------------------- the map


@dataclass(frozen=True)
class Atlas:
    """A map of a zoo.

    Attributes:
        points: one a network: architecture, task, dataset, accuracy, split, kind, x and y.
        method: of the projection.
        explained: shares of the variance along x and y, for PCA.
        prediction: by architecture, Kendall's tau of predicted with true accuracies on held-out checkpoints.
    """

    points: list[dict[str, Any]]
    method: str
    explained: list[float] = field(default_factory=list)
    prediction: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a file."""
        return asdict(self)


@with_plain_defaults
def chart(
    zoo: Sequence[Settlement],
    generated: Sequence[Settlement] = (),
    *,
    method: Method = "pca",
    seed: int = 0,
) -> Atlas:
    """Networks of a zoo in two dimensions, generated ones among them, and how well accuracy is predicted.

    The projection is made from the zoo's networks alone; generated ones are put where it puts them.

    Raises:
        InputError: fewer than three networks, or an unknown method.
        DataUnavailableError: UMAP is asked for and not installed.
    """
    seed = check_seed(seed)
    if method not in METHODS:
        raise InputError(f"a map is drawn by {' or '.join(METHODS)}, not {method!r}")
    if sum(len(people.rows) for people in zoo) < 3:
        raise InputError("a map needs at least three networks")
    pooled = len({architecture_key(people.spec) for people in zoo}) > 1
    known = spreads(zoo)
    held = np.concatenate([vectors(known, people, pooled=pooled) for people in zoo])
    project, explained = _projection(held, method, seed)
    points = []
    for people in [*zoo, *generated]:
        own = project(vectors(known, people, pooled=pooled))
        for row, (x, y) in zip(people.rows, own.tolist(), strict=True):
            points.append({"architecture": people.spec.full_text(), **row, "x": x, "y": y})
    return Atlas(points, method, explained, predict_accuracy(zoo))


def _projection(held: Values, method: Method, seed: int) -> tuple[Any, list[float]]:
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(held)
    if method == "pca":
        with np.errstate(invalid="ignore"):  # networks that are all alike have no variance
            pca = PCA(2, svd_solver="full").fit(scaler.transform(held))
        explained = np.nan_to_num(pca.explained_variance_ratio_)
        return lambda x: pca.transform(scaler.transform(x)), explained.tolist()
    try:
        from umap import UMAP
    except ImportError:
        raise DataUnavailableError(
            "UMAP is not installed: pip install 'weightloom[map]' (or take pca)"
        ) from None
    umap = UMAP(n_components=2, n_neighbors=min(15, len(held) - 1), random_state=seed % 2**32, n_jobs=1)
    umap.fit(scaler.transform(held))
    return lambda x: umap.transform(scaler.transform(x)), []


# ------------------------------------------------------------------------------------- prediction


@with_plain_defaults
def predict_accuracy(zoo: Sequence[Settlement]) -> list[dict[str, Any]]:
    """By architecture: Kendall's tau of predicted with true accuracies on checkpoints not fitted on.

    Those are the zoo's held-out ones, or where it has none the checkpoints of one task in five. ``weights``
    and ``statistics`` say what was predicted from; both know the number of classes.
    """
    spread = spreads(zoo)
    groups: dict[str, list[Settlement]] = {}
    for people in zoo:
        groups.setdefault(architecture_key(people.spec), []).append(people)
    found = []
    for key, members in groups.items():
        rows = [row for people in members for row in people.rows]
        known = np.array([row["accuracy"] is not None for row in rows])
        held_out = np.array([row["split"] != "train" for row in rows])
        if not held_out.any():
            held_out = np.array([seed_for("map", str(row["task"])) % _ONE_IN == 0 for row in rows])
        fitted, tested = known & ~held_out, known & held_out
        if min(fitted.sum(), tested.sum()) < _LEAST:
            continue
        wanted = np.array([row["accuracy"] or 0.0 for row in rows])
        classes = np.concatenate([np.full((len(p.rows), 1), float(p.spec.classes or 0)) for p in members])
        entry: dict[str, Any] = {
            "architecture": key,
            "fitted": int(fitted.sum()),
            "tested": int(tested.sum()),
        }
        for name, values in (
            ("weights", np.concatenate([vectors(spread, p, pooled=False) for p in members])),
            ("statistics", np.concatenate([statistics_of(p) for p in members])),
        ):
            features = np.concatenate([values, classes], axis=1)
            entry[name] = _tau(features[fitted], wanted[fitted], features[tested], wanted[tested])
        found.append(entry)
    return found


def _tau(seen: Values, accuracies: Values, new: Values, wanted: Values) -> float | None:
    """Kendall's tau of a ridge regression on principal components; None where it is not defined."""
    from scipy.stats import kendalltau
    from sklearn.decomposition import PCA
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    components = min(_COMPONENTS, len(seen) - 1, seen.shape[1])
    model = make_pipeline(
        StandardScaler(), PCA(components, svd_solver="full"), RidgeCV(alphas=np.logspace(-2, 4, 13))
    )
    with np.errstate(invalid="ignore"):
        model.fit(seen, accuracies)
    tau = float(kendalltau(model.predict(new), wanted).statistic)
    return None if np.isnan(tau) else tau
