"""Which architecture for a task, within so many seconds: generate, score, and fine-tune the best few.

Every candidate's network is generated, scored after a few steps of training, and the best few go through
successive halving: each rung gives every candidate that is left the same seconds and keeps the best third.
Everything is judged on training images that are held back from training; test images are never seen here.
Knows generators and tasks by their contracts, and no command line.

Shapes: P values of a network, B images, C classes.
Source: successive halving, Jamieson & Talwalkar (arXiv 1502.07943), algorithm of section 3, with seconds as
the resource.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightloom.architectures import ArchitectureSpec
from weightloom.defaults import with_plain_defaults
from weightloom.errors import CheckpointError, InputError, TrainingError, WeightloomError
from weightloom.evaluation.candidates import (
    TRAINED,
    Candidate,
    candidates_of,
    expected,
    log_odds,
    multiply_adds,
    predict,
)
from weightloom.evaluation.selection import Selection, SelectionSettings
from weightloom.fitting import accuracy, calibration, fit_population, images_at_once, run_networks
from weightloom.generators import Generator, best_of
from weightloom.generators.base import check_support
from weightloom.generators.cost import check_cost
from weightloom.io import dump_json, load_tensors, parse_json, save_tensors
from weightloom.seeding import seed_for
from weightloom.tasks import NetworkCard, SupportSet, Task
from weightloom.tasks.data import TaskData, draw_support, hold_back

Progress = Callable[[str, int, int], None]
"""Called with what is being done, seconds spent and seconds in all."""

_GENERATING = 0.4
"""Share of the seconds left when generating begins after which no further candidate is generated."""

_PROBING = 0.3
"""Share of the seconds left when scoring begins after which no further candidate is scored by training."""

_RESERVE = 0.02
"""Share of the budget for what comes after training: the last measurement, writing files."""

_EPOCHS = 60
"""Passes over the training images in one rung at most: beyond it small data is learned by heart."""

_LEAST_STEPS = 300
"""Steps of a rung that :data:`_EPOCHS` never cuts."""

_CYCLES = 3
"""Further trainings of the best candidate at most, where the rungs left time over."""

_SAVE_SECONDS = 5.0


@with_plain_defaults
def select(
    generator: Generator,
    task: Task | tuple[SupportSet, TaskData],
    candidates: Sequence[str | ArchitectureSpec] | None = None,
    settings: SelectionSettings | None = None,
    *,
    instruction: str | None = None,
    state: str | Path | None = None,
    progress: Progress | None = None,
    started: float | None = None,
) -> Selection:
    """Choose an architecture for ``task`` and train it, in ``settings.budget`` seconds of wall clock.

    Args:
        generator: makes the starting networks.
        task: a task, whose training images alone are used; or a support set with the training images.
        candidates: architectures, or those of :func:`candidates_of`.
        settings: how the seconds are spent.
        instruction: what the network is to do, for generators that read it.
        state: a ``.safetensors`` file that is written as it goes and read where it exists: the same call
            then goes on from there, and its seconds count on.
        progress: called often.
        started: ``time.perf_counter()`` at which the budget began, where loading is to count.

    Returns:
        The ranking with the winner first. A keyboard interrupt returns what is best so far, as soon as one
        candidate has a network; before that it passes through.

    Raises:
        InputError: no candidates, a class with fewer than two images, or a state of another selection.
        UnsupportedRequestError: the generator cannot make one of the candidates, or the machine has not the
            memory to train it.
        TrainingError: no candidate could be trained or generated.
    """
    start = time.perf_counter() if started is None else started
    run = _Run(
        generator, task, candidates, settings or SelectionSettings(), instruction, state, progress, start
    )
    return run.all()


class _Run:
    """One selection as it goes on."""

    def __init__(
        self,
        generator: Generator,
        task: Task | tuple[SupportSet, TaskData],
        candidates: Sequence[str | ArchitectureSpec] | None,
        settings: SelectionSettings,
        instruction: str | None,
        state: str | Path | None,
        progress: Progress | None,
        start: float,
    ) -> None:
        self.generator, self.settings, self.instruction = generator, settings, instruction
        self.progress, self.start, self.before = progress, start, 0.0
        self.state = None if state is None else Path(state)
        self.saved = start
        self.rungs: list[list[int]] = []  # members of each rung, by their places in ``candidates``
        self.cycles = 0  # trainings of the best one after the last rung
        self.spent: dict[str, float] = {}
        seed = settings.seed
        with self.spending("reading images"):
            if isinstance(task, Task):
                self.task = str(task)
                data, names = task.data("train"), tuple(task.class_names)
                self.train, held = hold_back(data, names, settings.held_back, ("held-back", seed))
                self.support = draw_support(self.train, names, names, settings.shots, ("selection", seed))
                self.card = NetworkCard().for_task(task)
            else:
                self.support, data = task
                check_support(self.support)
                self.task = "examples"
                names = self.support.class_names
                self.card = NetworkCard().for_names(names, self.support.ranges, self.support.licence)
                self.train, held = hold_back(data, names, settings.held_back, ("held-back", seed))
            self.held = held.all()
        self.candidates = self._resolved(candidates)
        self._restore()

    def _resolved(self, asked: Sequence[str | ArchitectureSpec] | None) -> list[Candidate]:
        """Every candidate checked before anything is made."""
        specs = candidates_of(self.generator) if asked is None else list(asked)
        if not specs:
            raise InputError("there is no architecture to choose from; name some")
        found: dict[ArchitectureSpec, Candidate] = {}
        for spec in specs:
            request = self.generator.check(
                spec, self.instruction, self.support, self.settings.samples, self.settings.seed, None
            )
            resolved = request.architecture
            check_cost(resolved, training=True)
            found[resolved] = Candidate(resolved, resolved.num_parameters(), multiply_adds(resolved))
        return list(found.values())

    # -- the clock ---------------------------------------------------------------------------------

    def now(self) -> float:
        """Seconds since the start, those before an interruption included."""
        return self.before + time.perf_counter() - self.start

    @property
    def deadline(self) -> float:
        """When training has to end."""
        return self.settings.budget * (1 - _RESERVE)

    @contextmanager
    def spending(self, what: str) -> Iterator[None]:
        """Book the seconds inside under ``what``."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.spent[what] = self.spent.get(what, 0.0) + time.perf_counter() - begun

    def tell(self, what: str) -> None:
        if self.progress is not None:
            self.progress(what, min(int(self.now()), int(self.settings.budget)), int(self.settings.budget))

    # -- the phases --------------------------------------------------------------------------------

    def all(self) -> Selection:
        interrupted = False
        try:
            self.generate()
            self.probe()
            self.halve()
        except KeyboardInterrupt:
            if all(c.flat is None for c in self.candidates):
                raise
            interrupted = True
        predict(self.candidates)
        ranking = self.ranking()
        self.save(always=True)
        total = self.now()
        self.spent["everything else"] = max(0.0, total - sum(self.spent.values()))
        return Selection(
            task=self.task,
            generator=self.generator.name,
            settings=self.settings,
            ranking=ranking,
            spent=self.spent,
            seconds=total,
            rungs=[len(members) for members in self.rungs],
            images={
                "train": len(self.train),
                "held_back": len(self.held[1]),
                "support": self.support.num_classes * self.support.shots,
            },
            card=self.card_of(ranking[0]),
            interrupted=interrupted,
        )

    def card_of(self, best: Candidate) -> NetworkCard:
        """The card of the best candidate's network: the held-back images chose it, and taught it nothing."""
        assert best.flat is not None
        images, labels = self.held
        with torch.no_grad():
            parts = images.split(images_at_once(best.spec))
            logits = torch.cat([run_networks(best.spec, best.flat[None], part)[0] for part in parts])
        made_by = f"{self.generator.name}, selected and trained for {best.steps:,} steps"
        card = replace(self.card, made_by=made_by)
        return card.calibrated(calibration(logits, labels, "training pictures held back to choose by"))

    def ranking(self) -> list[Candidate]:
        """The most accurate first, then by what full training is expected to reach."""
        made = [c for c in self.candidates if c.accuracy is not None]
        if not made:
            raise TrainingError(f"no candidate could be generated: {self.candidates[0].problem}")
        best = max(made, key=lambda c: (c.accuracy or 0.0, c.rung, self.expected(c)))
        rest = [c for c in self.candidates if c is not best]
        return [best, *sorted(rest, key=self.expected, reverse=True)]

    def expected(self, candidate: Candidate) -> float:
        """Log-odds of the accuracy after full training."""
        return expected(candidate, self.settings.probe_steps)

    def within_reach(self, candidate: Candidate) -> float:
        """Log-odds of the accuracy that it could reach with half of the seconds that are left.

        The way from what it can do to what full training is expected to bring goes with the logarithm of the
        steps, as in :func:`expected`: what is too slow for the time is not worth the time.
        """
        if candidate.accuracy is None:
            return -math.inf
        own, full = log_odds(candidate.accuracy), self.expected(candidate)
        steps = max(candidate.steps, 1)
        more = max(0.0, 0.5 * (self.deadline - self.now())) / (candidate.step_seconds or 0.01)
        if steps >= TRAINED:
            return own
        return own + (full - own) * min(1.0, math.log((steps + more) / steps) / math.log(TRAINED / steps))

    def generate(self) -> None:
        """Networks for as many candidates as a share of the budget allows, at least for one."""
        took: list[float] = []
        limit = self.now() + _GENERATING * (self.deadline - self.now())
        for number, candidate in enumerate(self.candidates):
            if candidate.flat is not None or candidate.problem:
                continue
            expected = sum(took) / len(took) if took else 0.0
            made = any(c.flat is not None for c in self.candidates)
            if made and self.now() + expected > limit:
                candidate.problem = "not generated: the time for generating was over"
                continue
            self.tell(f"generating {number + 1} of {len(self.candidates)}")
            begun = time.perf_counter()
            with self.spending("generating"):
                try:
                    sample = best_of(
                        self.generator.generate_many(
                            candidate.spec,
                            instruction=self.instruction,
                            support=self.support,
                            num_samples=self.settings.samples,
                            seed=self.settings.seed,
                        )
                    )
                except WeightloomError as error:
                    candidate.problem = f"not generated: {error}"
                    continue
                candidate.report = sample.report
                candidate.zero_shot = self.measure(candidate, sample.flat)
            took.append(time.perf_counter() - begun)
            candidate.seconds += took[-1]
            self.save()

    def probe(self) -> None:
        """A few training steps each, the smallest network first, and the prediction from them."""
        waiting = [c for c in self.candidates if c.flat is not None and c.probe is None and not c.problem]
        limit = self.now() + _PROBING * (self.deadline - self.now())
        for candidate in sorted(waiting, key=lambda c: c.multiply_adds):
            if self.now() > limit:
                break
            self.tell("scoring")
            with self.spending("scoring"):
                self.fit(candidate, self.settings.probe_steps, max(limit - self.now(), 0.01))
                candidate.probe = candidate.curve[-1][1]
            self.save()
        predict(self.candidates)

    def halve(self) -> None:
        """Successive halving; the last rung has as much time as all before it."""
        alive = [i for i, c in enumerate(self.candidates) if c.flat is not None and not c.problem]
        alive.sort(key=lambda i: -self.within_reach(self.candidates[i]))
        count = self.settings.entrants or max(3, math.ceil(len(alive) / 3))
        sizes = [min(count, len(alive))]
        while sizes[-1] > 1:
            sizes.append(math.ceil(sizes[-1] / self.settings.eta))
        for rung, size in enumerate(sizes):
            if rung == len(self.rungs):
                if rung:
                    alive = [i for i in self.rungs[-1] if not self.candidates[i].problem]
                    alive.sort(key=lambda i: -self.within_reach(self.candidates[i]))
                self.rungs.append(alive[:size])
            shares = [1] * (len(sizes) - 1 - rung) + [max(1, len(sizes) - 1)]
            end = self.now() + (self.deadline - self.now()) * shares[0] / sum(shares)
            waiting = [i for i in self.rungs[rung] if self.candidates[i].rung <= rung]
            for place, index in enumerate(waiting):
                candidate = self.candidates[index]
                share = (end - self.now()) / (len(waiting) - place)
                self.tell(f"rung {rung + 1} of {len(sizes)}")
                before = candidate.steps
                with self.spending(f"rung {rung + 1}"):
                    self.train_for(candidate, share)
                if candidate.problem or candidate.steps == before:  # it failed, or there was no time for it
                    continue
                candidate.rung = rung + 1
                assert candidate.accuracy is not None
                candidate.rungs.append(candidate.accuracy)
                self.save()
        with self.spending("what was left"):
            self._rest()

    def _rest(self) -> None:
        """The time that the rungs left over, for the best of the last one."""
        if not self.rungs:
            return
        while self.cycles < _CYCLES:
            trained = [self.candidates[i] for i in self.rungs[-1] if not self.candidates[i].problem]
            left = self.deadline - self.now()
            if not trained or left < 0.05 * self.settings.budget:
                return
            best = max(trained, key=lambda c: c.accuracy or 0.0)
            self.tell("the best once more")
            self.train_for(best, left)
            self.cycles += 1

    # -- one candidate -----------------------------------------------------------------------------

    def train_for(self, candidate: Candidate, seconds: float) -> None:
        """A whole training in ``seconds``; nothing where not one step fits."""
        most = max(_LEAST_STEPS, _EPOCHS * len(self.train) // self.settings.batch_size)
        if seconds > candidate.step_seconds:
            self.fit(candidate, most, seconds, max(1, min(6, int(seconds / 2))))

    def fit(self, candidate: Candidate, steps: int, seconds: float, measures: int = 1) -> None:
        """Train from the best network so far, and keep what does better on the images held back.

        The schedule follows the clock: on a machine that turns slow the training gets shorter, and does not
        break off.

        Args:
            candidate: whom.
            steps: at most.
            seconds: when it ends at the latest, what is measured on the way included.
            measures: about how often it is measured on the way.
        """
        assert candidate.flat is not None
        likely = min(steps, max(1, int(seconds / (candidate.step_seconds or 0.01))))
        cuts = {likely * (i + 1) // measures for i in range(measures - 1)}
        settings = self.settings.fit(steps, tuple(sorted(c for c in cuts if 0 < c <= steps)))
        begun, own, done = time.perf_counter(), 0.0, 0

        def pace(step: int) -> float:
            # Measuring the last network takes time too: as much as the candidate's first measurement did.
            left = max(seconds - candidate.measure_seconds, 1e-3)
            return max(step / steps, (time.perf_counter() - begun) / left)

        def on_step(step: int) -> None:
            nonlocal done
            done = step
            if step % 8 == 0:
                self.tell(f"training {candidate.spec.family}")

        seed = seed_for("selection", self.settings.seed, str(candidate.spec), candidate.steps)
        start = candidate.flat[None]
        try:
            for snapshot in fit_population(
                candidate.spec, start, [self.train], settings, seed=seed, on_step=on_step, pace=pace
            ):
                paused = time.perf_counter()
                self.measure(candidate, snapshot.flats[0])
                own += time.perf_counter() - paused
        except TrainingError as error:
            candidate.problem = f"not trained further: {error}"
        candidate.steps += done
        took = time.perf_counter() - begun
        candidate.seconds += took
        if done >= min(5, steps):
            candidate.step_seconds = (took - own) / done

    def measure(self, candidate: Candidate, flat: Tensor) -> float:
        """Accuracy on the images held back; the candidate keeps the better network."""
        begun = time.perf_counter()
        value = float(accuracy(candidate.spec, flat[None], *self.held)[0])
        candidate.measure_seconds = time.perf_counter() - begun
        if candidate.accuracy is None or value >= candidate.accuracy:
            candidate.flat, candidate.accuracy = flat, value
        candidate.curve.append([self.now(), value])
        return value

    # -- state -------------------------------------------------------------------------------------

    def _key(self) -> dict[str, Any]:
        """What makes a selection the same one; its budget may change."""
        settings = {k: v for k, v in asdict(self.settings).items() if k != "budget"}
        return {
            "task": self.task,
            "generator": self.generator.name,
            "instruction": self.instruction,
            "candidates": [c.spec.full_text() for c in self.candidates],
            "images": len(self.train),
            "settings": settings,
        }

    def save(self, *, always: bool = False) -> None:
        """Write the state, whole or not at all, at most every few seconds."""
        if self.state is None or (not always and time.perf_counter() - self.saved < _SAVE_SECONDS):
            return
        rows = [{**c.to_json(), "report": c.report} for c in self.candidates]
        held = {"key": self._key(), "candidates": rows, "rungs": self.rungs, "spent": self.spent}
        tensors = {str(i): c.flat.contiguous() for i, c in enumerate(self.candidates) if c.flat is not None}
        text = dump_json({**held, "cycles": self.cycles, "seconds": self.now()})
        save_tensors(self.state, tensors, {"kind": "selection", "state": text})
        self.saved = time.perf_counter()

    def _restore(self) -> None:
        if self.state is None or not self.state.is_file():
            return
        tensors, metadata = load_tensors(self.state)
        held = parse_json(self.state, metadata.get("state", "{}"))
        if metadata.get("kind") != "selection" or not isinstance(held, dict):
            raise CheckpointError(self.state, "is not the state of a selection")
        if held.get("key") != parse_json(self.state, dump_json(self._key())):
            raise CheckpointError(self.state, "belongs to another selection; name another file")
        try:
            for index, (candidate, row) in enumerate(zip(self.candidates, held["candidates"], strict=True)):
                values = {k: v for k, v in row.items() if k != "architecture"}
                made = replace(candidate, **values, flat=tensors.get(str(index)))
                if made.flat is not None and made.flat.shape != (_size(made.spec),):
                    raise CheckpointError(self.state, f"network {index} has another size than {made.spec}")
                self.candidates[index] = made
            self.rungs = [[int(i) for i in members] for members in held["rungs"]]
            self.spent = {str(k): float(v) for k, v in held["spent"].items()}
            self.cycles, self.before = int(held["cycles"]), float(held["seconds"])
        except CheckpointError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(self.state, "is not a whole state of a selection") from error
        self.spent.pop("everything else", None)


def _size(spec: ArchitectureSpec) -> int:
    from weightloom.weights import layout_of

    return layout_of(spec).size
