from __future__ import annotations

import dataclasses

from PIL import Image


def test_list(call):
    rows = {row["name"]: row for row in call("data", "list", "--json").json["datasets"]}
    assert len(rows) >= 6 and rows["digits"]["here"] and rows["cifar10"]["channels"] == 3
    answer = call("data", "list")
    assert answer.code == 0 and "fashion-mnist" in answer.out


def test_fetch(call, monkeypatch, tmp_path):
    monkeypatch.setenv("WEIGHTLOOM_CACHE", str(tmp_path))
    answer = call("data", "fetch", "digits", "--json").json
    assert answer["datasets"][0]["name"] == "digits" and answer["datasets"][0]["counts"]["test"] == 500
    assert (tmp_path / "datasets" / "digits" / "test.safetensors").is_file()
    again = call("data", "fetch", "digits")
    assert again.code == 0 and "cache" in again.out


def test_fetch_refuses(call, monkeypatch, tmp_path):
    monkeypatch.setenv("WEIGHTLOOM_CACHE", str(tmp_path))
    assert "did you mean 'digits'" in call("data", "fetch", "digits", "digit").sentence(2)
    assert not any(tmp_path.iterdir()), "a name that is not known is found before anything is fetched"
    assert "--all" in call("data", "fetch").sentence(2)
    assert "--all" in call("data", "fetch", "digits", "--all").sentence(2)


def test_a_dataset_that_no_source_has(call, generator, monkeypatch, tmp_path):
    from weightloom.tasks import store

    monkeypatch.setenv("WEIGHTLOOM_CACHE", str(tmp_path))
    mnist = store.datasets.get("mnist")
    monkeypatch.setitem(store.datasets._things, "mnist", dataclasses.replace(mnist, sources=()))
    assert "no source of dataset 'mnist'" in call("data", "fetch", "mnist").sentence(1)
    answer = call("generate", "--task", "mnist", "--generator", generator, "--arch", "mlp(depth=1,width=4)")
    assert "weightloom data fetch mnist" in answer.sentence(1)
    shown = call("data", "show", "mnist", "--json")
    assert shown.json["train"] is None and "weightloom data fetch mnist" in shown.err


def test_show(call, tmp_path):
    sheet = tmp_path / "sheet.png"
    answer = call("data", "show", "digits[3,1]+flip", "--out", sheet, "--shots", "4", "--json").json
    assert answer["classes"] == ["3", "1"] and answer["input"] == [3, 16, 16]
    assert len(answer["instructions"]) == 3 and all(answer["train"]) and all(answer["test"])
    with Image.open(sheet) as picture:
        assert min(picture.size) > 100
    shown = call("data", "show", "digits[3,1]+flip")
    assert shown.code == 0 and "mirrored" in shown.out


def test_show_a_folder(call, photos):
    answer = call("data", "show", "--data", photos, "--json").json
    assert answer["classes"] == ["ants", "bees", "cats", "dogs"]
    assert all(a + b == 6 for a, b in zip(answer["train"], answer["test"], strict=True))


def test_show_refuses(call, photos):
    assert "which task" in call("data", "show").sentence(2)
    assert "not both" in call("data", "show", "digits", "--data", photos).sentence(2)
    assert "unknown transform 'rot45'" in call("data", "show", "digits+rot45").sentence(2)
    assert "not 500" in call("data", "show", "digits", "--shots", "500").sentence(2)
