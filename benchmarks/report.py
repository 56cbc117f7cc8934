"""The results page, the README's picture and its table, from what the benchmarks wrote.

`python benchmarks/report.py` reads benchmarks/results/igpg-*.json and writes docs/results/igpg.md and
docs/assets/igpg.png, and fills the marked places of README.md and docs/index.md. A table whose file is
missing is said to be not measured yet: no number on these pages has another source than a file.
"""

from __future__ import annotations

import argparse
import io
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightloom.errors import WeightloomError
from weightloom.io import read_json, write_bytes, write_text

ROOT = Path(__file__).parents[1]
NOT_YET = "not measured yet"
RUN = "python benchmarks/igpg.py {table} --zoo runs/zoo-tiny --generator igpg-tiny --seeds 3"
TABLES = ("round-trip", "seen", "unseen", "protocol", "steps", "conditions", "speed")

NAMES = {
    "random_init": "random initialisation",
    "nearest": "nearest checkpoint",
    "average": "average checkpoint",
    "kernel_density": "kernel density",
    "closed_form": "closed form",
    "igpg": "IGPG",
    "igpg_mean": "IGPG",
    "igpg_best_on_support": "IGPG, best on the examples",
    "trained": "trained",
}
COLOURS = {
    "random_init": "#b0413e",
    "nearest": "#3d5a99",
    "average": "#8d7bb5",
    "kernel_density": "#5ba3b8",
    "closed_form": "#c98a1b",
    "igpg": "#0b6e4f",
    "igpg_mean": "#0b6e4f",
    "trained": "#777777",
}
SPLITS = {
    "held-out-subset": "class subsets",
    "held-out-order": "class orders",
    "held-out-transform": "transforms",
}

Results = Mapping[str, Mapping[str, Any]]
Row = Sequence[str]
Facts = Mapping[str, Any]


