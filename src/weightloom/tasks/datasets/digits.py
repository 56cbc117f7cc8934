"""scikit-learn's handwritten digits: 1,797 pictures of 8 x 8 pixels that come inside the package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from weightloom.tasks.store import Arrays, DatasetInfo, Progress, Source, SourceSilent, add_dataset, hold_out

_TEST_IMAGES = 500


def _read(progress: Progress) -> Arrays:
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise SourceSilent("is not installed (`pip install scikit-learn`)")
    # Read the table itself: importing scikit-learn would cost a second or two.
    table = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        rows = np.loadtxt(table, delimiter=",", dtype=np.int64)  # (1797, 65): 64 pixels of 0..16, the label
    except (OSError, ValueError) as error:
        raise SourceSilent(f"has no readable digits table ({error})") from error
    # 0..16 to 0..255; (1797, 64) -> (1797, 1, 8, 8)
    images = ((rows[:, :64] * 255 + 8) // 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = rows[:, 64].astype(np.int16)
    return hold_out(images, labels, _stratified(labels))


def _stratified(labels: np.ndarray) -> dict[int, int]:
    """How many test images each class gives so that there are 500 in proportion (largest remainders)."""
    counts = np.bincount(labels)
    exact = counts * _TEST_IMAGES / len(labels)
    given = np.floor(exact).astype(int)
    for label in np.argsort(given - exact, kind="stable")[: _TEST_IMAGES - given.sum()]:
        given[label] += 1
    return {label: int(count) for label, count in enumerate(given)}


add_dataset(
    DatasetInfo(
        name="digits",
        title="the scikit-learn digits",
        subject="small pictures of handwritten digits",
        synonyms=(
            "tiny handwritten digits",
            "low-resolution handwritten numerals",
            "8 by 8 images of digits",
        ),
        class_names=tuple("0123456789"),
        channels=1,
        size=8,
        counts={"train": 1297, "test": _TEST_IMAGES},
        checksums={
            "train": "43ad0d40476e70756bc2283df5b36e2bfe26297fed71a1d8f27fd4eabd6ee4b0",
            "test": "7a1bebb340ebbd8cb91cf784eb40a9c09ff832211025e29fb75f91761d4bcdfb",
        },
        licence="BSD-3-Clause (scikit-learn); UCI Optical Recognition of Handwritten Digits",
        sources=(Source(name="the installed package scikit-learn", read=_read, local=True),),
    )
)
