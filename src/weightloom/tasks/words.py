"""Plain English for tasks: descriptions, paraphrased instructions and typing errors.

Generators train on many wordings of one task, so that what a user types is one more wording.
Knows no images and no datasets, only the words it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from weightloom.errors import InputError
from weightloom.seeding import numpy_generator
from weightloom.tasks.transforms import transform_words
from weightloom.whole import whole_number

_MAX_LISTED = 12
MOST = 1_000_000
"""Instructions that can be asked for at once."""
_OTHER_TRANSFORM_WORDS = {
    "rot90": (
        "turned a quarter to the left",
        "rotated by 90 degrees",
        "lying on their side",
        "rotated 90° left",
    ),
    "rot180": ("upside down", "rotated by 180 degrees", "turned on their head"),
    "rot270": ("turned a quarter to the right", "rotated by 270 degrees", "rotated 90° right"),
    "flip": ("mirrored", "flipped left to right", "as seen in a mirror"),
    "invert": ("with inverted brightness", "as negatives", "with dark and light swapped", "inverted"),
}

# {s}: the subject; {n}: the number of classes.
_BY_SUBJECT = (
    "Tell apart {s}", "tell {s} apart", "Classify {s}", "classify {s} into {n} classes",
    "I want a network that recognises {s}", "Make me a classifier for {s}", "a classifier of {s}",
    "Recognise {s}", "recognize {s}", "Sort {s} into {n} groups",
    "Which of {n} kinds is it? The images are {s}",
    "Build a {n}-way classifier for {s}", "Give me a neural network for {s}", "identify {s}",
    "Label {s}", "distinguish {s}", "Network for sorting {s}", "Image classification: {s}",
    "Please generate weights that classify {s}", "Can you tell {s} apart?", "{s}, {n} classes",
    "{s}", "Assign each image to its class; the images are {s}", "categorise {s}",
    "A small net that can recognise {s}", "Predict the class of {s}", "I need to label {s} automatically",
)  # fmt: skip
# {t}: the title of the dataset.
_BY_TITLE = (
    "classify {t}", "Classify {t} images", "Train-free classifier for {t}", "A network for {t}",
    "{t}", "{t} classification", "Solve {t}", "Recognise the classes of {t}", "a {n}-class network for {t}",
    "Weights for {t}, please", "Generate a {t} classifier", "{t}: {s}",
)  # fmt: skip
# {c}: the class names in label order.
_BY_CLASSES = (
    "Tell apart {c}", "Classify {s}: {c}", "Distinguish {c}", "Is it {o}?", "{c}",
    "Recognise {c} in {s}", "Sort images into {c}", "Label {s} as {o}",
    "Which one is it: {o}?", "A classifier with the classes {c}", "{s} with the classes {c}",
    "classify images of {c}", "Make a network that separates {c}", "decide between {o}",
    "I have {s} and want to know whether they show {o}", "The labels are, in this order: {c}",
    "{n} classes in this order: {c}", "Build a {n}-way classifier for {c}",
)  # fmt: skip

# The keys beside each key.
_NEIGHBOURS = {
    "a": "sqz", "b": "vn", "c": "xv", "d": "sf", "e": "wr", "f": "dg", "g": "fh", "h": "gj", "i":
    "uo", "j": "hk", "k": "jl", "l": "k", "m": "n", "n": "bm", "o": "ip", "p": "o", "q": "wa", "r":
    "et", "s": "ad", "t": "ry", "u": "yi", "v": "cb", "w": "qe", "x": "zc", "y": "tu", "z": "x",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What the pictures of a task show.

    Attributes:
        title: name of the dataset; empty where there is none worth naming.
        subject: plain English, in the plural.
        synonyms: other words for it.
        grey: whether the pictures are grey.
        whole: whether the task has all classes of the dataset, so that the subject alone names it.
    """

    title: str
    subject: str
    synonyms: tuple[str, ...] = ()
    grey: bool = True
    whole: bool = True


def listed(names: Sequence[str], last: str = "and") -> str:
    """``"a, b and c"``; a long list is cut.

    Example:
        >>> listed(["bag", "coat", "dress"], "or")
        'bag, coat or dress'
    """
    if len(names) > _MAX_LISTED:
        return ", ".join(names[:_MAX_LISTED]) + f" and {len(names) - _MAX_LISTED} more"
    return ", ".join(names[:-1]) + f" {last} {names[-1]}" if len(names) > 1 else "".join(names)