# ------------------------------------------------------------------------------------ small things


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Every ``igpg-TABLE.json`` of ``folder`` by its table's name."""
    return {file.stem.removeprefix("igpg-"): read_json(file) for file in sorted(folder.glob("igpg-*.json"))}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation and number, as the benchmarks write them."""
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "sd": sd, "n": len(values)}


def per_seed(rows: Iterable[Facts], value: Callable[[list[Facts]], float]) -> list[float]:
    """``value`` of the rows of every seed."""
    by_seed: dict[int, list[Facts]] = {}
    for row in rows:
        by_seed.setdefault(row["seed"], []).append(row)
    return [value(by_seed[seed]) for seed in sorted(by_seed)]


def pm(found: Mapping[str, float], digits: int = 3, factor: float = 1.0) -> str:
    """``mean ± sd``; the mean alone where there was one value.

    Example:
        >>> pm({"mean": 0.9, "sd": 0.01, "n": 3}, 1, 100)
        '90.0 ± 1.0'
    """
    mean = f"{found['mean'] * factor:,.{digits}f}"
    return f"{mean} ± {found['sd'] * factor:,.{digits}f}" if found.get("n", 1) > 1 else mean


def percent(found: Mapping[str, float]) -> str:
    """An accuracy in per cent."""
    return pm(found, 1, 100)


def architecture_name(label: str) -> str:
    """An architecture as people tell it; a label that is no architecture stays as it is."""
    from weightloom.cli.inputs import short_text

    try:
        return f"`{short_text(label)}`"
    except WeightloomError:
        return label


def markdown(header: Row, rows: Iterable[Row], numbers: int = 1) -> str:
    """A table; columns from the one numbered ``numbers`` on are right-aligned."""
    marks = ["---" if i < numbers else "---:" for i in range(len(header))]
    lines = [header, marks, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# ------------------------------------------------------------------------------------ the summary


@dataclass(frozen=True)
class Figure:
    """One row of the summary: what was measured, the bar, the result and whether it holds (None: unknown)."""

    table: str
    what: str
    bar: str
    result: str = NOT_YET
    holds: bool | None = None
    remark: str = ""

    @property
    def verdict(self) -> str:
        """In a word."""
        return {True: "holds", False: "**falls short**", None: "–"}[self.holds]


def summary(results: Results) -> list[Figure]:
    """The rows of the bar table, in its order."""
    return [
        figure
        for make in (_round_trip, _seen, _unseen, _protocol, _steps, _conditions, _speed)
        for figure in make(results)
    ]


def _round_trip(results: Results) -> list[Figure]:
    what = "tokenizer round trip of held-out checkpoints: accuracy ÷ original"
    bar = "≥ 0.99 at ≤ 2 bits a weight"
    held = results.get("round-trip")
    if held is None:
        return [Figure("round-trip", what, bar)]
    found = held["table"]["all"]
    ratio, bits = found["ratio"], found["bits_per_weight"]
    worst = min((v["ratio"], k) for k, v in held["table"].items())
    remark = f"lowest: {worst[0]:.3f}, {architecture_name(worst[1])}" if worst[1] != "all" else ""
    result = f"{ratio:.3f} at {bits:.2f} bits ({found['checkpoints']} checkpoints)"
    return [Figure("round-trip", what, bar, result, ratio >= 0.99 and bits <= 2, remark)]


def _ratio(rows: list[Facts]) -> float:
    return statistics.fmean(r["igpg_mean"] for r in rows) / statistics.fmean(r["trained"] for r in rows)


def _above(method: str) -> Callable[[list[Facts]], float]:
    return lambda rows: statistics.fmean(r["igpg_mean"] - r[method] for r in rows)


def _seen(results: Results) -> list[Figure]:
    what = "seen tasks and architectures: mean zero-shot accuracy ÷ mean of the zoo"
    held = results.get("seen")
    if held is None:
        return [Figure("seen", what, "≥ 0.98")]
    ratio = spread(per_seed(held["rows"], _ratio))
    return [Figure("seen", what, "≥ 0.98", pm(ratio), ratio["mean"] >= 0.98)]


def _unseen(results: Results) -> list[Figure]:
    ratio_what = "unseen tasks: mean zero-shot accuracy ÷ trained"
    nearest_what = "unseen tasks: mean zero-shot accuracy above the nearest checkpoint's"
    held = results.get("unseen")
    if held is None:
        return [Figure("unseen", ratio_what, "≥ 0.80"), Figure("unseen", nearest_what, "≥ 10 points")]
    ratio = spread(per_seed(held["rows"], _ratio))
    above = spread(per_seed(held["rows"], _above("nearest")))
    guess = spread(per_seed(held["rows"], _above("closed_form")))
    remark = f"above the closed form that it starts from: {percent(guess)} points"
    return [
        Figure("unseen", ratio_what, "≥ 0.80", pm(ratio), ratio["mean"] >= 0.8),
        Figure(
            "unseen", nearest_what, "≥ 10 points", f"{percent(above)} points", above["mean"] >= 0.1, remark
        ),
    ]


def _protocol(results: Results) -> list[Figure]:
    what = "fine-tuning protocol: place of IGPG at epoch {}, mean over datasets"
    held = results.get("protocol")
    found = []
    for epoch in ("0", "1"):
        text = what.format(epoch)
        if held is None:
            found.append(Figure("protocol", text, "first"))
            continue
        means = {method: scores["mean"] for method, scores in held["table"][epoch].items()}
        order = sorted(means, key=lambda method: -means[method]["mean"])
        place = order.index("igpg") + 1
        rival = next(method for method in order if method != "igpg")
        result = f"{place} of {len(order)}: {percent(means['igpg'])} %"
        remark = f"{'next' if place == 1 else 'first'}: {NAMES.get(rival, rival)}, {percent(means[rival])} %"
        found.append(Figure("protocol", text, "first", result, place == 1, remark))
    return found


def _steps(results: Results) -> list[Figure]:
    held = results.get("steps")
    found = []
    for name, bar in (("seen", 0.25), ("unseen", 0.5)):
        what = f"{name} tasks: steps to the trained network's accuracy, from generated ÷ from random"
        if held is None:
            found.append(Figure("steps", what, f"≤ {bar}"))
            continue
        part = held["table"][name]
        limit = part["limit"]

        def ratio(rows: list[Facts], limit: float = limit) -> float:
            made, fresh = (
                sum(limit if row[start] is None else row[start] for row in rows)
                for start in ("generated", "random")
            )
            return made / max(fresh, 1)

        value = spread(per_seed(part["rows"], ratio))
        count = len(part["rows"])
        remark = (
            f"not reached within {limit:,} steps, counted as {limit:,}: generated "
            f"{part['generated_never']} of {count}, random {part['random_never']} of {count}"
        )
        found.append(Figure("steps", what, f"≤ {bar}", pm(value), value["mean"] <= bar, remark))
    return found


def _conditions(results: Results) -> list[Figure]:
    what = "unseen tasks: accuracy ÷ trained without the dataset condition"
    bar = "below that with it"
    held = results.get("conditions")
    if held is None:
        return [Figure("conditions", what, bar)]
    part = held["table"]["unseen"]
    full, without = part["full"], part["no dataset"]
    result = f"{without['mean']:.3f}, with it {full['mean']:.3f}"
    return [Figure("conditions", what, bar, result, without["mean"] < full["mean"])]


def _speed(results: Results) -> list[Figure]:
    what = "generation speed at batch 64, parameters a CPU-second"
    cache_what = "key-value cache at 512 tokens, times the uncached loop"
    held = results.get("speed")
    if held is None:
        return [Figure("speed", what, "≥ 100,000"), Figure("speed", cache_what, "≥ 5")]
    rates = {k: v["together"] for k, v in held["table"].items() if k.endswith(" batch 64")}
    slowest = min(rates, key=lambda k: rates[k]["mean"])
    fastest = max(rates, key=lambda k: rates[k]["mean"])
    name, other = (architecture_name(k.removesuffix(" batch 64")) for k in (slowest, fastest))
    remark = f"slowest: {name}; fastest: {other}, {pm(rates[fastest], 0)}" if len(rates) > 1 else name
    cache = held["cache_speed_up_at_512"]
    enough = rates[slowest]["mean"] >= 100_000
    return [
        Figure("speed", what, "≥ 100,000", pm(rates[slowest], 0), enough, remark),
        Figure("speed", cache_what, "≥ 5", pm(cache, 1), cache["mean"] >= 5),
    ]


# ------------------------------------------------------------------------------------ the page


def page(results: Results) -> str:
    """The whole results page."""
    figures = summary(results)
    parts = [
        "# Results of IGPG",
        "<!-- Written by benchmarks/report.py from benchmarks/results/igpg-*.json. Do not edit by hand. -->",
        "Every number on this page comes from a file that the command beside it wrote. ± is the standard "
        "deviation over seeds; a seed decides the examples that are shown, the wording of the instruction "
        "and what is drawn. Test images are never used to choose. How the method works: "
        "[IGPG](../generators/igpg.md).",
        "## Against the bars",
        markdown(
            ("what was measured", "bar", "result", "", "remark"),
            [(f.what, f.bar, f.result, f.verdict, f.remark) for f in figures],
            numbers=5,
        ),
        "### The commands",
        markdown(
            ("table", "command", "seconds", "machine", "torch"),
            [(f"[{name}](#{_slug(name)})", *_provenance(name, results)) for name in _names(results)],
            numbers=2,
        ),
        "They need the zoo (`weightloom zoo build zoo-tiny --out runs/zoo-tiny`) and its datasets "
        "(`weightloom data fetch NAME`). `python benchmarks/report.py` then writes this page again.",
        "### What falls short",
        falls_short(figures),
    ]
    for name in _names(results):
        _, make = SECTIONS.get(name, ("", zero_shot_section))
        parts.append(f"## {_title(name)}")
        parts.append(make(results[name]) if name in results else f"{NOT_YET.capitalize()}.")
    return "\n\n".join(parts) + "\n"


def _names(results: Results) -> list[str]:
    return [*TABLES, *(name for name in results if name not in TABLES)]


def _title(name: str) -> str:
    return SECTIONS[name][0] if name in SECTIONS else f"Another table: {name}"


def _slug(name: str) -> str:
    """The place of a table's section on the page."""
    return "".join(c for c in _title(name).lower() if c.isalnum() or c in " -").replace(" ", "-")


