"""A tiny zoo of real networks on scikit-learn's digits, built once."""

from __future__ import annotations

import pytest

from weightloom.zoo import Zoo, ZooRecipe, build_zoo

RECIPE = {
    "kind": "zoo",
    "name": "tiny",
    "salt": "tests",
    "datasets": ("digits",),
    "architectures": ("mlp(depth=1,width=4)", "cnn(depth=1,width=4)"),
    "size": 8,
    "channels": 1,
    "start": {"tasks": 2, "classes": 3, "steps": 4, "batch_size": 8},
    "fit": {"steps": 4, "batch_size": 8, "learning_rate": 0.02, "snapshots": (2,)},
    "groups": (
        {"classes": 3, "tasks": 2, "repeats": 2},
        {"classes": 4, "tasks": 1, "split": "held-out-order"},
    ),
    "members_at_once": 3,
}


@pytest.fixture(scope="session")
def recipe():
    """Make a recipe: the tiny one with some keys replaced."""

    def make(**changes):
        return ZooRecipe(**{**RECIPE, **changes})

    return make


@pytest.fixture(scope="session")
def built(recipe, tmp_path_factory):
    """The tiny zoo; tests do not write to it."""
    return build_zoo(recipe(), tmp_path_factory.mktemp("zoo") / "tiny")


@pytest.fixture
def zoo(tmp_path):
    """An empty zoo."""
    return Zoo(tmp_path / "zoo", create=True)
