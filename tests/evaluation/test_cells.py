"""Kept results belong to what was measured, and to nothing that only looks like it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from weightloom.architectures import parse_architecture
from weightloom.errors import CheckpointError
from weightloom.evaluation import cells
from weightloom.evaluation.cells import Cells, version_of
from weightloom.generators import Validity
from weightloom.generators.noisy import NoisyCheckpoint
from weightloom.generators.zoo_index import ZooIndex, ZooIndexGroup

SPEC = parse_architecture("mlp(depth=1,width=4,classes=3,input=1x4x4)")
GROUP = ZooIndexGroup(
    SPEC, torch.zeros(2, 79), torch.zeros(2, 3, 4), [{"id": "a", "task": "t"}, {"id": "b", "task": "u"}]
)


def noisy(group=GROUP, noise=0.1, scale=1.0):
    encoder = torch.nn.Linear(2, 2)
    with torch.no_grad():
        encoder.weight.fill_(scale), encoder.bias.zero_()
    validity = Validity(architectures=("mlp",), input=(1, 4, 4), min_classes=2, max_classes=10)
    return NoisyCheckpoint(ZooIndex([group]), encoder, validity, noise=noise)


def test_a_version_says_all_that_decides_what_is_made():
    changes = [
        {"flats": GROUP.flats + 1},
        {"classes": GROUP.classes + 1},
        {"rows": GROUP.rows[::-1]},
    ]
    others = [noisy(dataclasses.replace(GROUP, **change)) for change in changes]
    others += [noisy(noise=0.2), noisy(scale=2.0)]
    versions = [version_of(model) for model in (noisy(), *others)]
    assert len(set(versions)) == len(versions) and versions[0] == version_of(noisy())


def test_what_is_measured_in_another_way_is_measured_anew(tmp_path, monkeypatch):
    held = Cells(tmp_path)
    assert held.or_measure({"a": 1}, lambda: {"n": 1}) == {"n": 1}
    assert held.or_measure({"a": 1}, lambda: {"n": 2}) == {"n": 1}
    assert held.or_measure({"a": 2}, lambda: {"n": 2}) == {"n": 2}
    monkeypatch.setattr(cells, "MEASURING", 1 + cells.MEASURING)
    assert held.get({"a": 1}) is None


@pytest.mark.parametrize("text", ["[]", "{", '{"key": {}, "result": 3}'])
def test_a_broken_one_says_what_to_do(tmp_path, text):
    held = Cells(tmp_path)
    held.or_measure({"a": 1}, lambda: {"n": 1})
    held.path({"a": 1}).write_text(text)
    with pytest.raises(CheckpointError, match="remove it to measure it again"):
        held.get({"a": 1})
