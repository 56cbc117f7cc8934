"""The page on layer-wise generation at full strength: `python benchmarks/full_report.py`.

Reads benchmarks/results/full-*.json, selection.json and consolidation.json, writes docs/results/full.md and
fills the marked place of README.md and docs/index.md. No number has another source than a file.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tables import NOT_YET, ROOT, Figure, fill, markdown, percent, pm

from weightloom.io import read_json, write_text

RUN = {
    **{name: f"python benchmarks/full.py {name}" for name in
       ("unseen", "seen", "datasets", "sizes", "reward", "audit", "large", "instructions")},
    "selection": "python benchmarks/selection.py",
    "consolidation": "python benchmarks/consolidation.py",
}  # fmt: skip
TITLES = {
    "unseen": "Unseen tasks",
    "seen": "Seen tasks",
    "datasets": "Unseen datasets",
    "reward": "Steering by reward",
    "sizes": "Unseen depths and widths",
    "consolidation": "Published checkpoints consolidated",
    "audit": "Novelty",
    "large": "A network of ten million parameters",
    "selection": "Model selection",
    "instructions": "Instructions",
}
Results = Mapping[str, Mapping[str, Any]]


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Every result of this page by its table's name."""
    found = {file.stem.removeprefix("full-"): read_json(file) for file in sorted(folder.glob("full-*.json"))}
    for name in ("selection", "consolidation"):
        if (folder / f"{name}.json").is_file():
            found[name] = read_json(folder / f"{name}.json")
    return found


def points(found: Mapping[str, float]) -> str:
    """A difference of accuracies in points."""
    return f"{percent(found)} points"


def figures(results: Results) -> list[Figure]:
    """The bars, in the order of the page."""
    bars = [
        ("unseen", "unseen tasks: zero-shot ÷ trained", "≥ 0.92", unseen_figure),
        ("datasets", "unseen datasets: zero-shot above the nearest checkpoint", "≥ 10 points",
         nearest_figure),
        ("datasets", "unseen datasets: zero-shot above a linear probe on the same examples' pixels", "above",
         pixels_figure),
        ("datasets", "unseen datasets: steps to the trained accuracy ÷ from random weights", "≤ 0.3",
         steps_figure),
        ("reward", "steering by reward: above the best of as many networks of the prior", "≥ 3 points",
         reward_figure),
        ("sizes", "unseen depths and widths: zero-shot ÷ trained", "≥ 0.85, above copy-and-resize",
         sizes_figure),
        ("consolidation",
         "25 published checkpoints in one file: largest relative error of outputs (of the 12 that run here)",
         "≤ 1 % at ≤ 6 bits a weight", consolidation_figure),
        ("audit", "novelty audit of `layerwise-tiny`: verdict on unseen tasks", "novel", audit_figure),
        ("large", "one network of ten million parameters on one thread", "≤ 60 s", large_figure),
        ("selection", "model selection: Kendall's tau with the ranking after training", "≥ 0.6", tau_figure),
        ("selection", "model selection: accuracy within the budget", "at least random search's",
         search_figure),
    ]  # fmt: skip
    made = []
    for table, what, bar, make in bars:
        held = results.get(table)
        result, holds, remark = (NOT_YET, None, "") if held is None else make(held)
        made.append(Figure(table, what, bar, result, holds, remark))
    return made


Found = tuple[str, bool | None, str]


def unseen_figure(held: Mapping[str, Any]) -> Found:
    """Ratio on the zoo's held-out tasks."""
    found = held["table"]["all"]
    return pm(found["ratio"]), found["ratio"]["mean"] >= 0.92, ""


def nearest_figure(held: Mapping[str, Any]) -> Found:
    """Above the nearest checkpoint."""
    found = held["table"]["all"]["above_nearest"]
    return points(found), found["mean"] >= 0.1, ""


def pixels_figure(held: Mapping[str, Any]) -> Found:
    """Above logistic regression on pixels, on every dataset."""
    parts = {name: part["above_pixels"] for name, part in held["table"].items() if name != "all"}
    remark = ", ".join(f"{name} {points(part)}" for name, part in parts.items())
    holds = all(part["mean"] > 0 for part in parts.values())
    return points(held["table"]["all"]["above_pixels"]), holds, remark


def steps_figure(held: Mapping[str, Any]) -> Found:
    """Steps from generated over steps from random weights."""
    found = held["table"]["all"]
    made, fresh = found["generated_never"], found["random_never"]
    remark = f"never there: generated {made} of {found['runs']}, random {fresh}"
    return pm(found["steps_ratio"]), found["steps_ratio"]["mean"] <= 0.3, remark


def reward_figure(held: Mapping[str, Any]) -> Found:
    """Steered against best of N."""
    table = held["table"]
    found = table["above_best_of_prior"]
    new = table.get("steered_novelty"), table.get("best_of_prior_novelty")
    not_lower = new[0] is None or new[0]["mean"] >= new[1]["mean"] - 0.01
    remark = f"above the prior's own: {points(table['above_prior'])}"
    if new[0] is not None:
        remark += f"; novelty {pm(new[0], 2)} against {pm(new[1], 2)}"
    return points(found), found["mean"] >= 0.03 and not_lower, remark


