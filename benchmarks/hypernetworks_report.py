"""The results page of the hypernetworks, from what the benchmarks wrote.

`python benchmarks/hypernetworks_report.py` reads benchmarks/results/hypernetworks-*.json and writes
docs/results/hypernetworks.md. A table whose file is missing is said to be not measured yet.
"""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from weightloom.io import read_json, write_text

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results" / "hypernetworks.md"
ORDER = (
    *(
        "plain",
        "separable, embeddings twice as fast",
        "separable, blocks of 64",
        "separable",
        "blocks",
        "small blocks",
        "coordinates",
    ),
    *("LSTM", "HyperLSTM", "LayerNorm LSTM", "LayerNorm HyperLSTM"),
    *("torch LSTM", "HyperLSTM, layer norm", "step by step"),
    *("static_hypernetwork", "layerwise-tiny", "closed form", "nearest checkpoint"),
)
"""Rows of the tables."""


def collect(name: str, value: str) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Settings, and the rows of each variant over its seeds."""
    held = read_json(RESULTS / f"hypernetworks-{name}.json")
    found: dict[str, list[dict[str, Any]]] = {}
    for key, row in held["rows"].items():
        assert value in row
        found.setdefault(key.rpartition(", seed ")[0], []).append(row)
    order = sorted(
        found, key=lambda key: next((n for n, start in enumerate(ORDER) if key.startswith(start)), 99)
    )
    return held["settings"], {key: found[key] for key in order}


def spread(rows: list[dict[str, Any]], value: str, form: Callable[[float], str]) -> str:
    """Mean ± standard deviation of ``value``."""
    values = [row[value] for row in rows]
    mean = form(statistics.fmean(values))
    return f"{mean} ± {form(statistics.stdev(values))}" if len(values) > 1 else mean


def paragraph(words: str) -> list[str]:
    """Lines of a paragraph, and the empty one after it."""
    return [*textwrap.wrap(words, 110, break_long_words=False, break_on_hyphens=False), ""]


def page() -> str:
    """The page's text."""
    lines = [
        "# Results of hypernetworks",
        "",
        *paragraph(
            "Written by `python benchmarks/hypernetworks_report.py` from "
            "`benchmarks/results/hypernetworks-*.json`. "
            "Sizes are small, for two CPU cores: read them as first figures, not as a repetition "
            "of the paper's. "
            "± is the standard deviation over the seeds."
        ),
    ]
    script = "hypernetworks.py"
    parts: list[tuple[str, str, str, Callable[[], list[str]]]] = [
        ("cifar10-10", "Static hypernetworks on CIFAR-10", "hyper_images.py cifar10", _cifar_table),
        (
            "cifar10-10-0.01",
            "Both at twice the rate",
            "hyper_images.py cifar10 --rate 0.01 --only 'plain;separable'",
            _faster_table,
        ),
        (
            *("cifar10-5", "The same, half as long"),
            "hyper_images.py cifar10 --epochs 5 --only 'plain;separable'",
            _short_table,
        ),
        ("mnist-5", "Static hypernetworks on MNIST", "hyper_images.py mnist --epochs 5", _mnist_table),
        ("text", "Dynamic hypernetworks on text", f"{script} text", _text_table),
        ("strokes", "Dynamic hypernetworks on handwriting", "strokes.py", _strokes_table),
        ("speed", "Speed of HyperLSTM", f"{script} speed", _speed_table),
        (
            *("tasks", "Networks for held-out tasks"),
            f"{script} tasks --generator runs/static-tiny",
            _tasks_table,
        ),
    ]
    for name, title, command, make in parts:
        lines += [f"## {title}", "", f"`python benchmarks/{command}`", ""]
        there = (RESULTS / f"hypernetworks-{name}.json").exists()
        lines += [*(make() if there else ["not measured yet"]), ""]
    return "\n".join(lines).rstrip() + "\n"


