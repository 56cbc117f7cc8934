from __future__ import annotations

import inspect

import pytest

from weightloom import errors
from weightloom.errors import CheckpointError, InputError, UnknownNameError, WeightloomError

FAMILY = [
    thing for _, thing in inspect.getmembers(errors, inspect.isclass) if thing.__module__ == errors.__name__
]


@pytest.mark.parametrize("kind", FAMILY)
def test_every_error_is_of_the_family_and_has_an_exit_code(kind: type[Exception]) -> None:
    assert issubclass(kind, WeightloomError)
    assert kind.exit_code == (2 if issubclass(kind, InputError) else 1)


def test_bad_input_is_also_a_value_error() -> None:
    with pytest.raises(ValueError, match="wrong"):
        raise InputError("wrong")


def test_a_checkpoint_error_knows_its_path() -> None:
    error = CheckpointError("a/b.safetensors", "is empty")
    assert str(error) == "a/b.safetensors: is empty"
    assert error.path.name == "b.safetensors" and error.reason == "is empty"


@pytest.mark.parametrize(
    ("name", "known", "text"),
    [
        ("fashion-mnits", ["mnist", "fashion-mnist"], "did you mean 'fashion-mnist'"),
        ("zzz", ["a", "b"], "known: a, b"),
        ("zzz", [], "none is known"),
        ("zzz", [f"n{i:03}" for i in range(30)], "n019, ..."),
        ("z" * 100_000, ["a"], "zzz..."),
    ],
)
def test_an_unknown_name_gets_the_nearest(name: str, known: list[str], text: str) -> None:
    error = UnknownNameError("dataset", name, known)
    assert text in str(error) and len(str(error)) < 400
    assert error.known == sorted(known)


@pytest.mark.parametrize("kind", [WeightloomError, InputError])
def test_messages_of_thousands_of_letters_are_cut_in_the_middle(kind):
    error = kind("begin " + "x" * 5000 + " end")
    assert len(str(error)) < 1700 and str(error).startswith("begin xxx") and str(error).endswith("xxx end")
    error = CheckpointError("zoo/" + "x" * 5000 + ".safetensors", "has a key " + "y" * 5000)
    assert len(str(error)) < 1700 and len(str(error.path)) > 5000 and len(error.reason) > 5000
    assert str(kind("short")) == "short"
