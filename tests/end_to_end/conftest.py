"""A zoo and a generator at their smallest, made once by the library, as a user would."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from weightloom.conditioning import encode_text
from weightloom.errors import DataUnavailableError
from weightloom.generators.igpg import IGPG
from weightloom.io import read_yaml
from weightloom.training.run import train_recipe
from weightloom.zoo import Zoo, ZooRecipe, build_zoo

ZOO = {
    "kind": "zoo",
    "name": "road",
    "salt": "end-to-end",
    "datasets": ["digits"],
    "architectures": ["mlp(depth=1,width=4)", "cnn(depth=1,width=4)"],
    "size": 16,
    "channels": 3,
    "start": {"tasks": 4, "classes": 4, "steps": 40, "batch_size": 32, "learning_rate": 0.02},
    "fit": {"steps": 40, "batch_size": 32, "learning_rate": 0.01, "head_rate": 5.0, "snapshots": [30]},
    "groups": [
        {"classes": 4, "tasks": 6},
        {"classes": 4, "tasks": 2, "split": "held-out-subset"},
    ],
    "members_at_once": 4,
}


def loop(**changes):
    """Six steps; a dictionary of its own each time, as YAML would write a shared one as an alias."""
    return {"steps": 6, "warmup": 2, "log_every": 3, "save_every": 2, **changes}


GENERATOR = {
    "kind": "generator",
    "generator": "igpg",
    "name": "road",
    "encoder": {"tasks": {4: 4}, "tasks_at_once": 1, "shots": 4, "queries": 16, "loop": loop()},
    "tokenizer": {
        "config": {"chunk": 128, "codes": 24, "vocabulary": 9, "width": 16, "depth": 1},
        "networks": 4,
        "images": 16,
        "loop": loop(learning_rate=0.0002),
    },
    "prior": {
        "config": {"width": 16, "depth": 1, "heads": 2, "image_features": 16, "image_width": 16},
        "objective": {"networks": 3, "queries": 16},
        "fresh": {3: 2, 4: 4},
        "wordings": 2,
        "supports": 2,
        "loop": loop(),
    },
}


class Road(NamedTuple):
    """Where everything lies, and the generator as the training handed it back."""

    zoo: Zoo
    zoo_recipe: Path
    recipe: Path
    out: Path
    model: IGPG


@pytest.fixture(scope="session")
def road(tmp_path_factory):
    """The whole road by the library; skipped where the sentence encoder is not installed."""
    try:
        encode_text(["digits"])
    except DataUnavailableError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("road")
    zoo_recipe, recipe = folder / "zoo.yaml", folder / "generator.yaml"
    zoo_recipe.write_text(yaml.safe_dump(ZOO))
    recipe.write_text(yaml.safe_dump(GENERATOR, sort_keys=False))
    zoo = build_zoo(read_yaml(zoo_recipe, ZooRecipe), folder / "zoo")
    model = train_recipe(recipe, zoo.path, folder / "generator")
    return Road(zoo, zoo_recipe, recipe, folder / "generator", model)
