"""Class names as users give them: lists, folder names, sentences that list classes.

Checks and reads them, and makes vectors of them. Knows nothing of tasks.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import torch
from torch import Tensor

from weightloom.conditioning.lexicon import define
from weightloom.conditioning.text import TEXT_WIDTH, encode_text
from weightloom.errors import InputError

NAME_WIDTH = 2 * TEXT_WIDTH
"""Width of a class name's vector."""

MAX_NAMES = 1000
"""Most classes of one network."""
MAX_NAME = 120
"""Longest class name, in characters."""

_ARTICLES = ("a ", "an ", "the ", "some ")


def check_names(names: object) -> tuple[str, ...]:
    """The class names, stripped, in the order given.

    Raises:
        InputError: fewer than two or more than 1,000 names, a name that is empty, too long, no text, without
        a
            letter or digit, or given twice (upper and lower case count as the same).

    Example:
        >>> check_names(["cat", " dog "])
        ('cat', 'dog')
        >>> check_names(["cat", "Cat"])
        Traceback (most recent call last):
        ...
        weightloom.errors.InputError: the class name 'Cat' is given twice
    """
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise InputError(
            f"class names are a list of at least two texts, ['cat', 'dog'], not {type(names).__name__}"
        )
    if len(names) == 1:
        raise InputError(f"only one class name is given, {str(names[0])[:60]!r}; separate several by commas")
    if not 2 <= len(names) <= MAX_NAMES:
        raise InputError(
            f"a network has 2 to {MAX_NAMES:,} classes, but {len(names):,} class names are given"
        )
    checked: dict[str, str] = {}
    for place, name in enumerate(names, 1):
        if not isinstance(name, str):
            raise InputError(f"class names must be text, but number {place} is {type(name).__name__}")
        name = name.strip()
        if not name:
            raise InputError(f"class name number {place} is empty")
        if len(name) > MAX_NAME:
            raise InputError(
                f"class name number {place} has {len(name)} characters; at most {MAX_NAME} are read"
            )
        if not any(letter.isalnum() for letter in name) or any(not plain(letter) for letter in name):
            raise InputError(
                f"class name number {place}, {name!r}, holds no word, or characters that no word has"
            )
        # What reads the same is the same: CoffeeBean, coffee_bean, coffee  bean.
        alike = readable(name)
        if alike in checked:
            raise InputError(f"the class name {name!r} is given twice")
        checked[alike] = name
    return tuple(checked.values())


def plain(letter: str) -> bool:
    """Whether a character can be shown: no control character, mark of direction, or half of a pair."""
    return letter == " " or unicodedata.category(letter)[0] not in "CZ"


def parse_names(text: str) -> tuple[str, ...]:
    """Class names from one text, separated by commas, semicolons or lines. Raises :class:`InputError`.

    Example:
        >>> parse_names("cat, dog, delivery truck")
        ('cat', 'dog', 'delivery truck')
    """
    if not text.strip():
        raise InputError("the list of class names is empty; separate them by commas: 'cat, dog'")
    separator = "\n" if "\n" in text.strip() else ";" if ";" in text else ","
    return check_names(list(text.strip().strip(separator).split(separator)))


def shown_names(names: Sequence[str], most: int = 6) -> str:
    """Class names in a sentence, cut where there are many.

    Example:
        >>> shown_names(["cat", "dog", "truck"], most=2)
        'cat, dog and 1 more'
    """
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def check_same_names(given: Sequence[str], shown: Sequence[str]) -> None:
    """Raise :class:`InputError` unless the names given are those of the examples, in their order."""
    if [name.casefold() for name in given] != [name.casefold() for name in shown]:
        raise InputError(
            f"the class names given ({shown_names(given)}) are not those of the examples "
            f"({shown_names(shown)}), in their order; they can be left out"
        )


def no_names(count: int) -> tuple[str, ...]:
    """As many names that say nothing: no generator and no dictionary knows a word of them."""
    return tuple(f"zzq{number}" for number in range(count))


def readable(name: str) -> str:
    """A class name in plain words, as the sentence encoder reads it best.

    Folders and data files write names in many ways: ``CoffeeBean``, ``coffee_bean``, ``coffee-bean``.

    Example:
        >>> readable("CoffeeBean"), readable("T-shirt/top"), readable("7")
        ('coffee bean', 't-shirt or top', '7')
    """
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", name))
    words = re.sub(r"\s*/\s*", " or ", words).replace("_", " ")
    words = re.sub(r"(?<=\w\w)-(?=\w\w)", " ", words)
    return re.sub(r"\s+", " ", words).strip().lower() or name.strip().lower()


def places_of(names: Sequence[str], known: Sequence[str]) -> list[int | None]:
    """For each name the place of the same one in ``known``, or None; what reads the same is the same.

    Example:
        >>> places_of(["tea_cup", "Fish", "cat"], ["cat", "tea cup"])
        [1, None, 0]
    """
    exact = {unicodedata.normalize("NFC", name): place for place, name in enumerate(known)}
    alike = {readable(name): place for place, name in enumerate(known)}
    places = [exact.get(unicodedata.normalize("NFC", name)) for name in names]
    for number, name in enumerate(names):
        place = alike.get(readable(name))
        if places[number] is None and place not in places:
            places[number] = place
    return places


