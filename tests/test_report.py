"""benchmarks/report.py on made-up results: what it writes, what it leaves open, what it never invents."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
README = """# Title
<!-- picture:start -->
<!-- picture:end -->
Text that stays.
<!-- results:start -->
old
<!-- results:end -->
"""


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


report, igpg = load("report"), load("igpg")


def number(mean: float, n: int = 3) -> dict[str, float]:
    return {"mean": mean, "sd": 0.0125, "n": n}


def zero_shot(made: float, splits: bool = False) -> dict[str, Any]:
    rows = []
    for seed in range(3):
        for index, (dataset, classes) in enumerate([("mnist", 10), ("cifar10", 4)]):
            row = {
                "architecture": "cnn" if index else "resnet(width=8)",
                "task": f"{dataset}-{index}",
                "dataset": dataset,
                "classes": classes,
                "seed": seed,
                "trained": 0.8,
                "igpg_mean": made + 0.01 * seed,
                "igpg_best_on_support": made + 0.02,
                "nearest": 0.4,
                "closed_form": 0.6,
                "random_init": 0.1,
                "distance": 0.5,
                "zoo_spacing": 0.4,
            }
            rows.append(row | ({"split": ("held-out-order", "held-out-subset")[index]} if splits else {}))
    return {"table": igpg.aggregate(rows), "rows": rows}


def steps(generated: list[int | None], random: list[int | None]) -> dict[str, Any]:
    pairs = list(zip(generated, random, strict=True))
    return {
        "ratio_of_means": 0.2,
        "median_ratio": 0.1,
        "generated_steps": number(20),
        "random_steps": number(400),
        "generated_never": sum(a is None for a, _ in pairs),
        "random_never": sum(b is None for _, b in pairs),
        "limit": 1000,
        "rows": [{"seed": i % 3, "generated": a, "random": b} for i, (a, b) in enumerate(pairs)],
    }


def made_up() -> dict[str, dict[str, Any]]:
    about = {"seconds": 12.5, "torch": "2.0.0", "machine": "test, 1 thread(s)"}
    coded = {"original": 0.9, "ratio": 0.995, "ratio_norms_as_coded": 0.97, "bits_per_weight": 1.5}
    methods = ("random_init", "nearest", "average", "kernel_density", "closed_form", "igpg")
    protocol = {
        str(epoch): {
            method: {place: number(0.1 + 0.1 * rank + 0.01 * epoch) for place in ("mnist", "cifar10", "mean")}
            for rank, method in enumerate(methods)
        }
        for epoch in (0, 1, 5, 25)
    }
    protocol["1"]["closed_form"]["mean"] = number(0.99)
    variants = {"full": number(0.9), "no dataset": number(0.3), "wrong instruction": number(0.88)}
    rates = {part: number(rate) for part, rate in (("prior", 3e5), ("decoder", 9e5), ("together", 2e5))}
    tables: dict[str, dict[str, Any]] = {
        "round-trip": {
            "table": {
                "all": {**coded, "checkpoints": 20},
                "cnn(input=3x16x16)": {**coded, "ratio": 0.98, "checkpoints": 10},
            },
            "codebook": {"used": 0.99, "perplexity": 4.5, "dead_codes": 3, "codes": 1680},
        },
        "seen": zero_shot(0.77),
        "unseen": zero_shot(0.7, splits=True),
        "protocol": {"table": protocol, "epoch_steps": 100, "architecture": "cnn(classes=10,input=3x16x16)"},
        "steps": {
            "table": {
                "seen": steps([10, 20, 30], [100, 200, None]),
                "unseen": steps([None, 100, 100], [400, 400, 400]),
            }
        },
        "conditions": {"table": {"seen": variants, "unseen": variants}},
        "speed": {
            "table": {
                "cnn batch 1": rates,
                "cnn batch 64": rates,
                "resnet(width=8) batch 64": {**rates, "together": number(9e4)},
            },
            "cache_speed_up_at_512": number(6.25),
            "threads": 1,
        },
    }
    return {name: {**about, "command": f"make it {name}", **table} for name, table in tables.items()}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(README)
    (tmp_path / "docs" / "index.md").write_text(README)
    return tmp_path


def write(folder: Path, results: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    for name, held in results.items():
        (folder / f"igpg-{name}.json").write_text(json.dumps(held))
    return report.read_results(folder)


def test_everything_that_was_measured_is_on_the_page(place: Path) -> None:
    results = write(place / "results", made_up())
    report.write_all(results, place)
    page = (place / "docs" / "results" / "igpg.md").read_text()
    for name in results:
        assert f"`make it {name}`" in page
    assert report.NOT_YET not in page.lower()
    assert "0.995 at 1.50 bits (20 checkpoints)" in page and "lowest: 0.980, `cnn(depth=3,width=16)`" in page
    assert "0.975 ± 0.013" in page  # seen: (0.77, 0.78, 0.79) / 0.8
    assert "class orders" in page and "`resnet(depth=8,width=8)`" in page
    assert "1 of 6: 60.0 ± 1.2 %" in page and "2 of 6: 61.0 ± 1.2 %" in page
    assert "perplexity 4.50" in page and "6.2 ± 0.0" in page
    assert page.count("\n| ") > 40 and "1.25 times the zoo's own spacing" in page


def test_the_verdicts_follow_from_the_numbers(place: Path) -> None:
    figures = report.summary(write(place / "results", made_up()))
    holds = [figure.holds for figure in figures]
    #        round trip, seen, unseen, nearest, epoch 0, epoch 1, seen, unseen, dataset, speed, cache
    assert holds == [True, False, True, True, True, False, True, False, True, False, True]
    unseen_steps = figures[7]
    assert unseen_steps.result == "1.000 ± 1.299" and "generated 1 of 3" in unseen_steps.remark
    short = report.falls_short(figures)
    assert len(short.splitlines()) == 4 and "the bar is ≥ 0.98" in short


def test_what_is_missing_is_said_to_be_missing(place: Path) -> None:
    (place / "results").mkdir()
    report.write_all(report.read_results(place / "results"), place)
    page = (place / "docs" / "results" / "igpg.md").read_text()
    assert page.count("Not measured yet.") == len(report.TABLES)
    assert "11 of 11 figures are not measured yet" in page
    # No measured value anywhere: beyond the bars and the commands there is no digit.
    summary = page.split("### The commands")[0].split("## Against the bars")[1]
    bars = [row.split("|")[2] for row in summary.splitlines() if row.startswith("| ")]
    assert len(bars) == 13 and all("not measured yet" in row for row in summary.splitlines()[4:] if row)
    assert not (place / "docs" / "assets" / "igpg.png").exists()
    assert "igpg.png" not in (place / "README.md").read_text()


def test_one_table_alone(place: Path) -> None:
    results = write(place / "results", {"unseen": made_up()["unseen"]})
    report.write_all(results, place)
    page = (place / "docs" / "results" / "igpg.md").read_text()
    assert page.count("Not measured yet.") == len(report.TABLES) - 1 and "class subsets" in page
    assert (place / "docs" / "assets" / "igpg.png").read_bytes().startswith(b"\x89PNG")


def test_marked_places_are_filled_and_the_rest_stays(place: Path) -> None:
    results = write(place / "results", made_up())
    for _ in range(2):
        report.write_all(results, place)
    readme, index = (place / "README.md").read_text(), (place / "docs" / "index.md").read_text()
    assert "Text that stays." in readme and "\nold\n" not in readme
    assert readme.count("](docs/assets/igpg.png)") == 1 and index.count("](assets/igpg.png)") == 1
    assert "](docs/results/igpg.md#unseen-tasks)" in readme and "](results/igpg.md#speed)" in index
    titles = re.findall(r"^## (.+)$", (place / "docs" / "results" / "igpg.md").read_text(), re.MULTILINE)
    places = {title.lower().replace(" ", "-") for title in titles}
    assert set(re.findall(r"igpg\.md#([a-z-]+)\)", readme)) <= places


def test_another_table_is_shown_too(place: Path) -> None:
    results = write(place / "results", {"unseen-dataset": made_up()["unseen"]})
    assert "## Another table: unseen-dataset" in report.page(results)


def test_the_published_page_is_what_the_script_writes() -> None:
    """Whoever changes a result or the script runs the script."""
    results = report.read_results(ROOT / "benchmarks" / "results")
    assert (ROOT / "docs" / "results" / "igpg.md").read_text("utf-8") == report.page(results)
