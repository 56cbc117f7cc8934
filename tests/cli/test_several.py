"""A command over several things goes on after a bad one, lists it, and ends with code 1."""

from __future__ import annotations

import json

import pytest

from weightloom.errors import DataUnavailableError
from weightloom.zoo import Zoo


@pytest.fixture
def bad(network, tmp_path):
    """Files that cannot be read, each in a way of its own, and one that is not there."""
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(network.read_bytes()[:-8])
    text = tmp_path / "text.safetensors"
    text.write_text("not a network")
    return [cut, text, tmp_path / "missing.safetensors"]


def goes_on(answer, failed, total):
    """The one sentence at the end, and a line for each that failed; nothing is said twice."""
    assert answer.code == 1 and "Traceback" not in answer.err, answer.err
    lines = answer.err.splitlines()
    said = [line for line in lines if line.startswith("weightloom: ")]
    assert len(said) == 1 and said[0] == lines[-1], answer.err
    assert said[0].startswith(f"weightloom: {len(failed)} of {total} ")
    for name in failed:
        assert str(name) in said[0]
        assert len([line for line in lines if line.startswith(f"{name}: ")]) == 1, answer.err
    assert len(set(lines)) == len(lines)


def test_evaluate(call, network, bad):
    files = [bad[0], network, bad[1], network, bad[2]]
    answer = call("evaluate", *files, "--task", "digits")
    goes_on(answer, bad, 5)
    assert answer.out.count(str(network)) == 2 and "2 networks in" in answer.out
    answer = call("evaluate", *files, "--task", "digits", "--json")
    goes_on(answer, bad, 5)
    found = json.loads(answer.out)
    assert [entry["name"] for entry in found["failed"]] == [str(file) for file in bad]
    assert all(entry["reason"] for entry in found["failed"]) and len(found["networks"]) == 2
    one = call("evaluate", network, "--task", "digits", "--json").json["accuracy"]
    assert [entry["accuracy"] for entry in found["networks"]] == [one, one]
    goes_on(call("evaluate", *bad, "--task", "digits"), bad, 3)
    answer = call("evaluate", *bad, "--task", "digits", "--json")
    goes_on(answer, bad, 3)
    assert json.loads(answer.out)["networks"] == [] and len(json.loads(answer.out)["failed"]) == 3
    assert call("evaluate", bad[0], "--task", "digits").sentence(2).startswith(f"{bad[0]}: ")
    assert "unknown dataset" in call("evaluate", *files, "--task", "digitz").sentence(2), "no file's fault"


def test_info(call, network, bad, zoo):
    things = [network, bad[0], "digits", "nonsense", zoo, bad[2]]
    answer = call("info", *things)
    assert answer.code == 1 and "a network" in answer.out and "a zoo of" in answer.out
    goes_on(answer, [bad[0], "nonsense", bad[2]], 6)
    answer = call("info", *things, "--json")
    found = json.loads(answer.out)
    assert [entry["kind"] for entry in found["things"]] == ["network", "task", "zoo"]
    assert [entry["name"] for entry in found["failed"]] == [str(bad[0]), "nonsense", str(bad[2])]
    assert call("info", "digits", "mnist", "--json").json["failed"] == []
    assert "no such file" in call("info", bad[2]).sentence(2)


def test_fetch(call, monkeypatch):
    import weightloom.tasks as room

    fetch = room.fetch_dataset

    def offline(name, **options):
        if name == "mnist":
            raise DataUnavailableError(f"no source of dataset {name!r} answered")
        return fetch(name, **options)

    monkeypatch.setattr(room, "fetch_dataset", offline)
    answer = call("data", "fetch", "mnist", "digits", "--json")
    goes_on(answer, ["mnist"], 2)
    found = json.loads(answer.out)
    assert [row["name"] for row in found["datasets"]] == ["digits"]
    assert found["failed"] == [{"name": "mnist", "reason": "no source of dataset 'mnist' answered"}]
    assert call("data", "fetch", "mnist").sentence(1) == "no source of dataset 'mnist' answered"


def test_import(call, network, bad, tmp_path):
    new = tmp_path / "new"
    answer = call("zoo", "import", new, bad[0], network, bad[2])
    assert answer.code == 1 and answer.err.splitlines()[-1].startswith("weightloom: 2 of 3 sources failed: ")
    assert len(Zoo(new).records()) == 1 and Zoo(new).verify() == []
    assert "cut.safetensors" in answer.err and "missing.safetensors" in answer.err
    again = call("zoo", "import", new, network, bad[1], "--json")
    found = json.loads(again.out)
    assert again.code == 1 and found["passed_over"] == 1 and found["imported"] == []
    assert [entry["name"] for entry in found["failed"]] == [str(bad[1])]
    assert call("zoo", "import", new, network, network).code == 0, "the same file twice is no failure"
    strict = call("zoo", "import", tmp_path / "other", network, bad[0], "--strict")
    assert "cut.safetensors" in strict.sentence(2) and not (tmp_path / "other").exists()
    assert "cut.safetensors" in call("zoo", "import", tmp_path / "other", bad[0]).sentence(2)
