"""What the README and the docs show is run: Python blocks whole, shell commands up to their work.

A block that cannot run here is preceded by a line ``<!-- not run: the reason -->``.
"""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [page for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md") if page.exists()]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
FENCE = re.compile(
    r"(?P<skip><!-- not run: [^\n]+ -->\n+)?^```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^```",
    re.DOTALL | re.MULTILINE,
)


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path, *languages: str) -> list[Block]:
    text = page.read_text("utf-8")
    return [
        Block(page, text[: match.start("code")].count("\n") + 1, match["language"], match["code"])
        for match in FENCE.finditer(text)
        if match["language"] in languages and not match["skip"]
    ]


def commands() -> list[tuple[Block, str]]:
    found = []
    for page in PAGES:
        for block in blocks(page, "sh", "bash", "console", "shell"):
            for line in block.code.replace("\\\n", " ").splitlines():
                words = line.strip().removeprefix("$ ").removeprefix(".venv/bin/")
                if words.startswith("weightloom "):
                    found.append((block, words))
    return found


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python", "py")], ids=lambda page: page.name
)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of one page run in order, in one namespace, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": f"snippets_of_{page.stem}"}
    for block in blocks(page, "python", "py"):
        exec(compile("\n" * block.line + block.code, str(page), "exec"), names)


@pytest.mark.skipif(find_spec("weightloom.cli") is None, reason="there is no command line yet")
@pytest.mark.parametrize(("block", "line"), commands(), ids=str)
def test_commands_are_understood(block: Block, line: str) -> None:
    """Every command that is shown exists and takes the options it is shown with; nothing is done."""
    import typer

    from weightloom.cli.main import app

    command: Any = typer.main.get_command(app)
    arguments = shlex.split(line, comments=True)[1:]
    context = None
    while isinstance(command, typer.core.TyperGroup):
        context = command.make_context(command.name, arguments[:1], parent=context, resilient_parsing=True)
        found = command.get_command(context, arguments[0]) if arguments else None
        assert found is not None, f"{block}: there is no {arguments[:1]} in {line!r}"
        command, arguments = found, arguments[1:]
    command.make_context(command.name, arguments, parent=context)
