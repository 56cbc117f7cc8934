"""Writes docs/cli.md from the command line itself: `python docs/cli_page.py`.

Knows how the commands describe themselves, not what they do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer

from weightloom.cli.main import ORDER, app

PAGE = Path(__file__).parent / "cli.md"
HEAD = """# Command line

<!-- Written by docs/cli_page.py from the commands' own help. Do not edit by hand. -->

`weightloom COMMAND --help` says the same. What holds for every command:

- `--json` prints one JSON object on stdout and nothing else there; progress and remarks go to stderr.
- Exit code 0: done; 1: the work failed or was interrupted; 2: bad input. A failure is one sentence on stderr.
- Accuracies stand with their 95 % intervals in brackets; in JSON `interval`, beside `num_images`.
- `WEIGHTLOOM_CACHE` names the folder for datasets (`~/.cache/weightloom`).
- `WEIGHTLOOM_DEBUG=1` shows tracebacks.
- Small networks run on one thread; `OMP_NUM_THREADS` says otherwise.
"""


def page() -> str:
    """The whole page."""
    root: Any = typer.main.get_command(app)
    parts = [HEAD]
    for name in ORDER:
        parts += _sections(root.commands[name], f"weightloom {name}")
    return "\n".join(parts).rstrip() + "\n"


def _sections(command: Any, path: str) -> Iterator[str]:
    if hasattr(command, "commands"):
        yield f"## {path}\n\n{_prose(command.help)}\n"
        for name, inner in command.commands.items():
            yield from _sections(inner, f"{path} {name}")
        return
    level = "##" if path.count(" ") == 1 else "###"
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    usage = " ".join([path, *(_argument(a) for a in arguments), "[OPTIONS]"])
    yield f"{level} {path}\n\n{_prose(command.help)}\n\n```text\n{usage}\n```\n"
    rows = [f"| `{_argument(a)}` | {_cell(a.help)} | |" for a in arguments]
    rows += [f"| {_names(o)} | {_cell(o.help)} | {_default(o)} |" for o in options if o.name != "help"]
    yield "| | what | default |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    examples = [line.removeprefix("  ") for line in (command.epilog or "").splitlines()[1:]]
    if examples:
        yield "```sh\n" + "\n".join(examples) + "\n```\n"


def _prose(text: str | None) -> str:
    """Help as Markdown: options and exact texts as code."""
    return re.sub(r"(?<![\w`])(--[a-z][a-z-]*)", r"`\1`", text or "")


def _cell(text: str | None) -> str:
    return _prose(text).replace("|", "\\|")


def _argument(argument: Any) -> str:
    name = (argument.metavar or argument.name.upper()).strip("[]")
    return name if argument.required else f"[{name}]"


def _names(option: Any) -> str:
    names = "/".join([*option.opts, *option.secondary_opts])
    if option.is_flag:
        return f"`{names}`"
    annotation = option.type_descriptor.annotation
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    shown = option.metavar or "\\|".join(choices) or getattr(annotation, "__name__", "").upper()
    return f"`{names} {shown}`"


def _default(option: Any) -> str:
    value = option.default
    if value is None or callable(value) or value is False:
        return ""
    if value is True:
        return f"`{option.opts[0]}`"
    return f"`{value}`"


def main() -> None:
    """Write the page."""
    from weightloom.io import write_text

    write_text(PAGE, page())


if __name__ == "__main__":
    main()
