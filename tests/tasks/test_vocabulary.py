"""Names are held out by their words."""

from __future__ import annotations

from weightloom.tasks.datasets.quickdraw import class_names
from weightloom.tasks.vocabulary import split_of_name, stems


def test_an_unseen_name_shares_no_word_with_any_name_of_training():
    splits = {name: split_of_name(name, "test", stems("truck")) for name in class_names()}
    unseen = set().union(*(stems(n) for n, split in splits.items() if split == "unseen"))
    training = set().union(*(stems(n) for n, split in splits.items() if split == "train"))
    assert unseen and training and not unseen & training
    assert splits["truck"] == "train" and set(splits.values()) == {"train", "unseen", "mixed"}
    assert 20 < sum(split == "unseen" for split in splits.values()) < 100


def test_another_salt_holds_out_other_names():
    held = [{n for n in class_names() if split_of_name(n, salt) == "unseen"} for salt in "abc"]
    assert held[0] != held[1] != held[2]
