"""``weightloom info``: what is this? A file, a folder, or a name: each kind is tried in turn."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from weightloom.cli.info_file import describe_weights, is_network_folder
from weightloom.cli.inputs import Json, Key, find_recipe, plain_text, recipe_names, short_text
from weightloom.cli.output import emit, facts, note, percent, say, table
from weightloom.cli.several import Several
from weightloom.errors import InputError, UnknownNameError


def info(
    things: Annotated[
        list[str] | None,
        typer.Argument(metavar="X...", help="Files, zoos, generators, recipes, tasks or architectures."),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option("--arch", metavar="SPEC", help="Of a file of weights: the architecture to look for."),
    ] = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Say what something is: a file, a folder or a name. Without anything: what there is on this machine.

    Of a file of weights it says which tensors it holds and whether all of their values are finite; of a
    network in it, where it stands and which tensors are left out. Of several things, what cannot be described
    is listed at the end.

    Examples:
        weightloom info clothing.safetensors
        weightloom info model_best.pth.tar --arch 'mlp(depth=1,width=8,classes=10,input=3x16x16)'
        weightloom info layerwise-tiny
        weightloom info 'resnet(depth=8,width=8)'
        weightloom info 'mnist[3,1,7]+rot90'
        weightloom info runs/*.safetensors
    """
    if not things:
        described, show = _everything()
        emit(described) if as_json else show(described)
        return
    several = Several(len(things), "things")
    found: list[Answer] = []
    for number, thing in enumerate(things):
        with several.attempt(thing):
            described, show = _describe(thing, arch, key)
            found.append((described, show))
            if not as_json:
                if number:
                    say()
                show(described)
    if as_json:
        own = [described for described, _ in found]
        emit(own[0] if len(things) == 1 else {"things": own, "failed": several.failed})
    several.finish()


Answer = tuple[dict[str, Any], Callable[[dict[str, Any]], None]]


def _describe(text: str, arch: str | None = None, key: str | None = None) -> Answer:
    from weightloom.architectures import architecture_families
    from weightloom.generators.load import bundled_names
    from weightloom.tasks import dataset_names

    if not text.strip():
        raise InputError("say what to describe: a file, a folder, a generator, a task or an architecture")
    path = Path(text).expanduser()
    if not _exists(path):  # a file's name need not be text, every other name is
        plain_text(text, "name")
    head = re.split(r"[(\[+@]", text.strip(), maxsplit=1)[0].strip()
    if text in bundled_names():
        return _generator(text)
    if "\0" not in text and len(text) < 4096 and _exists(path):
        if path.suffix.lower() in (".yaml", ".yml"):
            return _recipe(path)
        if not path.is_dir() or is_network_folder(path):
            return describe_weights(path, arch, key)
        return _folder(path)
    if head.lower() in architecture_families():
        return _architecture(text)
    if head in dataset_names():
        return _task(text)
    if text in recipe_names():
        return _recipe(find_recipe(text))
    if "(" in text:
        return _architecture(text)  # whose error offers the nearest families
    if path.suffix in (
        ".safetensors",
        ".pt",
        ".pth",
        ".tar",
        ".ckpt",
        ".bin",
        ".yaml",
        ".png",
    ) or text.startswith((".", "/", "~")):
        raise InputError(f"{text}: no such file or folder")
    known = [*bundled_names(), *architecture_families(), *dataset_names(), *recipe_names()]
    raise UnknownNameError("file, generator, task or architecture", head or text, set(known))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long to be one
        return False


def _everything() -> Answer:
    """What there is on this machine, and its versions."""
    import platform

    import torch

    from weightloom import __version__
    from weightloom.architectures import architecture_families
    from weightloom.cli.data import datasets
    from weightloom.generators import generators
    from weightloom.generators.load import bundled_names
    from weightloom.io import cache_dir

    described = {
        "kind": "installation",
        "weightloom": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "cache": cache_dir(),
        "generators": bundled_names(),
        "methods": generators.names(),
        "architectures": architecture_families(),
        "datasets": {row["name"]: row["here"] for row in datasets()},
        "recipes": recipe_names(),
    }

    def show(d: dict[str, Any]) -> None:
        say(f"Weightloom {d['weightloom']}", style="bold")
        here = [f"{name}{'' if place else ' (not fetched)'}" for name, place in d["datasets"].items()]
        lists = {key: ", ".join(d[key]) for key in ("generators", "methods", "architectures", "recipes")}
        facts(
            [
                (
                    "runs on",
                    f"Python {d['python']}, torch {d['torch']}, {d['device']}, {d['threads']} threads",
                ),
                *((key, value or "none") for key, value in lists.items()),
                ("datasets", ", ".join(here)),
                ("cache", d["cache"]),
            ]
        )

    return described, show


