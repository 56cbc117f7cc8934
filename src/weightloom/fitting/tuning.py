"""Fine-tuning within so many seconds that is never below its start on pictures that it did not learn from.

Rate, shift of the pictures, mirroring, how many steps, and whether the last layer alone or all layers move,
are chosen on the training images: a part of them is held back, or, where they are few, each is left out once
(cross-validation). The start is a candidate, and comes back where nothing does better. Knows nothing of
generators or commands.

Shapes: P values of a network, K parts, n training images, H features, C classes.
Sources: one-cycle rates, Smith & Topin (arXiv 1708.07120); the last layer first, then all, Kumar et al.
(arXiv 2202.10054), section 3; fewer candidates with more seconds each, Jamieson & Talwalkar (arXiv
1502.07943), section 3; means of weights before and after, Wortsman et al. (arXiv 2109.01903), section 3.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from weightloom.architectures import ArchitectureSpec
from weightloom.defaults import with_plain_defaults
from weightloom.errors import TrainingError
from weightloom.fitting.calibration import calibration
from weightloom.fitting.folds import parts_of, some_of
from weightloom.fitting.heads import Head
from weightloom.fitting.last_layer import PULLS, fit_last_layer, last_layer, with_last_layer
from weightloom.fitting.population import images_at_once, recalibrate, run_networks, trunk_features
from weightloom.fitting.train import FitSettings, draw_batch, fit_population
from weightloom.fitting.tuned import Start, Trial, Tuned, TuneSettings
from weightloom.seeding import seed_for, torch_generator
from weightloom.tasks import TaskData
from weightloom.weights import checked_flats, layout_of

Progress = Callable[[str, int, int], None]
"""Called with what is being done, seconds spent and seconds in all."""

NEAR = 3e-5
"""Rate of AdamW, in units of a layer's own size, that stays near the start: a short training is enough."""

FAR = (3e-3, 1e-2)
"""Rates that learn anew from the start. Those in between lost it and learned the images by heart."""

HEAD_SCALE = 0.3
"""What the last layer is multiplied by before all layers are trained. It changes no answer; a generated one
is so sure of its examples that the gradients of most pictures vanish. Measured on digits: 99.0 % instead of
98.0 % after 300 steps."""

MIX = 0.5
"""Share of what was trained in the mean of its weights and those before, which is a candidate too."""

SHIFT = 1
"""Pixels that pictures are moved by for every 16 of their side."""

USUAL = 5e-3
"""Rate that is taken where the time is too short for trials to say anything."""

FEW_STEPS = 3000
"""Steps within the time below which all of it goes to one long training: trials of less than a hundred steps
each chose by chance, and took from what counts most."""

MOVED_EPOCHS = 30
"""Passes over the training images from which on moved pictures are worth their slower learning."""

LARGE = 500_000
"""Parameters from which on it is estimated first whether the seconds reach for training all layers."""

LEAST_STEPS = 20
"""Steps that the seconds have to reach for, else all layers are not trained."""

_TRYING = 0.3
"""Share of the seconds in which rates, shift and mirroring are tried."""

_LOOKING = 0.7
"""Share of the seconds in which the trunk of a large network may look at the training images."""

_RESERVE = 0.03
"""Share of the seconds for what comes after training."""

_EPOCHS = 120
"""Passes over the training images in one cycle at most."""


def _order(trial: Trial) -> tuple[float, float]:
    """What trials are ordered by."""
    return (trial.accuracy, -trial.loss)


@with_plain_defaults
def tune(
    spec: ArchitectureSpec,
    start: Start,
    data: TaskData,
    names: Sequence[str],
    settings: TuneSettings | None = None,
    *,
    progress: Progress | None = None,
    started: float | None = None,
) -> Tuned:
    """Fine-tune a network on the training images ``data`` within ``settings.seconds``.

    Args:
        spec: its architecture.
        start: the network.
        data: training images; nothing else is looked at.
        names: of the classes, in label order.
        settings: how the seconds are spent.
        progress: called often.
        started: ``time.perf_counter()`` at which the seconds began, where loading is to count.

    Raises:
        InputError: the network is not of ``spec``, or a class has fewer than two images.

    Example:
        >>> from weightloom import parse_architecture, parse_task
        >>> from weightloom.fitting import initial_flats
        >>> task = parse_task("digits[3,1]@8c1")
        >>> spec = parse_architecture("mlp(depth=1,width=8)").resolve(classes=2, input=(1, 8, 8))
        >>> start = Start(flat=initial_flats(spec, [0])[0])
        >>> found = tune(spec, start, task.data("train"), task.class_names, TuneSettings(seconds=1))
        >>> found.chosen.accuracy >= found.start.accuracy
        True
    """
    begun = time.perf_counter() if started is None else started
    return _Run(spec, start, data, names, settings or TuneSettings(), progress, begun).all()


