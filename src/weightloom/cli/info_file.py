"""What ``weightloom info`` says of a file of weights: tensors, values that are not finite, the network."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightloom.cli.inputs import plain_text, provenance
from weightloom.cli.output import facts, measured, say, table
from weightloom.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from weightloom.architectures import ArchitectureSpec
    from weightloom.zoo.contents import Contents
    from weightloom.zoo.reading import Reading

SHOWN = 6
"""Names that people are shown in one line; ``--json`` has all."""


def is_network_folder(path: Path) -> bool:
    """Whether a folder is one network in the hub's layout, and no generator or tokenizer of ours."""
    from weightloom.io import read_json
    from weightloom.zoo.contents import format_of

    try:
        format_of(path)
    except CheckpointError:
        return False
    if not (path / "config.json").is_file():
        return not (path / "zoo.sqlite3").exists()
    try:
        config = read_json(path / "config.json")
    except CheckpointError:
        return False
    return not (isinstance(config, dict) and isinstance(config.get("kind"), str))


def describe_weights(
    path: Path, architecture: str | None = None, key: str | None = None
) -> tuple[dict[str, Any], Callable[[dict[str, Any]], None]]:
    """What a file of weights holds, whatever wrote it; and of a network, what was read from where.

    Args:
        path: the file, or a folder in the hub's layout.
        architecture: what the network is, where the file does not say it.
        key: where in the file it is, if several fit.

    Raises:
        CheckpointError: the file is broken or of another kind.
    """
    from weightloom.zoo.contents import contents_of

    contents = contents_of(path)
    broken = list(contents.not_finite())
    described: dict[str, Any] = {
        "kind": "pytorch checkpoint" if contents.places else "tensors",
        "file": path,
        "format": contents.format,
        "values": sum(math.prod(stored.shape) for stored in contents.tensors.values()),
        "finite": not broken,
        "not_finite": broken,
        "dictionaries": contents.dictionaries(),
        "tensors": [
            {"name": name, "shape": list(stored.shape), "type": str(stored.dtype).removeprefix("torch.")}
            for name, stored in contents.tensors.items()
        ],
    }
    if contents.places:
        described["keys"] = [str(key) for key in contents.places[""].entries]
    named = _named(contents) or architecture
    if named is None and key is None:
        return described | {"metadata": dict(contents.metadata)}, _show
    return described | {"kind": "network", **_network(contents, named, architecture, key)}, _show


def _named(contents: Contents) -> str | None:
    """The architecture that a file of ours names, or any file by a name of ours."""
    from weightloom.architectures import parse_architecture

    named = contents.metadata.get("architecture")
    if named is not None and "weightloom" not in contents.metadata:
        try:
            parse_architecture(named)
        except InputError:
            return None
    return named


def _network(
    contents: Contents, named: str | None, architecture: str | None, key: str | None
) -> dict[str, Any]:
    """What the file's network is, or why it has none."""
    from weightloom.architectures import parse_architecture
    from weightloom.zoo.reading import read_checked

    spec: ArchitectureSpec | None = None
    reading: Reading | None = None
    problem: str | None = None
    try:
        wanted = (
            None if architecture is None else parse_architecture(plain_text(architecture, "architecture"))
        )
        spec = wanted or (None if named is None else parse_architecture(named))
        reading = read_checked(contents.path, wanted, key=key)
    except InputError as error:
        problem = error.reason if isinstance(error, CheckpointError) else str(error)
    else:
        spec = reading.spec
    return {
        "architecture": named if spec is None else spec.full_text(),
        "num_parameters": spec.num_parameters() if spec is not None and spec.resolved else None,
        "report": provenance(contents.metadata),
        "card": None if reading is None else reading.card.to_json(),
        "read_from": None if reading is None else reading.key,
        "left_out": [] if reading is None else list(reading.left_out),
        "folded": [] if reading is None else list(reading.folded),
        "problem": problem,
    }


def short_list(names: list[str], most: int = SHOWN) -> str | None:
    """The first names in one line, and how many more there are; None if there are none."""
    from weightloom.io.kinds import plain_words

    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(plain_words(name) for name in names[:most]) + more if names else None


def _show(d: dict[str, Any]) -> None:
    from weightloom.io.kinds import plain_words

    a = "a network" if d["kind"] == "network" else f"a file of {len(d['tensors'])} tensors ({d['kind']})"
    say(f"{d['file']}: {a}", style="bold")
    report, card = d.get("report") or {}, d.get("card") or {}
    places = [f"{plain_words(path)} ({count})" for path, count in d["dictionaries"].items()]
    facts(
        [
            ("architecture", d.get("architecture")),
            ("parameters", f"{d['num_parameters']:,}" if d.get("num_parameters") else None),
            ("values", f"{d['values']:,}, all finite" if d["finite"] else f"{d['values']:,}"),
            ("not finite", short_list(d["not_finite"])),
            ("read from", d.get("read_from") if d.get("read_from") != "." else None),
            ("left out", short_list(d.get("left_out") or [])),
            ("made of others", short_list(d.get("folded") or [])),
            ("dictionaries", short_list(places) if len(places) > 1 else None),
            ("made by", card.get("made_by") or report.get("generator")),
            ("instruction", report.get("instruction")),
            ("classes", _names(card if card.get("class_names") else report)),
            ("probabilities", f"calibrated on {card['calibration']}" if card.get("calibration") else None),
            ("licence", card.get("licence")),
            ("task", report.get("task")),
            ("accuracy", _accuracy(report)),
            ("seed", report.get("seed")),
            ("problem", d.get("problem")),
            *(d.get("metadata") or {}).items(),
        ]
    )
    say()
    table(
        ["tensor", "shape", "type"],
        [(plain_words(t["name"]), " x ".join(map(str, t["shape"])), t["type"]) for t in d["tensors"]],
    )


def _names(report: dict[str, Any]) -> str | None:
    names = report.get("class_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _accuracy(report: dict[str, Any]) -> str | None:
    """As the file tells it, which may be anything."""
    share, images = report.get("accuracy"), report.get("num_images")
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        return None
    return measured(share, images if type(images) is int and 0 < images < 1 << 53 else None)
