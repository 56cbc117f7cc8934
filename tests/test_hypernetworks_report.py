"""The results page of the hypernetworks is what the script writes from the figures' files."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "hypernetworks_report.py"


def test_the_page_is_what_the_files_say():
    spec = importlib.util.spec_from_file_location("hypernetworks_report", SCRIPT)
    report = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(report)
    assert report.PAGE.read_text("utf-8") == report.page(), "run python benchmarks/hypernetworks_report.py"
