"""The figures on the page of consolidated checkpoints are those of the benchmark's file."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "consolidation.py"


def test_the_page_is_what_the_file_says():
    spec = importlib.util.spec_from_file_location("consolidation_benchmark", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = SCRIPT.parents[1] / "docs" / "consolidation.md"
    if not (SCRIPT.parent / "results" / "consolidation.json").is_file():
        pytest.skip("the table has not been measured yet")
    result = json.loads((SCRIPT.parent / "results" / "consolidation.json").read_text("utf-8"))
    assert page.read_text("utf-8") == script.write_report(result, page), "run benchmarks/consolidation.py"