class _Run:
    """One fine-tuning as it goes on."""

    def __init__(
        self,
        spec: ArchitectureSpec,
        start: Start,
        data: TaskData,
        names: Sequence[str],
        settings: TuneSettings,
        progress: Progress | None,
        begun: float,
    ) -> None:
        self.spec, self.given, self.data, self.settings = spec, start, data, settings
        self.progress, self.begun = progress, begun
        self.flat = checked_flats(spec, start.flat[None])[0].detach()
        self.large = spec.num_parameters() > LARGE
        self.remarks: list[str] = []
        unseen = start.unseen
        if self.large:
            self.data, unseen = self.within_reach(data, unseen)
        self.parts = parts_of(self.data, names, settings, unseen)
        self.judging = [part.held.all() for part in self.parts]
        self.labels = torch.cat([labels for _, labels in self.judging])
        self.trials: list[Trial] = []

    # -- the clock ---------------------------------------------------------------------------------

    def now(self) -> float:
        return time.perf_counter() - self.begun

    @property
    def deadline(self) -> float:
        return self.settings.seconds * (1 - _RESERVE)

    def tell(self, what: str) -> None:
        if self.progress is not None:
            whole = max(1, round(self.settings.seconds))
            self.progress(what, min(int(self.now()), whole), whole)

    # -- the phases --------------------------------------------------------------------------------

    def all(self) -> Tuned:
        count = len(self.parts)
        head = last_layer(self.spec, self.flat)
        if head is not None:
            self.all_features = self.features(self.data)
        start = self.judge(
            Trial("start"), self.flat.expand(count, -1), None if head is None else [head] * count
        )
        if self.given.accuracy is not None and not self.parts[0].unseen:
            start.accuracy = min(start.accuracy, self.given.accuracy)
            self.remarks.append(
                "the images that judge are among those that the start was made from: of its accuracy counts "
                "what it was on examples that were left out"
            )
        self.tell("fitting the last layer")
        self.fit_heads()
        self.tell("trying rates")
        if self.reaches():
            self.train_all()
        best = max((trial for trial in self.trials if self.beats(trial, start)), key=_order, default=start)
        flat = self.flat if best is start else best.flats[0] if count == 1 else self.again(best)
        return Tuned(
            flat=flat,
            chosen=best,
            start=start,
            trials=self.trials,
            judged_on=len(self.labels),
            folds=count,
            calibration=self.calibrated(best),
            remarks=self.remarks,
            seconds=self.now(),
        )

    def judge(self, trial: Trial, flats: Tensor, heads: list[Head] | None = None) -> Trial:
        """The trial with networks (K, P) and how they do on the part that each did not learn from.

        Where only the last layers differ from the start's, ``heads`` are these.
        """
        if heads is None:
            pairs = zip(flats, self.judging, strict=True)
            trial.logits = torch.cat([self.answers(flat, images) for flat, (images, _) in pairs])
        else:
            features = [self.all_features[part.judging] for part in self.parts]
            trial.logits = torch.cat([head(own) for head, own in zip(heads, features, strict=True)])
        trial.right = trial.logits.argmax(1) == self.labels
        trial.accuracy = float(trial.right.float().mean())
        trial.loss = float(F.cross_entropy(trial.logits, self.labels))
        trial.flats = flats
        self.trials.append(trial)
        return trial

    def beats(self, trial: Trial, other: Trial) -> bool:
        """Whether it is above another by more than chance, of so many trials, would bring about.

        Of images that only one of the two gets right, each is as likely to be either's where they are equally
        good: the difference then has the root of their number as its deviation.
        """
        if not len(trial.right) or trial.accuracy <= other.accuracy:  # it failed, or is no better
            return False
        if not len(other.right):
            return True
        gain = len(trial.right) * (trial.accuracy - other.accuracy)
        return gain > float((trial.right != other.right).sum()) ** 0.5

    @torch.no_grad()
    def answers(self, flat: Tensor, images: Tensor) -> Tensor:
        chunks = images.split(images_at_once(self.spec))
        return torch.cat([run_networks(self.spec, flat[None], chunk)[0] for chunk in chunks])

    @torch.no_grad()
    def features(self, data: TaskData) -> Tensor:
        found = []
        for index in torch.arange(len(data)).split(images_at_once(self.spec)):
            images, _ = data.batch(index)
            own = self.given.features
            found.append(
                trunk_features(self.spec, self.flat[None], images)[0] if own is None else own(images)
            )
            self.tell("looking at the pictures")
        return torch.cat(found)

    def fit_heads(self) -> None:
        """The last layer anew, on features that are computed once, drawn to the one before."""
        head = last_layer(self.spec, self.flat)
        if head is None:
            self.remarks.append("the last layer was not fitted by itself: it is none of weights and biases")
            return
        features, labels = self.all_features, self.data.labels
        for pull in PULLS:
            begun = time.perf_counter()
            learning = [part.learning for part in self.parts]
            heads = [fit_last_layer(head, features[own], labels[own], pull) for own in learning]
            flats = [with_last_layer(self.spec, self.flat, own) for own in heads]
            trial = Trial("last layer", {"pull": pull}, seconds=time.perf_counter() - begun)
            self.judge(trial, torch.stack(flats), heads)
            if self.now() > self.settings.seconds:
                break

    def seconds_an_image(self, run: Callable[[Tensor], Tensor]) -> float:
        """What ``run`` takes for one image."""
        images, _ = self.data.batch(torch.arange(min(4, len(self.data))))
        begun = time.perf_counter()
        run(images)
        return (time.perf_counter() - begun) / len(images)

    def within_reach(self, data: TaskData, unseen: Tensor | None) -> tuple[TaskData, Tensor | None]:
        """As many of the images as the trunk can look at in a share of the seconds; said where not all."""
        run = self.given.features or (lambda images: self.answers(self.flat, images))
        run(data.batch([0])[0])  # what is done once is done now
        left = _LOOKING * (self.deadline - self.now())
        most = max(1, int(left / self.seconds_an_image(run)))
        if most >= len(data):
            return data, unseen
        chosen = some_of(data, most, self.settings.seed)
        self.remarks.append(f"the seconds reached for {len(chosen):,} of the {len(data):,} training images")
        return data.part(chosen), None if unseen is None else unseen[chosen]

    def reaches(self) -> bool:
        """Whether the seconds reach for training all layers; said where they do not."""
        left = self.deadline - self.now()
        if not self.large:
            return left > 0
        # Backwards costs about twice as much as forwards; the images of batch norm come on top.
        step = 4 * self.seconds_an_image(lambda images: self.answers(self.flat, images)) * self.batch
        wanted = step * LEAST_STEPS * len(self.parts)
        if wanted <= left:
            return True
        self.remarks.append(
            f"not all layers were trained: {LEAST_STEPS} steps would take about {wanted:,.0f} s, and "
            f"{max(left, 0.0):,.0f} s were left"
        )
        return False

    @property
    def batch(self) -> int:
        size = min(self.settings.batch_size, max(2, min(len(part.learn) for part in self.parts)))
        return min(size, 16) if self.large else size

    def train_all(self) -> None:
        """All layers from the best so far: rates, then shift and mirroring, then what is left of the time."""
        fitted = max(self.trials, key=_order)
        after = fitted.how.get("pull")
        # To stay near, from the best last layer; to learn anew, from the start's own: a layer that is fitted
        # to features that will change is a burden (digits, a random start: 95.8 % instead of 98.6 %).
        near, begin = self.calmer(fitted.flats), self.calmer(self.trials[0].flats)
        shift = max(1, SHIFT * self.spec.input[1] // 16)  # type: ignore[index]
        each = _TRYING * (self.deadline - self.now()) / (len(FAR) + 3)
        if self.large:  # a few steps say nothing of rates
            how, begin = {"rate": NEAR, "shift": shift, "flip": False}, near
            best = Trial("all layers", how, flats=near, after=after)
        else:
            how = {"rate": NEAR, "shift": 0, "flip": False}
            first = self.cycle(how, near, each, after)
            self.mixed(first, near)
            left, count = self.deadline - self.now(), len(self.parts)
            share = 1 if count == 1 else count / (count + 1)  # the rest is for the one network of all images
            steps = share * left * first.steps / max(first.seconds, 1e-6)
            if steps < FEW_STEPS:
                far = shift * (steps * self.batch >= MOVED_EPOCHS * len(self.parts[0].learn))
                how = {"rate": USUAL, "shift": far, "flip": False}
                self.mixed(self.cycle(how, begin, (0.92 if count == 1 else 0.88 * share) * left), begin)
                return
            best = self.tried(begin, shift, each)
        if len(self.parts) > 1:  # one more network, of all images, is trained for as many steps
            left = (self.deadline - self.now()) * len(self.parts) / (len(self.parts) + 1)
            self.mixed(self.cycle(best.how, begin, 0.9 * left, best.after), begin)
            return
        for share in (0.6, 0.95):
            left = share * (self.deadline - self.now())
            if left < 0.02 * self.settings.seconds:
                return
            found = self.cycle(best.how, best.flats, left, best.after)
            found.steps += best.steps
            self.mixed(found, begin)
            best = max(best, found, key=_order)

    def tried(self, begin: Tensor, shift: int, each: float) -> Trial:
        """The best of short trainings that learn anew, of ``each`` so many seconds."""
        trials = [self.cycle({"rate": rate, "shift": 0, "flip": False}, begin, each) for rate in FAR]
        best = max(trials, key=_order)
        # Moved pictures are learned more slowly and for longer: a short trial is hard on them.
        moved = self.cycle({**best.how, "shift": shift}, begin, each)
        best = best if self.beats(best, moved) else moved
        mirrored = self.cycle({**best.how, "flip": True}, begin, each)
        return mirrored if self.beats(mirrored, best) else best

    def calmer(self, flats: Tensor) -> Tensor:
        """Networks (K, P) with smaller last layers: the same answers, less sure."""
        size = layout_of(self.spec).trunk_size
        return torch.cat([flats[:, :size], HEAD_SCALE * flats[:, size:]], 1)

    def mixed(self, trained: Trial, begin: Tensor) -> None:
        """The mean of weights before and after as a trial."""
        if len(trained.right):  # else it failed
            how = {**trained.how, "mix": MIX}
            flats = self.mean_of(trained.flats, begin, [part.learn for part in self.parts])
            self.judge(replace(trained, how=how, seconds=0.0), flats)

    def mean_of(self, after: Tensor, before: Tensor, learn: list[TaskData]) -> Tensor:
        """Means of weights (K, P), their batch norms measured on pictures to learn from."""
        generator = torch_generator("tuning", "norms", self.settings.seed)
        images, _ = draw_batch(learn, 64 if self.large else 512, generator)
        return recalibrate(self.spec, MIX * after + (1 - MIX) * before, images)

    def cycle(self, how: dict[str, Any], flats: Tensor, seconds: float, after: float | None = None) -> Trial:
        """One training of the parts' networks (K, P) from ``flats``, judged at its end."""
        trial, begun = Trial("all layers", dict(how), after=after), time.perf_counter()
        learn = [part.learn for part in self.parts]
        most = max(100, _EPOCHS * len(learn[0]) // self.batch)

        def pace(step: int) -> float:
            return max(step / most, (time.perf_counter() - begun) / max(seconds, 1e-3))

        seed = seed_for("tuning", self.settings.seed, len(self.trials))
        reached, trial.steps = self.fitted(how, flats, learn, most, pace, seed)
        trial.seconds = time.perf_counter() - begun
        if reached is None:
            trial.flats = flats
            return replace(trial, accuracy=0.0, loss=float("inf"))
        return self.judge(trial, reached)

    def fitted(
        self,
        how: dict[str, Any],
        flats: Tensor,
        learn: list[TaskData],
        steps: int,
        pace: Callable[[int], float] | None,
        seed: int,
    ) -> tuple[Tensor | None, int]:
        """Networks after training and the steps it took; None where their weights were not finite."""
        settings = FitSettings(
            steps=steps,
            batch_size=self.batch,
            learning_rate=how["rate"],
            shift=how["shift"],
            flip=how["flip"],
            own_units=True,
        )
        done = 0

        def on_step(step: int) -> None:
            nonlocal done
            done = step
            self.tell("training all layers")

        try:
            for snapshot in fit_population(
                self.spec, flats, learn, settings, seed=seed, on_step=on_step, pace=pace
            ):
                reached = snapshot.flats
        except TrainingError as error:
            self.remarks.append(f"a rate of {how['rate']:g} was left: {error}")
            return None, done
        return reached, done

    def again(self, best: Trial) -> Tensor:
        """The chosen way once more, on all training images."""
        self.tell("the chosen way, on all images")
        head = last_layer(self.spec, self.flat)
        begin = self.flat
        pull = best.how.get("pull", best.after)
        if head is not None and pull is not None:
            fitted = fit_last_layer(head, self.all_features, self.data.labels, pull)
            begin = with_last_layer(self.spec, self.flat, fitted)
        if best.what == "last layer":
            return begin
        begin = self.calmer(begin[None])[0]
        seed = seed_for("tuning", self.settings.seed, "all images")
        reached, _ = self.fitted(best.how, begin[None], [self.data], best.steps, None, seed)
        if reached is None:  # of all images, and of none of the parts: not seen so far
            return best.flats[0]
        return self.mean_of(reached, begin[None], [self.data])[0] if "mix" in best.how else reached[0]

    def calibrated(self, best: Trial) -> dict[str, Any] | None:
        """The temperature, from images that the network, or one made in the same way, did not learn from."""
        if best.what == "start" and not self.parts[0].unseen:
            return None
        what = "training pictures held back from fine-tuning"
        if best.what == "start":
            what = "training pictures that it was not made from"
        elif len(self.parts) > 1:
            what = "training pictures, each answered by a network fine-tuned in the same way without it"
        return calibration(best.logits, self.labels, what)
