"""Layer-wise parts trained one after another, with the index of a zoo beside them."""

from __future__ import annotations

import pytest
import torch
import yaml

from weightloom.errors import SpecError, WeightloomError
from weightloom.generators.layerwise_set import LayerwiseSet
from weightloom.generators.load import load_generator
from weightloom.tasks import parse_task
from weightloom.training.run import train_recipe

PART = {
    "kind": "generator",
    "generator": "layerwise",
    "name": "any-size",
    "salt": "training-tests",
    "datasets": ["digits"],
    "size": 8,
    "channels": 1,
    "classes": [3, 4],
    "architectures": ["cnn(depth=2,width=4)"],
    "encoder": {
        "tasks": {3: 2}, "tasks_at_once": 1, "shots": 2, "queries": 8,
        "loop": {"steps": 2, "log_every": 1, "save_every": 2},
    },
    "config": {
        "largest": ["cnn(depth=2,width=4)"], "channels": 1, "codes": 2, "width": 16, "depth": 1, "heads": 2,
        "image_features": 8, "image_width": 8,
    },
    "objective": {"tasks": 1, "shots": [2], "queries": 2},
    "loop": {"steps": 2, "log_every": 1, "save_every": 2},
}  # fmt: skip
OWN = {**PART, "name": "own", "config": {**PART["config"], "any_size": False}}
SET = {"kind": "generator", "generator": "layerwise-set", "name": "both", "parts": ["own", "any-size"]}


def write(folder, **recipes):
    for name, raw in recipes.items():
        (folder / f"{name.replace('_', '-')}.yaml").write_text(yaml.safe_dump(raw))
    return folder / "whole.yaml"


@pytest.mark.usefixtures("text_encoder")
def test_parts_are_trained_into_one_with_an_index_of_the_zoo(zoo, populations, tmp_path):
    path = write(tmp_path, whole=SET, own=OWN, any_size=PART)
    made = train_recipe(path, zoo.path, tmp_path / "out")
    again = load_generator(tmp_path / "out")
    assert isinstance(again, LayerwiseSet) and [part.name for part in again.ordered] == ["own", "any-size"]
    support = parse_task("digits[3,1,7]@8c1").support(4)
    for text, part in (("cnn(depth=2,width=4)", "own"), ("cnn(depth=2,width=3)", "any-size")):
        a, b = (model.generate(text, support=support) for model in (made, again))
        assert torch.equal(a.flat, b.flat) and a.report["part"] == part
    for population in populations:
        group = again.zoo_index.groups[population.spec]
        finals = [record for record in population.records if record.final]
        assert [row["id"] for row in group.rows] == [record.id for record in finals]
        shown = finals[0].parsed_task().support(16, seed=0).images
        assert torch.equal(group.classes[0], again.images.describe(shown).detach().half().float())


@pytest.mark.usefixtures("text_encoder")
def test_without_a_zoo_there_is_no_index(tmp_path):
    path = write(tmp_path, whole={**SET, "parts": ["any-size"]}, any_size=PART)
    assert train_recipe(path, None, tmp_path / "out").zoo_index is None
    assert load_generator(tmp_path / "out").zoo_index is None


def test_what_does_not_fit_is_said_before_anything_is_trained(zoo, tmp_path):
    path = write(tmp_path, whole={**SET, "parts": ["own", "nowhere"]}, own=OWN)
    with pytest.raises(WeightloomError, match="nowhere"):
        train_recipe(path, zoo.path, tmp_path / "out")
    path = write(tmp_path, whole=SET, own={**OWN, "seed": 1}, any_size=PART)
    with pytest.raises(SpecError, match="must have one encoder, but any-size and own differ in their seed"):
        train_recipe(path, zoo.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
