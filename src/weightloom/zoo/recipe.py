"""What a zoo is made of, as a file. Validation only; knows nothing of training or disks."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from weightloom.architectures import parse_architecture
from weightloom.fitting import FitSettings
from weightloom.io import Recipe
from weightloom.tasks import dataset_info

MAX_NETWORKS = 1_000_000
"""Networks of a zoo: planning so many takes half a minute and 250 MB."""


class FitRecipe(Recipe):
    """Training of target networks; see :class:`weightloom.fitting.FitSettings`."""

    steps: Annotated[int, Field(ge=1, le=1_000_000)] = 300
    batch_size: Annotated[int, Field(ge=2, le=4096)] = 64
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 3e-3
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 1e-4
    head_rate: Annotated[float, Field(gt=0, le=1000)] = 1.0
    epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-8
    snapshots: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        self.settings()
        return self

    def settings(self) -> FitSettings:
        """The settings for :func:`weightloom.fitting.fit_population`."""
        return FitSettings(**self.model_dump())


class StartRecipe(Recipe):
    """The common start of a shared zoo: one trunk trained on many tasks at once, heads apart.

    With ``dataset_tasks`` it goes on from there for each dataset by itself, on that many of its tasks at
    once: networks of one dataset then have a start of their own, near that of the others.
    """

    tasks: Annotated[int, Field(ge=2, le=1000)] = 32
    classes: Annotated[int, Field(ge=2, le=1000)] = 10
    steps: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    batch_size: Annotated[int, Field(ge=2, le=4096)] = 64
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 3e-3
    dataset_tasks: Annotated[int, Field(ge=0, le=1000)] = 0
    dataset_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 300
    dataset_learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3


class GroupRecipe(Recipe):
    """Networks of one class count: tasks of a split, ``repeats`` networks each."""

    classes: Annotated[int, Field(ge=2, le=1000)]
    tasks: Annotated[int, Field(ge=1, le=100_000)]
    repeats: Annotated[int, Field(ge=1, le=1000)] = 1
    split: Literal["train", "held-out-subset", "held-out-order", "held-out-transform"] = "train"
    canonical: bool = False
    """Take the datasets' own full tasks (natural class order, no transform) and no drawn ones."""


class ZooRecipe(Recipe):
    """A zoo: architectures by groups of tasks.

    ``initialisation``: ``shared`` (every network of an architecture starts from one network that was
    trained on many tasks at once), or ``independent`` (each from its own seed).
    """

    kind: Literal["zoo"]
    name: str
    salt: str
    seed: int = 0
    datasets: Annotated[tuple[str, ...], Field(min_length=1)]
    architectures: Annotated[tuple[str, ...], Field(min_length=1)]
    size: Annotated[int, Field(ge=4, le=256)] = 16
    channels: Literal[1, 3] = 3
    initialisation: Literal["shared", "independent"] = "shared"
    start: StartRecipe = StartRecipe()
    fit: FitRecipe = FitRecipe()
    groups: Annotated[tuple[GroupRecipe, ...], Field(min_length=1)]
    members_at_once: Annotated[int, Field(ge=1, le=4096)] = 32

    @model_validator(mode="after")
    def _not_too_many(self) -> Self:
        each = sum(group.tasks * group.repeats for group in self.groups)
        count = len(self.architectures) * each
        if count > MAX_NETWORKS:
            raise ValueError(f"{count:,} networks are asked for, of {MAX_NETWORKS:,} at most")
        return self

    @field_validator("architectures")
    @classmethod
    def _known_architectures(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(parse_architecture(text)) for text in value)

    @field_validator("datasets")
    @classmethod
    def _known_datasets(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            dataset_info(name)
        return value
