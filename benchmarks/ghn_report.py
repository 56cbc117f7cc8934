"""The page on graph hypernetworks: `python benchmarks/ghn_report.py`.

Reads benchmarks/results/ghn-*.json and writes docs/results/ghn.md. No number has another source than a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tables import NOT_YET, ROOT, Figure, markdown

from weightloom.io import read_json, write_text

RUN = {
    "unseen": "python benchmarks/ghn.py unseen",
    "ablations": "python benchmarks/ghn.py ablations",
    "capture": "python benchmarks/capture.py",
    "sampler": "python benchmarks/sampler.py --networks 100",
    "predict": "python benchmarks/ghn.py predict",
    "properties": "python benchmarks/ghn.py properties",
    "finetune": "python benchmarks/ghn.py finetune",
}
GROUPS = {
    "test": "ID (`split=test`)",
    "wide": "WIDE",
    "deep": "DEEP",
    "dense": "DENSE",
    "bn-free": "BN-FREE",
    "resnet": "`resnet(depth=20,width=16)`",
    "vit": "`vit(depth=4,width=32)`",
    "cnn": "`cnn(depth=3,width=16)`",
    "mobilenet": "`mobilenet(depth=6,width=8)`",
}
Held = Mapping[str, Any]
Found = tuple[str, bool | None, str]


def read_results(folder: Path) -> dict[str, Held]:
    """Every result of this page by its table's name; those of ablations by their steps."""
    found: dict[str, Held] = {}
    ablations = {}
    for file in sorted(folder.glob("ghn-*.json")):
        name, held = file.stem.removeprefix("ghn-"), read_json(file)
        if name.startswith("ablations-") and "full" in held["table"]:
            ablations[held["steps"]] = held
        else:
            found[name] = held
    return found | ({"ablations": dict(sorted(ablations.items()))} if ablations else {})


def figures(results: Mapping[str, Held]) -> list[Figure]:
    """The bars, in the order of the page."""
    bars = [
        ("unseen", "unseen networks of the space: zero-shot ÷ trained", "≥ 0.76, above one epoch",
         unseen_figure),
        ("unseen", "the same on WIDE, DEEP, DENSE", "≥ 0.68 each", splits_figure),
        ("unseen", "BN-FREE, ResNet-like, ViT-like", "ViT above chance by 15 points", others_figure),
        ("ablations", "GHN-2 without a part", "every one loses on ID", ablations_figure),
        ("capture", "classifiers of torchvision and timm handled", "≥ 95 % of at least 100", capture_figure),
        ("predict", "one prediction for a ResNet-50, graph included", "≤ 0.2 s, ≤ 3 × the model's size",
         predict_figure),
        ("sampler", "a network of the sampler, graph included", "5 × as fast as 1.48 s", sampler_figure),
        ("properties", "Kendall's tau of the accuracy", "above parameter count and predicted accuracy",
         properties_figure),
    ]  # fmt: skip
    made = []
    for table, what, bar, make in bars:
        held = results.get(table)
        made.append(Figure(table, what, bar, *((NOT_YET, None, "") if held is None else make(held))))
    return made


def unseen_figure(held: Held) -> Found:
    """ID ratio, and against one epoch."""
    row = held["table"]["test"]
    above = row["predicted"]["mean"] - row["one_epoch"]["mean"]
    fitted = row[_largest_head(row)]["mean"] / row["trained"]["mean"]
    remark = (
        f"one epoch of training is {_percent(-above)} points above; "
        if above < 0
        else f"{_percent(above)} points above one epoch; "
    ) + f"with {_largest_head(row).partition(', ')[2]} examples a class: {fitted:.3f}"
    return f"{row['ratio']:.3f}", row["ratio"] >= 0.76 and above > 0, remark


def _largest_head(row: Held) -> str:
    names = [name for name in row if name.startswith("predicted, head of ")]
    return max(names, key=lambda name: int(name.rpartition(" ")[2]))


def splits_figure(held: Held) -> Found:
    """Ratios of the splits that are out of distribution."""
    ratios = {split: held["table"][split]["ratio"] for split in ("wide", "deep", "dense")}
    shown = ", ".join(f"{split.upper()} {ratio:.3f}" for split, ratio in ratios.items())
    return shown, min(ratios.values()) >= 0.68, ""


