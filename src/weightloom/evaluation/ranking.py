"""From the cells of a leaderboard to its table: means over seeds, refusals, and where a baseline is ahead.

Measures nothing. Means are first taken over the trials of a seed, then over seeds; a baseline is ahead of a
method where it answers everything that the method answers, and does better.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from weightloom.evaluation.ground import DATASETS, GROUPS, SEEN, UNSEEN
from weightloom.evaluation.leaderboard import EPOCHS, Leaderboard
from weightloom.evaluation.measures import Rows, mean_of, over_seeds, summary
from weightloom.fitting import interval_of


@dataclass(frozen=True)
class Column:
    """One figure of the table.

    Attributes:
        name: as the table heads it.
        what: kind of cell that it is read from.
        group: of trials, or None for all.
        field: of the cell.
        better: 1 where more is better, -1 where less is, 0 where neither is.
        unit: what a difference is called in a sentence.
    """

    name: str
    what: str
    group: str | None
    field: str
    better: int = 1
    unit: str = "points"

    def rows(self, rows: Rows) -> Rows:
        """The cells that it is read from, refusals included."""
        return [r for r in rows if r["what"] == self.what and self.group in (None, r["group"])]


ZERO_SHOT = [Column(group, "zero-shot", group, "accuracy") for group in GROUPS]
TUNED = [
    *(
        Column(f"{group}, after {epoch} epoch{'s' * (epoch != 1)}", "fine-tuned", group, f"epoch_{epoch}")
        for group in (SEEN, UNSEEN)
        for epoch in EPOCHS[1:]
    ),
    *(
        Column(f"{group}, steps to the trained accuracy", "fine-tuned", group, "steps", -1, "steps")
        for group in (SEEN, UNSEEN)
    ),
]
COMPARED = [*ZERO_SHOT, *TUNED]
"""Columns in which methods are held against baselines."""


def leaderboard_table(board: Leaderboard) -> list[dict[str, Any]]:
    """One entry a contestant: its figures by column name, verdicts, speed, refusals.

    A figure is ``{"mean", "sd", "n", "answered", "asked"}``, of an accuracy with its 95 % ``interval`` on
    ``num_images`` images in all; ``{"refused": sentence}``; or None where nothing was asked. A method's also
    has ``behind``: the best baseline that is ahead of it, and by how much.
    """
    entries = []
    for who in board.contestants:
        own = [row for row in board.rows if row["generator"] == who["name"]]
        figures = {column.name: _figure(column, column.rows(own)) for column in COMPARED}
        if not who["baseline"]:
            for column in COMPARED:
                if figures[column.name] is not None and "mean" in (figures[column.name] or {}):
                    figures[column.name]["behind"] = _ahead(board, column, who["name"])  # type: ignore[index]
        entries.append(
            {
                **who,
                "figures": figures,
                "novelty": {group: _novelty(own, group) for group in (SEEN, UNSEEN)},
                "speed": _speed(own),
                "refusals": sorted({str(row["refused"]) for row in own if "refused" in row}),
            }
        )
    first = ZERO_SHOT[1].name
    return sorted(entries, key=lambda e: -((e["figures"][first] or {}).get("mean", -1.0)))


def _value(column: Column, row: dict[str, Any]) -> float:
    """The field of an answered cell; steps that were not enough count as the limit."""
    value = row[column.field]
    return float(row["limit"] if value is None and column.field == "steps" else value)


def _figure(column: Column, rows: Rows) -> dict[str, Any] | None:
    if not rows:
        return None
    answered = [row for row in rows if "refused" not in row]
    if not answered:
        return {"refused": str(rows[0]["refused"])}
    plain = [{"seed": row["seed"], "value": _value(column, row)} for row in answered]
    figure: dict[str, Any] = over_seeds(plain, lambda group: mean_of(group, "value"))
    figure |= {"answered": len(answered), "asked": len(rows)}
    if column.unit == "points":  # seeds look at the same images, so that these count once
        images = sum(
            {(row["task"], row["architecture"]): row.get("num_images", 0) for row in answered}.values()
        )
        figure |= {"interval": interval_of(figure["mean"], images), "num_images": images or None}
    if column.field == "steps":
        figure["never"] = sum(row["steps"] is None for row in answered)
    return figure


def _ahead(board: Leaderboard, column: Column, name: str) -> dict[str, Any] | None:
    """The baseline that is furthest ahead of a method on the trials and seeds that both answered."""

    def answers(who: str) -> dict[tuple[Any, ...], float]:
        return {
            (r["group"], r["task"], r["architecture"], r["seed"]): _value(column, r)
            for r in column.rows(board.rows)
            if r["generator"] == who and "refused" not in r
        }

    own, best = answers(name), None
    for who in board.contestants:
        if not who["baseline"]:
            continue
        other = answers(who["name"])
        both = own.keys() & other.keys()
        # A baseline that refuses a part of what the method does has not beaten it.
        if not both or both != own.keys():
            continue
        ahead = column.better * sum(other[key] - own[key] for key in both) / len(both)
        if ahead > 0 and (best is None or ahead > best["by"]):
            best = {"baseline": who["name"], "by": ahead}
    return best


def _novelty(own: Rows, group: str) -> dict[str, Any] | None:
    rows = [r for r in own if r["what"] == "zero-shot" and r["group"] == group and r.get("verdict")]
    if not rows:
        return None
    counts = Counter(str(row["verdict"]) for row in rows)
    return {
        "verdict": counts.most_common(1)[0][0],
        "shares": {name: count / len(rows) for name, count in counts.most_common()},
        "distance": over_seeds(rows, lambda r: mean_of(r, "distance")),
    }


def _speed(own: Rows) -> dict[str, Any]:
    found = {}
    for count in sorted({row["count"] for row in own if row["what"] == "speed" and "refused" not in row}):
        rows = [row for row in own if row["what"] == "speed" and row.get("count") == count]
        names = ("seconds", "cpu_seconds", "peak_mb", "parameters_per_second")
        found[str(count)] = {name: summary([row[name] for row in rows]) for name in names}
    return found


def sentences(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Where a baseline is ahead of a method, one sentence a method and figure."""
    found = []
    for entry in entries:
        for column in COMPARED:
            behind = (entry["figures"][column.name] or {}).get("behind")
            if behind:
                scale = 100 if column.unit == "points" else 1
                by = f"{scale * behind['by']:.1f} {column.unit}"
                found.append(f"{behind['baseline']} beats {entry['name']} on {column.name} by {by}")
    return found