def _architecture(text: str) -> Answer:
    from weightloom.architectures import parse_architecture
    from weightloom.weights import layout_of

    spec = parse_architecture(text)
    layers = None
    if spec.resolved:
        layers = [
            {"name": layer.name, "kind": layer.kind, "units": layer.rows, "values_per_unit": layer.cols}
            for layer in layout_of(spec).layers
        ]
    described = {
        "kind": "architecture",
        "architecture": str(spec),
        "full": spec.full_text(),
        "spec": spec.to_json(),
        "num_parameters": spec.num_parameters() if spec.resolved else None,
        "options": [
            {"name": o.name, "default": o.default, "allowed": o.allowed, "help": o.help}
            for o in spec.options()
        ],
        "examples": list(type(spec).example_texts()),
        "layers": layers,
    }

    def show(d: dict[str, Any]) -> None:
        say(f"{d['architecture']}: an architecture", style="bold")
        count = d["num_parameters"]
        undecided = "depends on classes and input, such as classes=10,input=3x16x16"
        facts(
            [
                ("in full", d["full"]),
                ("parameters", undecided if count is None else f"{count:,}"),
                ("examples", "; ".join(d["examples"])),
            ]
        )
        say()
        rows = [
            (o["name"], d["spec"].get(o["name"]), o["default"], o["allowed"], o["help"]) for o in d["options"]
        ]
        table(["option", "here", "default", "may be", "what it is"], rows)
        if d["layers"]:
            say()
            columns = ["layer", "kind", "units", "values a unit"]
            table(columns, [tuple(layer.values()) for layer in d["layers"]], numbers=columns[2:])

    return described, show


def _task(text: str) -> Answer:
    from weightloom.cli.data import describe_task, print_task
    from weightloom.tasks import dataset_info, parse_task

    task = parse_task(text)
    described = describe_task(task)
    described["licence"] = dataset_info(task.dataset).licence
    return described, print_task


def _generator(name: str | Path) -> Answer:
    from weightloom.generators.layerwise import Layerwise
    from weightloom.generators.load import load_generator

    model = load_generator(name)
    validity = model.validity
    index = model.zoo_index
    weights = sum(p.numel() for p in model.parameters()) if hasattr(model, "parameters") else None
    sizes = [
        str(replace(spec, classes=None, input=None))
        for one in getattr(model, "parts", [model])
        if isinstance(one, Layerwise) and one.config.any_size
        for spec in one.dictionary.largest.values()
    ]
    described = {
        "kind": "generator",
        "name": model.name,
        "method": model.kind,
        "architectures": list(validity.architectures),
        "input": list(validity.input),
        "sides": None if validity.sizes is None else list(validity.sizes),
        "classes": [validity.min_classes, validity.max_classes],
        "tasks": list(validity.tasks),
        "num_parameters": weights,
        "checkpoints": sum(len(g.rows) for g in index.groups.values()) if index else None,
        "any_size_of": sizes,
    }

    def show(d: dict[str, Any]) -> None:
        say(f"{d['name']}: a generator ({d['method']})", style="bold")
        facts(
            [
                ("makes", "; ".join(validity.listed())),
                ("any size of", ", ".join(_any_size(text) for text in d["any_size_of"]) or None),
                ("for images", " x ".join(map(str, d["input"]))),
                ("or squares of", None if d["sides"] is None else "{} to {} pixels".format(*d["sides"])),
                ("classes", f"{d['classes'][0]} to {d['classes'][1]}"),
                ("trained on", ", ".join(d["tasks"]) or None),
                ("own parameters", None if d["num_parameters"] is None else f"{d['num_parameters']:,}"),
                ("training checkpoints", None if d["checkpoints"] is None else f"{d['checkpoints']:,}"),
            ]
        )

    return described, show


