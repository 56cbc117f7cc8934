"""What generated networks lose, and how large they are, as files that run without Weightloom."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from weightloom.export import export_network, targets
from weightloom.generators import Generator, Sample
from weightloom.generators.load import load_generator
from weightloom.tasks import DatasetTask

Config = dict[str, Any]
Rows = list[dict[str, Any]]


@cache
def generator(name: str) -> Generator:
    return load_generator(name)


def networks(config: Config) -> Iterator[tuple[dict[str, Any], DatasetTask, Sample]]:
    """Each network of the config, for each dataset."""
    for entry in config["networks"]:
        for dataset in config["datasets"]:
            task = DatasetTask(dataset=dataset, size=entry["size"], channels=3)
            support = task.support(config["shots"], seed=config["seed"])
            sentence = task.instructions(1, seed=config["seed"])[0]
            sample = generator(entry["generator"]).generate(
                entry["architecture"], instruction=sentence, support=support, seed=config["seed"]
            )
            yield (
                {"architecture": entry["architecture"], "size": entry["size"], "task": dataset},
                task,
                sample,
            )


def exports(config: Config) -> Rows:
    """Every network by every target, float32 and int8, on test pictures."""
    rows: Rows = []
    with tempfile.TemporaryDirectory() as folder:
        for named, task, sample in networks(config):
            for name in targets:
                target = targets.get(name)
                for int8 in (False, True) if target.rounds else (False,):
                    out = Path(folder) / f"network{target.suffix}"
                    # What is measured here is the loss, so none is too large.
                    done = export_network(sample, out, to=name, int8=int8, task=task, max_loss=100)
                    assert done.checked is not None and done.accuracy is not None, done.unchecked
                    rows.append(
                        {
                            **named,
                            "to": name,
                            "int8": int8,
                            "difference": float(f"{done.difference:.3g}"),
                            "before": round(done.accuracy[0], 4),
                            "after": round(done.accuracy[1], 4),
                            "images": done.num_images,
                            "bytes": out.stat().st_size,
                            "checked": done.checked,
                            "footprint": done.more.get("footprint", {}),
                        }
                    )
                    print(rows[-1], flush=True)
    return rows


PARTS: dict[str, Callable[[Config], Rows]] = {"exports": exports}


def page(results: dict[str, Any], config: Config) -> str:
    """``docs/results/export.md``."""
    from export.page import render

    return render(results, config)