def _provenance(name: str, results: Results) -> Row:
    held = results.get(name)
    if held is None:
        return (f"`{RUN.format(table=name)}`", NOT_YET, "–", "–")
    return (f"`{held['command']}`", f"{held['seconds']:,.0f}", held["machine"], held["torch"])


def falls_short(figures: Sequence[Figure]) -> str:
    """One line for each bar that is missed."""
    lines = [f"- {f.what}: {f.result}; the bar is {f.bar}." for f in figures if f.holds is False]
    missing = sum(f.holds is None for f in figures)
    if missing:
        lines.append(f"- {missing} of {len(figures)} figures are {NOT_YET}.")
    return "\n".join(lines) if lines else "Every bar above holds."


def zero_shot_section(held: Mapping[str, Any]) -> str:
    """Accuracy of every method by architecture, dataset, class count and split."""
    rows = held.get("rows", [])
    methods = ("trained", "igpg_mean", "igpg_best_on_support", "closed_form", "nearest", "random_init")
    header = ("", *(NAMES[m] for m in methods), "IGPG ÷ trained", "above nearest", "above closed form")
    groups: dict[str, list[tuple[str, str, Mapping[str, Any]]]] = {}
    for name, entry in held["table"].items():
        kind, _, value = name.partition("=")
        groups.setdefault(kind, []).append((name, value, entry))
    titles = {
        "all": "",
        "split": "By what is new about the task",
        "architecture": "By architecture",
        "dataset": "By dataset",
        "classes": "By number of classes",
    }
    parts = [
        f"{len({(r['architecture'], r['task']) for r in rows})} pairs of a task and an architecture. "
        "Accuracy on up to 1,000 test images, in per cent; IGPG is the mean of its samples, *best on the "
        "examples* the sample with the lowest loss on the support set; *trained* the mean of the zoo's own "
        "networks of the task, on the same images."
    ]
    for kind, title in titles.items():
        if kind not in groups:
            continue
        members = groups[kind]
        members.sort(key=lambda m: (int(m[1]), "") if m[1].isdigit() else (0, m[1]))
        lines = []
        for _, value, entry in members:
            name = value or "all"
            if kind == "architecture":
                name = architecture_name(value)
            elif kind == "split":
                name = SPLITS.get(value, value)
            own = [r for r in rows if not value or str(r.get(kind)) == value]
            tail = [
                f"{100 * (entry['igpg_mean']['mean'] - entry[m]['mean']):+.1f}"
                for m in ("nearest", "closed_form")
            ]
            ratio = pm(spread(per_seed(own, _ratio))) if own else f"{entry['ratio_mean']:.3f}"
            lines.append((name, *(percent(entry[m]) for m in methods), ratio, *tail))
        if title:
            parts.append(f"### {title}")
        parts.append(markdown(header, lines))
    far = [r["distance"] / r["zoo_spacing"] for r in rows if r.get("distance") and r.get("zoo_spacing")]
    if far:
        parts.append(
            "Novelty: the distance of a sample to the nearest training checkpoint is "
            f"{statistics.median(far):.2f} times the zoo's own spacing in the median (from {min(far):.2f} to "
            f"{max(far):.2f}); 1 is as far as the zoo's networks are from their own nearest, near 0 would be "
            "a copy."
        )
    return "\n\n".join(parts)