# ------------------------------------------------------------------------------------- Markdown


def leaderboard_json(board: Leaderboard) -> dict[str, Any]:
    """Plain values for a file."""
    entries = leaderboard_table(board)
    return {**asdict(board), "table": entries, "beaten": sentences(entries)}


def leaderboard_markdown(board: Leaderboard, *, command: str, picture: str | None = None) -> str:
    """A page: what was measured, the tables, where baselines are ahead in bold, refusals with their reasons.

    Args:
        board: what was measured.
        command: that measures it.
        picture: a path relative to the page.
    """
    entries, settings = leaderboard_table(board), board.settings
    shown = [entry for entry in entries if not entry["why_not"]]
    trained = {group: [row["trained"] for row in board.trials if row["group"] == group] for group in GROUPS}
    reference = [_percent(summary(trained[g]), sd=False) if trained[g] else "–" for g in GROUPS]
    lines = [
        "# Leaderboard",
        "",
        f"Every registered generator on the zoo `{board.ground}`. `{command}` measures it, keeps every cell "
        "as it is done and goes on where it was stopped.",
        "",
        "Held-out tasks are measured on and nothing else: nothing is chosen on them. Accuracies are means of "
        f"{_many(settings.samples, 'sample')} a request, no best of many, on up to {settings.images:,} test "
        f"images; ± is the standard deviation over {_many(settings.seeds, 'seed')} of the mean over tasks, "
        "in brackets the 95 % interval that so many images leave. "
        f"Each request has {settings.shots} examples a class and an instruction. In **bold**: a baseline is "
        "ahead of a method on the same tasks, the one that is furthest ahead.",
        "",
        *([f"![Zero-shot accuracies, and fine-tuning]({picture})", ""] if picture else []),
        "## Zero-shot accuracy, %",
        "",
        *_rows(
            ["generator", *GROUPS],
            [
                *([_name(e), *(_cell(e, column, _percent) for column in ZERO_SHOT)] for e in shown),
                ["*trained networks*", *reference],
            ],
        ),
        "",
        _trained_text(board),
        "",
        f"Tasks: {_counts(board)}. *Unseen architectures* are asked for on unseen tasks: "
        f"{_list_of(board, GROUPS[2], 'architecture')}. *Unseen datasets*: {_datasets(board)}.",
        "",
    ]
    if any(row["what"] == "fine-tuned" for row in board.rows):
        lines += _tuned(shown, settings.epoch_steps)
    lines += _novelty_lines(shown)
    lines += _speed_lines(board, shown)
    if board.notes:
        lines += ["## Notes", "", *(f"- {note}" for note in board.notes), ""]
    beaten = sentences(entries)
    lines += ["## Where a baseline is ahead", ""]
    lines += [f"- **{text}**" for text in beaten] or ["Nowhere."]
    lines += ["", "## Refusals and absences", ""]
    absent = [e for e in entries if e["why_not"]]
    refusals = [f"- `{e['name']}` refuses: {text}" for e in shown for text in e["refusals"]]
    lines += [*refusals, *(f"- `{e['name']}` is not measured: {e['why_not']}" for e in absent)] or ["None."]
    return "\n".join(lines) + "\n"


