"""What a word means: the definitions of the things among the nouns of WordNet 3.1.

A class name alone is one or two words; its definition says how the thing looks, what it is part of and what
it is for. Made by ``benchmarks/names/lexicon.py``; the licence stands in ``WORDNET-LICENSE`` beside this
file.

Source: Miller, "WordNet: a lexical database for English" (Communications of the ACM, 1995); definitions of
unseen classes as their description, e.g. Frome et al., "DeViSE" (NeurIPS 2013) for names.
"""

from __future__ import annotations

import lzma
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.resources import files

_ENDINGS = (("", ""), ("s", ""), ("es", ""), ("ies", "y"), ("ves", "f"))


@lru_cache(maxsize=1)
def _definitions() -> Mapping[str, str]:
    packed = files(__package__).joinpath("lexicon.txt.xz").read_bytes()
    rows = (line.split("\t", 1) for line in lzma.decompress(packed).decode("utf-8").splitlines())
    return {row[0]: row[1] for row in rows}


def lexicon_names() -> tuple[str, ...]:
    """All things that have a definition."""
    return tuple(_definitions())


def define(name: str) -> str | None:
    """A short definition of the thing that ``name`` names; None where the lexicon has none.

    A name of several words that the lexicon does not have is defined by its last word, the thing itself:
    "rocking horse toy" is a toy.

    Example:
        >>> define("violins")
        'bowed stringed instrument that is the highest member of the violin family'
        >>> define("qwrtp") is None
        True
    """
    words = name.lower().strip()
    known = _definitions()
    for form in _forms(words):
        if form in known:
            return known[form]
    if " " in words:
        return define(words.rsplit(" ", 1)[1])
    return None


def _forms(words: str) -> Iterator[str]:
    for ending, instead in _ENDINGS:
        if words.endswith(ending) and len(words) > len(ending) + 1:
            stem = words[: len(words) - len(ending)] + instead
            yield stem
            if "-" in stem:
                yield stem.replace("-", " ")
    if " " in words:
        yield words.replace(" ", "")
