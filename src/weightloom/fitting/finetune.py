"""Fine-tuning of one or more networks on one task, with the accuracy along the way.

Shapes: N starting points, P values of a network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from weightloom.architectures import ArchitectureSpec
from weightloom.defaults import with_plain_defaults
from weightloom.fitting.population import accuracy
from weightloom.fitting.train import FitSettings, fit_population
from weightloom.tasks import Task


@dataclass(frozen=True)
class Curve:
    """Test accuracy of N starting points after each of ``steps``: accuracy (len(steps), N), flats (N, P)."""

    steps: tuple[int, ...]
    accuracy: Tensor
    flats: Tensor

    def steps_to(self, target: float) -> list[int | None]:
        """For each starting point the first measured step at which ``target`` is reached, or None."""
        found: list[int | None] = []
        for column in self.accuracy.T:
            hits = (column >= target).nonzero()
            found.append(self.steps[int(hits[0])] if len(hits) else None)
        return found


@with_plain_defaults
def finetune(
    spec: ArchitectureSpec,
    flats: Tensor,
    task: Task,
    settings: FitSettings,
    *,
    measure_at: Sequence[int] | None = None,
    test: tuple[Tensor, Tensor] | None = None,
    until: float | None = None,
    seed: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> Curve:
    """Train N starting points on the task's train split, all on the same batches' distribution.

    ``measure_at`` are the steps at which the accuracy on the test split is taken; 0 is always taken,
    before any step and with the batch-norm statistics as they are. ``test`` are images and labels to take it
    on instead of the whole test split. With ``until`` it ends as soon as every start has reached that
    accuracy.
    """
    images, labels = task.data("test").all() if test is None else test
    wanted = sorted({s for s in (measure_at or ()) if 0 < s <= settings.steps} | {settings.steps})
    settings = FitSettings(**{**settings.__dict__, "snapshots": tuple(wanted)})
    curve = [accuracy(spec, flats, images, labels)]
    train = task.data("train")
    last = flats
    snapshots = fit_population(spec, flats, [train] * len(flats), settings, seed=seed, on_step=on_step)
    while until is None or not bool((torch.stack(curve).amax(0) >= until).all()):
        snapshot = next(snapshots, None)
        if snapshot is None:
            break
        curve.append(accuracy(spec, snapshot.flats, images, labels))
        last = snapshot.flats
    return Curve((0, *wanted)[: len(curve)], torch.stack(curve), last)


LADDER = (5, 10, 20, 35, 50, 75, 100, 150, 200, 300, 400, 600, 800, 1200, 1600, 2400)
"""Steps at which it is looked whether an accuracy has been reached."""


@with_plain_defaults
def steps_until(
    spec: ArchitectureSpec,
    start: Tensor,
    task: Task,
    settings: FitSettings,
    target: float,
    *,
    limit: int,
    test: tuple[Tensor, Tensor],
    seed: int = 0,
) -> int | None:
    """Steps until one network (P,) reaches ``target`` on the images of ``test``, cycle after cycle of
    ``settings``, looked at on :data:`LADDER`; None beyond ``limit`` steps.
    """
    done = 0
    while done < limit:
        cycle = min(settings.steps, limit - done)
        curve = finetune(
            spec,
            start[None],
            task,
            replace(settings, steps=cycle),
            measure_at=[step for step in LADDER if step <= cycle],
            test=test,
            until=target,
            seed=seed + done,
        )
        reached = curve.steps_to(target)[0]
        if reached is not None:
            return done + reached
        start, done = curve.flats[0], done + cycle
    return None
