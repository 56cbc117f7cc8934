"""The loop learns, goes on after a kill as if nothing had happened, and gives up in words."""

from __future__ import annotations

import itertools
import json
import shutil

import pytest
import torch
from torch import nn

import weightloom.training.loop as loop
from weightloom.errors import CheckpointError, SpecError, TrainingError
from weightloom.io import load_tensors, read_json, save_tensors, write_json
from weightloom.seeding import torch_generator
from weightloom.training import LoopSettings, run_loop


class Killed(BaseException):
    """What the tests kill a run with."""


class Toy(nn.Module):
    """Numbers from numbers, with a branch that only every third step goes through and a frozen part."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.always, self.seldom = nn.Linear(3, 4), nn.Linear(4, 1)
            self.trust = nn.Parameter(torch.zeros(()))
            self.frozen = nn.Linear(3, 1).requires_grad_(False)

    def objective(self, step):
        x = torch.randn(16, 3, generator=torch_generator("toy", step))
        hidden = torch.tanh(self.always(x))
        answer = hidden.sum(1, keepdim=True) * self.trust.exp()
        if step % 3 == 0:
            answer = answer + self.seldom(hidden)
        loss = (answer - x.sum(1, keepdim=True) - self.frozen(x)).square().mean()
        return loss, {"drawn": float(x[0, 0]), **({"third": 1.0} if step % 3 == 0 else {})}


def run(toy, folder=None, objective=None, evaluate=None, **changes):
    settings = {"steps": 11, "learning_rate": 0.02, "warmup": 2, "log_every": 4, "save_every": 3}
    return run_loop(
        "toy",
        toy,
        objective or toy.objective,
        LoopSettings(**{**settings, **changes}),
        folder=folder,
        evaluate=evaluate or (lambda step: {"probe": float(toy.trust.detach()) + step}),
        evaluate_every=5,
    )


def timeless(log):
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in log]


def assert_same(a, b):
    for (name, x), (_, y) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert torch.equal(x, y), name


@pytest.fixture(scope="module")
def whole():
    """The toy after a run that nothing interrupted, and its log."""
    toy = Toy()
    return toy, run(toy)


def killed_at(at):
    """A toy whose objective kills the run in step ``at``."""
    toy = Toy()

    def objective(step):
        if step == at:
            raise Killed
        return toy.objective(step)

    return toy, objective


def test_it_learns(rng_untouched):
    toy = Toy()
    log = run(toy, steps=300, warmup=10, log_every=20)
    first, last = log[0]["loss"], log[-1]["loss"]
    assert last < first / 20, (first, last)
    fresh = Toy()
    assert torch.equal(toy.frozen.weight, fresh.frozen.weight), "what needs no gradient stays"
    assert not torch.equal(toy.seldom.weight, fresh.seldom.weight)


def test_the_log_holds_means(whole):
    toy, log = whole
    assert [entry["step"] for entry in log] == [4, 5, 8, 10, 11]
    drawn = [toy.objective(step)[1]["drawn"] for step in range(11)]
    assert log[0]["drawn"] == pytest.approx(sum(drawn[:4]) / 4)
    assert log[1]["drawn"] == pytest.approx(drawn[4])
    assert log[2]["drawn"] == pytest.approx(sum(drawn[5:8]) / 3)
    assert log[0]["third"] == 1.0, "a number is averaged over the steps that gave it"
    assert "third" not in log[1], "and a step that did not give it says nothing of it"
    assert all(later["seconds"] >= sooner["seconds"] >= 0 for sooner, later in itertools.pairwise(log))
    assert not any("skipped" in entry for entry in log)


def test_it_is_evaluated_when_asked(whole):
    _, log = whole
    assert [entry["step"] for entry in log if "probe" in entry] == [5, 10, 11], "not on logged steps alone"
    silent = run_loop("toy", Toy(), Toy().objective, LoopSettings(steps=1), evaluate=lambda _: {"probe": 1.0})
    assert "probe" not in silent[0], "never, where no distance is given"


@pytest.mark.parametrize("at", range(12))
def test_a_killed_run_goes_on_as_if_nothing_had_happened(whole, tmp_path, at):
    toy, objective = killed_at(at)
    if at < 11:
        with pytest.raises(Killed):
            run(toy, tmp_path, objective)
    else:
        run(toy, tmp_path, objective)
    with (tmp_path / "log.jsonl").open("a") as stream:
        stream.write('{"step": 9, "lo')  # torn by the kill
    again = Toy()
    log = run(again, tmp_path)
    assert_same(again, whole[0])
    assert timeless(log) == timeless(whole[1])
    written = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert written == log, "every line once, whatever was written before the kill"


@pytest.mark.parametrize(("steps", "save_every"), [(11, 3), (7, 5), (8, 5), (9, 4), (6, 1)])
@pytest.mark.parametrize("lost", ["save_tensors", "write_json"])
def test_killed_while_it_saves(tmp_path, monkeypatch, steps, save_every, lost):
    """Whichever file of whichever save is lost, what was kept before is whole."""
    wanted, changes = Toy(), {"steps": steps, "save_every": save_every}
    log = run(wanted, **changes)
    real = getattr(loop, lost)
    for number in range(-(-steps // save_every)):
        left = [number]

        def kill(*arguments, left=left, **options):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return real(*arguments, **options)

        folder = tmp_path / str(number)
        with monkeypatch.context() as patch:
            patch.setattr(loop, lost, kill)
            with pytest.raises(Killed):
                run(Toy(), folder, **changes)
        assert (folder / "state.json").is_file() == (number > 0)
        again = Toy()
        assert timeless(run(again, folder, **changes)) == timeless(log)
        assert_same(again, wanted)


def test_a_change_of_what_is_logged_and_kept_loses_nothing(whole, tmp_path):
    toy, objective = killed_at(8)
    with pytest.raises(Killed):
        run(toy, tmp_path, objective)
    again = Toy()
    run(again, tmp_path, log_every=2, save_every=4)
    assert_same(again, whole[0])


def test_a_finished_run_is_not_trained_again(whole, tmp_path):
    run(Toy(), tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.glob("state*")}
    again, objective = killed_at(0)
    # No step is done: every one would end in Killed.
    log = run(again, tmp_path, lambda step: objective(0))
    assert_same(again, whole[0])
    assert timeless(log) == timeless(whole[1])
    assert {file.name: file.read_bytes() for file in tmp_path.glob("state*")} == before


def test_two_files_by_turns_and_nothing_else(tmp_path):
    run(Toy(), tmp_path)
    names = {"log.jsonl", "state.json", "state-0.safetensors", "state-1.safetensors"}
    assert {file.name for file in tmp_path.iterdir()} == names
    tensors, _ = load_tensors(tmp_path / read_json(tmp_path / "state.json")["file"])
    assert float(tensors["step.always.weight"]) == 11
    assert float(tensors["step.seldom.weight"]) == 4, "Adam counts the steps that a parameter took part in"
    assert not any("frozen" in name for name in tensors)


# ------------------------------------------------------------------------------------- refusals


@pytest.fixture
def kept(tmp_path):
    """A folder with the state of a toy killed at step 8: kept at 3 and 6."""
    toy, objective = killed_at(8)
    with pytest.raises(Killed):
        run(toy, tmp_path, objective)
    return tmp_path


def test_another_number_of_steps_is_refused(kept):
    with pytest.raises(CheckpointError, match="holds a run of 11 steps, not of 12"):
        run(Toy(), kept, steps=12)


def test_another_model_is_refused(kept):
    smaller = Toy()
    del smaller.seldom
    with pytest.raises(CheckpointError, match=r"another model: weight 'seldom\.bias'"):
        run(smaller, kept)
    larger = Toy()
    larger.more = nn.Linear(1, 1)
    with pytest.raises(CheckpointError, match=r"another model: weight 'more\.bias'"):
        run(larger, kept)
    wider = Toy()
    wider.seldom = nn.Linear(5, 1)
    with pytest.raises(CheckpointError, match=r"another model: weight 'seldom\.weight'"):
        run(wider, kept)


@pytest.mark.parametrize(
    "note",
    [
        [],
        {},
        {"step": 6},
        {"step": "6", "steps": 11, "file": "state-0.safetensors"},
        {"step": 12, "steps": 11, "file": "state-0.safetensors"},
        {"step": -1, "steps": 11, "file": "state-0.safetensors"},
        {"step": 6, "steps": 11, "file": "../elsewhere.safetensors"},
        {"step": 6, "steps": 11, "file": None},
        {"step": 6, "steps": 11, "file": "state-0.safetensors", "colour": "red"},
    ],
)
def test_a_note_that_is_none_is_refused(kept, note):
    write_json(kept / "state.json", note)
    with pytest.raises(CheckpointError, match="not the note of a training run"):
        run(Toy(), kept)


def test_a_state_that_does_not_fit_its_note_is_refused(kept):
    note = read_json(kept / "state.json")
    shutil.copy(kept / "state-1.safetensors", kept / "other")
    shutil.copy(kept / "state-0.safetensors", kept / "state-1.safetensors")
    shutil.copy(kept / "other", kept / "state-0.safetensors")
    with pytest.raises(CheckpointError, match="of different steps"):
        run(Toy(), kept)
    (kept / note["file"]).write_bytes(b"torn")
    with pytest.raises(CheckpointError):
        run(Toy(), kept)
    (kept / note["file"]).unlink()
    with pytest.raises(CheckpointError):
        run(Toy(), kept)


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"warmup": -1},
        {"clip": 0.0},
        {"log_every": 0},
        {"save_every": 0},
        {"max_bad_steps": 0},
    ],
)
def test_settings_that_make_no_sense(bad):
    with pytest.raises(SpecError):
        LoopSettings(**bad)


# ----------------------------------------------------------------------------------- not finite


def spoilt(toy, steps, spoil):
    """The toy's objective with the loss of ``steps`` spoilt."""

    def objective(step):
        loss, numbers = toy.objective(step)
        return (spoil(loss, toy), {**numbers, "drawn": 1e9}) if step in steps else (loss, numbers)

    return objective


