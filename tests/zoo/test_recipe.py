from __future__ import annotations

import pytest
from pydantic import ValidationError

from weightloom.fitting import FitSettings
from weightloom.zoo import ZooRecipe


def test_a_recipe_round_trips_through_json(recipe):
    made = recipe()
    assert ZooRecipe(**made.model_dump(mode="json")) == made
    assert ZooRecipe.model_validate_json(made.model_dump_json()) == made


def test_architectures_are_kept_in_canonical_text(recipe):
    assert recipe(architectures=("CNN( width = 8, depth=4 )",)).architectures == ("cnn(depth=4,width=8)",)


def test_fit_settings(recipe):
    assert recipe().fit.settings() == FitSettings(
        steps=4, batch_size=8, learning_rate=0.02, snapshots=(2,), weight_decay=1e-4
    )


@pytest.mark.parametrize(
    "change",
    [
        {"architectures": ()},
        {"architectures": ("cnn(dept=3)",)},
        {"datasets": ("digitz",)},
        {"datasets": ()},
        {"groups": ()},
        {"size": 2},
        {"size": 512},
        {"groups": ({"classes": 4, "tasks": 100_000, "repeats": 1000},)},
        {"groups": ({"classes": 4, "tasks": 100_000},) * 11},
        {"channels": 2},
        {"initialisation": "sometimes"},
        {"members_at_once": 0},
        {"surprise": 1},
        {"fit": {"steps": 0}},
        {"fit": {"stepz": 5}},
        {"groups": ({"classes": 1, "tasks": 1},)},
        {"groups": ({"classes": 3, "tasks": 1, "split": "test"},)},
        {"start": {"tasks": 1}},
        {"kind": "tokenizer"},
    ],
)
def test_what_makes_no_sense_is_refused(recipe, change):
    with pytest.raises(ValidationError):
        recipe(**change)