def others_figure(held: Held) -> Found:
    """Accuracies where no ratio is asked."""
    rows = {split: held["table"][split]["predicted"]["mean"] for split in ("bn-free", "resnet", "vit")}
    shown = ", ".join(f"{split} {_percent(value)} %" for split, value in rows.items())
    return shown, rows["vit"] >= 0.25, "chance is 10 %; trained on resnets and vits of other depths"


def ablations_figure(held: Mapping[int, Held]) -> Found:
    """Whether each part is missed, in the longest trainings that there are of it."""
    parts: dict[str, tuple[float, int]] = {}
    for steps, one in held.items():
        full = one["table"]["full"]["test"]["predicted"]["mean"]
        for name in ("no virtual edges", "no normalisation", "meta-batch 1", "mlp"):
            if name in one["table"]:
                parts[name] = one["table"][name]["test"]["predicted"]["mean"] - full, steps
    better = [name for name, (lead, _) in parts.items() if lead >= 0]
    shown = ", ".join(f"{name} {100 * lead:+.1f} ({steps:,})" for name, (lead, steps) in parts.items())
    remark = "in brackets steps" + (f"; does not lose: {', '.join(better)}" if better else "")
    return f"{shown} points", not better, remark


def capture_figure(held: Held) -> Found:
    """Share of the models whose graph is made."""
    models = held["models"].values()
    share = sum(model["handled"] for model in models) / len(models)
    return f"{100 * share:.1f} % of {len(models)}", share >= 0.95 and len(models) >= 100, ""


def predict_figure(held: Held) -> Found:
    """Median seconds and further memory of the bundled kind."""
    row = held["table"]["transformer, tiling"]
    seconds, memory = row["seconds_median"], row["further_peak_bytes_over_model_bytes"]
    remark = (
        f"{row['cpu_seconds_median']:.2f} CPU-seconds; {row['graph_seconds_median']:.2f} s of it the graph"
    )
    return f"{seconds:.2f} s, {memory:.1f} ×", seconds <= 0.2 and memory <= 3, remark


def sampler_figure(held: Held) -> Found:
    """Against the public generator's seconds."""
    times = held["deepnets"]["times_faster_than_the_public_generator"]
    return (
        f"{times:.0f} ×",
        times >= 5,
        f"in both training and evaluation: {held['deepnets']['structures_in_both']}",
    )


def properties_figure(held: Held) -> Found:
    """Of the accuracy."""
    row = held["table"]["accuracy"]
    others = {name: row[name] for name in ("parameter count", "predicted accuracy")}
    remark = ", ".join(f"{name} {value:.2f}" for name, value in row.items() if name != "embedding")
    return f"{row['embedding']:.2f}", row["embedding"] > max(others.values()), remark


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _order(method: str) -> tuple[int, str]:
    """Predicted first, trained last."""
    starts = ("predicted", "copied", "random", "one_epoch", "trained")
    return next(i for i, start in enumerate(starts) if method.startswith(start)), method


def unseen_section(held: Held) -> list[str]:
    """Accuracies by group and method."""
    first = held["table"]["test"]
    methods = sorted((name for name in first if name != "ratio"), key=_order)
    lines = [
        f"Test accuracy in percent on {held['test_images']:,} images of `{held['task']}`, the mean of n "
        "networks. *Predicted*: one forward pass; batch norms of every method are measured on 512 unlabelled "
        "training images. "
        "*Batch statistics*: they use 64 test images at a time instead. "
        "*Head of N*: the last layer is the closed form of N labelled training images a "
        "class, no gradient steps. *Copied*: from the most alike of the trained networks of the training "
        "split, "
        f"resized. *Trained*: {held['epochs']} epochs of AdamW. The ratio is predicted ÷ trained. "
        "Resnets, vits and cnns of other depths were among the training networks, mobilenets were not.",
        "",
    ]
    lines.append(
        markdown(
            ["networks", "n", *(name.replace("_", " ") for name in methods), "ratio"],
            [
                [
                    GROUPS[group],
                    str(row["predicted"]["n"]),
                    *(_percent(row[m]["mean"]) for m in methods),
                    f"{row['ratio']:.3f}",
                ]
                for group, row in (
                    (group, held["table"][group]) for group in GROUPS if group in held["table"]
                )
            ],
        )
    )
    return lines


