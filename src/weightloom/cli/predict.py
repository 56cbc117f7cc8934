"""``weightloom predict``: what a network says of pictures."""

from __future__ import annotations

import csv
import io
import math
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightloom.cli.folders import passed_over_text
from weightloom.cli.inputs import FileArch, Json, Key, SkipBroken, calm_threads, load_network
from weightloom.cli.output import emit, facts, note, progress, say, seconds_text, table, write_text
from weightloom.errors import InputError, printable

if TYPE_CHECKING:
    from weightloom.fitting import Prediction
    from weightloom.tasks import NetworkCard

NONE = "none of these"
_STDIN = "-"
_PLAIN = re.compile(rb"P[1-7Ff]\s")  # beginnings of pictures that are text


def predict(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A network: safetensors, or a PyTorch checkpoint with --arch."),
    ],
    pictures: Annotated[
        list[str],
        typer.Argument(
            metavar="PICTURES...",
            help="Pictures, folders of pictures (with all in them), or - for standard input: paths, one a "
            "line, or one picture itself.",
        ),
    ],
    top: Annotated[int, typer.Option("--top", help="How many classes to name, the likeliest first.")] = 3,
    reject: Annotated[
        float | None,
        typer.Option(
            "--reject", metavar="P", help=f"Answer '{NONE}' where the likeliest class has less than this."
        ),
    ] = None,
    skip_broken: SkipBroken = False,
    arch: FileArch = None,
    key: Key = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print one line a picture as CSV.")] = False,
    as_json: Json = False,
) -> None:
    """Say what pictures show: the classes of a network with their probabilities.

    Pictures are read as those of folders are: turned upright, cut to their central square, made as small as
    the network reads them. Probabilities are calibrated where that could be measured when the network was
    made, on pictures that it was not made from; elsewhere the answer says that they are not.

    Examples:
        weightloom predict photos.safetensors holiday.jpg
        weightloom predict photos.safetensors camera-roll/ --reject 0.9 --csv > answers.csv
        find . -name '*.png' | weightloom predict photos.safetensors - --top 1 --json
    """
    started = time.perf_counter()
    if as_csv and as_json:
        raise InputError("give --json or --csv, not both")
    if top < 1:
        raise InputError(f"--top must be at least 1, not {top}")
    if reject is not None and not (math.isfinite(reject) and 0 <= reject <= 1):
        raise InputError(f"--reject is a probability from 0 to 1, not {reject:g}")
    network = load_network(file, arch, key)
    from weightloom.fitting import predict as answer
    from weightloom.fitting import run_networks
    from weightloom.tasks.inputs import checked_input

    checked_input(network.card)
    sources, passed = _sources(pictures)
    calm_threads(network.spec.num_parameters())
    with progress() as move:
        found = answer(
            lambda images: run_networks(network.spec, network.flat[None], images)[0],
            network.card,
            sources,
            top,
            reject,
            skip_broken=skip_broken,
            progress=move,
        )
    read = [one for one in found if one.problem is None]
    broken = [(_called(one), one.problem) for one in found if one.problem is not None]
    if not read:
        raise InputError(
            f"none of the {len(found):,} pictures can be read; the first: {': '.join(broken[0])}"
        )
    if as_json:
        card = network.card
        emit(
            {
                "network": file,
                "architecture": network.spec.full_text(),
                "class_names": list(card.labels(network.spec.classes or 0)),
                "named": card.class_names is not None,
                "calibrated": card.temperature is not None,
                "temperature": card.temperature,
                "calibration": card.calibration,
                "reject": reject,
                "num_pictures": len(read),
                "predictions": [_plain(one) for one in read],
                "broken": [{"file": name, "reason": reason} for name, reason in broken],
                "passed_over": passed,
                "seconds": time.perf_counter() - started,
            }
        )
        return
    if as_csv:
        write_text(_csv(read, len(read[0].answers)))
    else:
        _show(read)
        facts(
            [
                ("network", file),
                ("pictures", f"{len(read):,} in {seconds_text(time.perf_counter() - started)}"),
                ("answers", _counts(read)),
                ("probabilities", _calibration(network.card)),
                ("passed over", passed_over_text(passed)),
            ]
        )
    if network.card.class_names is None:
        note("note: the file does not say what its classes are called; 'class 0' is its first output")
    if as_csv and network.card.temperature is None:
        note(f"note: probabilities are {_calibration(network.card)}")
    if broken:
        listed = "; ".join(f"{name} ({reason})" for name, reason in broken[:5])
        more = f"; and {len(broken) - 5:,} more" if len(broken) > 5 else ""
        note(f"left out: {len(broken):,} that cannot be read: {listed}{more}")


