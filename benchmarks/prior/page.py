"""The page that is made from the JSON: ``docs/results/prior.md``."""

from __future__ import annotations

from typing import Any

from words.page import table

ARMS = {
    "nothing": "one trunk for every task",
    "one-pass": "one pass, told names and encoded examples",
    "unadapted": "one pass, and the activations of a trunk without codes",
    "codes": "layer after layer, the codes before",
    "activations": "layer after layer, and the activations in the layers written",
}


def gain(row: dict[str, Any]) -> str:
    return f"{row['gain']:+.1f} ± {row['half']:.1f}"


def bars(results: dict[str, Any], config: dict[str, Any]) -> list[list[str]]:
    """Figure, bar, result and whether it holds, at four examples a class."""
    found: list[tuple[str, float, float]] = []
    for width, other, bar in ((4, "one-pass", 3), (4, "nothing", 3), (16, "one-pass", 0), (16, "nothing", 0)):
        for row in results.get(f"width-{width}", {}).get("rows", []):
            if row.get("over") == other and row["shots"] == 4:
                text = f"width {width}: in order with activations, over {ARMS[other]}, points"
                found.append((text, bar, row["gain"]))
    for width in config["widths"]:
        for row in results.get(f"width-{width}", {}).get("rows", []):
            if row.get("arm") == "activations" and row["shots"] == 4:
                text = f"width {width}: best of {config['best_of']} draws over the first, points"
                found.append((text, 1, row["best"] - row["greedy"]))
    return [
        [text, f"≥ {bar}", f"{value:+.1f}", "holds" if value >= bar else "**falls short**"]
        for text, bar, value in found
    ]


def render(results: dict[str, Any], config: dict[str, Any]) -> str:
    measured = [name for name in results if name.startswith("width-")]
    measured.sort(key=lambda name: int(name.removeprefix("width-")))
    spent = (f"{results[name]['cpu_seconds']:,} CPU-seconds for {name}" for name in ("tuning", *measured))
    intro = f"""A part that makes `cnn(depth=3,width=W)` from names and examples, trained anew with a prior
that knows more or less when it writes a layer. Every arm has as many parameters, {config["steps"]:,} steps on
the tasks of the recipe `words-small` with 0 to 16 examples a class, and the best of five rates, chosen with
{config["tuning_steps"]} steps at width 4 on names kept for choices. Measured on {config["name_tasks"]} tasks
of five QuickDraw names never seen and {config["subset_tasks"]} held-out subsets of MNIST, Fashion-MNIST and
CIFAR-10, the same for every arm. The bundled parts begin as parts for words alone and are trained longer.
Widths without a table have not been measured."""
    verdict = """Not here. From random weights one pass from names and encoded examples is ahead of or level
with every other way at both widths. One trunk for every task is three points behind it at
width 4 and one at width 16, with four examples a class. Layers that are written in order
from the codes before alone learn slowly, and are behind one trunk; activations are worth
four to eight points to them, and bring them level with one pass, not past it. Begun as the
part for words the two are level: activations are ahead by 0.6 points where no names are
told and there is one example a class, and behind by 0.1 to 0.3 where names are told. The
bundled parts are written in view of activations; one pass would do as well. The best of
eight draws, chosen by left-out examples, is no better than the first: draws differ too
little."""
    parts = [
        "# Does writing in order pay?",
        verdict,
        intro,
        f"`python benchmarks/run.py prior`; {', '.join(spent)}.",
    ]
    parts += ["## Against the bars", table(["figure", "bar", "result", ""], bars(results, config))]
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
    if "begun" in results:
        rows, own = results["begun"]["rows"], config["begun"]
        parts.append("## Begun as the bundled part for words")
        parts.append(
            f"`{own['architecture']}`, {own['steps']:,} steps at {own['rate']}, as the bundled "
            f"parts for examples begin; {results['begun']['cpu_seconds']:,} CPU-seconds."
        )
        shots = config["shots"][1:]
        arms = []
        for arm in own["arms"]:
            for told in ("names", "no names"):
                found = {r["shots"]: r for r in rows if r.get("arm") == arm and r["told"] == told}
                arms.append(
                    [ARMS[arm], told, *(f"{found[s]['mean']:.1f} ± {found[s]['sd']:.1f}" for s in shots)]
                )
        parts.append(table(["what the prior knows", "told", *(f"{s} a class" for s in shots)], arms))
        gains = []
        for told in ("names", "no names"):
            found = {r["shots"]: r for r in rows if "over" in r and r["told"] == told}
            gains.append([told, *(gain(found[s]) for s in shots)])
        parts.append("Activations over one pass, points, 95 % interval over tasks:")
        parts.append(table(["told", *(f"{s} a class" for s in shots)], gains))
    if "tuning" in results:
        rows = [
            [ARMS[row["arm"]], str(row["rate"]), f"{100 * row['mean']:.1f}"]
            for row in results["tuning"]["rows"]
        ]
        parts += ["## Rates tried", table(["what the prior knows", "rate", "mean accuracy"], rows)]
    return "\n\n".join(parts) + "\n"
