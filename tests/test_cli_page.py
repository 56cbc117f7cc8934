"""docs/cli.md is what the command line says of itself."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_page_is_what_the_commands_say() -> None:
    """Whoever changes a command's help runs ``python docs/cli_page.py``."""
    spec = importlib.util.spec_from_file_location("cli_page", ROOT / "docs" / "cli_page.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    written = (ROOT / "docs" / "cli.md").read_text("utf-8")
    assert written == script.page(), "run `python docs/cli_page.py`"
    for command in ("generate", "evaluate", "finetune", "zoo build", "train", "data fetch", "info"):
        assert f"# weightloom {command}\n" in written