def _sources(pictures: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Paths and contents of all pictures, and what of the folders is passed over.

    Raises:
        InputError: a folder without pictures, or nothing on standard input.
    """
    from weightloom.tasks.listing import find_pictures

    found: list[Any] = []
    passed: Counter[str] = Counter()
    named: dict[str, Any] = {}
    if pictures.count(_STDIN) > 1:
        raise InputError("standard input is read once: give one -")
    for text in pictures:
        given = _standard_input() if text == _STDIN else [text]
        if isinstance(given, bytes):
            found.append(given)
            continue
        for name in given:
            path, is_folder = _place(name, home=text != _STDIN)
            if not is_folder:
                found.append(path)
                continue
            files, over = find_pictures(path)
            if not files:
                said = passed_over_text(over.to_json())
                raise InputError(
                    f"{path}: there is no picture in this folder" + (f" ({said} passed over)" if said else "")
                )
            found += files
            for kind, value in over.to_json().items():
                if isinstance(value, dict):
                    named[kind] = dict(Counter(named.get(kind, {})) + Counter(value))
                else:
                    passed[kind] += value
    return found, {**named, **passed}


def _place(name: str, *, home: bool) -> tuple[Path, bool]:
    """A path, and whether it is a folder; what no system can look up is a picture that cannot be read.

    Args:
        name: as it was given.
        home: whether ``~`` stands for a user's home.
    """
    path = Path(name)
    try:
        path = path.expanduser() if home else path
        return path, path.is_dir()
    except (OSError, RuntimeError, ValueError):  # too long, no such user, a NUL
        return path, False


def _standard_input() -> bytes | list[str]:
    """One picture, or the paths that standard input lists, one a line (or with NUL between them).

    Raises:
        InputError: it is empty, or larger than a picture may be.
    """
    from weightloom.tasks.decoding import MOST_BYTES
    from weightloom.tasks.pictures import begins_a_picture

    content = sys.stdin.buffer.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise InputError(f"standard input has more than {MOST_BYTES / 1e6:,.0f} megabytes")
    lines = content.split(b"\0" if b"\0" in content else b"\n")
    names = [os.fsdecode(line.rstrip(b"\r")) for line in lines if line.strip()]
    if not names:
        raise InputError("standard input is empty: it has paths of pictures, one a line, or a picture")
    binary = b"\0" in content or _PLAIN.match(content)
    if begins_a_picture(content[:16]) or (binary and not os.path.exists(names[0][:4096])):
        return content
    return names


def _called(one: Prediction) -> str:
    return _STDIN if one.file is None else printable(one.file, one_line=True)


def _plain(one: Prediction) -> dict[str, Any]:
    return {
        "file": _called(one),
        "class": one.name,
        "probability": one.probability,
        "rejected": one.rejected,
        "top": [{"class": answer.name, "probability": answer.probability} for answer in one.answers],
    }


def _csv(found: Sequence[Prediction], top: int) -> str:
    """One line a picture: the answer, empty where it is none, and the likeliest classes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    places = range(1, top + 1)
    writer.writerow(
        ["file", "class", "rejected", *(f"{what}_{n}" for n in places for what in ("class", "probability"))]
    )
    for one in found:
        pairs = [
            cell for name, share in one.answers for cell in (printable(name, one_line=True), f"{share:.6g}")
        ]
        writer.writerow(
            [_called(one), printable(one.name or "", one_line=True), str(one.rejected).lower(), *pairs]
        )
    return text.getvalue()


def _show(found: Sequence[Prediction]) -> None:
    """A table for people."""
    rows = []
    for one in found:
        names = [printable(name, one_line=True) for name, _ in one.answers]
        shown = [f"{name} {_percent(own[1])}" for name, own in zip(names, one.answers, strict=True)]
        first = f"{NONE} (likeliest: {shown[0]})" if one.rejected else names[0]
        share = None if one.rejected else _percent(one.answers[0].probability)
        rows.append((_called(one), first, share, ", ".join(shown[1:]) or None))
    columns = ["picture", "shows", "probability", "next"]
    shown_columns = columns if len(found[0].answers) > 1 else columns[:-1]
    table(shown_columns, [row[: len(shown_columns)] for row in rows], numbers=["probability"])
    say()


def _percent(share: float) -> str:
    """No answer is certain: what would be rounded to 100 % is more than 99.9 %."""
    return "> 99.9 %" if share > 0.9995 else f"{100 * share:.1f} %"


def _counts(found: Sequence[Prediction]) -> str | None:
    """How many pictures show what, where there are several."""
    if len(found) == 1:
        return None
    counts = Counter(one.name or NONE for one in found).most_common()
    more = f", {len(counts) - 12} more" if len(counts) > 12 else ""
    return ", ".join(f"{name} ({count:,})" for name, count in counts[:12]) + more


def _calibration(card: NetworkCard) -> str:
    if card.temperature is None:
        return "not calibrated: how sure the network is was not measured when it was made"
    return f"calibrated on {card.calibration}"
