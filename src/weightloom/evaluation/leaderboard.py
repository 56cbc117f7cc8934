"""One leaderboard of every registered generator over one ground: measured cell by cell, each kept when done.

A cell is one generator on one trial with one seed (zero-shot or fine-tuned), its speed, or what a trained
network reaches. Its name follows from all that decides its numbers, so an interrupted run goes on where it
stopped and a larger one takes over what a smaller one has. Held-out tasks are measured on and nothing else.
How cells become tables is :mod:`weightloom.evaluation.ranking`'s business.

Shapes: M samples, P values of a network.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightloom.architectures import ArchitectureSpec
from weightloom.defaults import with_plain_defaults
from weightloom.errors import CheckpointError, InputError, UnsupportedRequestError, WeightloomError
from weightloom.evaluation.cells import Cells, Result, version_of
from weightloom.evaluation.ground import DATASETS, SEEN, UNSEEN, Ground, Trial
from weightloom.evaluation.measures import peak_mb, test_batch
from weightloom.evaluation.novelty import LEAST, Checkpoints, Usual, verdict_of
from weightloom.fitting import FitSettings, accuracy, finetune, fit_population, initial_flats, interval_of
from weightloom.fitting.finetune import LADDER
from weightloom.generators import Generator, Sample, best_of, generators
from weightloom.generators.base import Baseline
from weightloom.weights import layout_of
from weightloom.whole import whole_fields

Progress = Callable[[str, int, int], None]
"""Called with what is being measured, cells done and cells in all."""

EPOCHS = (0, 1, 5, 25)
FINETUNED = FitSettings(batch_size=64, learning_rate=1e-3)
"""From every start alike, as in the fine-tuning protocol of IGPG's page."""
FROM_SCRATCH = FitSettings(batch_size=64, learning_rate=3e-3)
"""How a network is trained where the zoo has none to compare with."""
_USUAL = 24


@dataclass(frozen=True, kw_only=True)
class LeaderboardSettings:
    """How much is measured.

    Attributes:
        tasks: of each of :data:`weightloom.evaluation.ground.GROUPS`.
        seeds: each with other examples, instructions and draws.
        samples: networks a request; accuracies are their mean, fine-tuning starts from the best on examples.
        shots: examples a class that generators are given.
        images: test images of a task.
        finetuned: of the seen and of the unseen tasks, on how many networks are fine-tuned as well.
        epoch_steps: steps of 64 images that count as one epoch.
        many: networks of the second measurement of speed, beside that of one.
        trained_steps: training from random weights where the zoo has no network to compare with.
        architectures: unseen ones; by default the zoo's own a quarter wider.
        datasets: unseen ones; by default all that are on this machine.
    """

    tasks: int = 6
    seeds: int = 3
    samples: int = 4
    shots: int = 16
    images: int = 1000
    finetuned: int = 1
    epoch_steps: int = 100
    many: int = 100
    trained_steps: int = 800
    architectures: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        limits = {
            "tasks": (1, 10_000), "seeds": (1, 1000), "samples": (1, 1024), "shots": (2, 4096),
            "images": (10, 10_000_000), "finetuned": (0, 10_000), "epoch_steps": (1, 1_000_000),
            "many": (2, 4096), "trained_steps": (1, 10_000_000),
        }  # fmt: skip
        whole_fields(self, limits)

    @classmethod
    def quick(cls, **options: Any) -> LeaderboardSettings:
        """The smallest sizes that fill every column, to see that all works; ``options`` as in the class."""
        sizes = {"tasks": 1, "seeds": 1, "samples": 1, "images": 200, "epoch_steps": 2, "many": 4}
        return cls(**{**sizes, "trained_steps": 50, **options})


# ------------------------------------------------------------------------------------- contestants


@dataclass(frozen=True)
class Contestant:
    """A generator in the table, or a registered kind of which none was given (then ``why_not`` says so).

    ``version`` changes with its weights, so that cells of another training are not taken for its own.
    """

    name: str
    kind: str
    baseline: bool
    generator: Generator | None = None
    version: str = ""
    why_not: str | None = None


