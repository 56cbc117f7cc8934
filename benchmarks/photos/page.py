"""The page that is made from the JSON: ``docs/results/photos.md``."""

from __future__ import annotations

from typing import Any

import numpy as np
from words.page import table

OTHERS = (
    "logistic regression on pixels", "SVM on pixels", "frozen trunk, logistic head",
    "fresh network, same seconds",
)  # fmt: skip

BARS = (
    ("from names alone", 0, "names", 65),
    ("from names and 200 unsorted pictures", 0, "names, unlabelled", 71),
    ("one example a class", 1, "examples", 50), ("one example and names", 1, "examples, names", 66),
    ("one example and 200 unsorted pictures", 1, "examples, unlabelled", 63),
    ("one example, names and 200 unsorted pictures", 1, "examples, names, unlabelled", 75),
)  # fmt: skip


def verdict(value: float, bar: float, least: bool = True) -> str:
    return "holds" if (value >= bar) == least or value == bar else "**falls short**"


def against(results: dict[str, Any]) -> list[list[str]]:
    rows = []
    if "default" in results:
        reached = [row["accuracy"] for row in results["default"]["rows"]]
        mean, sd = float(np.mean(reached)), float(np.std(reached))
        rows.append(
            [
                "CIFAR-10, 16 examples a class, default",
                "≥ 79 %",
                f"{mean:.1f} ± {sd:.1f} %",
                verdict(mean, 79),
            ]
        )
    for row in results.get("cifar10", {}).get("rows", []):
        for text, shots, told, bar in BARS:
            if (row["shots"], row["told"]) == (shots, told):
                rows.append(
                    [
                        f"CIFAR-10, {text}",
                        f"≥ {bar} %",
                        f"{row['mean']:.1f} ± {row['sd']:.1f} %",
                        verdict(row["mean"], bar),
                    ]
                )
    if "folders" in results:
        found = by_folder(results)
        ahead = sum(low > 0 for *_, low, _ in found.values())
        worst = min(gap for *_, gap in found.values())
        rows.append(
            [
                "folders of other kinds: furthest below the best of four alternatives",
                "≤ 1 point",
                f"{max(0.0, -worst):.1f}",
                verdict(worst, -1),
            ]
        )
        rows.append(
            [f"the same: ahead of each of them, of {len(found)}", "≥ 4", str(ahead), verdict(ahead, 4)]
        )
    for row in results.get("many", {}).get("rows", []):
        best = max(row[name] for name in OTHERS if row.get(name) is not None)
        ratio = row["ours"] / best
        rows.append(
            [
                f"{row['classes']} QuickDraw classes: ÷ the best alternative",
                "≥ 0.95",
                f"{ratio:.2f}",
                verdict(ratio, 0.95),
            ]
        )
    for row in results.get("speed", {}).get("rows", []):
        if "ratios" in row:
            mean = float(np.mean(row["ratios"]))
            rows.append([row["what"], "≤ 6", f"{mean:.1f} of {row['ratios']}", verdict(mean, 6, False)])
        else:
            bar = 0.5 if " 10 " in row["what"] else 5
            rows.append(
                [
                    f"{row['what']}, CPU-seconds",
                    f"≤ {bar}",
                    f"{row['cpu']:.2f}",
                    verdict(row["cpu"], bar, False),
                ]
            )
    return rows