def _any_size(text: str) -> str:
    """A family and the largest network of it that was learned from."""
    return f"{text.partition('(')[0]} (learned up to {short_text(text)})"


def _consolidated(path: Path) -> Answer:
    from weightloom.generators.consolidated import Consolidated

    model = Consolidated.from_pretrained(path)
    keys = ("num_parameters", "bits_per_weight", "tuning_error", "package", "licence")
    described = {
        "kind": "consolidated checkpoints",
        "name": model.name,
        "checkpoints": [
            {"name": name, **{key: about.get(key) for key in keys}} for name, about in model.about.items()
        ],
    }

    def show(d: dict[str, Any]) -> None:
        say(f"{d['name']}: {len(d['checkpoints'])} consolidated checkpoints", style="bold")
        rows = [
            (
                c["name"],
                f"{c['num_parameters']:,}",
                f"{c['bits_per_weight']:.2f}",
                percent(c["tuning_error"]),
                c["package"],
                c["licence"],
            )
            for c in d["checkpoints"]
        ]
        columns = ["checkpoint", "parameters", "bits a weight", "error", "package", "licence"]
        table(columns, rows, numbers=columns[1:4])

    return described, show


def _folder(path: Path) -> Answer:
    if os.path.lexists(path / "zoo.sqlite3"):
        from weightloom.cli.zoo import describe_zoo, print_zoo
        from weightloom.zoo import Zoo

        return describe_zoo(Zoo(path)), print_zoo
    if (path / "config.json").is_file():
        from weightloom.io import read_json
        from weightloom.tokenizers.base import tokenizers

        config = read_json(path / "config.json")
        kind = config.get("kind") if isinstance(config, dict) else None
        if kind == "consolidated":
            return _consolidated(path)
        return _tokenizer(path) if isinstance(kind, str) and kind in tokenizers else _generator(path)
    from weightloom.cli.data import describe_task, print_task
    from weightloom.tasks import FolderTask
    from weightloom.tasks.listing import find_pictures

    try:
        described = describe_task(FolderTask(path, skip_broken=True))
    except InputError as error:
        found, _ = find_pictures(path)
        if found:  # it was meant to be such a folder, and the error says what is wrong with it
            raise
        raise InputError(f"{path}: is neither a zoo, a generator nor images by class ({error})") from None

    def show(d: dict[str, Any]) -> None:
        print_task(d)
        if d["data"]["broken"]:
            note("other commands refuse this folder, unless --skip-broken leaves out what cannot be read")

    return described, show


def _tokenizer(path: Path) -> Answer:
    from weightloom.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(path)
    described = {
        "kind": "tokenizer",
        "path": path,
        "method": tokenizer.kind,
        "architectures": sorted(tokenizer.statistics),
        "codes_per_token": tokenizer.num_codes,
        "vocabulary": tokenizer.vocabulary,
        "num_parameters": sum(p.numel() for p in tokenizer.parameters()),
    }

    def show(d: dict[str, Any]) -> None:
        say(f"{d['path']}: a weight tokenizer ({d['method']})", style="bold")
        facts(
            [
                ("reads", "; ".join(map(short_text, d["architectures"]))),
                ("codes a token", f"{d['codes_per_token']} of {d['vocabulary']}"),
                ("own parameters", f"{d['num_parameters']:,}"),
            ]
        )

    return described, show


def _recipe(path: Path) -> Answer:
    from pydantic import BaseModel, ConfigDict

    from weightloom.io import read_yaml

    class AnyRecipe(BaseModel):
        model_config = ConfigDict(extra="allow")
        kind: str
        name: str = ""

    loose = read_yaml(path, AnyRecipe)
    if loose.kind == "zoo":
        from weightloom.zoo import ZooRecipe

        fields = read_yaml(path, ZooRecipe).model_dump(mode="json")
    else:
        fields = loose.model_dump(mode="json")
    described = {"kind": "recipe", "file": path, "recipe": fields}

    def show(d: dict[str, Any]) -> None:
        say(f"{d['file']}: a recipe", style="bold")
        facts([(key, value) for key, value in d["recipe"].items() if value not in ("", None)])

    return described, show
