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
roboto@5.3.0 open-sans@5.3.0 lato@5.3.0 montserrat@5.3.0 oswald@5.3.0 poppins@5.3.0 raleway@5.3.0
nunito@5.3.0 work-sans@5.3.0 quicksand@5.3.0 rubik@5.3.0 barlow-condensed@5.3.0 exo-2@5.3.0
orbitron@5.3.0 teko@5.3.0 merriweather@5.3.0 playfair-display@5.3.0 lora@5.3.0 pt-serif@5.3.0
libre-baskerville@5.3.0 cormorant-garamond@5.3.0 eb-garamond@5.3.0 bitter@5.3.0 arvo@5.3.0 rokkitt@5.3.0
cinzel@5.3.0 vollkorn@5.3.0 spectral@5.3.0 old-standard-tt@5.3.0 inconsolata@5.3.0 source-code-pro@5.3.0
space-mono@5.3.0 courier-prime@5.3.0 caveat@5.3.0 dancing-script@5.3.0 amatic-sc@5.3.0 kalam@5.3.0
fredoka@5.3.0 special-gothic@5.3.0
""".split()
_REGULAR = """
audiowide@5.3.0 anton@5.3.0 bebas-neue@5.3.0 archivo-black@5.3.0 abril-fatface@5.3.0 alfa-slab-one@5.3.0
vt323@5.3.0 press-start-2p@5.3.0 lobster@5.3.0 pacifico@5.3.0 indie-flower@5.3.0
shadows-into-light@5.3.0 great-vibes@5.3.0 courgette@5.3.0 cookie@5.3.0 sacramento@5.3.0
patrick-hand@5.3.0 architects-daughter@5.3.0 reenie-beanie@5.3.0 covered-by-your-grace@5.3.0
gloria-hallelujah@5.3.0 bangers@5.3.0 righteous@5.3.0 monoton@5.3.0 creepster@5.3.0 black-ops-one@5.3.0
bungee@5.3.0 fascinate@5.3.0 limelight@5.3.0 medievalsharp@5.3.0 pirata-one@5.3.0 uncial-antiqua@5.3.0
metamorphous@5.3.0 syne-mono@5.3.0
""".split()
_FILES_SHA256 = "ac3a9771c089c96674047c8c74e8377c0793d8b8b2f39ed18f968a89f9a6bcb3"

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_TEST_FAMILIES = 16
_DRAWINGS = 4
_SIZE = 28
# Letters are drawn large and shrunk: the renderer's hinting and its versions then matter little.
_LARGE = 4 * _SIZE


def families() -> dict[str, tuple[int, ...]]:
    """The weights of every family, by ``name@version``."""
    return {name: (400, 700) for name in _WITH_BOLD} | {name: (400,) for name in _REGULAR}


def test_families() -> frozenset[str]:
    """The families whose letters are test images only."""
    return frozenset(
        sorted(families(), key=lambda name: seed_for("glyphs", name.split("@")[0]))[:_TEST_FAMILIES]
    )


def _count(test: bool) -> int:
    held = test_families()
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
    held = test_families()
    fonts: list[tuple[str, int, bytes]] = []
    digest = hashlib.sha256()
    with npm_archives([f"@fontsource/{name}" for name in wanted]) as paths:
        for (name, weights), path in zip(wanted.items(), paths, strict=True):
            with archive(path) as read:
                for weight in weights:
                    content = read(f"files/{name.split('@')[0]}-latin-{weight}-normal.woff")
                    digest.update(hashlib.sha256(content).digest())
                    fonts.append((name, weight, content))
    if digest.hexdigest() != _FILES_SHA256:
        raise SourceSilent("gave other font files than the published ones")
    progress(f"drawing the letters of {len(fonts)} fonts")
    piles: dict[str, tuple[list[Images], list[int]]] = {"train": ([], []), "test": ([], [])}
    for name, weight, content in fonts:
        images, labels = piles["test" if name in held else "train"]
        family = name.split("@")[0]
        try:
            font = ImageFont.truetype(io.BytesIO(content), _LARGE, layout_engine=ImageFont.Layout.BASIC)
            for label, letter in enumerate(_LETTERS):
                for drawing in range(_DRAWINGS):
                    images.append(draw_letter(font, letter, ("glyph", family, weight, letter, drawing)))
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
