"""A recipe of a generator that makes itself from a zoo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from weightloom.errors import InputError, SpecError, UnknownNameError
from weightloom.generators import generators
from weightloom.generators.random_init import RandomInit
from weightloom.training.run import train_recipe
from weightloom.training.trainers import trainers
from weightloom.zoo import Zoo


class FromZoo(RandomInit):
    @classmethod
    def from_zoo(cls, zoo: Zoo, *, name: str, loud: bool = False) -> FromZoo:
        model = cls(validity=None, name=name)  # type: ignore[arg-type]
        model.made = (str(zoo.path), loud)  # type: ignore[attr-defined]
        return model

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "made").write_text(str(self.made))  # type: ignore[attr-defined]


def write(folder: Path, **fields: Any) -> Path:
    lines = {"kind": "generator", "generator": "from-zoo", "name": "mine", **fields}
    path = folder / "recipe.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
    return path


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(generators._things, "from-zoo", FromZoo)
    Zoo(tmp_path / "zoo", create=True)
    return tmp_path / "zoo"


def test_it_is_made_and_kept(zoo: Path, tmp_path: Path) -> None:
    model = train_recipe(write(tmp_path, options="{loud: true}"), zoo, tmp_path / "out")
    assert isinstance(model, FromZoo) and model.name == "mine"
    assert (tmp_path / "out" / "made").read_text() == str((str(zoo), True))


def test_what_makes_no_sense_is_refused(zoo: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="igpg"):
        train_recipe(write(tmp_path, generator="igpgg"), zoo, tmp_path / "out")
    with pytest.raises(SpecError, match="random-init"):
        train_recipe(write(tmp_path, generator="random-init"), zoo, tmp_path / "out")
    with pytest.raises(SpecError, match="quiet"):
        train_recipe(write(tmp_path, options="{quiet: 1}"), zoo, tmp_path / "out")
    with pytest.raises(SpecError, match="optionss"):
        train_recipe(write(tmp_path, optionss="{}"), zoo, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_file_of_the_room_can_register_how_its_family_is_trained() -> None:
    trained = set(trainers.names())
    assert {"diffusion", "ghn", "igpg", "layerwise", "static_hypernetwork"} <= trained
    # Consolidated checkpoints are found and not generated: no generator, but built from a recipe like one.
    assert trained - {"consolidated"} <= set(generators)


def test_without_a_zoo_only_what_needs_none_is_trained(zoo: Path, tmp_path: Path) -> None:
    for kind in ("from-zoo", "static_hypernetwork"):
        options = {"tasks": "{3: 1}", "loop": "{steps: 1}"} if kind != "from-zoo" else {}
        with pytest.raises(InputError, match=f"'{kind}' generator learns from a zoo"):
            train_recipe(write(tmp_path, generator=kind, **options), None, tmp_path / "out")
    assert not (tmp_path / "out").exists()