def sizes_figure(held: Mapping[str, Any]) -> Found:
    """Sizes between those trained."""
    found = held["table"]["all"]
    beyond = held["table"]["outside"]["ratio"]
    holds = found["ratio"]["mean"] >= 0.85 and found["above_copy"]["mean"] > 0
    remark = f"copy-and-resize {pm(found['copy_ratio'])}; deeper and wider than trained: {pm(beyond)}"
    return pm(found["ratio"]), holds, remark


def consolidation_figure(held: Mapping[str, Any]) -> Found:
    """Outputs against bits, everything counted."""
    total = held["total"]
    error, bits = total["largest_output_error"], total["bits_per_weight"]
    remark = (
        f"largest of {total['measured_on_inputs']} networks that run here, of {total['checkpoints']}; bits "
        f"are of the whole file; one by one {total['within_1_percent_and_6_bits']} stay below 6 bits"
    )
    return f"{error * 100:.2f} % at {bits:.2f} bits", error <= 0.01 and bits <= 6, remark


def audit_figure(held: Mapping[str, Any]) -> Found:
    """The verdict."""
    unseen, seen = held["table"]["unseen"], held["table"]["seen"]
    share = unseen["shares"][unseen["verdict"]]
    remark = f"on seen tasks: {seen['verdict']} ({seen['shares'][seen['verdict']] * 100:.0f} %)"
    return (
        f"{unseen['verdict']} ({share * 100:.0f} % of {unseen['samples']} samples)",
        unseen["verdict"] == "novel",
        remark,
    )


def large_figure(held: Mapping[str, Any]) -> Found:
    """Seconds for ten million parameters."""
    table = held["table"]
    remark = f"{table['parameters']:,} parameters"
    return f"{pm(table['seconds'], 1)} s", table["seconds"]["mean"] <= 60, remark


def tau_figure(held: Mapping[str, Any]) -> Found:
    """Agreement of rankings."""
    table = held["table"]
    found = table["tau_predicted"]
    again = table["tau_of_two_trainings"]
    remark = f"after the budget {pm(table['tau_ranking'], 2)}; two trainings of all agree by {again:.2f}"
    return pm(found, 2), found["mean"] >= 0.6, remark


def search_figure(held: Mapping[str, Any]) -> Found:
    """Accuracy of the winner against random search."""
    ours, other = (held["table"][name]["accuracy"] for name in ("select", "random_search"))
    return f"{percent(ours)} %", ours["mean"] >= other["mean"], f"random search {percent(other)} %"


# ------------------------------------------------------------------------------------ sections


def seen_section(held: Mapping[str, Any]) -> str:
    """The same columns, of the zoo's own tasks."""
    text = (
        "Tasks of the zoo, which the layer-wise parts were not trained on more than on others. *Nearest* is "
        "mostly a checkpoint of the very task."
    )
    return text + "\n\n" + _zero_shot_rows(held)


def unseen_section(held: Mapping[str, Any]) -> str:
    """By what is new, architecture, dataset, classes."""
    text = (
        "Held-out tasks: classes, label orders and transforms of the five datasets that no part of training "
        "has seen. The trained networks are the zoo's own; they, the nearest checkpoint and the closed form "
        "on the zoo's mean trunk are measured by `benchmarks/zoo_references.py`, here with checkpoints as a "
        "weight tokenizer had rebuilt them."
    )
    return text + "\n\n" + _zero_shot_rows(held)


def _zero_shot_rows(held: Mapping[str, Any]) -> str:
    rows = [
        (name.replace("held-out-", ""), f"{100 * part['trained']:.1f}", pm(part["ratio"]),
         points(part["above_nearest"]), points(part["above_closed_form"]))
        for name, part in held["table"].items()
    ]  # fmt: skip
    header = ("tasks", "trained, %", "÷ trained", "above nearest", "above closed form")
    return markdown(header, rows)


def datasets_section(held: Mapping[str, Any]) -> str:
    """By dataset."""
    rows = [
        (name, percent(part["generated"]), percent(part["nearest"]), percent(part["pixels"]),
         percent(part["trained"]), pm(part["ratio"]), pm(part["steps_ratio"]))
        for name, part in held["table"].items()
    ]  # fmt: skip
    text = (
        "`cnn(depth=3,width=16)`. Glyphs were kept out of everything; for Fashion-MNIST and CIFAR-10 a "
        "generator was trained without that dataset (`recipes/layerwise-without-….yaml`). *Trained*: as the "
        "zoo's networks are, from the zoo's mean network, the mean of two. *Pixels*: logistic regression on "
        "the pixels of the same 16 examples a class. *Nearest*: the zoo's checkpoint whose task looks most "
        "alike, tasks of that dataset left out. Steps are AdamW's, with cycles and rates chosen for each "
        "start on training tasks; a generated start that is not there yet first gets the closed form of 640 "
        "training images as its head, counted as the 10 steps that would show as many (random weights did "
        "not gain from that). A start that does not arrive counts as the limit."
    )
    header = ("dataset", "generated", "nearest", "pixels", "trained", "÷ trained", "steps ÷ random's")
    return text + "\n\n" + markdown(header, rows)


