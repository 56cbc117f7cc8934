from __future__ import annotations

from pathlib import Path

import pytest
from tests.consolidation.conftest import small  # noqa: F401
from tests.generators.test_consolidated import RECIPE

from weightloom.consolidation import compress
from weightloom.consolidation.catalogue import Published
from weightloom.errors import DataUnavailableError, SpecError, UnknownNameError
from weightloom.io import sha256_of
from weightloom.training import consolidated
from weightloom.training.consolidated import build


def test_a_missing_package_loses_nothing(small: dict[str, Published], tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "made"
    path = small["plain"].locate()
    build(RECIPE.model_copy(update={"checkpoints": ["small"]}), out, lambda *_: None)
    before = {p: sha256_of(p) for p in out.rglob("*") if p.is_file()}
    path.rename(path.with_suffix(".gone"))
    with pytest.raises(DataUnavailableError, match=r"weightloom-small-zoo, .* pip install --no-deps"):
        build(RECIPE, out, lambda *_: None)
    assert {p: sha256_of(p) for p in out.rglob("*") if p.is_file()} == before


def test_what_is_finished_is_not_made_again(
    small: dict[str, Published],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = build(RECIPE, tmp_path / "whole", lambda *_: None)
    told: list[tuple[str, int, int]] = []

    class Stop(Exception):
        pass

    def stop(name: str, done: int, of: int) -> None:
        told.append((name, done, of))
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        build(RECIPE, tmp_path / "parts", stop)
    assert told == [("small", 1, 3), ("near", 2, 3)]
    calls: list[str] = []

    def watch(entry: Published, *rest: object, **options: object) -> object:
        calls.append(entry.name)
        return compress.consolidate(entry, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(consolidated, "consolidate", watch)
    build(RECIPE, tmp_path / "parts", lambda *_: None)
    assert calls == ["plain"]
    assert sha256_of(tmp_path / "parts" / "model.safetensors") == sha256_of(
        tmp_path / "whole" / "model.safetensors"
    )
    assert whole.about["near"]["bits_per_weight"] < whole.about["plain"]["bits_per_weight"]


def test_recipes_that_make_no_sense(small: dict[str, Published], tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(UnknownNameError, match="unknown published checkpoint 'large'"):
        build(RECIPE.model_copy(update={"checkpoints": ["large"]}), tmp_path, lambda *_: None)
    with pytest.raises(SpecError, match=r"the recipe's settings: .*'speed'"):
        build(RECIPE.model_copy(update={"settings": {"speed": 3}}), tmp_path, lambda *_: None)