def _tuned(shown: Sequence[dict[str, Any]], epoch_steps: int) -> list[str]:
    lines = [
        "## Fine-tuning",
        "",
        f"From the best of the samples on the examples; an epoch is {epoch_steps} steps of 64 images, one "
        f"cycle of {EPOCHS[-1] * epoch_steps:,} steps for everybody. Steps are those of this long cycle; "
        "who never gets there counts as its length.",
        "",
    ]
    for group in (SEEN, UNSEEN):
        columns = [column for column in TUNED if column.group == group]
        heads = [column.name.removeprefix(f"{group}, ") for column in columns]
        rows = [
            [_name(e), *(_cell(e, c, _steps if c.field == "steps" else _percent) for c in columns)]
            for e in shown
        ]
        lines += [f"### {group.capitalize()}", "", *_rows(["generator", *heads], rows), ""]
    return lines


def _novelty_lines(shown: Sequence[dict[str, Any]]) -> list[str]:
    rows = []
    for entry in shown:
        cells = []
        for group in (SEEN, UNSEEN):
            found = entry["novelty"][group]
            if found is None:
                cells += ["–", "–"]
                continue
            cells.append(", ".join(f"{name} {100 * share:.0f} %" for name, share in found["shares"].items()))
            cells.append(f"{found['distance']['mean']:.2f} ± {found['distance']['sd']:.2f}")
        rows.append([_name(entry), *cells])
    heads = ["generator", "seen: verdict", "seen: distance", "unseen: verdict", "unseen: distance"]
    return [
        "## Novelty",
        "",
        "The audit's verdict on the first sample of every request, errors not compared, and the distance "
        "to the nearest training checkpoint after alignment (1: usual between two of them).",
        "",
        *_rows(heads, rows),
        "",
    ]


