"""What a generator is trained from, as a file. Validation only."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from weightloom.conditioning.architecture import MAX_CLASSES
from weightloom.io import Recipe
from weightloom.training.loop import LoopSettings

TaskCounts = dict[
    Annotated[int, Field(ge=2, le=MAX_CLASSES)],
    Annotated[int, Field(ge=1, le=1_000_000)],
]
"""How many tasks of how many classes."""


UNDECISIVE = ("log_every", "save_every", "accumulate", "compile", "shard")
"""What a loop's recipe says of how it is run: the same training goes on with other values."""


class LoopRecipe(Recipe):
    """Length and speed of a training run; see :class:`weightloom.training.LoopSettings`."""

    steps: Annotated[int, Field(ge=1, le=10_000_000)]
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    warmup: Annotated[int, Field(ge=0)] = 50
    log_every: Annotated[int, Field(ge=1)] = 50
    save_every: Annotated[int, Field(ge=1)] = 250
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    accumulate: Annotated[int, Field(ge=1, le=65536)] = 1
    precision: Literal["float32", "bf16"] = "float32"
    compile: bool = False
    shard: bool = False

    def settings(self) -> LoopSettings:
        """The settings for :func:`weightloom.training.run_loop`."""
        return LoopSettings(**self.model_dump())


class TokenizerRecipe(Recipe):
    """A weight tokenizer: its kind in the registry, its sizes and its training."""

    kind: str = "fsq"
    config: dict[str, Any] = Field(default_factory=dict)
    loop: LoopRecipe
    networks: Annotated[int, Field(ge=1, le=4096)] = 16
    images: Annotated[int, Field(ge=2, le=65536)] = 64
    functional_weight: Annotated[float, Field(ge=0)] = 1.0
    input_noise: Annotated[float, Field(ge=0, le=10)] = 0.0
    latent_noise: Annotated[float, Field(ge=0, le=10)] = 0.0


class EncoderRecipe(Recipe):
    """The dataset encoder, trained as a prototypical network; ``tasks`` by class count."""

    loop: LoopRecipe
    tasks: Annotated[TaskCounts, Field(min_length=1)]
    tasks_at_once: Annotated[int, Field(ge=1, le=1024)] = 2
    shots: Annotated[int, Field(ge=1, le=1024)] = 8
    queries: Annotated[int, Field(ge=2, le=65536)] = 64


class PriorRecipe(Recipe):
    """The prior: sizes, objective, training; ``fresh`` tasks by class count (no checkpoints needed)."""

    config: dict[str, Any] = Field(default_factory=dict)
    objective: dict[str, Any] = Field(default_factory=dict)
    loop: LoopRecipe
    fresh: TaskCounts
    wordings: Annotated[int, Field(ge=1, le=1000)] = 6
    supports: Annotated[int, Field(ge=1, le=1000)] = 3
    evaluate_every: Annotated[int, Field(ge=0)] = 0


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


