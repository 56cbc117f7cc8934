from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from weightloom.tasks.words import Subject, instructions, listed, misspell


@given(st.text(max_size=60), st.integers(0, 1000))
def test_misspelling_changes_little(text, seed):
    wrong = misspell(text, np.random.default_rng(seed))
    assert wrong == misspell(text, np.random.default_rng(seed))
    assert abs(len(wrong) - len(text)) <= 3


def test_most_misspellings_differ():
    text = "Tell apart pictures of clothing"
    wrong = [misspell(text, np.random.default_rng(seed)) for seed in range(100)]
    assert len(set(wrong)) > 80 and wrong.count(text) < 10


def test_lists():
    assert (
        listed(["a"]) == "a" and listed(["a", "b"]) == "a and b" and listed(list("abc"), "or") == "a, b or c"
    )
    assert listed([str(i) for i in range(20)]).endswith("11 and 8 more")


def test_more_instructions_than_wordings_are_still_different():
    subject = Subject(title="", subject="pictures", grey=False, whole=False)
    lines = instructions(subject, ["a", "b"], "id", 600, ("t",))
    assert len(set(lines)) == 600


def test_without_a_title_the_classes_are_always_named():
    subject = Subject(title="", subject="pictures", grey=False, whole=False)
    lines = instructions(subject, ["cup", "spoon"], "id", 60, ("t",))
    assert all("cup" in line.lower() and "spoon" in line.lower() for line in lines)


def test_a_share_is_misspelt():
    subject = Subject(title="MNIST", subject="pictures of handwritten digits")
    clean = set(instructions(subject, list("0123456789"), "id", 150, ("t",)))
    wrong = instructions(subject, list("0123456789"), "id", 150, ("t",), misspelt=1.0)
    assert len(set(wrong) - clean) > 120