SPOILT = {
    "nan loss": lambda loss, toy: loss * torch.nan,
    "infinite loss": lambda loss, toy: loss + torch.inf,
    # A finite loss whose gradient is not: the root of 0.
    "nan gradient": lambda loss, toy: loss + (toy.trust - toy.trust).abs().sqrt(),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT.keys())
def test_a_step_that_is_not_finite_is_left_out_and_counted(spoil):
    toy, weights = Toy(), []

    def objective(step):
        weights.append(toy.always.weight.detach().clone())
        return spoilt(toy, {2, 3, 6}, spoil)(step)

    log = run(toy, objective=objective)
    same = [torch.equal(a, b) for a, b in itertools.pairwise(weights)]
    assert [step for step, equal in enumerate(same) if equal] == [2, 3, 6]
    assert {entry["step"]: entry.get("skipped") for entry in log} == {4: 2, 5: None, 8: 1, 10: None, 11: None}
    assert all(entry["drawn"] < 100 for entry in log), "its numbers do not count either"
    assert all(bool(torch.isfinite(p).all()) for p in toy.parameters())


def test_skipped_steps_are_resumed_like_others(tmp_path):
    whole = Toy()
    log = run(whole, objective=spoilt(whole, {2, 3, 6}, SPOILT["nan loss"]))
    for at in range(11):
        toy, objective = killed_at(at)
        bad = spoilt(toy, {2, 3, 6}, SPOILT["nan loss"])
        with pytest.raises(Killed):
            run(toy, tmp_path / str(at), lambda step, bad=bad, kill=objective: (kill(step), bad(step))[1])
        again = Toy()
        made = run(again, tmp_path / str(at), spoilt(again, {2, 3, 6}, SPOILT["nan loss"]))
        assert timeless(made) == timeless(log)
        assert_same(again, whole)


