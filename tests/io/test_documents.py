from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import numpy as np
import pydantic
import pytest

from weightloom.errors import CheckpointError, SpecError, WeightloomError
from weightloom.io import documents, read_json, read_yaml, write_json


class Optimiser(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    kind: Literal["sgd", "adam"] = "adam"
    rate: float = pydantic.Field(1e-3, gt=0)


class Recipe(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    name: str
    steps: int = pydantic.Field(10, ge=1)
    optimiser: Optimiser = Optimiser()
    tasks: list[str] = []


def write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "file"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# -- JSON --------------------------------------------------------------------------------------


def test_json_round_trip_and_equal_bytes(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None, True], "a": {"grüße": "x"}}
    write_json(tmp_path / "one.json", value)
    write_json(tmp_path / "two.json", dict(reversed(value.items())))
    assert read_json(tmp_path / "one.json") == value
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert (tmp_path / "one.json").read_text("utf-8").endswith("}\n")


def test_json_takes_paths_and_numpy_scalars(tmp_path: Path) -> None:
    write_json(
        tmp_path / "x", {"p": Path("a/b"), "f": np.float32(0.5), "i": np.int64(3), "b": np.bool_(True)}
    )
    assert read_json(tmp_path / "x") == {"p": "a/b", "f": 0.5, "i": 3, "b": True}


@pytest.mark.parametrize("value", [float("nan"), np.float32("inf"), {1, 2}, {("a",): 1}, object(), "\ud800"])
def test_json_refuses_what_is_not_json(tmp_path: Path, value: object) -> None:
    with pytest.raises(WeightloomError, match="cannot write"):
        write_json(tmp_path / "x", {"v": value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"a": 1, "a": 2}', '[{"a": 1, "a": 2}]', "[NaN]", "[-Infinity]", "[" * 100_000, b"\xff\xfe",
     "[1] x", "[" + "9" * 5000 + "]"],
)  # fmt: skip
def test_json_that_is_none(tmp_path: Path, text: str | bytes) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_json(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_json_is_limited(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="more than the 10 bytes"):
        read_json(write(tmp_path, "[" + " " * 20 + "]"), limit=10)


# -- YAML --------------------------------------------------------------------------------------


def test_yaml_becomes_the_model(tmp_path: Path) -> None:
    recipe = read_yaml(
        write(tmp_path, "name: zoo\nsteps: 5\noptimiser: {rate: 1e-2}\ntasks:\n  - mnist[1,2]\n  - b\n"),
        Recipe,
    )
    assert recipe == Recipe(name="zoo", steps=5, optimiser=Optimiser(rate=0.01), tasks=["mnist[1,2]", "b"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("steps: 5", "field 'name' is missing"),
        ("name: a\nsteps: many", r"field 'steps': Input should be a valid integer.* \(found 'many'\)"),
        ("name: a\nsteps: 0", r"field 'steps': Input should be greater than or equal to 1"),
        ("name: a\nstepz: 3", "field 'stepz' is not known"),
        ("name: a\noptimiser: {kind: sgd, rate: -1}", r"field 'optimiser\.rate'"),
        ("name: 1\nsteps: x", "; and 1 more"),
        ("name: a\nname: b", r"line 2: field 'name' is there twice"),
        ("- a\n- b", "holds list where fields"),
        ("", "holds NoneType where fields"),
        ("name: [", "line"),
        ("name: 'a", "line"),
        ("name: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("name: &x a\ntasks: [*x, *x]", "line 2: aliases are not allowed"),
        ("name: 2001-99-99", "."),
        ("name: " + "[" * 50_000, "nested too deeply|line"),
        (b"name: \xff", "is not YAML"),
        ("name: \x00", "."),
        ("? [a, b]\n: c", "line 1: a field has a list"),
        ("? {a: b}\n: c", "line 1: a field has a list"),
    ],
)
def test_yaml_that_is_wrong_says_where(tmp_path: Path, text: str | bytes, reason: str) -> None:
    with pytest.raises(SpecError, match=reason) as caught:
        read_yaml(write(tmp_path, text), Recipe)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_billion_laughs_are_not_expanded(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    start = time.perf_counter()
    with pytest.raises(SpecError, match="aliases"):
        read_yaml(write(tmp_path, "\n".join(lines)), Recipe)
    assert time.perf_counter() - start < 1.0


def test_yaml_is_limited_and_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="more than the"):
        read_yaml(write(tmp_path, "# " + "x" * documents.YAML_LIMIT), Recipe)
    with pytest.raises(CheckpointError, match="does not exist"):
        read_yaml(tmp_path / "nothing", Recipe)
