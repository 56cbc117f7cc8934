"""Training of a layer-wise generator: through the networks that it makes, on episodes of tasks.

A step takes one architecture and a few tasks. The prior reads each task's examples, the dictionary makes a
trunk for it, a head in closed form is put on the trunk, and the loss is that of the whole on other images of
the task. Nothing else is needed: no checkpoint, no teacher. What a zoo's recipe holds out is never drawn.

Shapes: B tasks of a step, C classes, S examples a class, Q other images a class, T layers, R codes a layer.
Sources: episodes, Vinyals et al. (arXiv 1606.04080), section 2.2; the head inside the gradient, Bertinetto et
al. (arXiv 1805.08136), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.conditioning import encode_text
from weightloom.errors import SpecError
from weightloom.fitting import accuracy
from weightloom.generators.layerwise import Layerwise, LayerwiseConfig, validity_of
from weightloom.generators.load import save_generator
from weightloom.io import read_yaml
from weightloom.seeding import torch_generator
from weightloom.tasks import DatasetTask, TaskSampler
from weightloom.training.loop import Progress, run_loop
from weightloom.training.parallel import WHOLE, Part
from weightloom.training.recipe import UNDECISIVE, LayerwiseRecipe
from weightloom.training.stages import claim, round_parameters, train_encoder, validation_tasks
from weightloom.training.trainers import trainers
from weightloom.whole import whole_number

FIRST_TASK = 10_000_000
"""Index of the first task drawn: beyond all that zoos, encoders and validation take."""


@dataclass(frozen=True, kw_only=True)
class EpisodeSettings:
    """Sizes of a step, and how often the parts of the condition are left out.

    ``shots`` are the numbers of examples a class that a step chooses from, of which the image encoder sees
    ``described``; words are told in ``told_instruction`` of the steps: both encoders take time.
    """

    tasks: int = 4
    shots: tuple[int, ...] = (8, 16)
    queries: int = 8
    described: int = 5
    expert_weight: float = 0.3
    """Of the loss that teaches which expert is for which dataset; after it they are mixed as they serve."""
    told_instruction: float = 0.15
    drop_dataset: float = 0.05
    drop_architecture: float = 0.05

    def __post_init__(self) -> None:
        object.__setattr__(self, "shots", tuple(self.shots))
        for name, value in (
            ("tasks", self.tasks),
            ("queries", self.queries),
            ("described", self.described),
            *(("shots", s) for s in self.shots),
        ):
            whole_number(value, name, 1, 4096, error=SpecError)
        if not self.shots or min(self.shots) < 2:
            raise SpecError("shots must be at least 2: a closed-form head measures the spread of a class")
        for name in ("told_instruction", "drop_dataset", "drop_architecture"):
            if not 0 <= getattr(self, name) <= 1:
                raise SpecError(f"{name} must be from 0 to 1, not {getattr(self, name)!r}")


class EpisodeObjective:
    """Loss of one step; everything that it draws comes from the address (seed, step)."""

    def __init__(
        self,
        model: Layerwise,
        sampler: TaskSampler,
        specs: Sequence[ArchitectureSpec],
        settings: EpisodeSettings,
        *,
        seed: int = 0,
    ) -> None:
        self.model, self.sampler, self.settings, self.seed = model, sampler, settings, seed
        names = sorted({spec.family for spec in specs})
        self.families = [[spec for spec in specs if spec.family == name] for name in names]

    @property
    def items(self) -> int:
        """B."""
        return self.settings.tasks

    def __call__(self, step: int, part: Part = WHOLE) -> tuple[Tensor, dict[str, float]]:
        model, settings = self.model, self.settings
        generator = torch_generator("layerwise", self.seed, step)

        def chance() -> float:
            return float(torch.rand((), generator=generator))

        def one_of(count: int) -> int:
            return int(torch.randint(count, (), generator=generator))

        family = self.families[step % len(self.families)]
        spec = family[one_of(len(family))].resolve(classes=2)  # the trunk does not depend on the classes
        shots = settings.shots[one_of(len(settings.shots))]
        tasks = [self.sampler.task(FIRST_TASK + step * settings.tasks + i) for i in range(settings.tasks)]
        drawn = [draw_episode(task, shots, settings.queries, generator) for task in tasks]
        told, seen = chance() < settings.told_instruction, chance() >= settings.drop_dataset
        has_architecture = chance() >= settings.drop_architecture
        means, naming, own = [], torch.zeros(()), part.rows(len(tasks))
        for task, (support, _) in zip(tasks[own], drawn[own], strict=True):
            words = encode_text(task.instructions(1, seed=step, misspelt=0.25)) if told else None
            classes = model.images.describe(support[:, : settings.described])[None] if seen else None
            means.append(model.means(spec, words, classes, has_architecture=has_architecture))
            if model.config.experts and classes is not None:
                wanted = torch.tensor([self.sampler.datasets.index(task.dataset)])
                naming = naming + F.cross_entropy(model.expert_logits(classes, 1), wanted) / len(tasks)
        latents = torch.cat(means)  # (B, T, R), of a part's B
        noise = torch.randn((len(tasks), *latents.shape[1:]), generator=generator) * model.config.spread
        trunks = model.dictionary.decode(spec, (latents + noise[own]).clamp(-1, 1), seed=step)
        loss, right = model.episode_loss(spec, trunks, *zip(*drawn[own], strict=True))
        loss, right = loss * part.share(len(tasks)), right * part.share(len(tasks))
        loss = loss + settings.expert_weight * naming
        return loss, {f"{spec.family}_accuracy": float(right), "accuracy": float(right)}


def draw_episode(
    task: DatasetTask, shots: int, queries: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Examples (C, S, ...) and other images (C, Q, ...) of a task, from its training images.

    A class with fewer images than both need repeats its own.
    """
    data = task.data("train")
    chosen = []
    for label in range(task.num_classes):
        members = torch.nonzero(data.labels == label).flatten()
        order = torch.randperm(len(members), generator=generator)
        chosen.append(members[order[torch.arange(shots + queries) % len(members)]])
    images, _ = data.batch(torch.cat(chosen))
    images = images.unflatten(0, (task.num_classes, shots + queries))  # (C, S + Q, ...)
    return images[:, :shots], images[:, shots:]