def test_too_many_in_a_row_end_the_run(tmp_path):
    toy = Toy()
    bad = spoilt(toy, set(range(4, 11)), SPOILT["nan loss"])
    with pytest.raises(TrainingError) as found:
        run(toy, tmp_path, bad, max_bad_steps=4)
    said = str(found.value)
    assert "toy" in said and "4 times up to step 8" in said
    assert "last good state, of step 6" in said and str(tmp_path) in said
    tensors, metadata = load_tensors(tmp_path / read_json(tmp_path / "state.json")["file"])
    assert metadata["step"] == "6" and all(bool(torch.isfinite(v).all()) for v in tensors.values())
    again = Toy()
    with pytest.raises(TrainingError, match="4 times up to step 8"):
        run(again, tmp_path, spoilt(again, set(range(4, 11)), SPOILT["nan loss"]), max_bad_steps=4)


def test_what_was_never_kept_is_not_promised(tmp_path):
    for folder in (None, tmp_path):
        toy = Toy()
        with pytest.raises(TrainingError, match="2 times up to step 2; nothing was kept"):
            run(toy, folder, spoilt(toy, {0, 1}, SPOILT["nan loss"]), max_bad_steps=2)


# ------------------------------------------------------------------------------------ the rest


def test_the_rate_warms_up_and_falls_to_a_twentieth():
    settings = LoopSettings(steps=100, warmup=10)
    rates = [loop._rate(step, settings) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10:] == sorted(rates[10:], reverse=True) and max(rates) == 1.0
    assert loop._rate(100, settings) == pytest.approx(0.05)
    assert loop._rate(0, LoopSettings(warmup=0)) == 1.0
    short = LoopSettings(steps=3, warmup=50)
    assert all(0 < loop._rate(step, short) <= 1 for step in range(3))


