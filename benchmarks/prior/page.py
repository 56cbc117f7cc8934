"""The page that is made from the JSON: ``docs/results/prior.md``."""

from __future__ import annotations

from typing import Any

ARMS = {
    "nothing": "one trunk for every task",
    "one-pass": "one pass, told names and encoded examples",
    "unadapted": "one pass, and the activations of a trunk without codes",
    "codes": "layer after layer, the codes before",
    "activations": "layer after layer, and the activations in the layers written",
}


def table(columns: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def gain(row: dict[str, Any]) -> str:
    return f"{row['gain']:+.1f} ± {row['half']:.1f}"


def render(results: dict[str, Any], config: dict[str, Any]) -> str:
    measured = [name for name in results if name.startswith("width-")]
    measured.sort(key=lambda name: int(name.removeprefix("width-")))
    spent = (f"{results[name]['cpu_seconds']:,} CPU-seconds for {name}" for name in ("tuning", *measured))
    intro = f"""A part that makes `cnn(depth=3,width=W)` from names and examples, trained anew with a prior
that knows more or less when it writes a layer. Every arm has as many parameters, {config["steps"]:,} steps on
the tasks of the recipe `words-small` with 0 to 16 examples a class, and the best of five rates, chosen with
{config["tuning_steps"]} steps at width 4 on names kept for choices. Measured on {config["name_tasks"]} tasks
of five QuickDraw names never seen and {config["subset_tasks"]} held-out subsets of MNIST, Fashion-MNIST and
CIFAR-10, the same for every arm. The bundled parts begin as parts for words alone and are trained longer."""
    parts = ["# Does writing in order pay?", intro, f"`python benchmarks/run.py prior`; {', '.join(spent)}."]
    for name in measured:
        rows = results[name]["rows"]
        width = name.removeprefix("width-")
        arms = []
        for arm, text in ARMS.items():
            own = {row["shots"]: row for row in rows if row.get("arm") == arm}
            if not own:
                continue
            draws = f"{own[4]['greedy']:.1f} → {own[4]['best']:.1f}" if "best" in own[4] else "–"
            reached = [f"{own[s]['mean']:.1f} ± {own[s]['sd']:.1f}" for s in config["shots"]]
            arms.append([text, *reached, f"{own[4]['names']:.1f} / {own[4]['subsets']:.1f}", draws])
        parts.append(f"## Width {width}")
        parts.append(
            table(
                [
                    "what the prior knows",
                    *(f"{s} a class" for s in config["shots"]),
                    "4 a class: names / subsets",
                    f"4 a class: greedy → best of {config['best_of']}",
                ],
                arms,
            )
        )
        parts.append(
            "Mean and sd over three trainings. Activations in the layers written, over the others, points, "
            "95 % interval over tasks:"
        )
        gains = []
        for arm, text in list(ARMS.items())[:-1]:
            own = {row["shots"]: row for row in rows if row.get("over") == arm}
            if own:
                gains.append([text, *(gain(own[s]) for s in config["shots"])])
        parts.append(table(["over", *(f"{s} a class" for s in config["shots"])], gains))
    if "tuning" in results:
        rows = [
            [ARMS[row["arm"]], str(row["rate"]), f"{100 * row['mean']:.1f}"]
            for row in results["tuning"]["rows"]
        ]
        parts += ["## Rates tried", table(["what the prior knows", "rate", "mean accuracy"], rows)]
    return "\n\n".join(parts) + "\n"
