"""Icons: 32 x 32 colour pictures of named things, drawn from the vector icons of packages with open licences.

The names are what the icons are called in their sets, without words of style ("outline", "bold") and without
variants of skin. A name is a class where it names a thing (a sense of WordNet 3.1 that is an object, a living
being, a shape or a substance) and at least three icons carry it. The list beside this file holds the
names with the number of icons of each, so that the classes are known without a download. The pixels depend a
little on the version of the renderer, so what is pinned is the version of every package, not the pixels.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from weightloom.seeding import seed_for
from weightloom.tasks.sources import archive, npm_archives
from weightloom.tasks.store import Arrays, DatasetInfo, Images, Progress, Source, SourceSilent, add_dataset

SETS: Mapping[str, tuple[str, str]] = {
    "carbon": ("1.2.29", "Apache-2.0"),
    "emojione": ("1.2.3", "CC-BY-4.0"),
    "emojione-monotone": ("1.2.1", "CC-BY-4.0"),
    "fa7-solid": ("1.2.5", "CC-BY-4.0"),
    "flat-color-icons": ("1.2.3", "MIT"),
    "fluent-emoji-flat": ("1.2.6", "MIT"),
    "fluent-emoji-high-contrast": ("1.2.6", "MIT"),
    "fxemoji": ("1.2.2", "Apache-2.0"),
    "game-icons": ("1.2.4", "CC-BY-3.0"),
    "guidance": ("1.2.2", "CC-BY-4.0"),
    "healthicons": ("1.2.13", "MIT"),
    "hugeicons": ("1.2.35", "MIT"),
    "icon-park": ("1.2.4", "Apache-2.0"),
    "icon-park-outline": ("1.2.4", "Apache-2.0"),
    "icon-park-solid": ("1.2.4", "Apache-2.0"),
    "iconoir": ("1.2.11", "MIT"),
    "la": ("1.2.1", "Apache-2.0"),
    "lucide": ("1.2.137", "ISC"),
    "lucide-lab": ("1.2.3", "ISC"),
    "maki": ("1.2.5", "CC0-1.0"),
    "map": ("1.2.2", "OFL-1.1"),
    "material-symbols": ("1.2.98", "Apache-2.0"),
    "mdi": ("1.2.3", "Apache-2.0"),
    "medical-icon": ("1.2.0", "MIT"),
    "mingcute": ("1.2.8", "Apache-2.0"),
    "noto": ("1.2.9", "Apache-2.0"),
    "noto-v1": ("1.2.5", "Apache-2.0"),
    "ph": ("1.2.2", "MIT"),
    "solar": ("1.2.13", "CC-BY-4.0"),
    "streamline": ("1.2.5", "CC-BY-4.0"),
    "streamline-emojis": ("1.2.4", "CC-BY-4.0"),
    "streamline-flex": ("1.2.3", "CC-BY-4.0"),
    "streamline-freehand-color": ("1.2.2", "CC-BY-4.0"),
    "streamline-plump": ("1.2.0", "CC-BY-4.0"),
    "streamline-ultimate": ("1.2.2", "CC-BY-4.0"),
    "tabler": ("1.2.41", "MIT"),
    "twemoji": ("1.2.5", "CC-BY-4.0"),
}
"""Version and licence of the npm package ``@iconify-json/NAME`` of each set. Sets under share-alike licences
are left out, so that nothing that is learned from their pictures has to carry that licence."""

_EMOJI = frozenset(
    [
        "emojione",
        "emojione-monotone",
        "fluent-emoji-flat",
        "fluent-emoji-high-contrast",
        "fxemoji",
        "noto",
        "noto-v1",
        "streamline-emojis",
        "twemoji",
    ]
)
_STYLES = frozenset(
    [
        "outline",
        "outlined",
        "filled",
        "fill",
        "bold",
        "light",
        "thin",
        "duotone",
        "line",
        "round",
        "rounded",
        "sharp",
        "baseline",
        "twotone",
        "two-tone",
        "solid",
        "remix",
        "broken",
        "linear",
        "regular",
        "alt",
        "off",
        "on",
        "simple",
        "variant",
        "circle",
        "square",
        "24px",
    ]
)
_PREFIXES = frozenset(["bxs", "i", "md", "ios", "logo", "baseline", "outline", "round", "sharp", "twotone"])
_SKIN = re.compile(r"(medium-light|medium-dark|medium|light|dark)-skin-tone"
                   r"|-(medium-light|medium-dark|medium|light|dark|default)$")  # fmt: skip
_PICTURE = re.compile(r"<\s*(?:[\w.-]+:)?(?:fe)?image\b", re.IGNORECASE)
_SIZE = 32
_LARGE = 2 * _SIZE
_LEAST = 3
_ONE_IN = 5


def concept(icon_set: str, icon: str) -> str | None:
    """What an icon shows, in words, from its name in its set; None for variants of skin, flags and numbers.

    Example:
        >>> concept("ph", "coffee-bean-duotone"), concept("noto", "waving-hand-light-skin-tone")
        ('coffee bean', None)
    """
    name = icon.lower()
    if icon_set in _EMOJI:
        if _SKIN.search(name) or name.startswith(("flag", "keycap", "regional", "tag-")):
            return None
        name = re.sub(r"-\d+$", "", name).replace("-", " ")
    else:
        parts = name.split("-")
        while parts and (parts[-1] in _STYLES or parts[-1].isdecimal()):
            parts.pop()
        if parts and parts[0] in _PREFIXES:
            parts.pop(0)
        if not 1 <= len(parts) <= 3:
            return None
        name = " ".join(parts)
    return name if len(name) >= 3 and not any(letter.isdigit() for letter in name) else None


@lru_cache(maxsize=1)
def listed() -> Mapping[str, int]:
    """The classes in label order and how many icons each has."""
    text = files(__package__).joinpath("icons.txt").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in text.splitlines() if line)
    return {name: int(count) for name, count in rows}


def _test_count(count: int) -> int:
    return max(1, count // _ONE_IN)


def drawing(svg_body: str, box: tuple[float, float, float, float]) -> str:
    """An SVG document of an icon's body; what takes the text's colour is black."""
    left, top, width, height = box
    body = svg_body.replace("currentColor", "#000000")
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="{left} {top} {width} {height}">{body}</svg>'
    )


def render(svg: str) -> Images:
    """(3, 32, 32) uint8 on white, drawn at twice the size and averaged.

    Raises:
        SourceSilent: the renderer cannot draw it.
    """
    import resvg_py

    if _PICTURE.search(svg):  # the renderer would read a file of this machine
        raise SourceSilent("gave a drawing with a picture inside")
    try:
        png = bytes(
            resvg_py.svg_to_bytes(svg_string=svg, width=_LARGE, height=_LARGE, skip_system_fonts=True)
        )
        with Image.open(BytesIO(png), formats=("PNG",)) as opened:
            drawn = opened.convert("RGBA")
    except (ValueError, OSError) as error:
        raise SourceSilent(f"gave a drawing that cannot be rendered ({error})") from error
    drawn.thumbnail((_LARGE, _LARGE))
    page = Image.new("RGBA", (_LARGE, _LARGE), (255, 255, 255, 255))
    page.alpha_composite(drawn, ((_LARGE - drawn.width) // 2, (_LARGE - drawn.height) // 2))
    pixels = np.asarray(page.convert("RGB").resize((_SIZE, _SIZE), Image.Resampling.BOX))
    return pixels.transpose(2, 0, 1)  # (H, W, 3) -> (3, H, W)


def drawings(content: Mapping[str, Any]) -> dict[str, str]:
    """The SVG of every icon of a set, by name."""
    wide, high = content.get("width", 16), content.get("height", 16)
    return {
        name: drawing(
            icon["body"],
            (icon.get("left", 0), icon.get("top", 0), icon.get("width", wide), icon.get("height", high)),
        )
        for name, icon in content["icons"].items()
        if not icon.get("hidden")
    }


def _npm(progress: Progress) -> Arrays:
    if importlib.util.find_spec("resvg_py") is None:
        raise SourceSilent(
            "needs the Python package resvg-py, which is not installed (pip install 'weightloom[icons]')"
        )
    labels = {name: label for label, name in enumerate(listed())}
    images: list[Images] = []
    marks: list[tuple[int, int]] = []  # label, place in the order that decides what is for testing
    packages = [f"@iconify-json/{name}@{version}" for name, (version, _) in SETS.items()]
    with npm_archives(packages) as paths:
        for icon_set, path in zip(SETS, paths, strict=True):
            progress(f"drawing the icons of {icon_set}")
            with archive(path) as read:
                try:
                    found = drawings(json.loads(read("icons.json")))
                except (AttributeError, ValueError, KeyError, TypeError) as error:
                    raise SourceSilent(f"gave icons that cannot be read ({error})") from error
            for icon, svg in found.items():
                label = labels.get(concept(icon_set, icon) or "")
                if label is not None:
                    images.append(render(svg))
                    marks.append((label, seed_for("icons", icon_set, icon)))
    if not images:
        raise SourceSilent("gave no icon of the list")
    return _split(np.stack(images), marks)


def _split(images: Images, marks: list[tuple[int, int]]) -> Arrays:
    """Of every class one icon in five is for testing, chosen by the hash of its set and name."""
    labels = np.asarray([label for label, _ in marks], dtype=np.int16)
    test = np.zeros(len(labels), dtype=bool)
    for label, count in enumerate(listed().values()):
        own = np.flatnonzero(labels == label)
        order = sorted(own, key=lambda row: marks[row][1])
        test[order[: _test_count(count)]] = True
    return {"train": (images[~test], labels[~test]), "test": (images[test], labels[test])}


_TEST = sum(_test_count(count) for count in listed().values())

add_dataset(
    DatasetInfo(
        name="icons",
        title="Icons",
        subject="icons",
        synonyms=("pictograms", "emoji and icons", "small symbols of things", "flat drawings of things"),
        class_names=tuple(listed()),
        channels=3,
        size=_SIZE,
        counts={"train": sum(listed().values()) - _TEST, "test": _TEST},
        licence=", ".join(sorted({licence for _, licence in SETS.values()})) + " (each set)",
        sources=(Source(name=f"npm packages @iconify-json/* ({len(SETS)} sets)", read=_npm),),
        download_mb=60.0,
    )
)
