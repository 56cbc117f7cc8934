"""Maps of zoos: vectors that networks of several shapes share, places, and predictions of accuracy."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from weightloom.architectures import parse_architecture
from weightloom.errors import DataUnavailableError, InputError
from weightloom.evaluation import chart
from weightloom.evaluation.atlas import (
    Settlement,
    predict_accuracy,
    settle,
    settlements_of_zoo,
    spreads,
    statistics_of,
    vectors,
)
from weightloom.fitting import initial_flats
from weightloom.plots import draw_atlas
from weightloom.weights import layout_of
from weightloom.zoo import Zoo

TASK = "digits[3,1,7,2]@8c1"


def resolve(text, classes):
    return parse_architecture(text).resolve(classes=classes, input=(1, 8, 8))


SPECS = [resolve("mlp(depth=1,width=4)", 4), resolve("mlp(depth=1,width=4)", 3), resolve("cnn(width=4)", 4)]


def people_of(spec, count=24, split="train"):
    """Networks whose accuracy is told by the spread of their weights, and by how far they lie one way."""
    random = torch.Generator().manual_seed(spec.classes + len(split))
    size = torch.linspace(0.5, 1.5, count)[torch.randperm(count, generator=random)]
    flats = initial_flats(spec, list(range(count))) * size[:, None] + 0.5 * (size[:, None] - 1)
    rows = [
        {"task": TASK, "dataset": "digits", "accuracy": float(a) / 2, "split": split, "kind": "checkpoint"}
        for a in size
    ]
    return Settlement(spec, flats, rows)


def test_networks_of_several_shapes_share_a_space():
    people = [people_of(spec, 5) for spec in SPECS]
    known = spreads(people)
    full = [vectors(known, one, pooled=False).shape for one in people]
    assert full[0] == full[1] and full[0] != full[2]  # another class count, another architecture
    pooled = {vectors(known, one, pooled=True).shape for one in people}
    assert len(pooled) == 1
    assert statistics_of(people[0]).shape == (5, 7 * len(layout_of(SPECS[0]).slots))


def test_a_generated_copy_lies_on_its_checkpoint(tmp_path):
    people = [people_of(spec, 6) for spec in SPECS]
    made = settle(SPECS[0], people[0].flats[2:3], TASK)
    atlas = chart(people, [made])
    assert len(atlas.points) == 19 and atlas.points[-1]["kind"] == "generated"
    assert atlas.points[-1]["x"] == pytest.approx(atlas.points[2]["x"])
    assert atlas.points[-1]["y"] == pytest.approx(atlas.points[2]["y"])
    assert 0 < sum(atlas.explained) <= 1 and atlas == chart(people, [made])
    assert draw_atlas(atlas, tmp_path / "map.png").stat().st_size > 5000


def test_accuracy_is_predicted_on_checkpoints_that_were_held_out():
    spec = SPECS[0]
    people = [people_of(spec, 40), people_of(spec, 12, "held-out-order")]
    (found,) = predict_accuracy(people)
    assert (found["fitted"], found["tested"]) == (40, 12)
    assert found["statistics"] > 0.8 and found["weights"] > 0.3
    assert predict_accuracy([people_of(spec, 4)]) == []
    unknown = replace(people[0], rows=[{**row, "accuracy": None} for row in people[0].rows])
    assert predict_accuracy([unknown, people[1]]) == []


def test_mistakes(tmp_path):
    with pytest.raises(InputError, match="three networks"):
        chart([people_of(SPECS[0], 2)])
    with pytest.raises(InputError, match="pca or umap"):
        chart([people_of(SPECS[0], 5)], method="tsne")
    with pytest.raises(InputError, match="no finished network"):
        settlements_of_zoo(Zoo(tmp_path / "empty", create=True))
    if find_spec("umap") is None:
        with pytest.raises(DataUnavailableError, match="weightloom\\[map\\]"):
            chart([people_of(SPECS[0], 5)], method="umap")
