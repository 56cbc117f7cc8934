"""``weightloom train``: a generator from a recipe, and from a zoo where it needs one. A thin wrapper."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from weightloom.cli.failures import Interrupted
from weightloom.cli.inputs import Json, check_place, find_recipe
from weightloom.cli.output import emit, facts, progress, say, seconds_text


def train(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a published recipe.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the generator is written.")],
    zoo: Annotated[
        Path | None,
        typer.Option("--zoo", metavar="DIR", help="The zoo to learn from; graph hypernetworks need none."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a generator.

    An interrupted training goes on from its last kept state when the same command is given again.

    Example:
        weightloom train igpg-tiny --zoo zoos/tiny --out runs/igpg-tiny
        weightloom generate "Recognise handwritten digits" --task digits --generator runs/igpg-tiny
    """
    started = time.perf_counter()
    path = find_recipe(recipe)
    out = out.expanduser()
    check_place(out, "--out")
    from weightloom.training.run import train_recipe
    from weightloom.zoo import Zoo

    if zoo is not None:
        zoo = zoo.expanduser()
        Zoo(zoo)  # a folder that is no zoo is found before anything is read
    try:
        with progress() as move:
            train_recipe(path, zoo, out, move)
    except KeyboardInterrupt:
        if os.environ.get("WEIGHTLOOM_DEBUG", "") not in ("", "0"):
            raise
        raise Interrupted(
            f"the last kept state is in {out}, and the same command goes on from there"
        ) from None
    result = {"recipe": path, "zoo": zoo, "generator": out, "seconds": time.perf_counter() - started}
    if as_json:
        emit(result)
        return
    say(f"{out} holds the trained generator", style="bold")
    facts([("recipe", path), ("zoo", zoo), ("time", seconds_text(result["seconds"]))])  # type: ignore[arg-type]
