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
    statistics_of,
    vectors,
)
from weightloom.fitting import initial_flats
from weightloom.plots import draw_atlas
from weightloom.tokenizers import architecture_key
from weightloom.tokenizers.fsq import FSQTokenizer, FSQTokenizerConfig
from weightloom.weights import WeightStatistics, layout_of

TASK = "digits[3,1,7,2]@8c1"


def resolve(text, classes):
    return parse_architecture(text).resolve(classes=classes, input=(1, 8, 8))


SPECS = [resolve("mlp(depth=1,width=4)", 4), resolve("mlp(depth=1,width=4)", 3), resolve("cnn(width=4)", 4)]


def people_of(tokenizer, spec, count=24, split="train"):
    """Networks whose accuracy is told by the spread of their weights."""
    random = torch.Generator().manual_seed(spec.classes + len(split))
    size = torch.linspace(0.5, 1.5, count)[torch.randperm(count, generator=random)]
    flats = initial_flats(spec, list(range(count))) * size[:, None]
    rows = [
        {"task": TASK, "dataset": "digits", "accuracy": float(a) / 2, "split": split, "kind": "checkpoint"}
        for a in size
    ]
    return Settlement(spec, flats, tokenizer.encode(spec, flats), rows)


@pytest.fixture(scope="module")
def tokenizer():
    groups = {}
    for spec in SPECS:
        groups.setdefault(architecture_key(spec), []).append(
            (layout_of(spec), initial_flats(spec, list(range(8))))
        )
    statistics = {key: WeightStatistics.measure(group) for key, group in groups.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = FSQTokenizerConfig(chunk=16, codes=8, vocabulary=9, width=16, depth=1)
        made = FSQTokenizer(config, statistics).eval()
        for parameter in made.parameters():  # an untrained tokenizer gives every network the same codes
            parameter.data.add_(0.2 * torch.randn_like(parameter))
        return made


def test_networks_of_several_shapes_share_a_space(tokenizer):
    people = [people_of(tokenizer, spec, 5) for spec in SPECS]
    full = [vectors(tokenizer, one, pooled=False).shape for one in people]
    assert full[0] == full[1] and full[0] != full[2]  # another class count, another architecture
    pooled = {vectors(tokenizer, one, pooled=True).shape for one in people}
    assert len(pooled) == 1
    assert statistics_of(people[0]).shape == (5, 7 * len(layout_of(SPECS[0]).slots))


def test_a_generated_copy_lies_on_its_checkpoint(tokenizer, tmp_path):
    people = [people_of(tokenizer, spec, 6) for spec in SPECS]
    made = settle(tokenizer, SPECS[0], people[0].flats[2:3], TASK)
    atlas = chart(tokenizer, people, [made])
    assert len(atlas.points) == 19 and atlas.points[-1]["kind"] == "generated"
    assert atlas.points[-1]["x"] == pytest.approx(atlas.points[2]["x"])
    assert atlas.points[-1]["y"] == pytest.approx(atlas.points[2]["y"])
    assert 0 < sum(atlas.explained) <= 1 and atlas == chart(tokenizer, people, [made])
    assert draw_atlas(atlas, tmp_path / "map.png").stat().st_size > 5000


def test_accuracy_is_predicted_on_checkpoints_that_were_held_out(tokenizer):
    spec = SPECS[0]
    people = [people_of(tokenizer, spec, 40), people_of(tokenizer, spec, 12, "held-out-order")]
    (found,) = predict_accuracy(tokenizer, people)
    assert (found["fitted"], found["tested"]) == (40, 12)
    assert found["statistics"] > 0.8 and found["latents"] > 0.3
    assert predict_accuracy(tokenizer, [people_of(tokenizer, spec, 4)]) == []
    unknown = replace(people[0], rows=[{**row, "accuracy": None} for row in people[0].rows])
    assert predict_accuracy(tokenizer, [unknown, people[1]]) == []


def test_mistakes(tokenizer, zoo):
    with pytest.raises(InputError, match="three networks"):
        chart(tokenizer, [people_of(tokenizer, SPECS[0], 2)])
    with pytest.raises(InputError, match="pca or umap"):
        chart(tokenizer, [people_of(tokenizer, SPECS[0], 5)], method="tsne")
    with pytest.raises(InputError, match="tokenizer knows"):
        settlements_of_zoo(zoo, tokenizer)
    if find_spec("umap") is None:
        with pytest.raises(DataUnavailableError, match="weightloom\\[map\\]"):
            chart(tokenizer, [people_of(tokenizer, SPECS[0], 5)], method="umap")
