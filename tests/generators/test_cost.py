"""Requests that no small machine can meet are refused before anything is allocated."""

from __future__ import annotations

import time

import pytest

from weightloom.architectures import parse_architecture
from weightloom.errors import UnsupportedRequestError
from weightloom.generators import Validity, cost
from weightloom.generators.base import ANY_ARCHITECTURE
from weightloom.generators.random_init import RandomInit

BILLION = "cnn(depth=8,width=4096,classes=10,input=3x16x16)"


@pytest.fixture
def anything():
    return RandomInit(
        Validity(architectures=(ANY_ARCHITECTURE,), input=(3, 16, 16), min_classes=2, max_classes=10)
    )


def test_a_billion_parameters_on_a_small_machine(anything, monkeypatch, memory_growth):
    monkeypatch.setattr(cost, "available_memory", lambda: 8 * 10**9)
    start = time.perf_counter()
    with memory_growth(50), pytest.raises(UnsupportedRequestError) as caught:
        anything.generate(BILLION)
    assert time.perf_counter() - start < 5
    words = str(caught.value)
    assert "1,057,304,586 parameters would take about 33.8 GB of memory and at least" in words
    assert "seconds, but this machine has 8.0 GB free" in words and "\n" not in words
    with pytest.raises(UnsupportedRequestError, match=r"3 networks of .* fewer samples"):
        anything.generate_many(BILLION, num_samples=3)


def test_many_samples_are_counted(anything, monkeypatch):
    monkeypatch.setattr(cost, "available_memory", lambda: 10**9)
    text = "mlp(depth=4,width=2048,classes=10)"  # 14 million parameters
    anything.check(text, None, None, 2, 0, None)
    with pytest.raises(UnsupportedRequestError, match="16 networks"):
        anything.check(text, None, None, 16, 0, None)


def test_training_takes_more_than_one_sample():
    spec = parse_architecture(BILLION)
    assert cost.cost_of(spec, training=True).bytes > cost.cost_of(spec).bytes
    assert cost.cost_of(spec, 4).seconds == pytest.approx(4 * cost.cost_of(spec).seconds)


def test_nothing_is_refused_where_the_system_does_not_say(monkeypatch):
    monkeypatch.setattr(cost, "available_memory", lambda: None)
    cost.check_cost(parse_architecture(BILLION))


def test_the_memory_of_this_machine():
    free = cost.available_memory()
    assert free is None or free > 0
