"""The pages of results are what their scripts make of the results that are there."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def script(name):
    folder = str(ROOT / "benchmarks")
    sys.path.insert(0, folder)  # the script takes its neighbours from there, as when it is run
    try:
        spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(folder)


@pytest.fixture(scope="module")
def report():
    return script("full_report")


def test_the_page_follows_the_results(report):
    results = report.read_results(ROOT / "benchmarks" / "results")
    page = ROOT / "docs" / "results" / "full.md"
    assert page.read_text("utf-8") == report.page(results), "run python benchmarks/full_report.py"
    for name, folder in (("README.md", "docs/"), ("docs/index.md", "")):
        table = report.short_table(results, f"{folder}results/full.md")
        assert table in (ROOT / name).read_text("utf-8"), f"{name}: run python benchmarks/full_report.py"


def test_what_was_not_measured_is_said_so(report):
    figures = report.figures({})
    assert {figure.result for figure in figures} == {report.NOT_YET}
    assert all(figure.holds is None for figure in figures)
    page = report.page({})
    assert page.count("Not measured yet.") == len(report.TITLES)


def test_a_bar_that_is_missed_falls_short(report):
    number = {"mean": 0.5, "sd": 0.0, "n": 3}
    row = {
        "ratio": number, "trained": 0.8, "above_nearest": number, "above_closed_form": number,
    }  # fmt: skip
    table = {"command": "x", "seconds": 1, "machine": "y", "table": {"all": row}}
    (unseen, *_) = report.figures({"unseen": table})
    assert unseen.holds is False and "falls short" in unseen.verdict
    row["ratio"] = {**number, "mean": 0.93}
    assert report.figures({"unseen": table})[0].holds is True


def test_the_page_of_graph_hypernetworks_follows_the_results():
    report = script("ghn_report")
    results = report.read_results(ROOT / "benchmarks" / "results")
    page = ROOT / "docs" / "results" / "ghn.md"
    assert page.read_text("utf-8") == report.page(results), "run python benchmarks/ghn_report.py"
    assert all(figure.holds is None for figure in report.figures({}))
