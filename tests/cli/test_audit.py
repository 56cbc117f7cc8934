"""audit with several workers: the same report, bit for bit."""

from __future__ import annotations

import json

import pytest
import torch
from tests.cli.conftest import RECIPE

from weightloom.engines import open_engine
from weightloom.evaluation import AuditSettings, audit
from weightloom.evaluation.spread import spread_audit
from weightloom.generators.load import load_generator, save_generator
from weightloom.io import dump_json
from weightloom.zoo import Zoo, ZooRecipe, build_zoo


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """Four training tasks of the networks that the tiny generator makes, of two numbers of classes."""
    recipe = {
        **RECIPE,
        "groups": ({"classes": 4, "tasks": 2, "repeats": 3}, {"classes": 5, "tasks": 2, "repeats": 2}),
    }
    return build_zoo(ZooRecipe(**recipe), tmp_path_factory.mktemp("audited") / "zoo").path


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_several_workers_find_the_same(call, larger, generator, tmp_path, request, engine):
    if engine == "ray":
        request.getfixturevalue("ray_here")
    sizes = ("--samples", "3", "--tasks", "2", "--images", "200")
    command = ("audit", generator, "--zoo", larger, *sizes, "--json")
    one = call(*command).json
    two = call(*command, "--workers", "2", "--engine", engine).json
    assert {**one, "seconds": 0} == {**two, "seconds": 0} and len(
        {row["task"] for row in one["networks"]}
    ) > 1
    # With a folder, what is there already is not measured again.
    work = tmp_path / "work"
    three = call(*command, "--work", work, "--workers", "2", "--engine", engine).json
    cells = {path: path.stat().st_mtime_ns for path in work.iterdir()}
    for path in cells:
        held = json.loads(path.read_text())
        if held["key"]["what"] == "audited":
            held["result"]["rows"] = held["result"]["rows"][:-1]
            path.write_text(json.dumps(held))
            break
    four = call(*command, "--work", work, "--workers", "2", "--engine", engine).json
    assert three["networks"] == one["networks"] and len(four["networks"]) == len(one["networks"]) - 1


def test_workers_that_find_something_else_say_so(call, larger, generator, tmp_path, monkeypatch):
    real = Zoo.load
    monkeypatch.setattr(Zoo, "load", lambda self, records: real(self, records) + 1)  # in this process alone
    command = ("audit", generator, "--zoo", larger, "--samples", "2", "--workers", "2")
    assert "other checkpoints" in call(*command).sentence(2)


def test_a_generator_that_was_replaced_is_loaded_anew(call, larger, generator, tmp_path):
    """Jobs that were done in this process leave nothing behind."""
    model = load_generator(str(generator))
    one = "mlp(depth=1,width=4,classes=4)"
    settings, zoo = AuditSettings(samples=2, tasks=1, images=50, architecture=one), Zoo(larger)
    place, found = tmp_path / "replaced", []
    for number in range(2):
        with torch.no_grad():
            for parameter in model.tokenizer.parameters():
                parameter.mul_(1 + number)
        save_generator(model, place)
        held, work = load_generator(str(place)), tmp_path / f"work-{number}"
        with open_engine("local") as engine:
            spread_audit(str(place), held, zoo, work, settings, engine)
        found.append(audit(held, zoo, settings, work=work).networks)
    assert len(found[0]) == len(found[1]) and found[0] != found[1]
    assert dump_json(found[1]) == dump_json(audit(load_generator(str(place)), zoo, settings).networks)
