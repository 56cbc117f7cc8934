"""Which class names training may see: names are held out by their words, never by a list.

Every stemmed content word is held out or not by the hash of the word and a salt. A name all of whose words
are held out is *unseen*, one with no such word is for training, and one with both belongs to neither; so an
unseen name shares no word with any name of training. Words of the datasets that are known as wholes are
never held out.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from typing import Literal

from weightloom.seeding import seed_for

ONE_IN = 6
"""Of so many words one is held out."""

_STOP = frozenset(["the", "of", "a", "an", "and", "with", "in", "on", "at", "to", "for", "or", "by", "from"])

NameSplit = Literal["train", "unseen", "mixed"]


@lru_cache(maxsize=1)
def _stemmer():  # type: ignore[no-untyped-def]  # noqa: ANN202
    import snowballstemmer  # type: ignore[import-untyped]

    return snowballstemmer.stemmer("english")


@lru_cache(maxsize=16384)
def stems(name: str) -> frozenset[str]:
    """The stemmed content words of a name (Porter's second stemmer).

    Example:
        >>> sorted(stems("Bottles of wine")) == sorted(stems("wine bottle"))
        True
    """
    words = re.findall(r"[^\W_]+", name.lower())
    return frozenset(_stemmer().stemWord(word) for word in words if word not in _STOP)


def split_of_name(name: str, salt: str, known: Collection[str] = ()) -> NameSplit:
    """Whether training may see ``name``, under a salt; words whose stems are ``known`` are never held out."""
    held = {stem not in known and seed_for("held-out-word", salt, stem) % ONE_IN == 0 for stem in stems(name)}
    if held == {True}:
        return "unseen"
    return "mixed" if True in held else "train"
