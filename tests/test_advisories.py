"""Versions that could not be looked up are not called clean."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location(
    "advisories", Path(__file__).parents[1] / ".ci" / "advisories.py"
)
assert spec is not None and spec.loader is not None
advisories = importlib.util.module_from_spec(spec)
spec.loader.exec_module(advisories)

CLEAN = {"name": "a", "version": "1", "vulns": []}
FLAWED = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1"}, {"id": "PYSEC-2"}]}
SKIPPED = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("entries", "codes", "said"),
    [
        ([CLEAN, CLEAN], (0, 0), "no advisory is known of 2 versions"),
        ([CLEAN, FLAWED], (1, 1), "b 2: PYSEC-2"),
        ([SKIPPED, FLAWED], (1, 1), "2 advisories"),
        ([CLEAN, SKIPPED], (1, 1), "1 of 2 versions were not looked up: c"),
        ([SKIPPED, SKIPPED], (1, 0), "nothing is known of the versions"),
        ([], (1, 0), "was not reached"),
    ],
)
def test_what_a_report_says(tmp_path, capsys, entries, codes, said):
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"dependencies": entries, "fixes": []}))
    assert (advisories.main([str(path)]), advisories.main([str(path), "--if-reachable"])) == codes
    assert said in capsys.readouterr().out


def test_no_report_is_a_list_that_was_not_reached(tmp_path):
    assert advisories.main([str(tmp_path / "none"), "--if-reachable"]) == 0
    assert advisories.main([str(tmp_path / "none")]) == 1
