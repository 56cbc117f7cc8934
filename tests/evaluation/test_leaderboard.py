"""The leaderboard: what it stands on, that cells are kept, who refuses, and where baselines are ahead."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from weightloom.errors import (
    CheckpointError,
    InputError,
    SpecError,
    UnknownNameError,
    UnsupportedRequestError,
)
from weightloom.evaluation import (
    GROUPS,
    Ground,
    LeaderboardSettings,
    leaderboard_json,
    leaderboard_markdown,
    leaderboard_table,
    run_leaderboard,
)
from weightloom.evaluation.leaderboard import contestants
from weightloom.fitting import initial_flats
from weightloom.generators import Generator, Validity, generators
from weightloom.generators.base import ANY_ARCHITECTURE
from weightloom.plots import draw_leaderboard
from weightloom.zoo import ZooRecipe, build_zoo

RECIPE = {
    "kind": "zoo", "name": "bench", "salt": "bench", "datasets": ("digits",),
    "architectures": ("mlp(depth=1,width=4)", "cnn(depth=1,width=4)"), "size": 8, "channels": 1,
    "initialisation": "independent", "fit": {"steps": 5, "batch_size": 32},
    "groups": (
        {"classes": 4, "tasks": 2, "repeats": 2},
        {"classes": 4, "tasks": 2, "split": "held-out-subset"},
        {"classes": 4, "tasks": 2, "split": "held-out-order"},
    ),
    "members_at_once": 16,
}  # fmt: skip

SMALL = LeaderboardSettings.quick(images=40, epoch_steps=1, trained_steps=2)


class Constant(Generator):
    """Makes the same random network each time and counts its requests; refuses convolutional ones."""

    kind = "igpg"

    def __init__(self, name="constant"):
        self.name, self._calls = name, 0
        self.validity = Validity(
            architectures=(ANY_ARCHITECTURE,), input=(1, 8, 8), min_classes=2, max_classes=10
        )

    @property
    def calls(self):
        """Under a name that says nothing of what is made."""
        return self._calls

    def sample_flats(self, request):
        self._calls += 1
        if request.architecture.family == "cnn":
            raise UnsupportedRequestError("no convolutions are made here")
        count = request.num_samples
        return initial_flats(request.architecture, [1]).repeat(count, 1), [{} for _ in range(count)]


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return Ground.from_zoo(build_zoo(ZooRecipe(**RECIPE), tmp_path_factory.mktemp("bench") / "zoo"))


def test_trials_are_seen_held_out_or_beyond(ground):
    seen, unseen = ground.seen(4), ground.unseen(4)
    assert len(seen) == 4 and all(trial.trained is not None for trial in [*seen, *unseen])
    assert {str(t.task) for t in seen}.isdisjoint(str(t.task) for t in unseen)
    assert {t.spec.family for t in seen[:2]} == {t.spec.family for t in unseen[:2]} == {"mlp", "cnn"}
    own = {replace(spec, classes=None, input=None) for spec in ground.specs()}
    others = ground.other_architectures(4)
    assert all(replace(t.spec, classes=None, input=None) not in own and t.trained is None for t in others)
    assert [t.task for t in others] == [t.task for t in unseen]
    assert ground.other_datasets(3, ["glyphs"])[0].task.dataset == "glyphs"
    assert len(ground.checkpoints(seen[0].spec)) == 4
    assert len(ground.checkpoints(others[0].spec)) == 0
    assert ground.seen(100) == ground.seen(8) and ground.seen(2) == seen[:2]


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (lambda g: g.other_architectures(1, ["mlp(depth=1,width=4)"]), SpecError),
        (lambda g: g.other_datasets(1, ["digits"]), SpecError),
        (lambda g: g.other_datasets(1, ["nothing-like-it"]), UnknownNameError),
        (lambda g: LeaderboardSettings(tasks=0), SpecError),
        (lambda g: LeaderboardSettings(seeds=True), SpecError),
        (lambda g: contestants([]), InputError),
        (lambda g: contestants([Constant(), Constant()]), InputError),
    ],
)
def test_what_makes_no_sense_is_one_sentence(ground, ask, error):
    with pytest.raises(error):
        ask(ground)


def test_every_registered_kind_is_in_it():
    people = contestants([Constant()])
    assert {person.kind for person in people} == set(generators.names())
    assert all((person.generator is None) == bool(person.why_not) for person in people)


def test_cells_are_kept_and_go_on(ground, tmp_path):
    model = Constant()
    steps = []
    board = run_leaderboard([model], ground, tmp_path, SMALL, progress=lambda *said: steps.append(said))
    calls = model.calls
    assert [done for _, done, _ in steps] == list(range(1, steps[-1][2] + 1))
    again = run_leaderboard([model], ground, tmp_path, SMALL)
    assert model.calls == calls and leaderboard_json(again) == leaderboard_json(board)
    # One more seed: what was measured stays, only the new cells are made.
    more = run_leaderboard([model], ground, tmp_path, replace(SMALL, seeds=2))
    assert model.calls > calls and all(row in more.rows for row in board.rows)
    broken = next((tmp_path / "cells").iterdir())
    broken.write_text("[]")
    with pytest.raises(CheckpointError, match="remove it"):
        run_leaderboard([model], ground, tmp_path, replace(SMALL, seeds=2))


def test_an_interrupted_run_loses_nothing(ground, tmp_path):
    class Stop(Exception):
        pass

    def stop(what, done, total):
        if done == 4:
            raise Stop

    with pytest.raises(Stop):
        run_leaderboard([Constant()], ground, tmp_path, SMALL, progress=stop)
    assert list((tmp_path / "cells").iterdir())


def test_the_table_says_who_refuses_and_where_a_baseline_is_ahead(ground, tmp_path):
    settings = replace(SMALL, tasks=2, finetuned=2)
    board = run_leaderboard([Constant()], ground, tmp_path, settings)
    entries = {entry["name"]: entry for entry in leaderboard_table(board)}
    constant = entries["constant"]
    seen = constant["figures"]["seen tasks"]
    assert (seen["answered"], seen["asked"]) == (1, 2)
    assert constant["refusals"] == ["no convolutions are made here"]
    assert entries["random-init"]["baseline"] and "mean" in entries["random-init"]["figures"]["seen tasks"]
    assert entries["diffusion"]["why_not"]
    page = leaderboard_markdown(board, command="weightloom bench", picture="leaderboard.png")
    assert all(group in page for group in GROUPS) and "no convolutions are made here" in page
    # Make the baseline certainly better, then certainly worse, on everything.
    for good in (True, False):
        for row in board.rows:
            if "accuracy" in row:
                row["accuracy"] = 0.9 if (row["generator"] == "random-init") is good else 0.1
        behind = {e["name"]: e for e in leaderboard_table(board)}["constant"]["figures"]["seen tasks"][
            "behind"
        ]
        page = leaderboard_markdown(board, command="weightloom bench")
        assert (behind is not None) is good and ("**random-init ahead by 80.0**" in page) is good


def test_the_picture(ground, tmp_path):
    board = run_leaderboard([Constant()], ground, tmp_path, SMALL)
    assert Path(draw_leaderboard(board, tmp_path / "board.png")).stat().st_size > 5000
    with pytest.raises(InputError):
        draw_leaderboard(board, tmp_path / "board.txt")


def test_what_is_not_unseen_to_a_generator_is_said(ground, tmp_path):
    model = Constant()
    model.validity = replace(model.validity, tasks=("mnist", "digits"))
    assert run_leaderboard([model], ground, tmp_path, SMALL).notes == []
    foreign = replace(ground, recipe=ground.recipe.model_copy(update={"datasets": ("mnist",)}))
    (note,) = run_leaderboard([model], foreign, tmp_path, replace(SMALL, datasets=("digits",))).notes
    assert note == "constant was trained on digits: no unseen dataset to it"


def test_another_training_is_another_contestant(ground, tmp_path):
    class Trained(Constant, torch.nn.Module):
        def __init__(self):
            torch.nn.Module.__init__(self)
            Constant.__init__(self)
            self.weight = torch.nn.Parameter(torch.zeros(2))

    one, other = Trained(), Trained()
    other.weight.data.add_(1)
    assert contestants([one])[0].version != contestants([other])[0].version


def test_a_zoo_without_its_recipe_is_refused(tmp_path):
    from weightloom.zoo import Zoo

    with pytest.raises(InputError, match="recipe"):
        Ground.from_zoo(Zoo(tmp_path / "zoo", create=True))


def test_a_generator_that_makes_nothing_of_it_is_refused_at_once(ground, tmp_path):
    model = Constant()
    model.validity = replace(model.validity, input=(1, 32, 32))
    with pytest.raises(UnsupportedRequestError, match="constant makes none of the networks that are asked"):
        run_leaderboard([model], ground, tmp_path, SMALL)
    assert not list(tmp_path.rglob("*.json"))
