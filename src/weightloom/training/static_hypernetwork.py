"""Training of a static hypernetwork: on episodes of the tasks that a zoo's recipe allows, end to end.

No checkpoint of the zoo is read. Source: episodes, Vinyals et al. (arXiv 1606.04080), section 2.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.errors import InputError, SpecError
from weightloom.fitting.train import draw_batch
from weightloom.generators import Validity
from weightloom.generators.static_hypernetwork import (
    StaticHypernetwork,
    StaticHypernetworkConfig,
    architecture_keys,
)
from weightloom.seeding import torch_generator
from weightloom.tasks import DatasetTask, TaskSampler
from weightloom.training.loop import Progress, run_loop
from weightloom.training.recipe import StaticHypernetworkRecipe
from weightloom.zoo import Zoo

FIRST_TASK = 3_000_000
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

    def __call__(self, step: int) -> tuple[Tensor, dict[str, float]]:
        generator = torch_generator("episode", self.seed, step)
        texts = self.model.validity.architectures
        total, right = torch.zeros(()), 0.0
        for text, index in zip(
            texts, torch.randint(len(self.tasks), (len(texts),), generator=generator).tolist(), strict=True
        ):
            task = self.tasks[index]
            spec: ArchitectureSpec = parse_architecture(text).resolve(classes=task.num_classes)
            support = task.support(self.shots, seed=step).images
            images, labels = draw_batch([task.data("train")], self.queries, generator)
            loss, hit = self.model.episode_loss(spec, support, images[0], labels[0])
            total = total + loss / len(texts)
            right += float(hit) / len(texts)
        return total, {"accuracy": right}


def train_static_hypernetwork(
    recipe: StaticHypernetworkRecipe, zoo: Zoo, out: Path, progress: Progress
) -> StaticHypernetwork:
    """Train, going on where an interrupted run stopped, and save in ``out``.

    Raises:
        InputError: the zoo was not built from a recipe.
        SpecError: an option that makes no sense.
        TrainingError: a loss stays not finite.
    """
    source = zoo.about().get("recipe")
    if source is None:
        raise InputError(f"{zoo.path} was not built from a recipe, so its held-out tasks are not known")
    shape = (source["channels"], source["size"], source["size"])
    try:
        config = StaticHypernetworkConfig(**recipe.config)
    except TypeError as error:
        raise SpecError(f"the recipe's config: {error}") from None
    tasks = [
        TaskSampler(
            datasets=list(source["datasets"]), salt=source["salt"], split="train",
            classes=(classes, classes), size=source["size"], channels=source["channels"],
        ).task(FIRST_TASK + number)
        for classes, count in recipe.tasks.items()
        for number in range(count)
    ]  # fmt: skip
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
    model.save_pretrained(out)
    return model
