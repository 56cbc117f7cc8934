"""Glyphs: the capital letters A to Z, drawn from real fonts that carry the SIL Open Font License.

No letter of a test font is ever a train image. Fonts come as npm packages ``@fontsource/NAME``; each letter
of each weight is drawn four times, a little turned, scaled and shifted. The pixels depend a little on the
version of the font renderer, so what is pinned is the checksum of the font files, not of the pixels.
"""

from __future__ import annotations

import hashlib
import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from weightloom.seeding import numpy_generator, seed_for
from weightloom.tasks.sources import archive, npm_archives
from weightloom.tasks.store import Arrays, DatasetInfo, Images, Progress, Source, SourceSilent, add_dataset

# Families with a regular and a bold weight, and with a regular weight only.
_WITH_BOLD = """
roboto, open-sans, lato, montserrat, oswald, poppins, raleway, nunito, work-sans, quicksand, rubik,
barlow-condensed, exo-2, orbitron, teko, merriweather, playfair-display, lora, pt-serif,
libre-baskerville, cormorant-garamond, eb-garamond, bitter, arvo, rokkitt, cinzel, vollkorn,
spectral, old-standard-tt, inconsolata, source-code-pro, space-mono, courier-prime, caveat,
dancing-script, amatic-sc, kalam, fredoka, special-gothic
"""
_REGULAR = """
audiowide, anton, bebas-neue, archivo-black, abril-fatface, alfa-slab-one, vt323, press-start-2p,
lobster, pacifico, indie-flower, shadows-into-light, great-vibes, courgette, cookie, sacramento,
patrick-hand, architects-daughter, reenie-beanie, covered-by-your-grace, gloria-hallelujah, bangers,
righteous, monoton, creepster, black-ops-one, bungee, fascinate, limelight, medievalsharp,
pirata-one, uncial-antiqua, metamorphous, syne-mono
"""
_VERSION = "5.3.0"
_FILES_SHA256 = "ac3a9771c089c96674047c8c74e8377c0793d8b8b2f39ed18f968a89f9a6bcb3"

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_HELD_OUT = 16
_DRAWINGS = 4
_SIZE = 28
# Letters are drawn large and shrunk: the renderer's hinting and its versions then matter little.
_LARGE = 4 * _SIZE


def families() -> dict[str, tuple[int, ...]]:
    """The weights of every family."""
    return dict.fromkeys(_names(_WITH_BOLD), (400, 700)) | dict.fromkeys(_names(_REGULAR), (400,))


def _names(table: str) -> list[str]:
    return [name.strip() for name in table.replace("\n", " ").split(",")]


def held_out_families() -> frozenset[str]:
    """The families whose letters are test images only."""
    return frozenset(sorted(families(), key=lambda name: seed_for("glyphs", name))[:_HELD_OUT])


def _count(test: bool) -> int:
    held = held_out_families()
    fonts = sum(len(weights) for name, weights in families().items() if (name in held) == test)
    return fonts * len(_LETTERS) * _DRAWINGS


def draw_letter(font: ImageFont.FreeTypeFont, letter: str, address: tuple[str | int, ...]) -> Images:
    """``letter`` as (28, 28) uint8, white on black, turned, scaled and shifted by the seed ``address``."""
    box = font.getbbox(letter)
    width, height = max(int(box[2] - box[0]), 1), max(int(box[3] - box[1]), 1)
    ink = Image.new("L", (width, height))
    ImageDraw.Draw(ink).text((-box[0], -box[1]), letter, font=font, fill=255)
    generator = numpy_generator(*address)
    scale = generator.uniform(0.62, 0.84) * _LARGE / max(width, height)
    ink = ink.resize((max(round(width * scale), 1), max(round(height * scale), 1)), Image.Resampling.BOX)
    canvas = Image.new("L", (_LARGE, _LARGE))
    shift = generator.uniform(-0.05, 0.05, 2) * _LARGE
    place = [round((_LARGE - side) / 2 + move) for side, move in zip(ink.size, shift, strict=True)]
    canvas.paste(ink, (place[0], place[1]))
    canvas = canvas.rotate(generator.uniform(-10, 10), Image.Resampling.BILINEAR)
    return np.array(canvas.resize((_SIZE, _SIZE), Image.Resampling.BOX), dtype=np.uint8)


def _npm(progress: Progress) -> Arrays:
    wanted = families()
    held = held_out_families()
    fonts: list[tuple[str, int, bytes]] = []
    digest = hashlib.sha256()
    with npm_archives([f"@fontsource/{name}@{_VERSION}" for name in wanted]) as paths:
        for (name, weights), path in zip(wanted.items(), paths, strict=True):
            with archive(path) as read:
                for weight in weights:
                    content = read(f"files/{name}-latin-{weight}-normal.woff")
                    digest.update(hashlib.sha256(content).digest())
                    fonts.append((name, weight, content))
    if digest.hexdigest() != _FILES_SHA256:
        raise SourceSilent("gave other font files than the published ones")
    progress(f"drawing the letters of {len(fonts)} fonts")
    piles: dict[str, tuple[list[Images], list[int]]] = {"train": ([], []), "test": ([], [])}
    for name, weight, content in fonts:
        images, labels = piles["test" if name in held else "train"]
        try:
            font = ImageFont.truetype(io.BytesIO(content), _LARGE, layout_engine=ImageFont.Layout.BASIC)
            for label, letter in enumerate(_LETTERS):
                for drawing in range(_DRAWINGS):
                    images.append(draw_letter(font, letter, ("glyph", name, weight, letter, drawing)))
                    labels.append(label)
        except (OSError, ImportError) as error:
            raise SourceSilent(f"gave fonts that this Pillow cannot draw ({error})") from error
    return {
        split: (np.stack(images)[:, None], np.asarray(labels, dtype=np.int16))  # (N, 1, 28, 28), (N,)
        for split, (images, labels) in piles.items()
    }


add_dataset(
    DatasetInfo(
        name="glyphs",
        title="Glyphs",
        subject="printed letters",
        synonyms=(
            "capital letters",
            "letters of the alphabet in many fonts",
            "printed characters from A to Z",
        ),
        class_names=tuple(_LETTERS),
        channels=1,
        size=_SIZE,
        counts={"train": _count(False), "test": _count(True)},
        licence="OFL-1.1 (each font)",
        sources=(Source(name=f"npm packages @fontsource/* ({len(families())} fonts)", read=_npm),),
        download_mb=58.0,
    )
)
