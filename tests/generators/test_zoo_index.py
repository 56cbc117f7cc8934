"""The index of the zoo behind a generator: nearest checkpoints, novelty, files."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from weightloom.errors import CheckpointError, UnsupportedRequestError
from weightloom.generators.zoo_index import ZooIndex, ZooIndexGroup
from weightloom.io import load_tensors, write_json
from weightloom.weights import layout_of


def test_a_copy_is_no_news_and_a_stranger_is(igpg, resolved):
    zoo = igpg.zoo_index.groups[resolved()].flats
    found = igpg.zoo_index.novelty(resolved(), torch.stack([zoo[4], zoo[4] + 1e-4, 3 * zoo[2]]))
    assert found[0]["distance"] == pytest.approx(0, abs=1e-3) and found[0]["nearest"] == "checkpoint-4"
    assert found[0]["nearest_task"] == igpg.zoo_index.groups[resolved()].rows[4]["task"]
    assert found[1]["distance"] < found[1]["zoo_spacing"] < found[2]["distance"]
    assert found[0]["zoo_spacing"] > 0


def test_what_it_does_not_hold_is_none(igpg, resolved):
    other = resolved("mlp(depth=1,width=4)")
    assert igpg.zoo_index.nearest(other, torch.zeros(3, 32)) is None
    assert igpg.zoo_index.novelty(other, torch.zeros(1, 5)) is None
    assert igpg.zoo_index.trained_accuracy("digits", resolved()) is None
    assert igpg.zoo_index.trained_accuracy("digits[3,1,7]@8c1", other) is None


def test_trained_accuracy_is_the_mean_of_the_tasks_own(igpg, resolved):
    assert igpg.zoo_index.trained_accuracy("digits[3,1,7]@8c1", resolved()) == pytest.approx(
        (0.9 + 0.95 + 0.8) / 3
    )


def test_it_comes_back_from_its_files(igpg, resolved, supports, tmp_path):
    igpg.zoo_index.save(tmp_path)
    again = ZooIndex.load(tmp_path, igpg.config.image_features)
    assert again is not None
    a, b = igpg.zoo_index.groups[resolved()], again.groups[resolved()]
    assert torch.equal(a.flats, b.flats) and torch.equal(a.classes, b.classes) and a.rows == b.rows
    for support in supports.values():
        described = igpg.images.describe(support.images).detach()
        assert igpg.zoo_index.nearest(resolved(), described)[0] == again.nearest(resolved(), described)[0]
    assert ZooIndex.load(tmp_path / "nowhere", 8) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts["groups"][0]["rows"].pop(),
        lambda facts: facts["groups"].append(facts["groups"][0]),
        lambda facts: facts["groups"][0].pop("architecture"),
        lambda facts: facts.pop("groups"),
        lambda facts: facts.update(groups=3),
    ],
)
def test_tables_that_do_not_fit_are_refused(igpg, tmp_path, change):
    igpg.zoo_index.save(tmp_path)
    facts = json.loads((tmp_path / "zoo-index.json").read_text())
    change(facts)
    (tmp_path / "zoo-index.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError):
        ZooIndex.load(tmp_path, igpg.config.image_features)


@pytest.mark.parametrize(
    ("change", "value"),
    [("architecture", "gnn(depth=1)"), ("architecture", "cnn(depth=1,width=9,classes=3,input=1x8x8)")],
)
def test_architectures_that_nobody_knows_are_refused(igpg, tmp_path, change, value):
    igpg.zoo_index.save(tmp_path)
    facts = json.loads((tmp_path / "zoo-index.json").read_text())
    facts["groups"][0][change] = value
    (tmp_path / "zoo-index.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError):
        ZooIndex.load(tmp_path, igpg.config.image_features)


def test_one_checkpoint_has_no_spacing(igpg, resolved):
    group = igpg.zoo_index.groups[resolved()]
    one = ZooIndexGroup(group.spec, group.flats[:1], group.classes[:1], group.rows[:1])
    assert ZooIndex([one]).novelty(resolved(), one.flats) is None


def test_it_is_half_as_large_where_that_loses_no_value(igpg, resolved, tmp_path):
    group = igpg.zoo_index.groups[resolved()]
    large = group.flats.clone()
    large[0, 0] = 1e6  # beyond half precision
    for flats, width in ((group.flats, 2), (large, 4)):
        ZooIndex([replace(group, flats=flats)]).save(tmp_path)
        again = ZooIndex.load(tmp_path, igpg.config.image_features)
        assert torch.equal(again.groups[resolved()].flats, flats)
        assert load_tensors(tmp_path / "zoo-index.safetensors")[0]["weights.0"].element_size() == width


def test_a_fingerprint_of_the_first_version_is_refused(igpg, tmp_path):
    igpg.zoo_index.save(tmp_path)
    write_json(tmp_path / "fingerprint.json", {"groups": []})
    with pytest.raises(CheckpointError, match=r"0\.1\.0 wrote such folders.*train the generator anew"):
        ZooIndex.load(tmp_path, igpg.config.image_features)


def test_its_spread_is_that_of_its_own_checkpoints(igpg, resolved):
    spec = resolved()
    flats = igpg.zoo_index.groups[spec].flats
    values = igpg.zoo_index.bind(spec).normalise(flats)
    trunk = layout_of(spec).trunk_size
    assert torch.allclose(values[:, :trunk].mean(0), torch.zeros(trunk), atol=1e-4)
    assert float(values.square().mean()) == pytest.approx(1, abs=0.1)
    with pytest.raises(UnsupportedRequestError, match="no checkpoint of mlp"):
        igpg.zoo_index.bind(resolved("mlp(depth=1,width=4)"))


def test_trunks_of_the_most_alike_tasks(igpg, resolved, supports):
    """Whatever the labels' order and number: only trunks are taken, and the mean head."""
    spec = resolved()
    zoo_index = igpg.zoo_index
    trunk = layout_of(spec).trunk_size
    described = igpg.images.describe(next(iter(supports.values())).images)
    near = zoo_index.trunk_near(spec, described)
    assert torch.allclose(near, zoo_index.trunk_near(spec, described.flip(0)), atol=1e-6)
    flats = zoo_index.groups[spec].flats
    assert torch.allclose(near[:trunk], flats[:, :trunk].mean(0), atol=1e-5), (
        "fewer than it takes: all of them"
    )
    assert torch.equal(near[trunk:], zoo_index.bind(spec).mean_network()[trunk:])
    four = resolved(classes=4)
    assert torch.allclose(zoo_index.trunk_near(four, described)[:trunk], near[:trunk], atol=1e-6)
    assert zoo_index.trunk_near(resolved("mlp(depth=1,width=4)"), described) is None


def test_every_sample_says_how_new_it_is(igpg, resolved, support):
    samples = igpg.generate_many(resolved(), support=support, num_samples=3)
    found = igpg.zoo_index.novelty(resolved(), torch.stack([sample.flat for sample in samples]))
    assert [sample.report["novelty"] for sample in samples] == found
    assert "novelty" not in igpg.generate_many(resolved("mlp(depth=1,width=4)"), support=support)[0].report


def test_how_much_of_it_is_held_elsewhere(igpg):
    told = [(spec, row["id"]) for spec, group in igpg.zoo_index.groups.items() for row in group.rows]
    held = igpg.zoo_index.held_by
    assert held(lambda spec, row: True) == (len(told), len(told))
    assert held(lambda spec, row: (spec, row["id"]) in told[1:]) == (len(told) - 1, len(told))
    assert held(lambda spec, row: True, among=[]) == (0, 0)
    assert held(lambda spec, row: False, among=[told[0][0]])[0] == 0
