"""The page that is made from the JSON: ``docs/results/words.md``."""

from __future__ import annotations

from typing import Any

import numpy as np

COMMAND = "python benchmarks/run.py words --only {}"


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def table(columns: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def mean(rows: list[dict[str, Any]], key: str = "ratio") -> float:
    return float(np.mean([row[key] for row in rows]))


def bars(results: dict[str, Any]) -> list[list[str]]:
    """Figure, bar, result and whether it holds, of what has been measured."""
    found: list[tuple[str, str, str, bool]] = []

    def own(name: str) -> list[dict[str, Any]]:
        return list(results.get(name, {}).get("rows", []))

    if rows := own("whole"):
        value = mean(rows)
        found.append(
            ("words alone, whole known datasets, ÷ fully trained", "≥ 0.93", f"{value:.3f}", value >= 0.93)
        )
    if rows := own("subsets"):
        value = mean([row for row in rows if row["split"] == "held-out-subset"])
        found.append(("words alone, unseen subsets, ÷", "≥ 0.88", f"{value:.3f}", value >= 0.88))
    if rows := own("pairs"):
        value = mean(rows)
        found.append(
            (
                "words alone, pairs of dataset and turn never together, ÷",
                "≥ 0.75",
                f"{value:.3f}",
                value >= 0.75,
            )
        )
    for ways, bar, small in ((2, 0.74, False), (10, 0.34, False), (5, 0.39, True)):
        rows = [row for row in own("unseen") if row["dataset"] == "quickdraw" and row["ways"] == ways]
        rows = [row for row in rows if not small or row["architecture"].startswith("cnn(depth=3")]
        if rows:
            row = max(rows, key=lambda one: one["mean"])
            text = f"words alone, QuickDraw names never seen, {ways}-way, `{row['architecture']}`"
            result = f"{percent(row['mean'])} ± {percent(row['error'])}"
            found.append((text, f"≥ {percent(bar)}", result, row["mean"] >= bar))
    if rows := own("examples"):
        drawn = [row for row in rows if row["dataset"] == "quickdraw"]
        for shots, key, bar, text in (
            (1, "by names", 2.5, "1 a class, unseen names: with names over without, points"),
            (
                1,
                "by unlabelled",
                8.0,
                "1 a class, unseen names: with pictures without labels over without, points",
            ),
            (16, "by names", -0.5, "16 a class, unseen names: with names over without, points"),
            (
                16,
                "by unlabelled",
                -0.5,
                "16 a class, unseen names: with pictures without labels over without, points",
            ),
        ):
            gain = float(np.mean([row[key]["mean"] for row in drawn if row["shots"] == shots]))
            found.append((text, f"≥ {bar}", f"{gain:+.1f}", gain >= bar))
    if rows := own("trained"):
        for bar, key, only, text in (
            (0.93, "names", None, "unseen tasks, 16 a class with names, ÷"),
            (0.88, "names", "cifar10", "CIFAR-10's among them, ÷"),
            (0.90, "no names", None, "the same without names, ÷"),
        ):
            kept = [row for row in rows if only in (None, row["dataset"])]
            value = float(np.mean([row[key]["mean"] for row in kept]))
            found.append((text, f"≥ {bar}", f"{value:.3f}", value >= bar))
    if rows := own("seen"):
        value = mean(rows)
        found.append(
            ("known datasets and architectures, 16 a class, ÷", "≥ 0.97", f"{value:.3f}", value >= 0.97)
        )
    if rows := own("cycles"):
        for kind in ("unseen task", "unseen dataset"):
            kept = [row for row in rows if row["kind"] == kind and row["random"]]
            if kept and all(row["generated"] is not None for row in kept):
                value = float(np.mean([row["generated"] / row["random"] for row in kept]))
                text = f"shortest training to 99 % of fully trained ÷ from random, {kind}s"
                found.append((text, "≤ 0.5", f"{value:.2f}", value <= 0.5))
    if rows := own("draws"):
        near = [row for row in rows if row["greedy"] - row["drawn"] <= 0.01]
        value = max((row["differ"] / row["trained differ"] for row in near), default=0.0)
        text = "pictures on which two draws differ ÷ two fully trained seeds, within a point of accuracy"
        found.append((text, "≥ 0.25", f"{value:.2f}", value >= 0.25))
    if rows := own("codes_with_examples"):
        lost = 100 * (mean(rows, "own") - mean(rows, "mean"))
        found.append(
            ("codes replaced by their mean, 16 a class: points lost", "≥ 2", f"{lost:.1f}", lost >= 2)
        )
        lost = 100 * (mean(rows, "own") - mean(rows, "another's"))
        found.append(
            ("codes replaced by another task's, 16 a class: points lost", "≥ 2", f"{lost:.1f}", lost >= 2)
        )
    for row in own("wordings"):
        found.append(
            (
                f"{row['wording']} instructions: change in points",
                "within 3",
                f"{100 * row['change']:+.1f}",
                abs(row["change"]) <= 0.03,
            )
        )
    if rows := own("codes"):
        lost = mean(rows, "own") - mean(rows, "mean")
        found.append(
            (
                "codes replaced by their mean over tasks, words alone: points lost",
                "≥ 10",
                f"{100 * lost:.1f}",
                lost >= 0.1,
            )
        )
        lost = mean(rows, "own") - mean(rows, "another's")
        found.append(
            (
                "codes replaced by another task's, words alone: points lost",
                "≥ 10",
                f"{100 * lost:.1f}",
                lost >= 0.1,
            )
        )
    if rows := own("expected"):
        value = mean(rows, "error")
        found.append(
            (
                "expected accuracy against measured, mean absolute error in points",
                "≤ 8",
                f"{100 * value:.1f}",
                value <= 0.08,
            )
        )
    for row in own("speed"):
        value = row["words-small"] / row["random-init"]
        text = f"parameters a CPU-second of a request with examples, {row['task']}, ÷ `random-init`'s"
        found.append((text, "≥ 0.6", f"{value:.2f}", value >= 0.6))
    return [[a, b, c, "holds" if holds else "**falls short**"] for a, b, c, holds in found]


def render(results: dict[str, Any], config: dict[str, Any]) -> str:
    """The page as Markdown."""
    parts = [
        "# Networks from words: results",
        f"`{config['generator']}`, measured with `python benchmarks/run.py words`; a part again with "
        f"`{COMMAND.format('PART')}`. Its size: `benchmarks/words/config.yaml`; the figures: "
        "`results.json` beside it. Every ratio is to the same architecture, trained to the end at the same "
        "size: `benchmarks/references.py`, AdamW, one cycle, all training images without augmentation, eight "
        "epochs and at least 1,500 steps. Unseen names share no stemmed word with names of training, joined "
        "or apart; definitions of other names may hold their words. The recipe's rate was chosen on single "
        "runs that were measured on whole datasets and on other held-out names.",
        "## Against the bars",
        table(["figure", "bar", "result", ""], bars(results)),
        "What order and choice among draws are worth has [a page of its own](prior.md). Not measured: "
        "the protocol of the tiny model zoo from a fully trained zoo. Of one architecture only: held-out "
        "subsets, cycles of fine-tuning (one seed), draws; of two: unseen tasks with sixteen examples.",
    ]

    def section(name: str, title: str, columns: list[str], row: Any, note: str = "") -> None:
        if name in results:
            rows = [row(one) for one in results[name]["rows"]]
            command = f"`{COMMAND.format(name)}`, {results[name]['cpu_seconds']:,} CPU-seconds."
            if stopped := results[name].get("stopped"):
                command = f"`{COMMAND.format(name)}`, stopped {stopped}."
            parts.extend([f"## {title}", f"{note} {command}".strip(), table(columns, rows)])

    section(
        "whole",
        "Words alone, whole datasets",
        ["architecture", "task", "from words", "fully trained", "÷"],
        lambda r: [
            f"`{r['architecture']}`",
            r["task"],
            f"{percent(r['mean'])} ± {percent(r['sd'])}",
            percent(r["trained"]),
            f"{r['ratio']:.3f}",
        ],
    )
    section(
        "subsets",
        "Words alone, subsets and orders that no training saw",
        ["architecture", "held out", "tasks", "from words", "÷"],
        lambda r: [
            f"`{r['architecture']}`",
            r["split"].removeprefix("held-out-"),
            str(r["tasks"]),
            percent(r["mean"]),
            f"{r['ratio']:.3f}",
        ],
    )
    section(
        "pairs",
        "Words alone, pairs of dataset and turn that no training spoke of",
        ["architecture", "pairs", "from words", "÷", "lowest ÷"],
        lambda r: [
            f"`{r['architecture']}`",
            str(r["pairs"]),
            percent(r["mean"]),
            f"{r['ratio']:.3f}",
            f"{r['lowest']:.3f}",
        ],
        "The fully trained network is that of the pictures as they are.",
    )
    section(
        "unseen",
        "Words alone, names never seen",
        ["architecture", "names of", "names", "ways", "accuracy (standard error)"],
        lambda r: [
            f"`{r['architecture']}`",
            r["dataset"],
            str(r["names"]),
            str(r["ways"]),
            f"{percent(r['mean'])} ± {percent(r['error'])}",
        ],
        "Uniform draws; the error is of the draws, not of the choice of names.",
    )
    section(
        "wordings",
        "Other words for the same",
        ["instructions", "plain", "others", "change"],
        lambda r: [r["wording"], percent(r["plain"]), percent(r["mean"]), f"{100 * r['change']:+.1f}"],
    )

    shown = (
        "words alone",
        "names",
        "no names",
        "names, unlabelled",
        "unlabelled",
        "layerwise-tiny",
        "svm",
        "logistic",
    )

    def with_examples(row: dict[str, Any]) -> list[str]:
        values = [percent(row[name]["mean"]) if name in row else "–" for name in shown]
        gains = [f"{row[k]['mean']:+.1f} ± {row[k]['half']:.1f}" for k in ("by names", "by unlabelled")]
        return [f"`{row['architecture']}`", row["dataset"], str(row["shots"]), *values, *gains]

    section(
        "examples",
        "Names, examples and pictures without labels, five-way",
        [
            "architecture",
            "names of",
            "a class",
            "words alone",
            "names",
            "no names",
            "names, unlabelled",
            "no names, unlabelled",
            "`layerwise-tiny`",
            "SVM on pixels",
            "logistic regression on pixels",
            "by names",
            "by unlabelled, without names",
        ],
        with_examples,
        "QuickDraw's names are ones never seen; CIFAR-10's were seen by both. 45 tasks of the first "
        "architecture, 15 of the others; gains are paired, with 95 % intervals over tasks. Pictures without "
        "labels: 20 a class of the training pictures, in random proportions.",
    )
    section(
        "trained",
        "Unseen tasks with sixteen examples a class, against fully trained networks",
        ["architecture", "task", "fully trained", "with names, ÷", "without, ÷"],
        lambda r: [
            f"`{r['architecture']}`",
            f"`{r['task']}`",
            percent(r["trained"]),
            *(f"{r[k]['mean']:.3f} ± {r[k]['sd']:.3f}" for k in ("names", "no names")),
        ],
        "Subsets of classes that no training saw, and QuickDraw names never seen.",
    )
    section(
        "seen",
        "Known datasets with sixteen examples a class",
        ["architecture", "task", "generated", "fully trained", "÷"],
        lambda r: [
            f"`{r['architecture']}`",
            r["task"],
            f"{percent(r['mean'])} ± {percent(r['sd'])}",
            percent(r["trained"]),
            f"{r['ratio']:.3f}",
        ],
    )
    section(
        "cycles",
        "The shortest training that reaches 99 % of the fully trained accuracy",
        ["task", "", "accuracy to reach", "steps from the generated network", "from random weights"],
        lambda r: [
            f"`{r['task']}`",
            r["kind"],
            percent(r["wanted"]),
            *("more than tried" if r[k] is None else str(r[k]) for k in ("generated", "random")),
        ],
        f"One cycle on all training images, lengths {config['cycle_steps']}, the better of the rates "
        f"{config['cycle_rates']}; 16 examples a class for the generated one.",
    )
    section(
        "choice",
        "Which generator left-out examples choose",
        ["dataset", "a class", "`words-small`", "`layerwise-tiny`", "chosen", "SVM on pixels"],
        lambda r: [
            r["dataset"],
            str(r["shots"]),
            *(
                f"{percent(r[k]['mean'])} ± {percent(r[k]['sd'])}"
                for k in ("words-small", "layerwise-tiny", "chosen", "svm")
            ),
        ],
        "Six classes. `words-small` has learned from none of glyphs, shapes and digits, `layerwise-tiny` "
        "from digits; QuickDraw's names are ones that `words-small` has never seen.",
    )
    section(
        "codes_with_examples",
        "What the codes are worth beside sixteen examples a class",
        [
            "architecture",
            "tasks",
            "own codes",
            "their mean over tasks",
            "another task's",
            "95 % interval of the first loss",
        ],
        lambda r: [
            f"`{r['architecture']}`",
            str(r["tasks"]),
            *(percent(r[k]) for k in ("own", "mean", "another's")),
            f"± {r['half']:.1f}",
        ],
        "Head and statistics are made anew for the codes that are put in.",
    )
    section(
        "codes",
        "What the codes are worth",
        ["architecture", "own codes", "their mean over tasks", "another task's"],
        lambda r: [f"`{r['architecture']}`", *(percent(r[k]) for k in ("own", "mean", "another's"))],
        "Words alone, six tasks; rows and statistics follow the codes that are put in.",
    )
    section(
        "turns",
        "Turns read from sentences",
        ["sentences", "how many", "read wrongly"],
        lambda r: [r["sentences"], str(r["count"]), str(r["wrong"])],
        "Sentences without a turn: twelve written by hand with words of turning, and 200 about unseen names.",
    )
    section(
        "draws",
        "How much two draws differ",
        [
            "temperature",
            "pictures answered differently",
            "by two fully trained seeds",
            "accuracy of draws",
            "greedy",
        ],
        lambda r: [
            str(r["temperature"]),
            *(percent(r[k]) for k in ("differ", "trained differ", "drawn", "greedy")),
        ],
    )
    section(
        "expected",
        "Expected accuracy",
        ["architecture", "tasks", "mean absolute error, points"],
        lambda r: [f"`{r['architecture']}`", str(r["tasks"]), f"{100 * r['error']:.1f}"],
        "Tasks held out of training: subsets of known datasets, and names never seen.",
    )
    section(
        "speed",
        "Speed",
        ["ten classes of", "made", "`words-small`, parameters a CPU-second", "`random-init`"],
        lambda r: [r["task"], r["head"], *(f"{r[name]:,}" for name in ("words-small", "random-init"))],
        "Whole requests for 64 networks with 16 examples a class, `cnn(depth=3,width=16)`. QuickDraw's names "
        "are ones never seen.",
    )
    return "\n\n".join(parts) + "\n"