def protocol_section(held: Mapping[str, Any]) -> str:
    """Accuracy after every number of epochs: mean, then by dataset."""
    table = held["table"]
    epochs = sorted(table, key=int)
    methods = list(table[epochs[0]])
    datasets = [name for name in table[epochs[0]][methods[0]] if name != "mean"]
    steps = held.get("epoch_steps")
    parts = [
        f"{architecture_name(held['architecture'])} on the canonical tasks of {len(datasets)} datasets, "
        f"fine-tuned from every start with the same settings; one epoch is {steps} steps of 64 images. Every "
        "method but random initialisation sees the same 16 examples a class, none a test image; IGPG and "
        "kernel density take the best of 8 samples on the examples. Accuracy on all test images, in per "
        "cent; the best of each column is bold."
    ]
    for place in ("mean", *datasets):
        best = {e: max(methods, key=lambda m, e=e: table[e][m][place]["mean"]) for e in epochs}
        lines = []
        for method in methods:
            shown = [percent(table[e][method][place]) for e in epochs]
            bold = [f"**{x}**" if best[e] == method else x for e, x in zip(epochs, shown, strict=True)]
            lines.append((NAMES.get(method, method), *bold))
        parts.append(f"### {'Mean over datasets' if place == 'mean' else place}")
        parts.append(markdown(("start", *(f"epoch {e}" for e in epochs)), lines))
    return "\n\n".join(parts)


