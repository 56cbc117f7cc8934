"""What several commands read in the same way: tasks, networks, recipes, and places to write to.

Everything here checks before any long work starts. Knows no command.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from weightloom.errors import CheckpointError, InputError, UnknownNameError, UnsupportedRequestError

if TYPE_CHECKING:
    from torch import Tensor

    from weightloom.architectures import ArchitectureSpec
    from weightloom.engines import Engine
    from weightloom.generators import Generator
    from weightloom.generators.zoo_index import ZooIndex
    from weightloom.tasks import NetworkCard, Task
    from weightloom.zoo import Zoo, ZooRecipe

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
TaskName = Annotated[
    str | None,
    typer.Option("--task", metavar="TASK", help="A known task, such as fashion-mnist or mnist[3,1,7]+rot90."),
]
DataFolder = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="FOLDER",
        help="Your own images: one sub-folder for each class, or train and test with these in each.",
    ),
]
SkipBroken = Annotated[bool, typer.Option("--skip-broken", help="Leave pictures out that cannot be read.")]
Instruction = Annotated[
    str | None,
    typer.Argument(metavar="INSTRUCTION", help="What the network is to do, in a sentence; may be left out."),
]
GeneratorName = Annotated[
    str, typer.Option("--generator", metavar="NAME", help="A bundled name, a local folder, or a hub id.")
]
FileArch = Annotated[
    str | None,
    typer.Option("--arch", metavar="SPEC", help="The architecture, for files that do not say it themselves."),
]
Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="NAME",
        help="Which network of a file, where several fit: a dictionary (model_ema), or a prefix of names.",
    ),
]
Workers = Annotated[int, typer.Option("--workers", help="Processes that work side by side.")]
EngineName = Annotated[
    Literal["local", "ray"],
    typer.Option("--engine", help="Where the work is done: processes of this machine, or Ray."),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="HOST:PORT",
        help="The Ray cluster, or auto for this machine's; without one Ray is started here for --workers.",
    ),
]

SMALL = 500_000
"""Parameters of a network from which on several threads are worth their price."""


def plain_text(text: str, what: str) -> str:
    """``text`` if it can be written down; the command line hands over bytes that are no text as lone halves.

    Raises:
        InputError: it is not text.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"the {what} is not text in UTF-8") from None
    return text


def load_task(
    task: str | None,
    data: Path | None,
    shape: tuple[int, int, int] | None = None,
    skip_broken: bool = False,
    *,
    whole: bool = False,
) -> Task | None:
    """The task that ``--task`` or ``--data`` names, or None; without a size of its own, at ``shape``.

    Args:
        task: a task's text.
        data: a folder of images.
        shape: (channels, height, width) that the network reads.
        skip_broken: leave images of the folder out that cannot be read.
        whole: whether all of the folder is there to be measured on.

    Raises:
        InputError: both are given, or what is given is no task.
        UnsupportedRequestError: the network reads images that no task has.
    """
    if task is not None and data is not None:
        raise InputError("give --task or --data, not both")
    if skip_broken and data is None:
        raise InputError("--skip-broken belongs to --data")
    if task is None and data is None:
        return None
    from weightloom.tasks import FolderTask, parse_task

    if shape is not None and (shape[1] != shape[2] or shape[0] not in (1, 3)):
        size = "x".join(map(str, shape))
        raise UnsupportedRequestError(
            f"the network reads {size} images; tasks are square, of 1 or 3 channels"
        )
    if data is not None:
        options: dict[str, Any] = {} if shape is None else {"size": shape[1], "channels": shape[0]}
        if whole:
            options["test_fraction"] = 1
        return FolderTask(data, skip_broken=skip_broken, **options)
    assert task is not None
    parsed = parse_task(plain_text(task, "task"))
    return parsed if shape is None or "@" in task else parsed.resized(shape[1], shape[0])


def load_unlabelled(
    folder: Path, target: Task | None, shape: tuple[int, int, int], skip_broken: bool
) -> Tensor:
    """(U, channels, height, width): the pictures of ``--unlabelled``, read as the examples are.

    Raises:
        InputError: no folder, no picture in it, or only pictures that are measured on.
    """
    from weightloom.tasks import FolderTask
    from weightloom.tasks.folder import unlabelled_pictures

    like = target if isinstance(target, FolderTask) else None
    if folder.expanduser().is_file():
        raise InputError(f"{folder}: --unlabelled is a folder of pictures, not a file")
    return unlabelled_pictures(folder, like, shape[1], shape[0], skip_broken=skip_broken)


def require_task(
    task: str | None,
    data: Path | None,
    shape: tuple[int, int, int] | None = None,
    skip_broken: bool = False,
) -> Task:
    """As :func:`load_task`, but one must be given."""
    found = load_task(task, data, shape, skip_broken)
    if found is None:
        raise InputError(
            "say what pictures it is for: --task NAME (see `weightloom data list`) or --data FOLDER; to "
            "evaluate every picture of a folder, --test-data FOLDER"
        )
    return found


def check_out(path: Path | None, suffixes: Sequence[str], option: str) -> Path | None:
    """``path`` if a file can probably be written there, so that no long work is lost at its end.

    What killed commands left beside it is removed.

    Raises:
        InputError: the name ends otherwise, it is a folder, or the place cannot be written.
    """
    if path is None:
        return None
    path = path.expanduser()
    if "\0" in str(path):
        raise InputError(f"{option}: a path has no NUL in it")
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{option} {path}: the name must end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise InputError(f"{option} {path}: is a folder")
    check_place(path.parent, option)
    from weightloom.io import sweep

    sweep(path.parent, name=path.name)
    return path


