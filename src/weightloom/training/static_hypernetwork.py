"""Training of a static hypernetwork: on episodes of the tasks that a zoo's recipe allows, end to end.

No checkpoint of the zoo is read. Source: episodes, Vinyals et al. (arXiv 1606.04080), section 2.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.errors import SpecError
from weightloom.fitting.train import draw_batch
from weightloom.generators import Validity
from weightloom.generators.load import save_generator
from weightloom.generators.static_hypernetwork import (
    StaticHypernetwork,
    StaticHypernetworkConfig,
    architecture_keys,
)
from weightloom.io import read_yaml
from weightloom.seeding import torch_generator
from weightloom.tasks import DatasetTask
from weightloom.training.loop import Progress, run_loop
from weightloom.training.parallel import WHOLE, Part
from weightloom.training.recipe import StaticHypernetworkRecipe
from weightloom.training.stages import source_of, zoo_tasks
from weightloom.training.trainers import open_zoo, trainers
from weightloom.zoo import ZooRecipe

FIRST_TASK = 4_000_000
"""Index of the first task drawn: far beyond those that a zoo trains on."""


class EpisodeObjective:
    """Loss of one step: for every architecture a task, ``shots`` examples a class, ``queries`` images."""

    def __init__(
        self,
        model: StaticHypernetwork,
        tasks: Sequence[DatasetTask],
        *,
        shots: int = 8,
        queries: int = 64,
        seed: int = 0,
    ) -> None:
        self.model, self.tasks, self.shots, self.queries, self.seed = model, tasks, shots, queries, seed

    @property
    def items(self) -> int:
        """Architectures: each has a task a step."""
        return len(self.model.validity.architectures)

    def __call__(self, step: int, part: Part = WHOLE) -> tuple[Tensor, dict[str, float]]:
        generator = torch_generator("episode", self.seed, step)
        texts = self.model.validity.architectures
        total, right = torch.zeros(()), 0.0
        drawn = torch.randint(len(self.tasks), (len(texts),), generator=generator).tolist()
        for number, (text, index) in enumerate(zip(texts, drawn, strict=True)):
            task = self.tasks[index]
            spec: ArchitectureSpec = parse_architecture(text).resolve(classes=task.num_classes)
            images, labels = draw_batch([task.data("train")], self.queries, generator)
            if number not in part.of(len(texts)):
                continue
            support = task.support(self.shots, seed=step).images
            loss, hit = self.model.episode_loss(spec, support, images[0], labels[0])
            total = total + loss / len(texts)
            right += float(hit) / len(texts)
        return total, {"accuracy": right}


@trainers.register(StaticHypernetwork.kind)
def train_from_recipe(
    recipe_path: Path, zoo: Path | None, out: Path, progress: Progress
) -> StaticHypernetwork:
    """See :data:`weightloom.training.trainers.Trainer`."""
    recipe = read_yaml(recipe_path, StaticHypernetworkRecipe)
    if zoo is None and recipe.zoo is not None:
        source = read_yaml(recipe_path.parent / f"{recipe.zoo}.yaml", ZooRecipe).model_dump(mode="json")
    else:
        source = source_of(open_zoo(zoo, StaticHypernetwork.kind))
    return train_static_hypernetwork(recipe, source, out, progress)


def train_static_hypernetwork(
    recipe: StaticHypernetworkRecipe, source: dict[str, Any], out: Path, progress: Progress
) -> StaticHypernetwork:
    """Train on the tasks of a zoo's recipe, ``source``, going on where an interrupted run stopped; save in
    ``out``.

    Raises:
        SpecError: an option that makes no sense.
        TrainingError: a loss stays not finite.
    """
    shape = (source["channels"], source["size"], source["size"])
    try:
        config = StaticHypernetworkConfig(**recipe.config)
    except TypeError as error:
        raise SpecError(f"the recipe's config: {error}") from None
    drawn = zoo_tasks(source, recipe.tasks, FIRST_TASK)
    tasks = [task for group in drawn.values() for task in group]
    validity = Validity(
        architectures=architecture_keys(source["architectures"], shape),
        input=shape,
        min_classes=min(recipe.tasks),
        max_classes=max(recipe.tasks),
        tasks=tuple(source["datasets"]),
    )
    model = StaticHypernetwork(config, validity, name=recipe.name, seed=recipe.seed).train()
    objective = EpisodeObjective(model, tasks, shots=recipe.shots, queries=recipe.queries, seed=recipe.seed)
    run_loop(
        "static hypernetwork",
        model,
        objective,
        recipe.loop.settings(),
        folder=out / "work",
        progress=progress,
    )
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()  # every network is measured on its examples; these are not used
    model.eval()
    save_generator(model, out)
    return model
