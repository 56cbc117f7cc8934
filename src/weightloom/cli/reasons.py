"""What ``--explain`` found, for people."""

from __future__ import annotations

from typing import Any

from weightloom.cli.output import bar, measured, note, percent, say, table


def show_reasons(reasons: dict[str, Any]) -> None:
    """What drove the result, for people."""
    say()
    names = {"nothing": "the whole request (its first sample)", "both": "without both"}
    rows = [
        (names.get(name, f"without the {name}"), measured(value, reasons["num_images"]), bar(value))
        for name, value in reasons["removed"].items()
        if value is not None
    ]
    table(["request", "accuracy", ""], rows, numbers=["accuracy"])
    if reasons["attention"]:
        say()
        shares = sorted(reasons["attention"].items(), key=lambda item: -item[1])
        table(
            ["attention goes to", "share", ""],
            [(n, percent(v), bar(v)) for n, v in shares],
            numbers=["share"],
        )
    if reasons["nearest"] is None and not reasons["knows_checkpoints"]:
        return
    if not reasons["nearest"]:
        note("no training checkpoint has this architecture: none is near, and novelty has no unit")
    else:
        say()
        near = [(f"{n['distance']:.3f}", n["task"], percent(n["accuracy"])) for n in reasons["nearest"]]
        table(["distance", "nearest training checkpoints", "their accuracy"], near, numbers=["distance"])
