"""The index of the zoo behind a generator: nearest checkpoints, novelty, files."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from weightloom.errors import CheckpointError
from weightloom.generators.fingerprint import Fingerprint, FingerprintGroup
from weightloom.io import read_json, write_json


def test_a_copy_is_no_news_and_a_stranger_is(igpg, resolved):
    zoo = igpg.fingerprint._flats(resolved())
    found = igpg.fingerprint.novelty(resolved(), torch.stack([zoo[4], zoo[4] + 1e-4, 3 * zoo[2]]))
    assert found[0]["distance"] == pytest.approx(0, abs=1e-3) and found[0]["nearest"] == "checkpoint-4"
    assert found[0]["nearest_task"] == igpg.fingerprint.groups[resolved()].rows[4]["task"]
    assert found[1]["distance"] < found[1]["zoo_spacing"] < found[2]["distance"]
    assert found[0]["zoo_spacing"] > 0


def test_what_it_does_not_hold_is_none(igpg, resolved):
    other = resolved("mlp(depth=1,width=4)")
    assert igpg.fingerprint.nearest(other, torch.zeros(3, 32)) is None
    assert igpg.fingerprint.novelty(other, torch.zeros(1, 5)) is None
    assert igpg.fingerprint.trained_accuracy("digits", resolved()) is None
    assert igpg.fingerprint.trained_accuracy("digits[3,1,7]@8c1", other) is None


def test_trained_accuracy_is_the_mean_of_the_tasks_own(igpg, resolved):
    assert igpg.fingerprint.trained_accuracy("digits[3,1,7]@8c1", resolved()) == pytest.approx(
        (0.9 + 0.95 + 0.8) / 3
    )


def test_it_comes_back_from_its_files(igpg, resolved, supports, tmp_path):
    igpg.fingerprint.save(tmp_path)
    again = Fingerprint.load(tmp_path, igpg.tokenizer, igpg.config.image_features)
    assert again is not None
    a, b = igpg.fingerprint.groups[resolved()], again.groups[resolved()]
    assert torch.equal(a.codes, b.codes) and b.codes.dtype == torch.long and a.rows == b.rows
    assert torch.allclose(a.classes, b.classes, atol=2e-3, rtol=2e-3)  # kept in half precision
    for support in supports.values():
        described = igpg.images.describe(support.images).detach()
        assert igpg.fingerprint.nearest(resolved(), described)[0] == again.nearest(resolved(), described)[0]
    assert Fingerprint.load(tmp_path / "nowhere", igpg.tokenizer, 8) is None


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
    igpg.fingerprint.save(tmp_path)
    facts = json.loads((tmp_path / "fingerprint.json").read_text())
    change(facts)
    (tmp_path / "fingerprint.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError):
        Fingerprint.load(tmp_path, igpg.tokenizer, igpg.config.image_features)


@pytest.mark.parametrize(
    ("change", "value"),
    [("architecture", "gnn(depth=1)"), ("architecture", "cnn(depth=1,width=9,classes=3,input=1x8x8)")],
)
def test_architectures_that_nobody_knows_are_refused(igpg, tmp_path, change, value):
    igpg.fingerprint.save(tmp_path)
    facts = json.loads((tmp_path / "fingerprint.json").read_text())
    facts["groups"][0][change] = value
    (tmp_path / "fingerprint.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError):
        Fingerprint.load(tmp_path, igpg.tokenizer, igpg.config.image_features)


def test_one_checkpoint_has_no_spacing(igpg, resolved):
    group = igpg.fingerprint.groups[resolved()]
    one = FingerprintGroup(group.spec, group.codes[:1], group.classes[:1], group.rows[:1])
    alone = Fingerprint(igpg.tokenizer, [one])
    assert alone.novelty(resolved(), alone._flats(resolved())) is None


def test_words_alone_find_a_checkpoint(igpg, resolved):
    """The row whose task is worded most alike; none where the fingerprint keeps no words."""
    from dataclasses import replace

    from weightloom.generators.fingerprint import Fingerprint

    spec = resolved()
    group = igpg.fingerprint.groups[spec]
    assert igpg.fingerprint.row_by_words(spec, torch.ones(384)) is None
    words = torch.eye(384)[: len(group.rows)]
    worded = Fingerprint(igpg.tokenizer, [replace(group, words=words)])
    assert worded.row_by_words(spec, words[2]) == 2
    assert worded.row_by_words(resolved(classes=5), words[2]) is None


def test_memories_come_back_and_are_found_first(igpg, resolved, tmp_path):
    spec = resolved()
    group = igpg.fingerprint.groups[spec]
    kept = (group.codes[0] + 1) % igpg.tokenizer.vocabulary
    task = group.rows[0]["task"]
    held = Fingerprint(igpg.tokenizer, [replace(group, memories={task: kept})])
    held.save(tmp_path)
    found = Fingerprint.load(tmp_path, igpg.tokenizer, igpg.config.image_features).groups[spec]
    codes, what = found.known(0)
    assert torch.equal(codes, kept) and what == f"memory of {task}"
    other = next(row for row, facts in enumerate(group.rows) if facts["task"] != task)
    codes, what = found.known(other)
    assert torch.equal(codes, group.codes[other]) and what == f"checkpoint {group.rows[other]['id']}"
    facts = read_json(tmp_path / "fingerprint.json")
    facts["groups"][0]["memories"].append("digits")
    write_json(tmp_path / "fingerprint.json", facts)
    with pytest.raises(CheckpointError, match="differ in number"):
        Fingerprint.load(tmp_path, igpg.tokenizer, igpg.config.image_features)


def test_trunks_of_the_most_alike_tasks(igpg, resolved, supports):
    """Whatever the labels' order and number: only trunks are taken, and the mean head."""
    spec = resolved()
    fingerprint = igpg.fingerprint
    trunk = igpg.tokenizer.trunk_size(spec)
    described = igpg.images.describe(next(iter(supports.values())).images)
    near = fingerprint.trunk_near(spec, described)
    assert torch.allclose(near, fingerprint.trunk_near(spec, described.flip(0)), atol=1e-6)
    flats = igpg.tokenizer.decode(spec, fingerprint.groups[spec].codes)
    assert torch.allclose(near[:trunk], flats[:, :trunk].mean(0), atol=1e-5), (
        "fewer than it takes: all of them"
    )
    assert torch.equal(near[trunk:], igpg.tokenizer.centre(spec)[trunk:])
    four = resolved(classes=4)
    assert torch.allclose(fingerprint.trunk_near(four, described)[:trunk], near[:trunk], atol=1e-6)
    assert fingerprint.trunk_near(resolved("mlp(depth=1,width=4)"), described) is None


def test_every_sample_says_how_new_it_is(igpg, resolved, support):
    samples = igpg.generate_many(resolved(), support=support, num_samples=3)
    found = igpg.fingerprint.novelty(resolved(), torch.stack([sample.flat for sample in samples]))
    assert [sample.report["novelty"] for sample in samples] == found
    assert "novelty" not in igpg.generate_many(resolved("mlp(depth=1,width=4)"), support=support)[0].report


def test_how_much_of_it_is_held_elsewhere(igpg):
    told = [(spec, row["id"]) for spec, group in igpg.fingerprint.groups.items() for row in group.rows]
    held = igpg.fingerprint.held_by
    assert held(lambda spec, row: True) == (len(told), len(told))
    assert held(lambda spec, row: (spec, row["id"]) in told[1:]) == (len(told) - 1, len(told))
    assert held(lambda spec, row: True, among=[]) == (0, 0)
    assert held(lambda spec, row: False, among=[told[0][0]])[0] == 0