def _images_table(name: str, words: Callable[[dict[str, Any]], str], bar: bool = False) -> list[str]:
    settings, found = collect(name, "error")
    where = "bfloat16 in the forward pass" if settings["bfloat16"] else "float32"
    lines = [
        *paragraph(
            f"Adam for {settings['epochs']} epochs in batches of {settings['batch']}, pictures shifted, "
            f"{where}; the rate rises to {settings['rate']} and falls, and thirty times that "
            f"for embeddings. {words(settings)} Error on all test images."
        ),
        "| network | parameters | of the plain one | error | seeds | CPU seconds a run |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for key, rows in found.items():
        error = spread(rows, "error", lambda v: f"{100 * v:.2f}")
        share = f"{100 * rows[0]['parameters'] / found['plain'][0]['parameters']:.1f} %"
        seconds = statistics.fmean(row["cpu_seconds"] for row in rows)
        lines.append(
            f"| {key} | {rows[0]['parameters']:,} | {share} | {error} % | {len(rows)} | {seconds:.0f} |"
        )
    faster = "separable, embeddings twice as fast"
    best = next((key for key in (faster, "separable") if key in found), None)
    if best is not None:
        mean = {key: statistics.fmean(row["error"] for row in found[key]) for key in ("plain", best)}
        gap = 100 * (mean[best] - mean["plain"])
        verdict = "holds" if gap <= 1.3 else "**falls short**"
        said = f" The bar, at most 1.3 with at most 20 % of the parameters, {verdict}." if bar else ""
        lines += [
            "",
            *paragraph(f"*{best[0].upper()}{best[1:]}* less *plain*: {gap:+.2f} points.{said}"),
        ]
    return lines


def _mnist_table() -> list[str]:
    return _images_table(
        "mnist-5",
        lambda _: (
            "The paper's small network, whose second kernel of 12,544 weights is generated from 4,244 "
            "values, or says each weight from its coordinates."
        ),
    )


def _faster_table() -> list[str]:
    return _images_table(
        "cifar10-10-0.01",
        lambda _: (
            "Network and images as above. Of 0.0025, 0.005, 0.01 and 0.02 this rate is the plain network's "
            "best on 10,000 training images held back, and as good as any that was tried for the separable "
            "one (docs/experiments.md): so this is the comparison that counts."
        ),
        bar=True,
    )


def _short_table() -> list[str]:
    return _images_table("cifar10-5", lambda _: "Network and images as above.")


def _cifar_table() -> list[str]:
    return _images_table(
        "cifar10-10",
        lambda s: (
            f"Images of {s['pixels']} x {s['pixels']} pixels, mirrored half of the time; "
            f"`{s['network']}`, a residual network four times as wide as the paper's narrowest (WRN 8-4). "
            "As in the paper, the first kernel and the shortcuts stay plain. *Separable*: a pattern for "
            'every output and 32 inputs, times a number for each input (`kind="separable"`), or for 64; the '
            "second kernel stays plain too; *twice as fast*: embeddings at sixty times the rate, which of "
            "sixteen to a hundred and twenty times did best on 10,000 training images held back, after as "
            "many epochs (docs/experiments.md). *Small blocks*: the paper's linear generator with blocks of "
            "4 x 4 channels from embeddings of 15, and the first stage plain too. The paper's WRN 40-1, for "
            "a GPU, is in the script's help."
        ),
    )


def _text_table() -> list[str]:
    settings, found = collect("text", "bits")
    rates = [f"{rate:g}" for rate in settings["rates"]]
    lines = [
        *paragraph(
            f"{settings['corpus'].rpartition('@')[0]} (10.8 million characters, one address in ten for "
            f"validation, one held out), at most {settings['budget']:,} parameters each, "
            f"{settings['steps']:,} steps of 32 pieces of {settings['length']} characters "
            f"({settings['steps'] * 32 * settings['length'] / 1e6:.1f} million in all), the same for all. "
            f"*rate* is Adam's learning rate at the start of a cosine: the one of {', '.join(rates)} that "
            "does best on the validation text, by the first seed; what makes scalings learns at a tenth "
            "of it (`parameter_groups`). Bits a character on 192,000 held-out "
            "characters. So short a training favours what learns fast at the start. Nearer to the "
            "paper's size, for a GPU: `--budget 4900000 --length 100 --batch 128 --steps 20000`."
        ),
        "| core | units | parameters | rate | bits a character | seeds | CPU seconds a run |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    best: dict[str, str] = {}
    for key, rows in found.items():
        core = key.rpartition(", rate ")[0]
        if core not in best or rows[0]["validation"] < found[best[core]][0]["validation"]:
            best[core] = key
    for core, key in best.items():
        rows, rate = found[key], float(key.rpartition(" ")[2])
        seconds = statistics.fmean(row["cpu_seconds"] for row in rows)
        lines.append(
            f"| {core} | {rows[0]['hidden']} | {rows[0]['parameters']:,} | {rate:g} | "
            f"{spread(rows, 'bits', lambda v: f'{v:.3f}')} | {len(rows)} | {seconds:.0f} |"
        )
    return lines


def _strokes_table() -> list[str]:
    settings, found = collect("strokes", "validation")
    tuning = found.pop("", [])
    if not found:
        return ["not measured yet"]
    drawings, rates = settings["drawings"], [f"{rate:g}" for rate in settings["rates"]]
    lines = [
        *paragraph(
            "The paper's handwriting experiment on other strokes: Chinese characters of "
            "[KanjiVG](https://kanjivg.tagaini.net) (© Ulrich Apel, "
            "[CC BY-SA 3.0](https://creativecommons.org/licenses/by-sa/3.0/)), drawn as curves, stroke by "
            "stroke in the order of writing (not recorded from a pen), here polygons within one unit of a "
            "square of 109. A step is an offset and what the pen does next. "
            f"{drawings['train']:,} characters to learn from, {drawings['validation']:,} for validation, "
            f"{drawings['held-out']:,} held out ({settings['data_steps']['held-out']:,} steps); the output "
            f"is a mixture of {settings['normals']} correlated normals and three states of the pen. "
            "Held-out characters share parts with those to learn from, some to the last digit; so that no "
            "density grows without bound, a normal's "
            f"standard deviation is at least {settings['floor']}."
        ),
        *paragraph(
            f"At most {settings['budget']:,} parameters each, {settings['steps']:,} steps of Adam over "
            f"{settings['batch']} characters, a cosine, axes stretched by up to a tenth; the same steps for "
            "all, not the same time. "
            f"The rate is the one of {', '.join(rates[:-1])} and {rates[-1]} that did best on the validation "
            f"characters ({len(tuning)} runs of another seed). Figures are negative log-likelihoods in nats "
            "a step, the lower the better, of offsets divided by their root mean square, "
            f"{settings['spread']:.1f} units; a density may be above 1, so they may be below 0."
        ),
        "| core | units | parameters | rate | validation | held out | seeds | CPU seconds a run |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, rows in found.items():
        seconds = statistics.fmean(row["cpu_seconds"] for row in rows)
        figures = (spread(rows, value, lambda v: f"{v:.3f}") for value in ("validation", "held_out"))
        lines.append(
            f"| {name} | {rows[0]['hidden']} | {rows[0]['parameters']:,} | {rows[0]['rate']:g} | "
            f"{' | '.join(figures)} | {len(rows)} | {seconds:.0f} |"
        )
    best = min(found, key=lambda name: statistics.fmean(row["held_out"] for row in found[name]))
    others = [ahead(found, best, name) for name in found if name != best]
    lines += ["", *paragraph(f"{best} does best: {'; '.join(others)}.")]
    if best != "HyperLSTM":
        lines += paragraph(f"Without layer norm, HyperLSTM is {ahead(found, 'HyperLSTM', 'LSTM')}.")
    return [
        *lines,
        *paragraph(
            "The paper has, on English handwriting and with about 4 million parameters, validation "
            "log-losses a piece of -1,055 nats for LSTM, -1,096 with layer norm, -1,162 for HyperLSTM and "
            "-1,067 with layer norm, which takes most of its lead away."
        ),
        *paragraph(
            "Below, what two of them write when they begin from nothing; the temperature divides logits and "
            "multiplies variances. What leaves the square is shown smaller. The real characters are "
            "KanjiVG's, and the picture is under its licence."
        ),
        "![Held-out characters, and characters written by LSTM and by HyperLSTM](../assets/strokes.png)",
    ]


def ahead(found: dict[str, list[dict[str, Any]]], first: str, second: str) -> str:
    """By how much ``first`` is better than ``second``, and against how wide a spread."""
    values = [[row["held_out"] for row in found[name]] for name in (first, second)]
    gap = statistics.fmean(values[1]) - statistics.fmean(values[0])
    words = f"{abs(gap):.3f} nats a step {'ahead of' if gap > 0 else 'behind'} {second}"
    if min(map(len, values)) < 2:
        return words
    wider = max(map(statistics.stdev, values))
    return f"{words} ({abs(gap) / wider:.1f} times the wider standard deviation of the two)"


def _speed_table() -> list[str]:
    settings, found = collect("speed", "over_torch")
    lines = [
        *paragraph(
            f"CPU seconds on one thread: {settings['steps']} steps, batch {settings['batch']}, "
            f"{settings['inputs']} inputs, {settings['hidden']} units, {settings['hyper']} units in the "
            f"hyper cell. The models take turns; medians of {settings['rounds']} rounds, and the ratio is "
            "that of times in the same round. *Step by step* is the paper written down in plain layers."
        ),
        "| | forward | forward and backward | over torch's LSTM | runs |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, rows in found.items():
        both = statistics.fmean(row["forward_and_backward"] for row in rows)
        forward = statistics.fmean(row["forward"] for row in rows)
        ratio = spread(rows, "over_torch", lambda v: f"{v:.2f}")
        lines.append(f"| {name} | {forward:.2f} | {both:.2f} | {ratio} | {len(rows)} |")
    return lines


def _tasks_table() -> list[str]:
    settings, found = collect("tasks", "accuracy")
    lines = [
        *paragraph(
            "The generator of `recipes/static-tiny.yaml`, trained on tasks of the recipe "
            "`recipes/zoo-tiny.yaml` "
            f"that are not held out. Accuracy on up to {settings['test_images']:,} test images, "
            f"{settings['shots']} examples a class; means over the recipe's architectures, "
            f"{settings['tasks']} "
            "tasks of ten and as many of four classes in each column, and the seeds of the examples."
        ),
    ]
    splits = list(dict.fromkeys(name.split("; ")[1] for name in found))
    lines += ["| | " + " | ".join(splits) + " |", "|---" + "|--:" * len(splits) + "|"]
    for method in dict.fromkeys(name.split("; ")[0] for name in found):
        means = []
        for split in splits:
            rows = [
                row for name, rows in found.items() if name.split("; ")[:2] == [method, split] for row in rows
            ]
            means.append(f"{statistics.fmean(row['accuracy'] for row in rows):.3f}")
        lines.append(f"| {method} | " + " | ".join(means) + " |")
    return lines


if __name__ == "__main__":
    write_text(PAGE, page())
