"""Selection at tiny size: what is chosen, how the seconds are spent, and what is refused."""

from __future__ import annotations

import json
import time

import pytest
import torch

from weightloom.architectures import parse_architecture
from weightloom.errors import CheckpointError, InputError, SpecError, TrainingError, UnsupportedRequestError
from weightloom.evaluation import (
    SelectionSettings,
    candidates_of,
    halving,
    parse_budget,
    select,
)
from weightloom.evaluation.candidates import DEFAULT_CANDIDATES, Candidate, multiply_adds, predict
from weightloom.fitting import accuracy
from weightloom.generators import Validity, cost
from weightloom.generators.base import ANY_ARCHITECTURE
from weightloom.generators.random_init import RandomInit
from weightloom.io import load_tensors
from weightloom.plots import draw_selection
from weightloom.tasks import parse_task
from weightloom.tasks.data import TaskData, hold_back

ARCHES = ("mlp(depth=1,width=4)", "mlp(depth=1,width=32)", "cnn(depth=1,width=4)", "mlp(depth=2,width=8)")


def validity(**changes):
    held = {"architectures": (ANY_ARCHITECTURE,), "input": (1, 8, 8), "min_classes": 2, "max_classes": 10}
    return Validity(**{**held, **changes})


@pytest.fixture(scope="module")
def task():
    return parse_task("digits[3,1,7]@8c1")


@pytest.fixture
def anything():
    return RandomInit(validity())


def short(**changes):
    return SelectionSettings(**{"budget": 3.0, "shots": 4, "probe_steps": 4, "batch_size": 16, **changes})


@pytest.fixture(scope="module")
def found(task):
    return select(RandomInit(validity()), task, ARCHES, short())


def test_the_winner_is_the_best_and_has_learned(found, task):
    asked = {parse_architecture(f"{a[:-1]},classes=3,input=1x8x8)") for a in ARCHES}
    assert {c.spec for c in found.ranking} == asked == {c.spec for c in found.predicted}
    best = found.winner
    assert best.rung == len(found.rungs) and found.rungs[0] == 3 and found.rungs[-1] == 1
    assert best.accuracy == max(c.accuracy for c in found.ranking if c.rung)
    measured = float(accuracy(best.spec, best.flat[None], *task.data("test").all())[0])
    assert measured > 0.8 > best.zero_shot
    assert best.steps > 50 and len(best.rungs) == len(found.rungs)
    for candidate in found.ranking:
        assert candidate.zero_shot is not None and candidate.probe is not None and not candidate.problem
        assert 0 < candidate.predicted < 1 and candidate.seconds > 0
        assert candidate.accuracy == pytest.approx(max(value for _, value in candidate.curve))


def test_the_seconds_are_kept_and_booked(found):
    assert found.seconds <= 1.1 * 3.0
    assert sum(found.spent.values()) == pytest.approx(found.seconds, abs=0.02)
    assert {"reading images", "generating", "scoring", "rung 1", "rung 2"} <= found.spent.keys()
    times = [seconds for c in found.ranking for seconds, _ in c.curve]
    assert min(times) > 0 and max(times) <= found.seconds
    assert not found.interrupted


def test_loading_counts_where_it_is_to_count(anything, task):
    late = select(anything, task, ARCHES[:2], short(budget=2.0), started=time.perf_counter() - 1.5)
    assert 1.5 < late.seconds < 2.4 and late.winner.flat is not None


def test_a_machine_that_turns_slow_keeps_the_time(anything, task, monkeypatch):
    real, calls = halving.fit_population, []

    def slow(spec, flats, data, settings, *, seed, on_step, pace):
        calls.append(1)
        pause = 0.0 if len(calls) <= 2 else 0.02  # another process takes the core after the probes

        def step(number):
            time.sleep(pause)
            on_step(number)

        return real(spec, flats, data, settings, seed=seed, on_step=step, pace=pace)

    monkeypatch.setattr(halving, "fit_population", slow)
    late = select(anything, task, ARCHES[:2], short(budget=2.0))
    assert late.seconds <= 2.3 and late.winner.steps > 0