def check_shots(shots: int, most: int = 1000) -> None:
    """Raise :class:`InputError` unless so many examples a class can be asked for."""
    if not 1 <= shots <= most:
        raise InputError(f"--shots must be from 1 to {most}, not {shots}")


def check_place(folder: Path, option: str) -> None:
    """Raise :class:`InputError` unless ``folder`` can be written or made."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise InputError(f"{option}: {place} is a file, which is not a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"{option}: {place} cannot be written")


def calm_threads(parameters: int = 0) -> None:
    """One thread for networks below :data:`SMALL` parameters, unless OMP_NUM_THREADS says otherwise.

    A second thread brings next to nothing for kernels this small, and where another process wants the core
    the two wait for each other: ten training steps of a network of 5,786 parameters took 14 s instead of 0.1.
    """
    import torch

    if parameters < SMALL and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def check_engine(name: str, workers: int, address: str | None) -> None:
    """Raise :class:`InputError` unless ``--engine``, ``--workers`` and ``--address`` fit together."""
    if not 1 <= workers <= 1024:
        raise InputError(f"--workers must be from 1 to 1024, not {workers}")
    if address is not None and name != "ray":
        raise InputError("--address belongs to --engine ray")
    if address is not None and workers > 1:
        raise InputError("--workers is for this machine; a cluster with an --address has its own")


def engine_for(name: str, workers: int, address: str | None) -> Engine:
    """The engine that ``--engine``, ``--workers`` and ``--address`` ask for.

    Raises:
        InputError: they do not fit together, or nothing answers at the address.
        DataUnavailableError: Ray is not installed.
    """
    check_engine(name, workers, address)
    from weightloom.engines import open_engine

    return open_engine(
        name, workers=workers, address=None if address is None else plain_text(address, "address")
    )


def findable(generator: str) -> str:
    """A generator's name as a worker can use it, which may be in another folder."""
    from weightloom.generators.load import bundled_names

    here = generator not in bundled_names() and Path(generator).is_dir()
    return str(Path(generator).absolute()) if here else generator


# -- networks ----------------------------------------------------------------------------------


class Network(NamedTuple):
    """A network from a file: its architecture, weights (P,), and what the file says of itself.

    ``key`` is where in the file it is, ``left_out`` which tensors are none of it, ``card`` what its outputs
    are called and what else is known.
    """

    spec: ArchitectureSpec
    flat: Tensor
    metadata: dict[str, str]
    key: str
    left_out: tuple[str, ...]
    card: NetworkCard


def load_network(path: Path, architecture: str | None = None, key: str | None = None) -> Network:
    """Read a network that Weightloom wrote, or any checkpoint when its ``architecture`` is given.

    Raises:
        CheckpointError: the file is broken, or does not hold exactly that architecture's tensors.
        SpecError: the architecture does not say its classes or input.
    """
    from weightloom.architectures import parse_architecture
    from weightloom.zoo.reading import read_checked

    spec = None if architecture is None else parse_architecture(plain_text(architecture, "architecture"))
    reading = read_checked(path, spec, key=None if key is None else plain_text(key, "key"))
    return Network(reading.spec, reading.flat, reading.metadata, reading.key, reading.left_out, reading.card)


def provenance(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The report in a network's header, as far as it can be read."""
    from weightloom.io import parse_json

    try:
        report = parse_json("report", metadata.get("report", "{}"))
    except CheckpointError:
        return {}
    return report if isinstance(report, dict) else {}


def short_text(architecture: str | ArchitectureSpec) -> str:
    """As :func:`weightloom.architectures.wording.short_text`, which is imported when it is needed."""
    from weightloom.architectures import wording

    return wording.short_text(architecture)


# -- recipes -----------------------------------------------------------------------------------


def recipe_folders() -> list[Path]:
    """Where published recipes lie: inside the installed package, or beside its source."""
    package = Path(__file__).resolve().parents[1]
    places = [package / "recipes", package.parents[1] / "recipes"]
    return [place for place in places if place.is_dir()]


def recipe_names() -> list[str]:
    """Names of the published recipes."""
    return sorted({file.stem for folder in recipe_folders() for file in folder.glob("*.yaml")})


def find_recipe(name: str) -> Path:
    """A recipe's file, by path or by the name of a published one.

    Raises:
        UnknownNameError: neither; the message offers the nearest names.
    """
    plain_text(name, "recipe")
    path = Path(name).expanduser()
    if path.is_file():
        return path
    for folder in recipe_folders():
        published = folder / f"{Path(name).name.removesuffix('.yaml')}.yaml"
        if path.name == name and published.is_file():
            return published
    if path.is_dir():
        raise InputError(f"{path}: is a folder; a recipe is a YAML file")
    raise UnknownNameError("recipe", name, recipe_names())


# -- zoos --------------------------------------------------------------------------------------


def zoo_or_recipe(text: str) -> Zoo | ZooRecipe:
    """A zoo by its folder, or the recipe of one that is elsewhere, by path or published name.

    Raises:
        CheckpointError: the folder is no zoo.
        UnknownNameError: neither a folder nor a recipe.
    """
    from weightloom.io import read_yaml
    from weightloom.zoo import Zoo, ZooRecipe

    folder = Path(plain_text(text, "zoo")).expanduser()
    return Zoo(folder) if folder.is_dir() else read_yaml(find_recipe(text), ZooRecipe)


def carried_by(generator: Generator) -> ZooIndex:
    """The training checkpoints that a generator carries.

    Raises:
        InputError: it carries none.
    """
    if generator.zoo_index is None:
        raise InputError(
            f"generator {generator.name} carries no checkpoints of its zoo; give the zoo's folder"
        )
    return generator.zoo_index