def sizes_section(held: Mapping[str, Any]) -> str:
    """By architecture."""
    rows = [
        (f"`{name}`" if "(" in name else "inside, all" if name == "all" else name,
         f"{100 * part['trained']:.1f}", pm(part["ratio"]), pm(part["copy_ratio"]),
         points(part["above_copy"]))
        for name, part in held["table"].items()
    ]  # fmt: skip
    text = (
        "None of these depths and widths was trained. *Inside* lie between those that were, *outside* "
        "beyond. *Trained*: 800 steps from random weights on the same task. *Copy*: the mean trunk of the "
        "zoo's most alike tasks in the size that the zoo has, cropped and tiled or interpolated (the better "
        "of the two), with a closed-form head too. All on unseen tasks."
    )
    return text + "\n\n" + markdown(("architecture", "trained, %", "÷ trained", "copy", "above copy"), rows)


def plain_section(held: Mapping[str, Any]) -> str:
    """Whatever a table holds, a line each."""
    rows = []
    for name, value in held["table"].items():
        if isinstance(value, Mapping) and "mean" in value:
            rows.append((name.replace("_", " "), pm(value)))
        elif isinstance(value, Mapping):
            inner = ", ".join(
                f"{k.replace('_', ' ')} {pm(v) if isinstance(v, Mapping) and 'mean' in v else _plain(v)}"
                for k, v in value.items()
            )
            rows.append((name.replace("_", " "), inner))
        else:
            rows.append((name.replace("_", " "), _plain(value)))
    return markdown(("what", "measured"), rows)


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("'", "").strip("{}")


def consolidation_section(held: Mapping[str, Any]) -> str:
    """The totals; the page on consolidation has every checkpoint."""
    return "Every checkpoint: [Consolidation](../consolidation.md)."


def instructions_section(held: Mapping[str, Any]) -> str:
    """Accuracies by what the sentence was."""
    text = (
        "`cnn(depth=3,width=16)`, one task of each of five datasets, 16 examples a class. Once there are "
        "examples, words change next to nothing, whatever they say; without examples the head is random, and "
        "so is the accuracy."
    )
    return text + "\n\n" + plain_section(held)


SECTIONS = {
    "unseen": unseen_section,
    "seen": seen_section,
    "datasets": datasets_section,
    "sizes": sizes_section,
    "consolidation": consolidation_section,
    "instructions": instructions_section,
}


def page(results: Results) -> str:
    """The whole page."""
    found = figures(results)
    parts = [
        "# Layer-wise generation at full strength",
        "<!-- Written by benchmarks/full_report.py from benchmarks/results. Do not edit by hand. -->",
        "± is the standard deviation over seeds; a seed decides the examples that are shown, the wording and "
        "what is drawn. Test images are never used to choose. *Unseen datasets*, "
        "*steering*, *depths and widths* and *model selection* were measured with the layer-wise parts of "
        "`layerwise-tiny` where they stood before, in `igpg-tiny`, the bundle of 0.1.0; the parts are the "
        "same. In model selection that bundle may have answered some requests from codes that it kept of "
        "known tasks.",
        markdown(
            ("what was measured", "bar", "result", "", "remark"),
            [(f.what, f.bar, f.result, f.verdict, f.remark) for f in found],
            numbers=5,
        ),
        "## The commands",
        markdown(
            ("table", "command", "seconds", "machine"),
            [
                (TITLES[name], f"`{results[name]['command']}`", _seconds(results[name]),
                 str(results[name].get("machine", "–")))
                if name in results
                else (TITLES[name], f"`{RUN[name]}`", NOT_YET, "–")
                for name in TITLES
            ],
            numbers=2,
        ),
    ]  # fmt: skip
    for name, title in TITLES.items():
        parts.append(f"## {title}")
        if name not in results:
            parts.append(f"{NOT_YET.capitalize()}.")
        else:
            parts.append(SECTIONS.get(name, plain_section)(results[name]))
    return "\n\n".join(parts) + "\n"


def _seconds(held: Mapping[str, Any]) -> str:
    return f"{held['seconds']:,.0f}" if "seconds" in held else "–"


def short_table(results: Results, link: str) -> str:
    """The summary as the README shows it."""
    rows = [(f"[{f.what}]({link})", f.bar, f.result, f.verdict) for f in figures(results)]
    return markdown(("figure", "bar", "result", ""), rows, numbers=4)


def main() -> None:
    """Write everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository to write into")
    options = parser.parse_args()
    results = read_results(options.results)
    write_text(options.root / "docs" / "results" / "full.md", page(results))
    for file, folder in ((options.root / "README.md", "docs/"), (options.root / "docs" / "index.md", "")):
        if file.is_file():
            text = file.read_text("utf-8")
            filled = fill(text, "full", short_table(results, f"{folder}results/full.md"))
            if filled != text:
                write_text(file, filled)
    for figure in figures(results):
        print(f"{figure.what}: {figure.result} (bar {figure.bar}; {figure.verdict.strip('*')})")


if __name__ == "__main__":
    main()