@torch.no_grad()
def probe(
    model: Layerwise, specs: Sequence[ArchitectureSpec], tasks: Sequence[DatasetTask], *, images: int = 500
) -> dict[str, float]:
    """Mean accuracy of one sample on tasks that nothing learned from, by family and in all."""
    sums: dict[str, list[float]] = {}
    for number, task in enumerate(tasks):
        data = task.data("test")
        order = torch.randperm(len(data), generator=torch_generator("probe", str(task)))[:images]
        support, batch = task.support(16, seed=99), data.batch(order)
        for spec in specs[number % 2 :: 2]:
            flat = model.generate_many(spec, support=support)[0].flat
            right = float(accuracy(spec.resolve(classes=task.num_classes), flat[None], *batch)[0])
            sums.setdefault(f"validation_{spec.family}", []).append(right)
    found = {name: sum(values) / len(values) for name, values in sums.items()}
    return {**found, "validation": sum(found.values()) / len(found)}


@trainers.register(Layerwise.kind)
def train_from_recipe(recipe_path: Path, zoo: Path | None, out: Path, progress: Progress) -> Layerwise:
    """See :data:`weightloom.training.trainers.Trainer`. A zoo is not needed, and not looked at."""
    return train_layerwise(read_yaml(recipe_path, LayerwiseRecipe), out, progress)


def train_layerwise(recipe: LayerwiseRecipe, out: Path, progress: Progress) -> Layerwise:
    """The image encoder, then everything else; goes on where an interrupted run stopped; saves in ``out``.

    Raises:
        SpecError: an option or an architecture that makes no sense.
        TrainingError: a loss stays not finite.
        DataUnavailableError: a dataset or the sentence encoder is not on this machine.
    """
    shape = (recipe.channels, recipe.size, recipe.size)
    try:
        config, settings = LayerwiseConfig(**recipe.config), EpisodeSettings(**recipe.objective)
    except TypeError as error:
        raise SpecError(f"the recipe's config or objective: {error}") from None
    if config.experts not in (0, len(recipe.datasets)):
        raise SpecError(
            f"experts must be 0 or {len(recipe.datasets)}, one for each dataset, not {config.experts}"
        )
    model = Layerwise(
        config, validity_of(config, shape, (2, recipe.classes[1]), recipe.datasets), name=recipe.name
    )
    specs = [parse_architecture(text).resolve(input=shape) for text in recipe.architectures]
    for spec in specs:
        model.dictionary.check(spec.resolve(classes=2))
    encode_text(["Can sentences be read here?"])  # before the first stage takes its time
    work = out / "work"
    claim(work, _origin(recipe))
    source: dict[str, Any] = {
        "datasets": recipe.datasets, "salt": recipe.salt, "size": recipe.size, "channels": recipe.channels,
    }  # fmt: skip
    encoder = train_encoder(recipe, config, source, work / "encoder", progress)
    model.images.load_state_dict(encoder.state_dict())
    sampler = TaskSampler(
        recipe.datasets, recipe.salt, "train", recipe.classes, size=recipe.size, channels=recipe.channels
    )
    unseen = validation_tasks(source, model.validity)
    model.train()
    model.images.eval()
    run_loop(
        "layer-wise generator",
        model,
        EpisodeObjective(model, sampler, specs, settings, seed=recipe.seed),
        recipe.loop.settings(),
        folder=work / "generator",
        evaluate=lambda _: probe(model, specs, unseen),
        evaluate_every=recipe.evaluate_every or max(1, recipe.loop.steps // 8),
        progress=progress,
    )
    round_parameters(model)
    model.eval()
    save_generator(model, out)
    return model


def _origin(recipe: LayerwiseRecipe) -> dict[str, Any]:
    """What the run is of; how often it is logged and kept changes nothing."""
    said = recipe.model_dump(mode="json", exclude_defaults=True)
    for part in (said["encoder"], said):
        for name in UNDECISIVE:
            part["loop"].pop(name, None)
    said.pop("evaluate_every", None)
    return said
