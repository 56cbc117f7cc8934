"""Baseline: the zoo checkpoint whose task looks most like the request. Retrieval, and said to be so.

What the other baselines over a zoo need as well lives here: the checkpoints of the architecture, ordered
by how near the description of their task's support set is to that of the request.

Shapes: M samples, N checkpoints, P values of a network, C classes, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from weightloom.conditioning import SupportEncoder
from weightloom.defaults import with_plain_defaults
from weightloom.errors import InputError, SpecError, UnsupportedRequestError
from weightloom.generators.base import Baseline, Generator, Request, Validity, generators
from weightloom.generators.zoo_index import ZooIndex, ZooIndexGroup
from weightloom.whole import whole_number


@dataclass(frozen=True)
class Neighbours:
    """The checkpoints of one architecture, nearest task first.

    order (N,) int64 rows of ``group``; distance (N,) of each of them, between mean squared features.
    """

    group: ZooIndexGroup
    order: Tensor
    distance: Tensor

    def tasks(self, count: int) -> list[str]:
        """The ``count`` nearest different tasks (all of them where there are fewer)."""
        names = dict.fromkeys(str(self.group.rows[row]["task"]) for row in self.order.tolist())
        return list(names)[:count]

    def rows_of(self, task: str) -> list[int]:
        """Rows of ``group`` that are checkpoints of ``task``."""
        return [row for row in self.order.tolist() if self.group.rows[row]["task"] == task]

    def of_nearest_task(self, count: int) -> list[int]:
        """``count`` rows, the nearest task's checkpoints over and over: others' answer no such request."""
        rows = self.rows_of(self.tasks(1)[0])
        return [rows[index % len(rows)] for index in range(count)]


class ZooGenerator(Baseline):
    """A generator that looks things up in the index of a zoo instead of learning from it."""

    zoo_index: ZooIndex

    def __init__(
        self, zoo_index: ZooIndex, images: SupportEncoder, validity: Validity, *, name: str | None = None
    ) -> None:
        """
        Args:
            zoo_index: the checkpoints, with the descriptions of their tasks.
            images: the encoder that made those descriptions.
            validity: what may be asked for; of that, only what the index holds can be given.
            name: what reports call it; the kind by default.
        """
        self.zoo_index, self.images, self.validity = zoo_index, images, validity
        self.name = name or self.kind

    @classmethod
    @with_plain_defaults
    def from_generator(cls, model: Generator, **options: Any) -> Self:
        """The baseline of ``model``, over the zoo that it was trained on; ``options`` go to the constructor.

        Raises:
            InputError: the generator carries no index of its zoo, or cannot describe examples.
        """
        images = getattr(model, "images", None)
        if model.zoo_index is None or not isinstance(images, SupportEncoder):
            raise InputError(f"generator {model.name} carries no checkpoints of its zoo to look among")
        return cls(model.zoo_index, images, model.validity, **options)

    @torch.no_grad()
    def neighbours(self, request: Request) -> Neighbours:
        """Checkpoints of the architecture and class count, nearest first; equally near ones in zoo order.

        Raises:
            InputError: the request has no support set.
            UnsupportedRequestError: the zoo has no checkpoint of this architecture and class count.
        """
        if request.support is None:
            raise InputError(
                f"generator {self.name} finds its checkpoints by their pictures; give examples of the task"
            )
        group = self.zoo_index.groups.get(request.architecture)
        if group is None or not group.rows:
            held = sorted(str(spec) for spec, found in self.zoo_index.groups.items() if found.rows)
            raise UnsupportedRequestError(
                f"the zoo has no checkpoint of {request.architecture}; it has: {'; '.join(held) or 'none'}"
            )
        described = self.images.describe(request.support.images)  # (C, 2F)
        distance = (group.classes - described).flatten(1).norm(dim=1)  # (N,)
        order = distance.argsort(stable=True)
        return Neighbours(group, order, distance[order])

    def flats(self, neighbours: Neighbours) -> Tensor:
        """(N, P) weights of the neighbours' group, in the order of its rows (not by distance)."""
        return neighbours.group.flats


class TasksGenerator(ZooGenerator):
    """A generator over the checkpoints of the ``tasks`` nearest tasks."""

    def __init__(
        self,
        zoo_index: ZooIndex,
        images: SupportEncoder,
        validity: Validity,
        *,
        tasks: int = 1,
        name: str | None = None,
    ) -> None:
        """``tasks``: of how many nearest tasks; the rest as in :class:`ZooGenerator`.

        Raises:
            SpecError: not a whole number of at least 1.
        """
        super().__init__(zoo_index, images, validity, name=name)
        self.tasks = require_positive("tasks", tasks)


def require_positive(what: str, value: int) -> int:
    """``value``, or :class:`SpecError` where it is not a whole number of at least 1."""
    return whole_number(value, what, 1, error=SpecError)


def mean_accuracy(rows: Sequence[dict[str, Any]]) -> float | None:
    """Mean accuracy that the zoo measured of ``rows``, None where it measured none."""
    known = [row["accuracy"] for row in rows if row.get("accuracy") is not None]
    return sum(known) / len(known) if known else None


@generators.register("nearest")
class NearestCheckpoint(ZooGenerator):
    """The checkpoints of the nearest task, one a sample (from the start again at the end).

    The same for every seed: nothing is drawn.
    """

    kind: ClassVar[str] = "nearest"
    draws: ClassVar[bool] = False

    def sample_flats(self, request: Request) -> tuple[Tensor, list[dict[str, Any]]]:
        """(M, P) checkpoints as they are."""
        found = self.neighbours(request)
        rows = found.of_nearest_task(request.num_samples)
        distance = float(found.distance[0])
        reports = [
            {
                "checkpoint": found.group.rows[row].get("id"),
                "checkpoint_task": found.group.rows[row]["task"],
                "checkpoint_accuracy": found.group.rows[row].get("accuracy"),
                "task_distance": distance,
            }
            for row in rows
        ]
        return self.flats(found)[rows], reports
