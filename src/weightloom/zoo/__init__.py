"""Populations of trained networks on disk: build, index, verify, repair, import."""

from weightloom.zoo.build import build_zoo
from weightloom.zoo.index import Record
from weightloom.zoo.recipe import ZooRecipe
from weightloom.zoo.repairing import repair
from weightloom.zoo.store import Zoo

__all__ = ["Record", "Zoo", "ZooRecipe", "build_zoo", "repair"]
