"""Training of the dataset encoder: prototypical networks over training tasks.

Source: Snell et al. (arXiv 1703.05175), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weightloom.conditioning import SupportEncoder
from weightloom.conditioning.images import prototype_loss
from weightloom.fitting.train import draw_batch
from weightloom.seeding import torch_generator
from weightloom.tasks import DatasetTask
from weightloom.training.parallel import WHOLE, Part


class EncoderObjective:
    """Loss of one step: a few tasks, ``shots`` examples a class, ``queries`` images a task."""

    def __init__(
        self,
        encoder: SupportEncoder,
        tasks: Sequence[DatasetTask],
        *,
        tasks_at_once: int = 2,
        shots: int = 8,
        queries: int = 64,
        seed: int = 0,
    ) -> None:
        self.encoder, self.tasks = encoder, tasks
        self.tasks_at_once, self.shots, self.queries, self.seed = tasks_at_once, shots, queries, seed

    @property
    def items(self) -> int:
        """Tasks of a step."""
        return self.tasks_at_once

    def __call__(self, step: int, part: Part = WHOLE) -> tuple[Tensor, dict[str, float]]:
        generator = torch_generator("encoder", self.seed, step)
        total, right = torch.zeros(()), 0.0
        drawn = torch.randint(len(self.tasks), (self.tasks_at_once,), generator=generator).tolist()
        for number, index in enumerate(drawn):
            task = self.tasks[index]
            images, labels = draw_batch([task.data("train")], self.queries, generator)
            if number not in part.of(len(drawn)):
                continue
            support = task.support(self.shots, seed=step).images
            loss, hit = prototype_loss(self.encoder, support, images[0], labels[0])
            total = total + loss / self.tasks_at_once
            right += float(hit) / self.tasks_at_once
        return total, {"accuracy": right}
