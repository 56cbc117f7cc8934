"""What generated networks are compared with: random initialisation, the nearest checkpoint, trained ones.

Everything of a generator that is not part of the protocol (its zoo index, its image encoder) is asked
for here and nowhere else on the command line.

Shapes: P values of a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from weightloom.generators import Generator, Sample
    from weightloom.tasks import SupportSet, Task

RANDOM_NETWORKS = 4
"""Random initialisations whose mean accuracy is the baseline."""


@dataclass(frozen=True)
class Baselines:
    """Accuracies on the task's test images in [0, 1], None where unknown, and the networks themselves.

    Attributes:
        random_init: mean of :data:`RANDOM_NETWORKS` networks with torch's default initialisation.
        nearest_checkpoint: the training checkpoint whose task's images look most like this task's.
        trained: mean of the zoo's own networks of exactly this task, as the zoo measured them.
        nearest: facts of the nearest checkpoint.
        random_flat: (P,) one random initialisation.
        nearest_flat: (P,) the nearest checkpoint.
    """

    random_init: float | None = None
    nearest_checkpoint: float | None = None
    trained: float | None = None
    nearest: dict[str, Any] | None = None
    random_flat: Tensor | None = None
    nearest_flat: Tensor | None = None

    def to_json(self) -> dict[str, float | None]:
        """The three accuracies."""
        return {
            "random_init": self.random_init,
            "nearest_checkpoint": self.nearest_checkpoint,
            "trained": self.trained,
        }

    def intervals(self, images: int | None) -> dict[str, list[float] | None]:
        """How sure what was measured on ``images`` test images is; the zoo does not say that of its own."""
        from weightloom.fitting import interval_of

        own = ("random_init", "nearest_checkpoint")
        return {**{name: interval_of(getattr(self, name), images) for name in own}, "trained": None}


def baselines(
    generator: Generator,
    samples: Sequence[Sample],
    task: Task | None,
    support: SupportSet | None,
    seed: int,
) -> Baselines:
    """Measure what ``samples`` are compared with on the test images of ``task``."""
    if task is None:
        return Baselines()
    import torch

    from weightloom.errors import UnsupportedRequestError
    from weightloom.fitting import accuracy
    from weightloom.generators.nearest import NearestCheckpoint
    from weightloom.generators.random_init import RandomInit

    spec = samples[0].architecture
    images, labels = task.data("test").all()
    # Baselines are made as samples are, batch norms measured on the support set included.
    assert spec.input is not None
    fresh = RandomInit(replace(RandomInit.from_generator(generator).validity, input=spec.input))
    made = fresh.generate_many(spec, num_samples=RANDOM_NETWORKS, support=support, seed=seed)
    random = torch.stack([sample.flat for sample in made])
    chance = float(accuracy(spec, random, images, labels).mean())
    index = generator.zoo_index
    if index is None:
        return Baselines(chance, random_flat=random[0])
    trained = index.trained_accuracy(str(task), spec)
    encoder = getattr(generator, "images", None)
    if encoder is None or support is None:
        return Baselines(chance, trained=trained, random_flat=random[0])
    nearest = NearestCheckpoint(index, encoder, generator.validity)
    try:
        found = nearest.generate(spec, support=support)
    except UnsupportedRequestError:  # the zoo has no network of this class count
        return Baselines(chance, trained=trained, random_flat=random[0])
    reached = float(accuracy(spec, found.flat[None], images, labels)[0])
    facts = {
        "id": found.report["checkpoint"],
        "task": found.report["checkpoint_task"],
        "accuracy": found.report["checkpoint_accuracy"],
    }
    return Baselines(chance, reached, trained, facts, random[0], found.flat)