def round_trip_section(held: Mapping[str, Any]) -> str:
    """Accuracy before and after coding by architecture, and the health of the codebook."""
    lines = [
        (
            "all" if name == "all" else architecture_name(name),
            str(entry["checkpoints"]),
            f"{100 * entry['original']:.1f}",
            f"{entry['ratio']:.4f}",
            f"{entry['ratio_norms_as_coded']:.4f}",
            f"{entry['bits_per_weight']:.2f}",
        )
        for name, entry in held["table"].items()
    ]
    header = (
        "architecture",
        "checkpoints",
        "original, %",
        "rebuilt ÷ original",
        "batch norms as decoded",
        "bits a weight",
    )
    codes = held["codebook"]
    return "\n\n".join(
        [
            "Final checkpoints of held-out tasks, encoded and decoded once; nothing is drawn, so there is no "
            "deviation over seeds. *Rebuilt* has batch-norm statistics measured anew on 16 unlabelled images "
            "a class, as generated networks do. Bits are those of the codes; for *all* the largest is shown. "
            "The decoder, the bases and the statistics of the weights are not counted: all networks share "
            "them.",
            markdown(header, lines),
            f"Codebook, over the zoo's training checkpoints: {100 * codes['used']:.1f} % of the codes are "
            f"used, perplexity {codes['perplexity']:.2f} in the mean over code positions, "
            f"{codes['dead_codes']:,.0f} of {codes['codes']:,.0f} codes never occur.",
        ]
    )


def conditions_section(held: Mapping[str, Any]) -> str:
    """Accuracy over trained with parts of the condition missing or wrong."""
    table = held["table"]
    places = list(table)
    lines = [(variant, *(pm(table[place][variant]) for place in places)) for variant in table[places[0]]]
    counts = ", ".join(f"{table[p]['full']['n']:.0f} on {p} tasks" for p in places)
    return "\n\n".join(
        [
            "Accuracy of one sample ÷ trained. Here ± is over tasks and seeds together "
            f"({counts}). Batch-norm statistics are measured on the right images in every row: only the "
            "codes differ. *Wrong* parts are those of another task with the same architecture and class "
            "count. *No dataset* also takes away the first guess, which is made from the examples.",
            markdown(("condition", *(f"{place} tasks" for place in places)), lines),
        ]
    )


def steps_section(held: Mapping[str, Any]) -> str:
    """Steps to the trained network's accuracy."""
    lines = []
    for name, part in held["table"].items():
        count = len(part["rows"])
        lines.append(
            (
                f"{name} tasks",
                str(count),
                pm(part["generated_steps"], 0),
                pm(part["random_steps"], 0),
                f"{part['ratio_of_means']:.3f}",
                f"{part['median_ratio']:.3f}",
                f"{part['generated_never']} / {part['random_never']}",
            )
        )
    limits = sorted({part["limit"] for part in held["table"].values()})
    settings = held.get("settings", {})
    header = (
        "",
        "runs",
        "steps, generated",
        "steps, random",
        "ratio of means",
        "median ratio",
        "never (generated / random)",
    )
    return "\n\n".join(
        [
            "AdamW, 64 images a step. Each start has settings of its own, chosen on training tasks: "
            f"generated {settings.get('generated', 'not said')}; "
            f"random {settings.get('random', 'not said')}. The target is the mean accuracy of the zoo's own "
            "networks of the task, and both are measured on the same images. The longest run is "
            f"{' or '.join(f'{limit:,}' for limit in limits)} steps; a start that does not arrive counts as "
            "that many, which flatters whichever arrives less often. ± is over runs.",
            markdown(header, lines),
        ]
    )


def speed_section(held: Mapping[str, Any]) -> str:
    """Parameters a CPU-second, prior and decoder apart."""
    lines = []
    for name, entry in held["table"].items():
        label, _, batch = name.rpartition(" batch ")
        parts = ("prior", "decoder", "together", "request")
        rates = [pm(entry[part], 0) if part in entry else "" for part in parts]
        lines.append((architecture_name(label), batch, *rates))
    return "\n\n".join(
        [
            f"Values (batch-norm statistics included) for each second of processor time, {held['threads']} "
            "thread(s). *Request* is all of it for an unseen task of ten classes with 16 examples each: the "
            "first guess, the closed-form heads, batch norms measured anew and the scores on examples too.",
            markdown(("architecture", "batch", "prior", "decoder", "together", "request"), lines),
            f"The key-value cache at 512 tokens: {pm(held['cache_speed_up_at_512'], 1)} times as fast as "
            "running the whole sequence anew at each token.",
        ]
    )


SECTIONS: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "round-trip": ("Tokenizer round trip", round_trip_section),
    "seen": ("Seen tasks", zero_shot_section),
    "unseen": ("Unseen tasks", zero_shot_section),
    "protocol": ("Fine-tuning protocol", protocol_section),
    "steps": ("Steps to the trained accuracy", steps_section),
    "conditions": ("Conditions removed and swapped", conditions_section),
    "speed": ("Speed", speed_section),
}


# ------------------------------------------------------------------------------------ the picture