def _speed_lines(board: Leaderboard, shown: Sequence[dict[str, Any]]) -> list[str]:
    counts = sorted({int(count) for entry in shown for count in entry["speed"]})
    heads, rows = ["generator"], []
    for count in counts:
        networks = "one network" if count == 1 else f"{count} networks"
        heads += [f"{networks}: CPU-seconds", "memory, MB"]
    heads.append(f"parameters a CPU-second, {counts[-1] if counts else 0} at once")
    for entry in shown:
        row = [_name(entry)]
        for count in counts:
            one = entry["speed"].get(str(count))
            row += ["refuses", "–"] if one is None else [
                f"{one['cpu_seconds']['mean']:.3f} ± {one['cpu_seconds']['sd']:.3f}",
                f"{one['peak_mb']['mean']:.0f}",
            ]  # fmt: skip
        last = entry["speed"].get(str(counts[-1])) if counts else None
        row.append("–" if last is None else f"{last['parameters_per_second']['mean']:,.0f}")
        rows.append(row)
    spec = board.trials[0]["architecture"] if board.trials else ""
    return [
        "## Speed",
        "",
        f"Whole requests with examples, batch norms and scoring included, for `{spec}`, after a first "
        "request. Memory is what the process has had at most above what it had before.",
        "",
        *_rows(heads, rows),
        "",
    ]


def _trained_text(board: Leaderboard) -> str:
    known = [g for g in GROUPS if any(r["by_the_zoo"] for r in board.trials if r["group"] == g)]
    others = [g for g in GROUPS if g not in known and any(r["group"] == g for r in board.trials)]
    parts = []
    if known:
        parts.append(f"the zoo's own on {' and '.join(known)}")
    if others:
        steps = board.settings.trained_steps
        parts.append(
            f"on {', '.join(others)} one network each, trained for {steps} steps from random weights"
        )
    return f"*Trained networks*: {'; '.join(parts)}."


def _many(count: int, word: str) -> str:
    """
    Example:
        >>> _many(1, "seed"), _many(3, "seed")
        ('1 seed', '3 seeds')
    """
    return f"{count:,} {word}{'s' * (count != 1)}"


def _counts(board: Leaderboard) -> str:
    counts = Counter(row["group"] for row in board.trials)
    return ", ".join(_many(counts[group], group.removesuffix("s")) for group in GROUPS)


def _list_of(board: Leaderboard, group: str, field: str) -> str:
    found = dict.fromkeys(str(row[field]) for row in board.trials if row["group"] == group)
    return ", ".join(f"`{text}`" for text in found) or "none"


def _datasets(board: Leaderboard) -> str:
    names = dict.fromkeys(
        str(row["task"]).partition("[")[0] for row in board.trials if row["group"] == DATASETS
    )
    return ", ".join(names) or "none on this machine"


def _name(entry: dict[str, Any]) -> str:
    return f"`{entry['name']}`" + (" (baseline)" if entry["baseline"] else "")


def _cell(entry: dict[str, Any], column: Column, text: Callable[..., str]) -> str:
    figure = entry["figures"][column.name]
    if figure is None:
        return "–"
    if "refused" in figure:
        return "refuses"
    shown = text(figure)
    if figure["answered"] < figure["asked"]:
        shown += f" ({figure['answered']} of {figure['asked']})"
    behind = figure.get("behind")
    if behind:
        amount = f"{100 * behind['by']:.1f}" if column.unit == "points" else f"{behind['by']:.0f}"
        shown += f" **{behind['baseline']} ahead by {amount}**"
    return shown


def _percent(figure: dict[str, Any], *, sd: bool = True) -> str:
    text = f"{100 * figure['mean']:.1f}" + (f" ± {100 * figure['sd']:.1f}" if sd else "")
    if (interval := figure.get("interval")) is not None:
        text += f" ({100 * interval[0]:.1f}–{100 * interval[1]:.1f})"
    return text


def _steps(figure: dict[str, Any]) -> str:
    never = f", {figure['never']} never" if figure["never"] else ""
    return f"{figure['mean']:.0f} ± {figure['sd']:.0f}{never}"


def _rows(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    return [line(heads), line(["---"] * len(heads)), *map(line, rows)]