def without_numbers(names: Sequence[str]) -> list[str]:
    """Readable names without the numbers that they are listed by, where each has one of its own.

    Example:
        >>> without_numbers(["03 - coffee bean", "04 - tea"]), without_numbers(["2 fingers", "3 fingers"])
        (['coffee bean', 'tea'], ['2 fingers', '3 fingers'])
    """
    read = [readable(name) for name in names]
    bare = [re.sub(r"^\d+[\s.\-:]+(?=[^\W\d])", "", name) for name in read]
    numbered = all(a != b for a, b in zip(read, bare, strict=True))
    return bare if numbered and len(set(bare)) == len(bare) else read


# What stands before a list of classes, from the most certain to the least. Each pattern's last group is the
# list.
_LISTS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\b(?:classes|labels|categories|names)\b[^:]*:\s*(.+)$",
        r"\b(?:with|into|as)\s+the\s+(?:classes|labels|categories|groups)\s*:?\s+(.+)$",
        r"\btell(?:s|ing)?\s+(?:apart\s+)?(.+?\s+from\s+.+)$",
        r"\b(?:is|are)\s+(?:it|this|that|they|these)\s+(.+\bor\b.+?)\?",
        r":\s*(.+\bor\b.+?)\?",
        r"\b(?:show|shows|see|contains?)\s+(.+\bor\b.+)$",
        r"\b(?:between|separates?|separating|distinguish(?:es)?|tell(?:s|ing)?\s+apart)\s+(?:between\s+)?(.+)$",
        r"\b(?:sort|classify|label|divide)\b.*?\binto\s+(.+)$",
        r"^(.+?\s+(?:vs\.?|versus)\s+.+)$",
        r"\(([^()]+,[^()]+)\)",
        r"\b(?:classifier|network|model)\s+(?:for|of)\s+(.+,.+)$",
        r"^(?:recogni[sz]e|identify|classify|distinguish|spot|label)\s+(.+,.+)$",
        r":\s*(.+(?:,|\bor\b).+)$",
    )
)
_SPLIT = re.compile(
    r"\s*(?:,\s*(?:and|or|from)\s+|,|;|\band\b|\bor\b|\bfrom\b|\bvs\.?|\bversus\b)\s*", re.IGNORECASE
)
_TAIL = re.compile(
    r"\b(?:in|on|of|from)\s+(?:(?!(?:in|on|of|from)\b)[\w-]+\s+){0,3}(?:photos?|pictures?|images?|drawings?|sketches|photographs?)\b.*$",
    re.IGNORECASE,
)
_NO_CLASS = re.compile(
    r"^(?:\d+|two|three|four|five|six|seven|eight|nine|ten|several|some)\s+(?:classes|groups|kinds|parts|piles)$|"
    r"^(?:be|are|is|as|fast|quick|quickly|well)\b|\b(?:on|to|with|at|by)\b|\b(?:pictures|photos|photographs|images|drawings|sketches)\b",
    re.IGNORECASE,
)


def names_in(sentence: str) -> tuple[str, ...] | None:
    """The classes that a sentence lists, in its order; None where it lists none.

    A list needs words that announce it, or a question: "pictures of clothing and shoes" names a subject,
    "tell clothing from shoes" two classes.

    Example:
        >>> names_in("tell cats from dogs"), names_in("Is it a 3, a 1 or a 7?")
        (('cats', 'dogs'), ('3', '1', '7'))
        >>> names_in("Recognise handwritten digits") is None
        True
    """
    text = " ".join(sentence.split()).rstrip(".! ")  # patterns take time over many spaces
    for pattern in _LISTS:
        match = pattern.search(text)
        if match is None:
            continue
        listed = _TAIL.sub("", match.group(1).strip(" ?.!:"))
        names = [_bare(part) for part in _SPLIT.split(listed)]
        if len(names) < 2 or any(
            not name or len(name.split()) > 4 or _NO_CLASS.search(name) for name in names
        ):
            continue
        try:
            return check_names(names)
        except InputError:
            continue
    return None


def _bare(name: str) -> str:
    """A name without its article."""
    name = name.strip(" \"'`()[]")
    for article in _ARTICLES:
        if name.lower().startswith(article) and len(name) > len(article):
            return name[len(article) :].strip()
    return name


def encode_names(names: Sequence[str]) -> Tensor:
    """(C, 768): the sentence encoder's vectors of each name, and of the name with its definition.

    Raises:
        DataUnavailableError: the sentence encoder is not installed.

    Example:
        >>> encode_names(["cat", "dog"]).shape
        torch.Size([2, 768])
    """
    bare = without_numbers(names)
    defined = [f"{name}: {meaning}" if (meaning := define(name)) else name for name in bare]
    vectors = encode_text([*bare, *defined])
    return torch.cat([vectors[: len(bare)], vectors[len(bare) :]], 1)
