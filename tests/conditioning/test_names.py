"""Class names: checked, read from sentences, made readable, defined."""

from __future__ import annotations

import pytest
import torch

from weightloom.conditioning.lexicon import define
from weightloom.conditioning.names import (
    check_names,
    encode_names,
    names_in,
    parse_names,
    readable,
    without_numbers,
)
from weightloom.errors import InputError


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("cat, dog", "a list of at least two texts"),
        (["cat"], "only one class name"),
        ([], "2 to 1,000 classes"),
        (["cat"] * 10_000, "10,000 class names"),
        (["cat", 7], "number 2 is int"),
        (["cat", ""], "number 2 is empty"),
        (["cat", "  "], "number 2 is empty"),
        (["cat", "CAT"], "given twice"),
        (["cat", "x" * 121], "121 characters"),
        (["cat", "!?"], "holds no word"),
        (["cat", "a\x1b[31m"], "holds no word"),
        (["cat", "a\ud800"], "holds no word"),
        (["cat", "\u200bcat"], "holds no word"),
        (["coffee bean", "CoffeeBean"], "given twice"),
        (["caf\u00e9", "cafe\u0301"], "given twice"),
        (None, "not NoneType"),
    ],
)
def test_names_that_are_none_are_refused_in_one_sentence(names, message):
    with pytest.raises(InputError, match=message) as caught:
        check_names(names)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_lists_of_names():
    assert parse_names("cat, dog;mouse") == parse_names("cat, dog; mouse") == ("cat, dog", "mouse")
    assert parse_names("a\nb c\n") == ("a", "b c")
    with pytest.raises(InputError, match="is empty"):
        parse_names("cat,,dog")


@pytest.mark.parametrize(
    ("sentence", "names"),
    [
        ("tell cats from dogs", ("cats", "dogs")),
        ("Tell apart cats, dogs and trucks", ("cats", "dogs", "trucks")),
        ("is it a 3, a 1 or a 7?", ("3", "1", "7")),
        ("Does the photo show a ship or an airplane?", ("ship", "airplane")),
        ("Sort small photos into cat, dog and truck", ("cat", "dog", "truck")),
        ("a network with the classes: bag, coat, ankle boot", ("bag", "coat", "ankle boot")),
        ("distinguish apples from pears in photos", ("apples", "pears")),
        ("cats vs. dogs", ("cats", "dogs")),
        ("Recognise handwritten digits", None),
        ("Tell apart pictures of clothing", None),
        ("Classify photos of cats and dogs", None),
        ("Sort small photos", None),
        ("A network for Fashion-MNIST", None),
        ("Is it a cat or a dog in the picture?", ("cat", "dog")),
        ("Recognise apples, pears, plums", ("apples", "pears", "plums")),
        ("Distinguish photos (circle, square and triangle)", ("circle", "square", "triangle")),
        ("Build a 3-way classifier for circle, square and triangle.", ("circle", "square", "triangle")),
        ("which animal: lion or tiger", ("lion", "tiger")),
        ("sort mail: letters, parcels", ("letters", "parcels")),
        (
            "Distinguish between sneakers, boots and sandals in small grey photos",
            ("sneakers", "boots", "sandals"),
        ),
        ("Recognise numbers from zero to nine, pen on paper, white on black", None),
        ("classify handwritten digits as accurately and quickly as possible", None),
        ("label the clothing as well as you can, and fast", None),
        ("sort these into two groups, and be quick", None),
        ("Recognise digits. Labels are noisy: some are wrong, and some missing", None),
        ("tell " + " " * 1900 + "x", None),
    ],
)
def test_a_sentence_that_lists_classes_is_read_for_them(sentence, names):
    assert names_in(sentence) == names


def test_names_are_read_as_people_write_them():
    assert [readable(name) for name in ("coffee_bean", "CoffeeBean", "Coffee-Bean", "T-shirt/top")] == [
        "coffee bean", "coffee bean", "coffee bean", "t-shirt or top"
    ]  # fmt: skip


def test_numbers_that_names_are_listed_by_are_no_part_of_them():
    assert without_numbers(["01_apple", "02_pear"]) == ["apple", "pear"]
    for names in (["2 fingers", "3 fingers"], ["7 up", "water"], ["1", "2"], ["3d model", "4d model"]):
        assert without_numbers(names) == names


def test_definitions():
    assert define("Violins") == define("violin") is not None
    assert define("toy rocking-horse") == define("rocking horse")
    assert define("") is None and define("zzzz") is None and define("the") is None


@pytest.mark.usefixtures("text_encoder")
def test_vectors_do_not_depend_on_the_other_names():
    both, one = encode_names(["cat", "delivery truck"]), encode_names(["delivery truck", "violin"])
    assert both.shape == (2, 768) and torch.allclose(both[1], one[0], atol=1e-5)
    assert torch.allclose(both.view(2, 2, 384).norm(dim=2), torch.ones(2, 2), atol=1e-5)