def by_folder(results: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Per folder: means, what was chosen, lower end of the paired interval over the best alternative, gap."""
    found: dict[str, tuple[Any, ...]] = {}
    for text in dict.fromkeys(row["folder"] for row in results["folders"]["rows"]):
        rows = [row for row in results["folders"]["rows"] if row["folder"] == text]
        means = {name: float(np.mean([row[name] for row in rows])) for name in ("ours", *OTHERS)}
        best = max(OTHERS, key=lambda name: means[name])
        gaps = [row["ours"] - row[best] for row in rows]
        half = (
            4.30 * float(np.std(gaps, ddof=1)) / len(gaps) ** 0.5
        )  # Student's t with two degrees of freedom
        found[text] = (
            means,
            [row["chosen"] for row in rows],
            float(np.mean(gaps)) - half,
            float(np.mean(gaps)),
        )
    return found


def missing(results: dict[str, Any]) -> str:
    texts = {
        "folders": "folders of other kinds (digits, clothing, glyphs, drawings, icons)",
        "many": "forty and 345 classes",
        "speed": "time of the default command and of heads in closed form",
    }
    listed = [text for name, text in texts.items() if name not in results]
    listed += [
        "all training images instead of 16 a class", "wallpapers", "trunks that are fine-tuned",
        "int8 exports of the trunks", "trunks of `timm` and of a user's own",
    ]  # fmt: skip
    return "; ".join(listed).capitalize() + "."


def short(architecture: str) -> str:
    return f"`{architecture.split('classes')[0].rstrip(',(')}`"


def render(results: dict[str, Any], config: dict[str, Any]) -> str:
    spent = ", ".join(f"{name} {results[name]['cpu_seconds']:,}" for name in results)
    others = f", and {config['folder_images']} of the other kinds" if "folders" in results else ""
    intro = f"""What `weightloom generate` reaches with pictures at their own size, and beside it what a user
would do in the same time. Examples and unsorted pictures are training pictures; all 10,000 test pictures of
CIFAR-10 measure{others}. Mean ± deviation of {config["draws"]}
draws. Pictures are enlarged to the size that the trunk reads. The published trunk was taught on photographs
of 1,000 kinds of objects, CIFAR-10's among them: these figures are of a trunk that knows such things."""
    command = f"""`python benchmarks/run.py photos`; CPU-seconds: {spent}. The config's budget is
{config["budget"]} s, so that a busy machine does not change what is chosen."""
    parts = [
        "# Photographs",
        intro,
        command,
        "## Against the bars",
        table(["figure", "bar", "result", ""], against(results)),
    ]
    if "cifar10" in results:
        shots = config["shots"]
        told: dict[str, dict[int, str]] = {}
        for row in results["cifar10"]["rows"]:
            told.setdefault(row["told"], {})[row["shots"]] = f"{row['mean']:.1f} ± {row['sd']:.1f}"
        lines = [[name, *(own.get(count, "–") for count in shots)] for name, own in told.items()]
        parts += [
            f"## CIFAR-10, `{config['trunks'][0]}`",
            table(["made from", *(f"{count} a class" for count in shots)], lines),
            f"""{config["unlabelled"]} pictures without labels, in random proportions. Without names and with
more than one example a class they are not used.""",
        ]
    if "folders" in results:
        lines = []
        for text, (means, chosen, low, gap) in by_folder(results).items():
            lines.append([
                f"`{text}`", " / ".join(dict.fromkeys(short(one) for one in chosen)),
                *(f"{means[name]:.1f}" for name in ("ours", *OTHERS)), f"{gap:+.1f} (≥ {low:+.1f})",
            ])  # fmt: skip
        parts += [
            "## Folders of other kinds, 16 examples a class",
            table(["pictures", "chosen", "ours", *OTHERS, "over the best (95 %)"], lines),
            """Of `digits`, `fashion-mnist` and `quickdraw` the training pictures were among what
`words-small` was trained on, the test pictures were not. Wallpapers, the sixth kind, are not measured yet.
The alternatives' settings: the logistic head's penalty by four-fold cross-validation; pixels at 16 or 32 a
side, whichever is better on the test pictures.""",
        ]
    if "many" in results:
        lines = [
            [str(row["classes"]), short(row["chosen"]), f"{row['ours']:.1f}",
             *("–" if row.get(name) is None else f"{row[name]:.1f}" for name in OTHERS[:3])]
            for row in results["many"]["rows"]
        ]  # fmt: skip
        parts += ["## Many classes", table(["QuickDraw classes", "chosen", "ours", *OTHERS[:3]], lines)]
    parts += [
        "## What is not measured",
        missing(results),
    ]
    return "\n\n".join(parts) + "\n"
