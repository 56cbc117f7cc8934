"""Versions that could not be looked up are not called clean, and a check that fails does not pass."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

PLACE = Path(__file__).parents[1] / ".ci" / "advisories.py"
spec = importlib.util.spec_from_file_location("advisories", PLACE)
assert spec is not None and spec.loader is not None
advisories = importlib.util.module_from_spec(spec)
spec.loader.exec_module(advisories)

CLEAN = {"name": "a", "version": "1", "vulns": []}
FLAWED = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1"}, {"id": "PYSEC-2"}]}
SKIPPED = {"name": "c", "skip_reason": "not found"}


@pytest.fixture
def said(tmp_path, capsys):
    """What the check says of such a pip-audit, and its exit codes without and with --if-reachable."""

    def run(out, err="", code=0):
        program = tmp_path / "pip-audit"
        program.write_text(f"#!/bin/sh\ncat <<'OUT'\n{out}\nOUT\ncat >&2 <<'ERR'\n{err}\nERR\nexit {code}\n")
        program.chmod(0o755)
        codes = [advisories.main([str(program), *more]) for more in ((), ("--if-reachable",))]
        return codes, capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    ("entries", "codes", "words"),
    [
        ([CLEAN, CLEAN], [0, 0], "none is known of 2 versions"),
        ([CLEAN, FLAWED], [1, 1], "b 2: PYSEC-2"),
        ([SKIPPED, FLAWED], [1, 1], "b 2: PYSEC-1"),
        ([CLEAN, SKIPPED], [1, 1], "1 of 2 versions were not looked up: c"),
        ([SKIPPED, SKIPPED], [1, 0], "nothing is known"),
        ([], [1, 0], "nothing is known"),
    ],
)
def test_what_a_report_says(said, entries, codes, words):
    found, text = said(json.dumps({"dependencies": entries, "fixes": []}), code=int(FLAWED in entries))
    assert found == codes and words in text


def test_a_list_that_cannot_be_reached(said, tmp_path):
    assert said("", "ERROR: Could not connect to the feed", 1)[0] == [1, 0]
    assert advisories.main([str(tmp_path / "none")]) == 1
    assert advisories.main([str(tmp_path / "none"), "--if-reachable"]) == 0


def test_a_check_that_fails(said):
    codes, text = said("", "ERROR: bad line 3 in constraints.txt\n    ^", 2)
    assert codes == [1, 1] and "pip-audit failed: ERROR: bad line 3" in text
    codes, text = said("{", code=3)
    assert codes == [1, 1] and "it ended with 3" in text