def ablations_section(held: Mapping[int, Held]) -> list[str]:
    """Accuracies of the variants."""
    lines = [
        "Each variant is trained for the same steps, a fraction of the recipe's, on the same images. *Full* "
        "has GHN-2's gated backbone. The first number is of the predicted head, the second of the closed "
        "form of labelled training images.",
        "",
    ]
    heads: list[str] = []
    rows = []
    for steps, one in held.items():
        heads = list(one["table"]["full"])
        for name, row in one["table"].items():
            both = [(row[s]["predicted"]["mean"], row[s]["fitted"]["mean"]) for s in heads]
            cells = [f"{_percent(predicted)} / {_percent(fitted)}" for predicted, fitted in both]
            rows.append([f"{steps:,}", name, str(row["test"]["predicted"]["n"]), *cells])
    lines.append(markdown(["steps", "variant", "n of ID", *(GROUPS[split] for split in heads)], rows))
    return lines


def properties_section(held: Held) -> list[str]:
    """Kendall's tau by property."""
    names = list(held["table"]["accuracy"])
    lines = [
        "Ridge regression on a graph's embedding, the mean of its encoded nodes and the logarithm of its "
        f"parameter count (*its nodes alone*: without that), fitted on {held['val']} networks of the "
        f"validation split, judged on {held['test']} of the test split by Kendall's tau. Networks were "
        "trained for one epoch; convergence is the accuracy after a quarter of it over that after the whole.",
        "",
    ]
    lines.append(
        markdown(
            ["property", *names],
            [[target, *(f"{row[n]:.2f}" for n in names)] for target, row in held["table"].items()],
        )
    )
    return lines


def finetune_section(held: Held) -> list[str]:
    """Accuracy by start and epochs."""
    rows: list[Sequence[str]] = []
    for images, starts in held["table"].items():
        for start, epochs in starts.items():
            rows.append([images, start, *(_percent(value["mean"]) for value in epochs.values())])
    count = next(iter(next(iter(held["table"].values())).values()))["0"]["n"]
    lines = [
        f"Test accuracy in percent, the mean of {count} unseen networks, each start at the better of two "
        "rates.",
        "",
    ]
    lines.append(markdown(["images", "start", "0 epochs", "1 epoch", "5 epochs"], rows, 2))
    return lines


SECTIONS = {
    "unseen": ("Unseen networks", unseen_section),
    "ablations": ("Without its parts", ablations_section),
    "properties": ("What an embedding knows of its network", properties_section),
    "finetune": ("Fine-tuning", finetune_section),
}


def commands(results: Mapping[str, Held]) -> list[str]:
    """How every table was made."""
    found = []
    for name in RUN:
        for steps, held in results["ablations"].items() if name == "ablations" else ():
            asked = (
                f"--steps {steps} --networks {held['asked']['networks']} --only '{','.join(held['table'])}'"
            )
            found.append(f"{RUN[name]} {asked}")
        if name in results and name != "ablations":
            found.append(RUN[name])
    return found


def page(results: Mapping[str, Held]) -> str:
    """The whole page."""
    lines = [
        "# Graph hypernetworks",
        "",
        "<!-- Written by benchmarks/ghn_report.py from benchmarks/results. Do not edit by hand. -->",
        "",
    ]
    lines.append(
        markdown(
            ["what was measured", "bar", "result", "", "remark"],
            [[f.what, f.bar, f.result, f.verdict, f.remark] for f in figures(results)],
        )
    )
    lines += ["", "## The commands", ""]
    lines += [f"- `{command}`" for command in commands(results)]
    for name, (title, section) in SECTIONS.items():
        if name in results:
            lines += ["", f"## {title}", "", *section(results[name])]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    results = read_results(ROOT / "benchmarks" / "results")
    write_text(ROOT / "docs" / "results" / "ghn.md", page(results))


if __name__ == "__main__":
    main()