def contestants(given: Sequence[Generator]) -> list[Contestant]:
    """Every registered kind of generator: those ``given``, and the baselines beside the first of these.

    Raises:
        InputError: none is given, or two have the same name.
    """
    if not given:
        raise InputError("a leaderboard needs at least one generator")
    names = [model.name for model in given]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two generators are called {name}; a leaderboard needs a name for each")
    found = [Contestant(m.name, m.kind, isinstance(m, Baseline), m, version_of(m)) for m in given]
    for kind in generators.names():
        family = generators.get(kind)
        if any(model.kind == kind for model in given):
            continue
        if not issubclass(family, Baseline):
            why_not = f"no trained {kind} generator was given"
            found.append(Contestant(kind, kind, False, why_not=why_not))
            continue
        try:
            model = family.from_generator(given[0])
        except WeightloomError as error:
            found.append(Contestant(kind, kind, True, why_not=str(error)))
        else:
            found.append(Contestant(kind, kind, True, model, version_of(model)))
    return found


# ------------------------------------------------------------------------------------- one run


@dataclass(frozen=True)
class Leaderboard:
    """What was measured.

    Attributes:
        ground: name of the zoo.
        settings: the sizes.
        contestants: name, kind, baseline and, for those that have no generator, why.
        trials: of each group, with the accuracy of trained networks.
        rows: one a cell: what, generator, group, task, architecture, seed, and its numbers or ``refused``.
        notes: what could mislead a reader, in sentences.
    """

    ground: str
    settings: LeaderboardSettings
    contestants: list[dict[str, Any]]
    trials: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Cell:
    """What is measured: zero-shot, fine-tuned or speed (then of ``count`` networks), of whom, on what."""

    what: str
    contestant: Contestant
    trial: Trial
    seed: int
    count: int
    key: dict[str, Any]
    """All that decides its numbers."""

    def about(self) -> dict[str, Any]:
        """Its row's words."""
        return {"generator": self.contestant.name, **self.trial.key(), "seed": self.seed}


