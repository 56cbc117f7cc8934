"""docs/scaling.md has the figures of the results that are there."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "scaling.py"


def test_the_page_has_the_figures_of_the_results():
    spec = importlib.util.spec_from_file_location("scaling", SCRIPT)
    scaling = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scaling)
    held = scaling.PAGE.read_text("utf-8").partition(scaling.START)[2].partition(scaling.END)[0]
    assert held.strip() == scaling.figures(), "run python benchmarks/scaling.py page"
    assert "| open |" in held and "weightloom --help" in held
