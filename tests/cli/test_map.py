"""``weightloom map``: a zoo's networks and generated ones as points, in a table, a file and a picture."""

from __future__ import annotations

import json


def test_a_map(call, zoo, generator, tmp_path):
    out, plot = tmp_path / "map.json", tmp_path / "map.png"
    common = ("map", zoo, "--generator", generator, "--samples", "3")
    answer = call(*common, "--out", out, "--plot", plot)
    assert answer.code == 0, answer.err
    assert "generated" in answer.out and plot.is_file()
    points = json.loads(out.read_text())["points"]
    assert [p["kind"] for p in points].count("generated") == 3 and len(points) == 5 + 3
    told = call(*common, "--json").json
    assert told["points"][0]["x"] == json.loads(f"{points[0]['x']:.7g}")


def test_a_recipe_stands_for_a_zoo_that_is_elsewhere(call, recipe, generator):
    told = call("map", recipe, "--generator", generator, "--samples", "0", "--json").json
    assert {point["kind"] for point in told["points"]} == {"checkpoint"}


def test_mistakes(call, zoo, generator, tmp_path):
    assert "zoo-tiny" in call("map", "zoo-tinny", "--generator", generator).sentence(2)
    assert "has no networks" in call("map", zoo, "--generator", generator, "--arch", "cnn").sentence(2)
    assert "--samples" in call("map", zoo, "--generator", generator, "--samples", "-1").sentence(2)
    assert "pca or umap" in call(
        "map", zoo, "--generator", generator, "--samples", "0", "--method", "x"
    ).sentence(2)
    assert "must end in" in call("map", zoo, "--plot", tmp_path / "map.gif").sentence(2)
