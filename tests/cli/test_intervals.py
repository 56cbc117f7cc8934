"""No accuracy stands alone: text and JSON say how many images it was counted on, and how sure it is."""

from __future__ import annotations

import re

from PIL import Image

SURE = re.compile(r"\d+\.\d %")
ALONE = re.compile(r"\d+\.\d %(?! \(\d+\.\d–\d+\.\d\))")


def accuracies(value, path=""):
    """Every dictionary of a JSON answer that has an accuracy, with its path."""
    if isinstance(value, dict):
        if value.get("accuracy") is not None:
            yield path, value
        for key, entry in value.items():
            yield from accuracies(entry, f"{path}.{key}")
    elif isinstance(value, list):
        for entry in value:
            yield from accuracies(entry, path)


def check(answer, *, alone=()):
    found = [(path, entry) for path, entry in accuracies(answer) if path not in alone]
    assert found
    for path, entry in found:
        low, high = entry["interval"]
        assert 0 <= low <= entry["accuracy"] + 1e-6 and entry["accuracy"] - 1e-6 <= high <= 1, path
        assert low < high and entry["num_images"] > 0, path


def test_networks_on_a_few_pictures(call, generator, tmp_path):
    out = tmp_path / "net.safetensors"
    zoo_s = "mlp(depth=1,width=4,classes=4)"
    photos = tmp_path / "four"
    for number, shade in enumerate((10, 80, 160, 240)):
        (photos / f"c{number}").mkdir(parents=True)
        for one in range(5):
            Image.new("L", (8, 8), shade + one).save(photos / f"c{number}" / f"{one}.png")
    asked = ("--generator", generator, "--data", photos, "--arch", zoo_s, "--samples", "2")
    made = call("generate", *asked, "--out", out, "--plot", tmp_path / "a.png", "--steps", "2", "--json").json
    check(made, alone=(".nearest",))
    assert made["test_images"] < 12 and made["best"]["num_images"] == made["test_images"]
    assert made["samples"][0]["support_images"] and made["samples"][0]["support_interval"]
    assert len(made["curve_intervals"]["generated"]) == len(made["curves"]["generated"])
    assert made["baseline_intervals"]["random_init"][0] < made["baseline_intervals"]["random_init"][1]

    for words in (
        ("generate", *asked, "--explain"),
        ("evaluate", out, "--data", photos),
        ("evaluate", out, out, "--data", photos),
        ("finetune", out, "--data", photos, "--steps", "2", "--from-random"),
    ):
        answer = call(*words)
        assert answer.code == 0, answer.err
        text = answer.out.partition("attention goes to")[0]
        assert SURE.search(text) and not ALONE.search(text), text
        assert "images" in text
    check(call("evaluate", out, "--data", photos, "--json").json)
    tuned = call("finetune", out, "--data", photos, "--steps", "2", "--from-random", "--json").json
    check(tuned)
    assert tuned["start_interval"] and tuned["random_init_interval"]
    assert len(tuned["curve_intervals"]["random_init"]) == len(tuned["curves"]["random_init"])
    assert not ALONE.search(call("info", out).out), "the saved report knows its images"


def test_a_selection(call, generator, tmp_path):
    asked = ("select", "--generator", generator, "--task", "digits", "--budget", "3s", "--shots", "4")
    answer = call(*asked, "--json").json
    check(answer, alone=(".ranking",))
    assert answer["validation_interval"] and answer["validation_images"] == answer["images"]["held_back"]
    assert all(entry["interval"] for entry in answer["ranking"] if entry["accuracy"] is not None)


def test_a_leaderboard(call, zoo, generator, tmp_path):
    asked = ("bench", "--zoo", zoo, "--generator", generator, "--out", tmp_path / "bench", "--quick")
    answer = call(*asked, "--json").json
    check(answer["rows"])
    figures = [figure for entry in answer["table"] for figure in entry["figures"].values() if figure]
    shares = [f for f in figures if "mean" in f and f["mean"] <= 1 and "never" not in f]
    assert shares and all(figure["interval"] and figure["num_images"] for figure in shares)
    page = (tmp_path / "bench" / "leaderboard.md").read_text()
    assert re.search(r"\d+\.\d ± \d+\.\d \(\d+\.\d–\d+\.\d\)", page)