def test_what_it_says_of_itself(found, tmp_path):
    told = found.to_json()
    assert told["winner"] == found.winner.spec.full_text() and told["settings"]["budget"] == 3.0
    assert "flat" not in told["ranking"][0] and told["ranking"][0]["curve"]
    assert told["images"]["train"] + told["images"]["held_back"] > 0 and told["images"]["support"] == 12
    path = found.sample().save(tmp_path / "winner.safetensors")
    _, metadata = load_tensors(path)
    report = json.loads(metadata["report"])
    assert report["generator"] == "random-init" and len(report["selected"]["from"]) == 4
    picture = draw_selection(found, tmp_path / "curves.svg").read_text()
    assert "<svg" in picture and "mlp(depth=1,width=32)" in picture
    with pytest.raises(InputError, match="picture's name"):
        draw_selection(found, tmp_path / "curves.txt")


def test_test_images_are_never_asked_for(anything, task, monkeypatch):
    real = type(task).data

    def guarded(self, split):
        assert split == "train"
        return real(self, split)

    monkeypatch.setattr(type(task), "data", guarded)
    select(anything, task, ARCHES[:1], short(budget=1.0))


def test_a_support_set_with_training_images(anything, task):
    given = select(anything, (task.support(3), task.data("train")), ARCHES[:2], short(budget=1.0))
    assert given.task == "examples" and given.winner.spec.classes == 3
    with pytest.raises(InputError, match="must be a SupportSet"):
        select(anything, (task.data("train"), task.data("train")), ARCHES[:1], short())


def test_an_interrupt_returns_the_best_so_far(anything, task, monkeypatch, tmp_path):
    real, calls = halving.fit_population, []

    def pressed(*arguments, **keywords):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **keywords)

    state = tmp_path / "state.safetensors"
    monkeypatch.setattr(halving, "fit_population", pressed)
    broken = select(anything, task, ARCHES, short(), state=state)
    assert broken.interrupted and broken.winner.flat is not None
    assert broken.winner.accuracy == max(c.accuracy for c in broken.ranking)

    monkeypatch.setattr(halving, "fit_population", real)
    whole = select(anything, task, ARCHES, short(budget=4.0), state=state)
    assert not whole.interrupted and whole.seconds > broken.seconds
    kept = {str(c.spec): c.zero_shot for c in broken.ranking}
    assert {str(c.spec): c.zero_shot for c in whole.ranking} == kept, "nothing is generated twice"
    assert sum(whole.spent.values()) == pytest.approx(whole.seconds, abs=0.05)
    again = select(anything, task, ARCHES, short(budget=4.0), state=state)
    assert [str(c.spec) for c in again.ranking] == [str(c.spec) for c in whole.ranking]
    assert torch.equal(again.winner.flat, whole.winner.flat), "its seconds are spent: nothing more is done"

    with pytest.raises(CheckpointError, match="belongs to another selection"):
        select(anything, task, ARCHES[:2], short(), state=state)
    whole.sample().save(state)
    with pytest.raises(CheckpointError, match="is not the state of a selection"):
        select(anything, task, ARCHES, short(), state=state)


