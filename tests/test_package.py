from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import weightloom

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_there_is_one_version() -> None:
    assert weightloom.__version__ == PROJECT["version"]
    assert f"## [{weightloom.__version__}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_every_dependency_has_its_tested_version() -> None:
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines():
        if not line.startswith("#"):
            name, version = line.split("==")
            assert "+" not in version and "@" not in line, f"{line!r} is not a plain version"
            pinned[name.lower().replace("_", "-")] = version
    wanted = [
        *PROJECT["dependencies"],
        *(name for extra in PROJECT["optional-dependencies"].values() for name in extra),
    ]
    for requirement in wanted:
        name = requirement.partition(">=")[0].lower().replace("_", "-")
        assert name in pinned, f"{requirement!r} is not in constraints.txt: run make constraints"


def test_the_command_leads_somewhere() -> None:
    try:
        entries = metadata.entry_points(group="console_scripts", name="weightloom")
        found = [entry.load() for entry in entries]
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("weightloom.cli"):
            pytest.skip("there is no command line yet")
        raise
    assert all(callable(command) for command in found)