def describe(subject: Subject, class_names: Sequence[str], transform: str) -> str:
    """One phrase with the colour, the subject, the classes and the transform."""
    colour = "grey-scale " if subject.grey else "" if "colour" in subject.subject else "colour "
    text = f"{colour}{subject.subject}, {len(class_names)} classes: {listed(class_names)}"
    turned = transform_words(transform)
    return f"{text}, {turned}" if turned else text


def instructions(
    subject: Subject,
    class_names: Sequence[str],
    transform: str,
    n: int,
    address: Sequence[str | int],
    *,
    misspelt: float = 0.0,
) -> list[str]:
    """``n`` different instructions, drawn by the seed ``address``; see :meth:`Task.instructions`."""
    n = whole_number(n, "the number of instructions", 0, MOST)
    if not 0 <= misspelt <= 1:
        raise InputError(f"cannot write {n} instructions with a share of {misspelt} misspelt")
    generator = numpy_generator(*address)
    found: dict[str, None] = {}
    misses = 0
    while len(found) < n:
        text = _one(subject, class_names, transform, generator)
        # A small task may have fewer wordings than are asked for: then typing errors make the difference.
        if generator.random() < misspelt or misses > 20 + n:
            text = misspell(text, generator)
        misses += text in found
        found[text] = None
    return list(found)


def _one(subject: Subject, class_names: Sequence[str], transform: str, generator: np.random.Generator) -> str:
    def pick(options: Sequence[str]) -> str:
        return options[int(generator.integers(len(options)))]

    kinds: list[tuple[Sequence[str], float]] = [(_BY_CLASSES, 0.4 if subject.whole else 0.75)]
    kinds.append((_BY_SUBJECT, 0.35 if subject.whole else 0.2))
    if subject.title:
        kinds.append((_BY_TITLE, 0.25 if subject.whole else 0.05))
    weights = np.array([weight for _, weight in kinds])
    if len(class_names) > _MAX_LISTED:
        weights[0] = 0.0
    templates = kinds[int(generator.choice(len(kinds), p=weights / weights.sum()))][0]
    template = pick(templates)
    what = pick((subject.subject, subject.subject, *subject.synonyms))
    if subject.grey and generator.random() < 0.15:
        what = f"{pick(('grey', 'grey-scale', 'black and white'))} {what}"
    text = template.format(
        s=what,
        t=subject.title,
        n=len(class_names),
        c=pick(
            (
                listed(class_names),
                ", ".join(class_names) if len(class_names) <= _MAX_LISTED else listed(class_names),
            )
        ),
        o=listed(class_names, "or"),
    )
    if "{t}" in template and not subject.whole:
        text += f", only {listed(class_names)}"
    elif (
        "{c}" not in template
        and "{o}" not in template
        and not subject.whole
        and (not subject.title or generator.random() < 0.5)
    ):
        text += f" ({listed(class_names)})"
    turned = [pick(_OTHER_TRANSFORM_WORDS[part]) for part in transform.split("+") if part != "id"]
    if turned:
        joined = " and ".join(turned)
        text += pick(
            (f", {joined}", f"; the images are {joined}", f" ({joined})", f". The pictures are {joined}")
        )
    if generator.random() < 0.25:
        text += "." if text[-1].isalnum() else ""
    style = generator.random()
    return text[0].upper() + text[1:] if style < 0.5 else text.lower() if style < 0.65 else text


def misspell(text: str, generator: np.random.Generator) -> str:
    """``text`` with one to three typing errors: letters swapped, dropped, doubled or hit beside the key.

    Example:
        >>> import numpy as np
        >>> misspell("Tell apart pictures of clothing", np.random.default_rng(0))
        'eTll apat pictures oof clothing'
    """
    edits: tuple[Callable[[str, str], str], ...] = (
        lambda one, two: two + one,
        lambda one, two: two,
        lambda one, two: one + one + two,
        lambda one, two: _beside(one, generator) + two,
    )
    result = text
    for _ in range(int(generator.integers(1, 4))):
        places = [i for i in range(len(result) - 1) if result[i].isalpha() and result[i + 1].isalpha()]
        if not places:
            break
        at = places[int(generator.integers(len(places)))]
        edit = edits[int(generator.integers(len(edits)))]
        result = result[:at] + edit(result[at], result[at + 1]) + result[at + 2 :]
    return result


def _beside(letter: str, generator: np.random.Generator) -> str:
    keys = _NEIGHBOURS.get(letter.lower(), letter)
    key = keys[int(generator.integers(len(keys)))]
    return key.upper() if letter.isupper() else key
