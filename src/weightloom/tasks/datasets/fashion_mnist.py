"""Fashion-MNIST: 70,000 grey pictures of clothing, 28 x 28 pixels (Xiao, Rasul, Vollgraf 2017).

The npm package ``fashion-mnist`` is no source: it mixes the published train and test images, and one in
twenty of its images differs from the published ones.
"""

from __future__ import annotations

from pathlib import Path

from weightloom.tasks.sources import debian_package, hub_arrays, idx_folder
from weightloom.tasks.store import Arrays, DatasetInfo, Progress, Source, add_dataset

_PACKAGE = "dataset-fashion-mnist"
_INSTALLED = Path("/usr/share/datasets/fashion-mnist")


def _installed(progress: Progress) -> Arrays:
    return idx_folder(_INSTALLED, ".gz")


def _debian(progress: Progress) -> Arrays:
    with debian_package(_PACKAGE) as tree:
        return idx_folder(tree / _INSTALLED.relative_to("/"), ".gz")


def _hub(progress: Progress) -> Arrays:
    return hub_arrays("zalando-datasets/fashion_mnist", "fashion_mnist", "image", "label", progress)


add_dataset(
    DatasetInfo(
        name="fashion-mnist",
        title="Fashion-MNIST",
        subject="pictures of clothing",
        synonyms=("clothes", "fashion items", "photos of garments, shoes and bags", "articles of clothing"),
        class_names=(
            "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
            "ankle boot",
        ),
        channels=1,
        size=28,
        counts={"train": 60_000, "test": 10_000},
        checksums={
            "train": "77ebb07cd0b7711e87420b5db55f08ce9a091dc809e11a37ceac0b13aadde056",
            "test": "b377e306a7605e3c2d61651300ecf753bef7ed9c5bf198aad8c273e7837ce5a9",
        },
        licence="MIT",
        sources=(
            Source(name=f"the installed Debian package {_PACKAGE}", read=_installed, local=True),
            Source(name=f"Debian package {_PACKAGE}", read=_debian),
            Source(name="hub dataset zalando-datasets/fashion_mnist", read=_hub),
        ),
        download_mb=30.9,
    )
)  # fmt: skip
