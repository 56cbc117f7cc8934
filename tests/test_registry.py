from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from weightloom.errors import UnknownNameError
from weightloom.registry import Registry, discover


def test_names_lead_to_things() -> None:
    things: Registry[type] = Registry("thing")

    @things.register("b")
    class B: ...

    things.register("a")(int)
    assert things.names() == ["a", "b"] == list(things)
    assert things.get("b") is B and "b" in things and "c" not in things
    with pytest.raises(UnknownNameError, match="unknown thing 'c'"):
        things.get("c")


def test_a_name_is_given_once() -> None:
    things: Registry[type] = Registry("thing")
    things.register("a")(int)
    with pytest.raises(AssertionError, match="registered twice"):
        things.register("a")(str)


def test_discover_imports_every_public_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_families"
    package.mkdir()
    (package / "__init__.py").write_text("seen = []\n")
    for name in ("one", "two", "_private"):
        (package / f"{name}.py").write_text(f"import some_families\nsome_families.seen.append({name!r})\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("some_families")
    discover(module)
    assert sorted(module.seen) == ["one", "two"]
    for name in ("some_families", "some_families.one", "some_families.two"):
        sys.modules.pop(name, None)
