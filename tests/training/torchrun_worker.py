"""One process of a training that stops after a given step: recipe, folder, step, result's file."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from weightloom.training import parallel
from weightloom.training.run import train_recipe


class Stopped(Exception):
    pass


def main(recipe: str, out: str, stop: str, result: str) -> None:
    torch.set_num_threads(1)

    def progress(what: str, done: int, total: int) -> None:
        if done == int(stop):
            raise Stopped

    with parallel.joined():
        Path(f"{result}.{parallel.rank()}").write_text(str(parallel.count()))
        try:
            train_recipe(recipe, None, out, progress)
        except Stopped:
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
