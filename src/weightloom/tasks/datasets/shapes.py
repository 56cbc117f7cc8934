"""Shapes: drawn by this program from seeds alone; coloured, textured blobs before textured backgrounds.

Nothing is fetched. A class is an outline, a texture and two colours, all a little different in every picture,
before a background that its class prefers but often goes without, as things and places are in photographs.
It is there to teach trunks about colour, texture and outline where photographs are held back.

Source: pictures from random processes as training data, Baradad et al. (arXiv 2106.05963).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from weightloom.seeding import numpy_generator
from weightloom.tasks.store import Arrays, DatasetInfo, Images, Progress, Source, add_dataset

Floats = NDArray[np.float64]

_CLASSES = 24
_BACKGROUNDS = 8
_SIZE = 32
_COUNTS = {"train": 9_600, "test": 2_400}
_TEXTURES = ("plain", "stripes", "checks", "clouds")


def _picture_axes() -> tuple[Floats, Floats]:
    side = (np.arange(_SIZE) + 0.5) / _SIZE * 2 - 1
    return tuple(np.meshgrid(side, side, indexing="xy"))  # type: ignore[return-value]


def _clouds(draw: np.random.Generator, roughness: float) -> Floats:
    """(S, S) noise in [-1, 1] with a power spectrum that falls like frequency ** -2 roughness."""
    waves = np.fft.fftfreq(_SIZE)
    length = np.hypot(waves[:, None], waves[None])
    length[0, 0] = np.inf
    phase = np.exp(2j * np.pi * draw.random((_SIZE, _SIZE)))
    field = np.fft.ifft2(phase * length**-roughness).real
    return field / np.abs(field).max()


class _Texture:
    """Two colours in a pattern; the pattern is one of :data:`_TEXTURES`."""

    def __init__(self, *address: str | int) -> None:
        draw = numpy_generator("shapes", *address)
        self.kind = _TEXTURES[int(draw.integers(len(_TEXTURES)))]
        self.frequency, self.angle = draw.uniform(1.5, 6), draw.uniform(0, np.pi)
        self.roughness = draw.uniform(0.7, 1.8)
        self.colours = draw.uniform(0, 1, (2, 3))  # two of (red, green, blue)

    def paint(self, draw: np.random.Generator, x: Floats, y: Floats) -> Floats:
        """(3, S, S) at places (x, y), a little different each time."""
        angle, phase = self.angle + draw.normal(0, 0.15), draw.uniform(0, 2 * np.pi)
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        rate = np.pi * self.frequency * draw.uniform(0.85, 1.2)
        if self.kind == "stripes":
            level = np.sin(rate * along + phase)
        elif self.kind == "checks":
            level = np.sin(rate * along + phase) * np.sin(rate * across)
        elif self.kind == "clouds":
            level = _clouds(draw, self.roughness)
        else:
            level = 0.3 * along
        mixed = 0.5 + 0.5 * np.tanh(2 * level)
        first, second = np.clip(self.colours + draw.normal(0, 0.08, (2, 3)), 0, 1)
        return first[:, None, None] * mixed + second[:, None, None] * (1 - mixed)  # type: ignore[no-any-return]


class _Outline:
    """How far the edge is from the middle in every direction."""

    def __init__(self, label: int) -> None:
        draw = numpy_generator("shapes", "outline", label)
        waves = np.arange(2, 7)
        self.waves, self.phases = waves, draw.uniform(0, 2 * np.pi, len(waves))
        self.heights = draw.normal(0, 1, len(waves)) * 0.5 / waves**0.7
        self.flatness, self.tilt = draw.uniform(0.5, 1), draw.uniform(0, np.pi)

    def cover(self, draw: np.random.Generator, x: Floats, y: Floats) -> Floats:
        """(S, S) from 0 outside to 1 inside, moved, turned and scaled a little."""
        scale, turn = draw.uniform(0.4, 0.75), self.tilt + draw.normal(0, 0.3)
        x, y = x - draw.uniform(-0.25, 0.25), y - draw.uniform(-0.25, 0.25)
        u = (x * np.cos(turn) + y * np.sin(turn)) / scale
        v = (y * np.cos(turn) - x * np.sin(turn)) / (scale * self.flatness)
        heights = self.heights * draw.uniform(0.8, 1.2, len(self.waves))
        angles = np.arctan2(v, u)[..., None] * self.waves + self.phases  # (S, S, waves)
        edge = np.clip(1 + (heights * np.cos(angles)).sum(-1), 0.25, 2)
        return 1 / (1 + np.exp(-10 * (edge - np.hypot(u, v))))  # type: ignore[no-any-return]


def _drawn(progress: Progress) -> Arrays:
    progress(f"drawing {sum(_COUNTS.values()):,} pictures")
    outlines = [_Outline(label) for label in range(_CLASSES)]
    insides = [_Texture("inside", label) for label in range(_CLASSES)]
    behind = [_Texture("background", number) for number in range(_BACKGROUNDS)]
    x, y = _picture_axes()
    found: Arrays = {}
    for split, count in _COUNTS.items():
        images: Images = np.empty((count, 3, _SIZE, _SIZE), dtype=np.uint8)
        labels = (np.arange(count) % _CLASSES).astype(np.int16)
        for number, label in enumerate(labels.tolist()):
            draw = numpy_generator("shapes", split, number)
            preferred = draw.random() < 0.5
            background = behind[label % _BACKGROUNDS if preferred else int(draw.integers(_BACKGROUNDS))]
            cover = outlines[label].cover(draw, x, y)
            picture = insides[label].paint(draw, x, y) * cover
            picture += background.paint(draw, x, y) * (1 - cover)
            picture = (picture - 0.5) * draw.uniform(0.6, 1.2) + 0.5 + draw.normal(0, 0.08)
            picture += draw.normal(0, 0.03, picture.shape)
            images[number] = np.clip(np.round(picture * 255), 0, 255)
        found[split] = images, labels
    return found


add_dataset(
    DatasetInfo(
        name="shapes",
        title="Shapes",
        subject="coloured blobs with textures",
        synonyms=("drawn shapes", "random coloured forms"),
        class_names=tuple(f"shape {number}" for number in range(_CLASSES)),
        channels=3,
        size=_SIZE,
        counts=_COUNTS,
        licence="Apache-2.0 (drawn by this package)",
        sources=(Source(name="this program", read=_drawn, local=True),),
    )
)