class GeneratorKind(BaseModel):
    """The part that every generator's recipe has: which generator it is of."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: Literal["generator"]
    generator: str


class PlainRecipe(Recipe):
    """A generator that makes itself from a zoo: ``options`` go to its ``from_zoo``."""

    kind: Literal["generator"]
    generator: str
    name: Name
    options: dict[str, Any] = Field(default_factory=dict)


class StaticHypernetworkRecipe(Recipe):
    """A static hypernetwork, trained on episodes of ``tasks`` (by class count) of a zoo's recipe: that called
    ``zoo`` beside this one, or that of the zoo that is given.
    """

    kind: Literal["generator"]
    generator: Literal["static_hypernetwork"]
    name: Name
    seed: int = 0
    zoo: Name | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    tasks: Annotated[TaskCounts, Field(min_length=1)]
    shots: Annotated[int, Field(ge=2, le=1024)] = 8
    queries: Annotated[int, Field(ge=2, le=65536)] = 64
    loop: LoopRecipe


class StagedRecipe(Recipe):
    """A generator trained on a zoo, stage by stage: first a dataset encoder and a weight tokenizer."""

    kind: Literal["generator"]
    generator: str
    name: Name
    seed: int = 0
    encoder: EncoderRecipe
    tokenizer: TokenizerRecipe


class GeneratorRecipe(StagedRecipe):
    """IGPG: dataset encoder, weight tokenizer, prior."""

    generator: Literal["igpg"]
    prior: PriorRecipe


class DenoiserRecipe(Recipe):
    """The denoiser of a latent diffusion: sizes and schedule, objective, training."""

    config: dict[str, Any] = Field(default_factory=dict)
    objective: dict[str, Any] = Field(default_factory=dict)
    loop: LoopRecipe
    wordings: Annotated[int, Field(ge=1, le=1000)] = 6
    supports: Annotated[int, Field(ge=1, le=1000)] = 3
    evaluate_every: Annotated[int, Field(ge=0)] = 0


class DiffusionRecipe(StagedRecipe):
    """A latent diffusion: dataset encoder, weight tokenizer, denoiser."""

    generator: Literal["diffusion"]
    denoiser: DenoiserRecipe


class CarriedDiffusionRecipe(Recipe):
    """A latent diffusion over what another generator carries: only the denoiser is trained.

    ``parts`` names the generator whose dataset encoder, weight tokenizer and checkpoints are taken; ``zoo``
    the recipe, in the same folder, of the zoo that it was trained on.
    """

    kind: Literal["generator"]
    generator: Literal["diffusion"]
    name: Name
    seed: int = 0
    parts: Annotated[str, Field(min_length=1, max_length=1000)]
    zoo: Name
    denoiser: DenoiserRecipe


class GHNRecipe(Recipe):
    """A graph hypernetwork, trained on one task's images and on random architectures; it needs no zoo.

    With ``start``, a generator's name or folder, training goes on from its weights; ``first_step`` is then
    the number of steps that it had, so that other batches are drawn than those.
    """

    kind: Literal["generator"]
    generator: Literal["ghn"]
    name: Name
    seed: int = 0
    task: str
    start: Annotated[str, Field(min_length=1)] | None = None
    first_step: Annotated[int, Field(ge=0)] = 0
    config: dict[str, Any] = Field(default_factory=dict)
    objective: dict[str, Any] = Field(default_factory=dict)
    loop: LoopRecipe
    evaluate_every: Annotated[int, Field(ge=0)] = 0
    evaluate_networks: Annotated[int, Field(ge=1, le=1000)] = 8


class LayerwiseRecipe(Recipe):
    """A layer-wise generator, trained on episodes of tasks and on ``architectures``; it needs no zoo.

    ``datasets``, ``salt``, ``size`` and ``channels`` as in a zoo's recipe: with those of a zoo, what the zoo
    holds out stays unseen. ``classes`` are the fewest and the most of a task.
    """

    kind: Literal["generator"]
    generator: Literal["layerwise"]
    name: Name
    seed: int = 0
    salt: Annotated[str, Field(min_length=1, max_length=200)]
    datasets: Annotated[list[str], Field(min_length=1)]
    size: Annotated[int, Field(ge=4, le=256)] = 16
    channels: Literal[1, 3] = 3
    classes: tuple[Annotated[int, Field(ge=2)], Annotated[int, Field(le=MAX_CLASSES)]] = (4, 10)
    architectures: Annotated[list[str], Field(min_length=1)]
    encoder: EncoderRecipe
    config: dict[str, Any]
    objective: dict[str, Any] = Field(default_factory=dict)
    loop: LoopRecipe
    evaluate_every: Annotated[int, Field(ge=0)] = 0


class LayerwiseSetRecipe(Recipe):
    """Layer-wise generators as one; ``parts`` names their recipes in the same folder, in the order in which
    they are asked. The zoo that is given is indexed beside them.
    """

    kind: Literal["generator"]
    generator: Literal["layerwise-set"]
    name: Name
    parts: Annotated[list[Name], Field(min_length=1, max_length=64)]


class SourceRecipe(Recipe):
    """Named pictures to learn from; see :class:`weightloom.training.words_tasks.PictureSource`."""

    dataset: str
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    shift: Annotated[float, Field(ge=0, le=2)] = 0.0
    flip: bool = False
    names: bool = False
    outline: Annotated[float, Field(ge=0, le=1)] = 0.0


class WordsPartRecipe(Recipe):
    """One architecture of a generator of networks from words."""

    architecture: str
    size: Annotated[int, Field(ge=4, le=256)] = 16
    loop: LoopRecipe
    examples: LoopRecipe


class WordsRecipe(Recipe):
    """A generator of networks from class names and a sentence, trained on named pictures; it needs no zoo.

    Under ``salt`` names, subsets and orders are held out. A part's ``loop`` is its training from words, its
    ``examples`` that from examples; ``turns`` is the training of which turn a sentence speaks of.
    """

    kind: Literal["generator"]
    generator: Literal["words"]
    name: Name
    seed: int = 0
    salt: Annotated[str, Field(min_length=1, max_length=200)]
    channels: Literal[1, 3] = 3
    sources: Annotated[list[SourceRecipe], Field(min_length=1)]
    config: dict[str, Any] = Field(default_factory=dict)
    objective: dict[str, Any] = Field(default_factory=dict)
    parts: Annotated[list[WordsPartRecipe], Field(min_length=1)]
    turns: LoopRecipe


class RewardRecipe(Recipe):
    """Steering by reward: ``one_task`` as :class:`weightloom.training.reward.RewardSettings`; the rest is for
    training a prior across tasks, on ``samples`` networks of each of ``tasks`` tasks a step.
    """

    kind: Literal["reward"]
    name: Name
    seed: int = 0
    one_task: dict[str, Any] = Field(default_factory=dict)
    salt: Annotated[str, Field(min_length=1, max_length=200)]
    datasets: Annotated[list[str], Field(min_length=1)]
    classes: tuple[Annotated[int, Field(ge=2)], Annotated[int, Field(le=MAX_CLASSES)]] = (4, 10)
    architectures: Annotated[list[str], Field(min_length=1)]
    tasks: Annotated[int, Field(ge=1, le=1024)] = 4
    samples: Annotated[int, Field(ge=2, le=4096)] = 8
    shots: Annotated[int, Field(ge=2, le=1024)] = 16
    queries: Annotated[int, Field(ge=1, le=65536)] = 16
    spread: Annotated[float, Field(gt=0, le=1)] = 0.1
    leash: Annotated[float, Field(ge=0, le=1000)] = 0.01
    loop: LoopRecipe


class ConsolidatedRecipe(Recipe):
    """Published checkpoints to consolidate.

    ``settings`` are those of :class:`weightloom.consolidation.compress.Settings`;
    ``speech`` is a folder of ``.wav`` recordings; without it, ``speech`` in the cache folder.
    """

    kind: Literal["generator"]
    generator: Literal["consolidated"]
    name: Name
    checkpoints: Annotated[list[str], Field(min_length=1, max_length=10_000)]
    speech: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
