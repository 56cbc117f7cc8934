"""Torch's default dtype and device, which belong to the whole process, change no bit of any answer.

Each mode is a process of its own, in which everything is called under it first and as usual after it: what
was made and kept under odd defaults must not reach later calls.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.faults.conftest import FULL

MODES = ("float64", "float16", "bfloat16", "default-meta", "default-cpu", "with-meta", "both")
"""``both``: float64 and the meta device; the quick size has this one alone."""


def answers(mode: str, folder: Path) -> dict[str, dict[str, str]]:
    worker = Path(__file__).with_name("defaults_worker.py")
    done = subprocess.run(
        [sys.executable, str(worker), mode, str(folder)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    found = answers("usual", tmp_path_factory.mktemp("usual"))
    assert found["inside"] == found["after"] and not [text for text in found["after"].values() if ":" in text]
    return found["inside"]


@pytest.mark.parametrize("mode", MODES if FULL else ["both"])
def test_defaults_of_torch_change_nothing(mode, request, tmp_path, record_property):
    found = answers(mode, tmp_path)
    assert not [text for text in found["after"].values() if ":" in text]
    wanted = request.getfixturevalue("usual") if FULL else found["after"]
    for when in ("inside", "after"):
        other = {name: answer for name, answer in found[when].items() if answer != wanted[name]}
        assert other == {}, when
    record_property("calls", 2 * len(wanted))