@dataclass(frozen=True)
class Bench:
    """One run: where its cells are, what they are measured on and how large."""

    ground: Ground
    settings: LeaderboardSettings
    cells: Cells
    held: dict[ArchitectureSpec, Checkpoints | None] = field(default_factory=dict)

    def common(self) -> dict[str, Any]:
        """What decides every cell's numbers."""
        settings = self.settings
        return {"zoo": self.ground.digest, "images": settings.images, "shots": settings.shots}

    def trials(self) -> list[Trial]:
        """Everything that networks are made for."""
        settings, ground = self.settings, self.ground
        return [
            *ground.seen(settings.tasks),
            *ground.unseen(settings.tasks),
            *ground.other_architectures(settings.tasks, settings.architectures),
            *ground.other_datasets(settings.tasks, settings.datasets),
        ]

    def plan(self, people: Sequence[Contestant], trials: Sequence[Trial]) -> Iterator[Cell]:
        """Trial by trial, so that a run that is cut short has measured everybody on the same trials."""
        settings = self.settings
        tuned = [
            trial
            for group in (SEEN, UNSEEN)
            for trial in [trial for trial in trials if trial.group == group][: settings.finetuned]
        ]
        entrants = [person for person in people if person.generator is not None]
        for trial, person, seed in product(trials, entrants, range(settings.seeds)):
            jobs: list[tuple[str, dict[str, Any]]] = [("zero-shot", {})]
            if trial in tuned:
                sizes = {"epoch_steps": settings.epoch_steps, "trained_steps": settings.trained_steps}
                jobs.append(("fine-tuned", sizes))
            if trial is trials[0]:
                jobs += [("speed", {"count": count}) for count in (1, settings.many)]
            for what, sizes in jobs:
                key = {
                    "what": what, "generator": person.name, **trial.key(), "seed": seed, **sizes,
                    **self.common(), "version": person.version, "samples": settings.samples,
                }  # fmt: skip
                yield Cell(what, person, trial, seed, sizes.get("count", 1), key)

    # ---------------------------------------------------------------- references

    def trained_key(self, trial: Trial) -> dict[str, Any]:
        """Of the cell with what a network trained for ``trial`` reaches."""
        steps, images = self.settings.trained_steps, self.settings.images
        return {"what": "trained", **trial.key(), "steps": steps, "images": images}

    def trained(self, trial: Trial) -> float:
        """The accuracy that is aimed at: the zoo's own networks', or one's trained from random weights."""
        if trial.trained is not None:
            return trial.trained
        steps, key = self.settings.trained_steps, self.trained_key(trial)

        def measure() -> Result:
            start = initial_flats(trial.spec, [7000])
            train = [trial.task.data("train")]
            *_, last = fit_population(trial.spec, start, train, replace(FROM_SCRATCH, steps=steps), seed=7)
            return {"accuracy": self.scores(trial, last.flats)[0]}

        return float(self.cells.or_measure(key, measure)["accuracy"])

    def known(self, trial: Trial) -> Checkpoints | None:
        """The zoo's checkpoints of the trial's architecture, where novelty can be told."""
        if trial.group not in (SEEN, UNSEEN):
            return None
        if trial.spec not in self.held:
            flats = self.ground.checkpoints(trial.spec)
            self.held[trial.spec] = None if len(flats) < LEAST else Checkpoints(trial.spec, flats)
        return self.held[trial.spec]

    def usual(self, spec: ArchitectureSpec, known: Checkpoints) -> Usual:
        """What is usual among the zoo's checkpoints."""
        key = {"what": "usual", "zoo": self.ground.digest, "architecture": spec.full_text(), "limit": _USUAL}
        return Usual(**self.cells.or_measure(key, lambda: known.usual(limit=_USUAL).to_json()))

    def scores(self, trial: Trial, flats: Tensor) -> list[float]:
        """Accuracies of (M, P) networks."""
        found: list[float] = accuracy(
            trial.spec, flats, *test_batch(trial.task, self.settings.images)
        ).tolist()
        return found

    # ---------------------------------------------------------------- what is measured

    def answer(self, cell: Cell) -> Result:
        """What is measured of a cell, or the sentence with which its generator refuses."""
        model, trial, seed = cell.contestant.generator, cell.trial, cell.seed
        assert model is not None
        try:
            if cell.what == "zero-shot":
                return self.zero_shot(model, trial, seed)
            if cell.what == "fine-tuned":
                return self.finetuned(model, trial, seed)
            return self.speed(model, trial, seed, cell.count)
        except InputError as error:
            if isinstance(error, CheckpointError):  # a broken file says nothing of a generator
                raise
            return {"refused": str(error)}

    def made(self, model: Generator, trial: Trial, seed: int) -> list[Sample]:
        """The samples of one request."""
        return model.generate_many(
            trial.spec,
            instruction=trial.task.instructions(1, seed=100 + seed)[0],
            support=trial.task.support(self.settings.shots, seed=100 + seed),
            num_samples=self.settings.samples,
            seed=seed,
        )

    def zero_shot(self, model: Generator, trial: Trial, seed: int) -> Result:
        """Mean accuracy of the samples and, where the zoo has checkpoints, how new the first one is."""
        made = self.made(model, trial, seed)
        scores = self.scores(trial, torch.stack([sample.flat for sample in made]))
        result: Result = {"accuracy": sum(scores) / len(scores)}
        known = self.known(trial)
        if known is None:
            return result
        usual = self.usual(trial.spec, known)
        (one,) = known.compare(made[0].flat[None])
        verdict = verdict_of(
            one,
            usual,
            accuracy=scores[0],
            trained=self.trained(trial),
            chance=1 / trial.task.num_classes,
        )
        return {**result, "distance": one.distance / max(usual.distance, 1e-9), "verdict": verdict}

    def finetuned(self, model: Generator, trial: Trial, seed: int) -> Result:
        """Accuracy after epochs of fine-tuning, and the steps to what is aimed at on the way."""
        start = best_of(self.made(model, trial, seed)).flat
        steps = EPOCHS[-1] * self.settings.epoch_steps
        marks = [epoch * self.settings.epoch_steps for epoch in EPOCHS]
        curve = finetune(
            trial.spec,
            start[None],
            trial.task,
            replace(FINETUNED, steps=steps),
            measure_at=sorted({*marks, *(step for step in LADDER if step < steps)}),
            test=test_batch(trial.task, self.settings.images),
            seed=seed,
        )
        at = dict(zip(curve.steps, curve.accuracy[:, 0].tolist(), strict=True))
        return {
            **{f"epoch_{epoch}": at[mark] for epoch, mark in zip(EPOCHS, marks, strict=True)},
            "steps": curve.steps_to(self.trained(trial))[0],
            "limit": steps,
        }

    def speed(self, model: Generator, trial: Trial, seed: int, count: int) -> Result:
        """Seconds and memory of ``count`` networks in one request, after a request that warms up."""
        support = trial.task.support(self.settings.shots, seed=100 + seed)
        model.generate_many(trial.spec, support=support, seed=seed)
        before = peak_mb(reset=True)
        start, cpu = time.perf_counter(), time.process_time()
        model.generate_many(trial.spec, support=support, num_samples=count, seed=seed)
        seconds, used = time.perf_counter() - start, time.process_time() - cpu
        return {
            "count": count,
            "seconds": seconds,
            "cpu_seconds": used,
            "peak_mb": peak_mb() - before,
            "parameters_per_second": count * layout_of(trial.spec).num_parameters / max(used, 1e-9),
            "threads": torch.get_num_threads(),
        }


