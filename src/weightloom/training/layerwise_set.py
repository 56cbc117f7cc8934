"""Training of several layer-wise generators as one, with the index of a zoo beside them.

Parts are trained one after another, each in a folder of its own; each reads examples with the same encoder.
"""

from __future__ import annotations

from pathlib import Path

import torch

from weightloom.errors import SpecError
from weightloom.generators.layerwise_set import LayerwiseSet
from weightloom.generators.load import save_generator
from weightloom.generators.zoo_index import ZooIndex
from weightloom.io import read_yaml
from weightloom.training.layerwise import train_layerwise
from weightloom.training.loop import Progress
from weightloom.training.recipe import LayerwiseRecipe, LayerwiseSetRecipe
from weightloom.training.stages import make_zoo_index
from weightloom.training.tokenizer import load_populations
from weightloom.training.trainers import open_zoo, trainers
from weightloom.zoo import Zoo

_SHARED = ("seed", "salt", "datasets", "size", "channels", "encoder")
"""What the parts' recipes have alike: an encoder follows from it."""


@trainers.register(LayerwiseSet.kind)
def train_from_recipe(recipe_path: Path, zoo: Path | None, out: Path, progress: Progress) -> LayerwiseSet:
    """See :data:`weightloom.training.trainers.Trainer`. Without a zoo there is no index of one.

    Raises:
        SpecError: parts whose encoders would differ.
        InputError: the zoo has pictures of another size than the parts.
    """
    recipe = read_yaml(recipe_path, LayerwiseSetRecipe)
    # Read before any part takes its time: one that is missing is said now.
    parts = [read_yaml(recipe_path.parent / f"{name}.yaml", LayerwiseRecipe) for name in recipe.parts]
    for part in parts[1:]:
        for what in _SHARED:
            if getattr(part, what) != getattr(parts[0], what):
                raise SpecError(
                    f"the parts of {recipe.name} must have one encoder, but {part.name} and {parts[0].name} "
                    f"differ in their {what}"
                )
    held = None if zoo is None else open_zoo(zoo, LayerwiseSet.kind)
    made = [train_layerwise(part, out / "work" / part.name, progress) for part in parts]
    model = LayerwiseSet(made, name=recipe.name).eval()
    if held is not None:
        model.zoo_index = index_of(held, model, seed=parts[0].seed)
    save_generator(model, out)
    return model


@torch.no_grad()
def index_of(zoo: Zoo, model: LayerwiseSet, *, seed: int = 0) -> ZooIndex:
    """The final training checkpoints of ``zoo``, their tasks as the encoder of ``model`` sees them."""
    populations = load_populations(zoo, final=True)
    tasks = {record.task: record.parsed_task() for p in populations for record in p.records}
    described = {
        name: model.images.describe(task.support(16, seed=seed).images) for name, task in tasks.items()
    }
    return make_zoo_index(populations, described)