def test_progress_is_told(tmp_path):
    toy, told = Toy(), []
    settings = LoopSettings(steps=3)
    run_loop("toy", toy, toy.objective, settings, progress=lambda *step: told.append(step))
    assert told == [("toy", 1, 3), ("toy", 2, 3), ("toy", 3, 3)]


def test_states_without_steps_of_their_own_are_read(kept):
    """States of before Adam's steps were kept: every parameter then took part in all of them."""
    note = read_json(kept / "state.json")
    tensors, metadata = load_tensors(kept / note["file"])
    old = {name: value for name, value in tensors.items() if not name.startswith("step.")}
    save_tensors(kept / note["file"], old, metadata)
    write_json(kept / "state.json", {key: note[key] for key in ("step", "file", "steps", "log")})
    assert run(Toy(), kept)[-1]["step"] == 11


def test_averaged_weights_are_those_of_the_definition_and_survive_a_kill(tmp_path):
    plain = Toy()
    seen = []

    def watched(step):
        seen.append({n: p.detach().clone() for n, p in plain.named_parameters()})
        return plain.objective(step)

    run(plain, objective=watched)
    seen.append({n: p.detach().clone() for n, p in plain.named_parameters()})
    expected = dict(seen[0])
    for step, now in enumerate(seen[1:]):
        stays = min(0.6, (step + 1) / (step + 10))
        expected = {n: stays * expected[n] + (1 - stays) * now[n] for n in now}

    averaged, probes = Toy(), []
    run(averaged, average=0.6, evaluate=lambda step: probes.append(float(averaged.trust.detach())) or {})
    for name, p in averaged.named_parameters():
        assert torch.allclose(p, expected[name], atol=1e-6), name
    assert probes[-1] == float(averaged.trust.detach()) != float(plain.trust.detach())

    toy = Toy()

    def killed(step):
        if step == 8:
            raise Killed
        return toy.objective(step)

    with pytest.raises(Killed):
        run(toy, tmp_path, objective=killed, average=0.6)
    again = Toy()
    run(again, tmp_path, average=0.6)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), averaged.parameters(), strict=True))


def test_an_average_of_everything_is_refused():
    with pytest.raises(SpecError, match="average"):
        LoopSettings(average=1.0)