def test_an_interrupt_before_anything_is_made(anything, task, monkeypatch):
    def pressed(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(RandomInit, "sample_flats", pressed)
    with pytest.raises(KeyboardInterrupt):
        select(anything, task, ARCHES, short())


def test_a_candidate_that_fails_leaves_the_others(anything, task, monkeypatch):
    real = halving.fit_population

    def fails(spec, *arguments, **keywords):
        if spec.family == "cnn":
            raise TrainingError("the loss is not finite")
        return real(spec, *arguments, **keywords)

    monkeypatch.setattr(halving, "fit_population", fails)
    rest = select(anything, task, ARCHES, short(budget=2.0))
    broken = next(c for c in rest.ranking if c.spec.family == "cnn")
    assert broken.problem == "not trained further: the loss is not finite" and broken.rung == 0
    assert rest.winner.spec.family == "mlp" and rest.winner.rung > 0

    def generates_nothing(self, *arguments, **keywords):
        raise InputError("no")

    monkeypatch.setattr(RandomInit, "sample_flats", generates_nothing)
    with pytest.raises(TrainingError, match="no candidate could be generated: not generated: no"):
        select(anything, task, ARCHES, short(budget=2.0))


def test_what_cannot_be_asked_for(anything, task, monkeypatch):
    with pytest.raises(UnsupportedRequestError, match="it makes: mlp"):
        select(RandomInit(validity(architectures=("mlp(input=1x8x8)",))), task, ARCHES, short())
    with pytest.raises(InputError, match="no architecture to choose from"):
        select(anything, task, [], short())
    with pytest.raises(UnsupportedRequestError, match="1x8x8 images"):
        select(anything, parse_task("digits@16c3"), ARCHES, short())
    monkeypatch.setattr(cost, "available_memory", lambda: 10**9)
    with pytest.raises(UnsupportedRequestError, match="GB of memory"):
        select(anything, task, ["mlp(depth=5,width=4096)"], short())


def test_every_class_needs_two_images(task):
    pixels = torch.zeros(5, 1, 8, 8, dtype=torch.uint8)
    data = TaskData(pixels, torch.arange(5), torch.tensor([0, 0, 0, 1, 1]), channels=1)
    train, held = hold_back(data, ["cup", "spoon"], 0.2, ("t",))
    assert sorted(train.labels.tolist()) == [0, 0, 1] and sorted(held.labels.tolist()) == [0, 1]
    with pytest.raises(InputError, match="class 'spoon' has one training image"):
        hold_back(data.part(torch.tensor([0, 1, 3])), ["cup", "spoon"], 0.2, ("t",))
    with pytest.raises(InputError, match="class 'fork' has no training image"):
        hold_back(data, ["cup", "spoon", "fork"], 0.2, ("t",))


def test_candidates_of_a_generator(anything):
    assert [str(s) for s in candidates_of(anything)] == [
        str(parse_architecture(t)) for t in DEFAULT_CANDIDATES
    ]
    listed = RandomInit(validity(architectures=("mlp(depth=1,width=4,input=1x8x8)",)))
    assert [str(s) for s in candidates_of(listed)] == ["mlp(depth=1,width=4)"]
    described = RandomInit(validity(architectures=("any cnn and mlp",)))
    assert candidates_of(described) == []


def test_the_prediction_follows_accuracy_and_size():
    specs = [parse_architecture(f"{a[:-1]},classes=3,input=1x8x8)") for a in ARCHES[:2]]
    small, large = (Candidate(s, s.num_parameters(), multiply_adds(s)) for s in specs)
    predict([small, large])
    assert small.predicted is None, "nothing is known yet"
    for one in (small, large):
        one.zero_shot = one.probe = 0.5
    predict([small, large])
    assert large.predicted > small.predicted, "at equal accuracy the larger one"
    small.probe = 0.99
    predict([small, large])
    assert small.predicted > large.predicted


def test_multiply_adds():
    spec = parse_architecture("cnn(depth=1,width=4,norm=none,classes=3,input=1x8x8)")
    assert multiply_adds(spec) == 8 * 8 * 4 * 9 + 16 * 3


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("60s", 60), ("2m", 120), ("1h", 3600), ("1.5 min", 90), ("7", 7), (20, 20), (2.5, 2.5)],
)
def test_budgets(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "soon", "-3s", "0s", "10ms", "1e9", "nan", "8000h", "6" * 500, "60 s s"]
)
def test_bad_budgets(text):
    with pytest.raises(InputError, match="a budget is"):
        parse_budget(text)


@pytest.mark.parametrize(
    "bad",
    [
        {"shots": 0},
        {"samples": 1.5},
        {"probe_steps": 0},
        {"eta": 1},
        {"entrants": 0},
        {"held_back": 0},
        {"held_back": 1.0},
        {"budget": 0.5},
        {"budget": float("nan")},
        {"learning_rate": 0},
        {"batch_size": 1},
    ],
)
def test_bad_settings(bad):
    with pytest.raises(SpecError):
        SelectionSettings(**bad)