@with_plain_defaults
def run_leaderboard(
    given: Sequence[Generator],
    ground: Ground,
    folder: str | Path,
    settings: LeaderboardSettings | None = None,
    *,
    progress: Progress = lambda *_: None,
) -> Leaderboard:
    """Measure whatever ``folder`` does not hold yet, and collect everything.

    Args:
        given: generators, the first of which lends the baselines its checkpoints.
        ground: what they are compared on.
        folder: where cells are kept.
        settings: how much is measured.
        progress: told of every cell.

    Raises:
        InputError: no generator, two of one name, or an unseen architecture or dataset that is not unseen.
        UnsupportedRequestError: a generator makes none of the networks.
        CheckpointError: a cell that was kept is broken.
        DataUnavailableError: a dataset is not on this machine.
    """
    settings = settings or LeaderboardSettings()
    people = contestants(given)
    bench = Bench(ground, settings, Cells(Path(folder) / "cells"))
    trials = bench.trials()
    for model in given:
        check_any(model, trials)
    plan = list(bench.plan(people, trials))
    total = len(trials) + len(plan)
    done = 0

    def step(what: str) -> None:
        nonlocal done
        done += 1
        progress(what, done, total)

    shown = []
    counts: dict[Trial, int] = {}
    for trial in trials:
        counts[trial] = min(settings.images, len(trial.task.data("test")))
        by_the_zoo = trial.trained is not None
        reached = {"trained": bench.trained(trial), "by_the_zoo": by_the_zoo, "images": counts[trial]}
        shown.append({**trial.key(), **reached})
        step("trained networks")
    rows: list[dict[str, Any]] = []
    for cell in plan:
        result = bench.cells.or_measure(cell.key, partial(bench.answer, cell))
        rows.append({"what": cell.what, **cell.about(), **_sure(result, counts[cell.trial])})
        step(f"{cell.contestant.name}, {cell.trial.group}")
    about = [{k: v for k, v in vars(person).items() if k != "generator"} for person in people]
    notes = [note for model in given for note in _notes(model, ground, trials)]
    return Leaderboard(ground.name, settings, about, shown, rows, notes)


def _sure(result: Result, images: int) -> Result:
    """A cell's numbers with the intervals of its accuracies, which follow from them."""
    shares = ["accuracy", *(f"epoch_{epoch}" for epoch in EPOCHS)]
    found = {name: interval_of(result[name], images) for name in shares if name in result}
    if not found:
        return result
    whole = {"interval": found["accuracy"]} if "accuracy" in found else {"intervals": found}
    return {**result, **whole, "num_images": images}


def check_any(model: Generator, trials: Sequence[Trial]) -> None:
    """Raise :class:`UnsupportedRequestError` where ``model`` makes nothing that is asked for."""
    why = ""
    for trial in trials:
        try:
            model.check(trial.spec, None, None, 1, 0, None)
        except UnsupportedRequestError as error:
            why = why or str(error)
        else:
            return
    raise UnsupportedRequestError(f"{model.name} makes none of the networks that are asked for: {why}")


def _notes(model: Generator, ground: Ground, trials: Sequence[Trial]) -> list[str]:
    """What is seen or unseen to others, but not to this generator."""
    notes = []
    if model.zoo_index is not None:
        held, count = model.zoo_index.held_by(
            lambda spec, row: (
                str(row.get("id")) in ground.checkpoint_ids
                and str(row.get("task")) in ground.trained.get(("train", spec), {})
            )
        )
        if held < count:
            notes.append(
                f"{ground.name} holds {held or 'none'} of the {count:,} checkpoints that {model.name} was "
                "trained on: that its networks are new to this zoo says little, and what is unseen here may "
                "be seen to it"
            )
    strange = {trial.task.dataset for trial in trials if trial.group == DATASETS}
    own = sorted(strange & set(model.validity.tasks))
    if own:
        notes.append(f"{model.name} was trained on {', '.join(own)}: no unseen dataset to it")
    return notes