def picture(results: Results) -> bytes | None:
    """The README's picture as PNG, or None while neither half has been measured."""
    unseen, protocol = results.get("unseen"), results.get("protocol")
    if unseen is None and protocol is None:
        return None
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(11, 4.2), layout="constrained")
    left, right = canvas.subplots(1, 2)
    for axes, held in ((left, unseen), (right, protocol)):
        axes.set_ylabel("test accuracy, %")
        axes.set_ylim(0, 102)
        axes.grid(axis="y", alpha=0.25)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        if held is None:
            axes.text(0.5, 0.5, NOT_YET, ha="center", transform=axes.transAxes)
    left.set_title("Unseen tasks, no gradient step", fontsize=11)
    if unseen is not None:
        methods = ("random_init", "nearest", "closed_form", "igpg_mean", "trained")
        found = [unseen["table"]["all"][method] for method in methods]
        bars = left.bar(
            range(len(methods)),
            [100 * entry["mean"] for entry in found],
            yerr=[100 * entry["sd"] for entry in found],
            color=[COLOURS[method] for method in methods],
            width=0.65,
            capsize=3,
        )
        left.bar_label(bars, fmt="%.1f", padding=3, fontsize=9)
        labels = ("random\ninitialisation", "nearest\ncheckpoint", "closed\nform", "IGPG", "trained")
        left.set_xticks(range(len(methods)), labels, fontsize=9)
    right.set_title("Fine-tuning, mean over datasets", fontsize=11)
    if protocol is not None:
        table = protocol["table"]
        epochs = sorted(table, key=int)
        for method in table[epochs[0]]:
            own = method == "igpg"
            right.errorbar(
                range(len(epochs)),
                [100 * table[e][method]["mean"]["mean"] for e in epochs],
                yerr=[100 * table[e][method]["mean"]["sd"] for e in epochs],
                marker="o",
                markersize=4,
                linewidth=2.4 if own else 1.4,
                zorder=3 if own else 2,
                capsize=2,
                color=COLOURS.get(method, "#444444"),
                label=NAMES.get(method, method),
            )
        right.set_xticks(range(len(epochs)), epochs)
        right.set_xlabel(f"epochs of {protocol['epoch_steps']} steps")
        right.legend(frameon=False, fontsize=9, loc="lower right")
    drawn = io.BytesIO()
    # No date and no version inside: the same numbers give the same bytes.
    canvas.savefig(drawn, format="png", dpi=130, metadata={"Software": None})
    return drawn.getvalue()


# ------------------------------------------------------------------------------------ marked places


def fill(text: str, mark: str, content: str) -> str:
    r"""``text`` with ``content`` between its two marks; unchanged where it has none.

    Example:
        >>> fill("a <!-- x:start -->old<!-- x:end --> b", "x", "new")
        'a <!-- x:start -->\nnew\n<!-- x:end --> b'
    """
    start, end = f"<!-- {mark}:start -->", f"<!-- {mark}:end -->"
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        return text
    return f"{before}{start}\n{content}\n{end}{after}"


def short_table(results: Results, link: str) -> str:
    """The summary as the README shows it."""
    rows = [(f"[{f.what}]({link}#{_slug(f.table)})", f.bar, f.result, f.verdict) for f in summary(results)]
    return markdown(("figure", "bar", "result", ""), rows, numbers=4)


def write_all(results: Results, root: Path) -> None:
    """Write the page and the picture below ``root`` and fill the marked places."""
    write_text(root / "docs" / "results" / "igpg.md", page(results))
    drawn = picture(results)
    if drawn is not None:
        write_bytes(root / "docs" / "assets" / "igpg.png", drawn)
    for file, folder in ((root / "README.md", "docs/"), (root / "docs" / "index.md", "")):
        if not file.is_file():
            continue
        text = file.read_text("utf-8")
        image = (
            f"![Accuracy on unseen tasks by method, and fine-tuning curves]({folder}assets/igpg.png)"
            if drawn is not None
            else f"*No picture: its tables are {NOT_YET}.*"
        )
        filled = fill(text, "picture", image)
        filled = fill(filled, "results", short_table(results, f"{folder}results/igpg.md"))
        if filled != text:
            write_text(file, filled)


def main() -> None:
    """Write everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository to write into")
    options = parser.parse_args()
    results = read_results(options.results)
    write_all(results, options.root)
    for figure in summary(results):
        print(f"{figure.what}: {figure.result} (bar {figure.bar}; {figure.verdict.strip('*')})")


if __name__ == "__main__":
    main()
