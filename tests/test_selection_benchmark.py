"""benchmarks/selection.py on made-up rows: what it fits, and its stand-in for a generator of everything."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from weightloom.evaluation.candidates import FAMILIES, WEIGHTS
from weightloom.tasks import SupportSet


@pytest.fixture(scope="module")
def benchmark():
    path = Path(__file__).parents[1] / "benchmarks" / "selection.py"
    spec = importlib.util.spec_from_file_location("benchmark_selection", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_fit_finds_what_decides(benchmark):
    stream = torch.Generator().manual_seed(0)
    rows = []
    for task in range(6):
        for number in range(12):
            a, b, c, level = torch.randn(4, generator=stream).tolist()
            odds = torch.tensor(2 * a + 0.1 * task)
            rows.append(
                {
                    "task": f"task {task}",
                    "family": ("mlp", "cnn", "resnet")[number % 3],
                    "trained": float(torch.sigmoid(odds)),
                    "zero_shot": level,
                    "probe": a,
                    "log_multiply_adds": b,
                    "log_parameters": c,
                }
            )
    found = benchmark.fitted(rows)
    assert found["weights"].keys() == WEIGHTS.keys() and found["families"].keys() == FAMILIES.keys()
    assert found["weights"]["probe"] > 1.5 and abs(found["weights"]["log_parameters"]) < 0.2
    assert found["tau_left_out"] > 0.9 and len(found["taus"]) == 6


def test_kendalls_tau(benchmark):
    assert benchmark.tau([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert benchmark.tau([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert benchmark.tau([1, 1, 1], [3, 2, 1]) == 0


def test_the_stand_in_makes_everything(benchmark):
    images = torch.rand(3, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    support = SupportSet(images=images, class_names=("a", "b", "c"))
    for text in ("cnn(depth=2,width=6)", "mlp(depth=1,width=8)", "resnet(depth=8,width=4)"):
        first, second = benchmark.Fresh().generate_many(text, support=support, num_samples=2)
        assert first.report["support_accuracy"] > 0.5 and not torch.equal(first.flat, second.flat)


def test_the_table_takes_the_mean_of_the_trainings_as_the_truth(benchmark):
    def row(seed, accuracies, own, other):
        return {
            "task": "t",
            "seed": seed,
            **dict.fromkeys(("tau_predicted", "tau_ranking", "tau_size", "tau_zero_shot"), 0.5),
            "predicted": {"a": 0.9, "b": 0.8, "c": 0.7},
            "place": {"a": 0, "b": 2, "c": 1},
            "select": {"accuracy": own, "seconds": 10.5},
            "random_search": {"accuracy": other, "seconds": 10.0},
            "train_all": {
                "accuracy": 0.9,
                "seconds": 50.0,
                "accuracies": dict(zip("abc", accuracies, strict=True)),
            },
        }

    table = benchmark.summary([row(0, (0.9, 0.7, 0.8), 0.9, 0.8), row(1, (0.9, 0.8, 0.5), 0.8, 0.9)], 10.0)
    assert table["tau_predicted_of_mean"] == pytest.approx(1)
    assert table["tau_ranking_of_mean"] == pytest.approx(1 / 3)
    assert table["tau_of_two_trainings"] == pytest.approx(1 / 3)
    assert table["select_at_least_random_search"] == 0.5 and table["longest_over_budget"] == 1.05
    assert table["train_all"]["accuracy_per_second"] == pytest.approx(0.018)
