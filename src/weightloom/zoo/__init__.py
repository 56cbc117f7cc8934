"""Populations of trained networks on disk: build, index, verify, import."""

from weightloom.zoo.build import build_zoo
from weightloom.zoo.recipe import ZooRecipe
from weightloom.zoo.store import Record, Zoo

__all__ = ["Record", "Zoo", "ZooRecipe", "build_zoo"]
