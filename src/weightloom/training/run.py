"""From a recipe, and a zoo where one is needed, to a generator's directory."""

from __future__ import annotations

from pathlib import Path

import weightloom.training
from weightloom.defaults import with_plain_defaults
from weightloom.errors import InputError, SpecError
from weightloom.generators import Generator, generators
from weightloom.generators.consolidated import Consolidated
from weightloom.generators.load import save_generator
from weightloom.io import read_json, read_yaml
from weightloom.registry import discover
from weightloom.training import parallel
from weightloom.training.loop import Progress
from weightloom.training.recipe import GeneratorKind, PlainRecipe
from weightloom.training.trainers import open_zoo, trainers

discover(weightloom.training)


@with_plain_defaults
def train_recipe(
    recipe_path: str | Path,
    zoo: str | Path | None,
    out: str | Path,
    progress: Progress = lambda *_: None,
) -> Generator | Consolidated:
    """Train every stage of the recipe that ``out`` does not hold yet; the generator is saved in ``out``.

    A kind of generator that is in :data:`weightloom.training.trainers.trainers` is trained as it says there;
    another is made by its own ``from_zoo(zoo, name=..., **options)``. Under ``torchrun`` its processes train
    together, and only the first one writes to ``out``.

    Raises:
        SpecError: the recipe makes no sense, or its batches cannot be divided among the processes.
        UnknownNameError: no generator of that kind.
        InputError: ``out`` holds stages of another recipe or zoo, or there is no zoo to learn from.
        CheckpointError: the zoo or a stage's files are broken.
        TrainingError: a loss stays not finite.
    """
    with parallel.joined(), parallel.own_folder(Path(out)) as own:
        return _train(Path(recipe_path), None if zoo is None else Path(zoo), own, progress)


def _train(recipe_path: Path, folder: Path | None, out: Path, progress: Progress) -> Generator | Consolidated:
    recipe = read_yaml(recipe_path, GeneratorKind)
    kind = recipe.generator
    _refuse_another(out, kind, (recipe.model_extra or {}).get("name"))
    if kind in trainers:
        return trainers.get(kind)(recipe_path, folder, out, progress)
    family = generators.get(kind)
    if not hasattr(family, "from_zoo") or not hasattr(family, "save_pretrained"):
        raise SpecError(
            f"a {kind!r} generator is not made by a recipe: it has no from_zoo and save_pretrained"
        )
    plain = read_yaml(recipe_path, PlainRecipe)
    try:
        model = family.from_zoo(open_zoo(folder, kind), name=plain.name, **plain.options)
    except TypeError as error:
        raise SpecError(f"the recipe's options: {error}") from None
    save_generator(model, out)
    progress(plain.name, 1, 1)
    assert isinstance(model, Generator)
    return model


def _refuse_another(out: Path, kind: str, name: object) -> None:
    """Raise :class:`InputError` where ``out`` holds a generator that this recipe would not make."""
    if not (out / "config.json").is_file():
        return
    held = read_json(out / "config.json")
    own = (held.get("kind"), held.get("name")) if isinstance(held, dict) else (None, None)
    if own != (kind, name):
        raise InputError(
            f"{out} holds {own[1]!r}, a {own[0]!r} generator, and not {name!r}, a {kind!r}; choose another "
            "folder, or remove that one"
        )
