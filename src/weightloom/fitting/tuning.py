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
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from weightloom.architectures import ArchitectureSpec
from weightloom.defaults import with_plain_defaults
from weightloom.errors import SpecError, TrainingError
from weightloom.fitting.calibration import calibration
from weightloom.fitting.folds import parts_of
from weightloom.fitting.interval import interval_of
from weightloom.fitting.last_layer import PULLS, fit_last_layer, last_layer, with_last_layer
from weightloom.fitting.population import images_at_once, recalibrate, run_networks, trunk_features
from weightloom.fitting.train import FitSettings, draw_batch, fit_population
from weightloom.seeding import check_seed, seed_for, torch_generator
from weightloom.tasks import TaskData
from weightloom.weights import checked_flats, layout_of
from weightloom.whole import whole_fields

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

LARGE = 500_000
"""Parameters from which on it is estimated first whether the seconds reach for training all layers."""

LEAST_STEPS = 20
"""Steps that the seconds have to reach for, else all layers are not trained."""

_TRYING = 0.3
"""Share of the seconds in which rates, shift and mirroring are tried."""

_RESERVE = 0.03
"""Share of the seconds for what comes after training."""

_EPOCHS = 120
"""Passes over the training images in one cycle at most."""


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """How the seconds are spent.

    Attributes:
        seconds: wall clock in all.
        held_back: share of the training images that judge, at most 1,500 images.
        few: up to so many training images each is left out once, in ``folds`` parts.
        folds: parts then.
        batch_size: images a step; fewer of networks above half a million parameters.
        seed: decides the parts and the batches.
    """

    seconds: float = 60.0
    held_back: float = 0.2
    few: int = 400
    folds: int = 4
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        whole_fields(self, {"few": (0, 10**9), "folds": (2, 100), "batch_size": (2, 10**6)})
        object.__setattr__(self, "seed", check_seed(self.seed))
        if not 0 < self.held_back < 1:
            raise SpecError(f"held_back must be between 0 and 1, not {self.held_back}")
        if not 0 < self.seconds <= 7 * 86400:
            raise SpecError(f"seconds must be above 0 and at most a week, not {self.seconds}")


@dataclass(frozen=True, kw_only=True)
class Start:
    """A network before fine-tuning, and what is known of it.

    Attributes:
        flat: (P,) weights.
        unseen: (n,) which training images it was not made from; None where that is not known.
        accuracy: on examples, each when it is left out. Counts where the images that judge may be among
            those that it was made from: there it cannot be measured.
        features: what its trunk gives for images, where there is a faster way than to run it.
    """

    flat: Tensor
    unseen: Tensor | None = None
    accuracy: float | None = None
    features: Callable[[Tensor], Tensor] | None = None


@dataclass
class Trial:
    """A candidate: what moves, how, and how well it did on images held back.

    Attributes:
        what: ``"start"``, ``"last layer"`` or ``"all layers"``.
        how: rate, shift, flip or pull.
        accuracy: on images that it did not learn from.
        loss: there.
        steps, seconds: of training.
    """

    what: str
    how: dict[str, Any] = field(default_factory=dict)
    accuracy: float = 0.0
    loss: float = 0.0
    steps: int = 0
    seconds: float = 0.0
    flats: Tensor = field(default_factory=lambda: torch.zeros(0), repr=False)  # (K, P)
    right: Tensor = field(default_factory=lambda: torch.zeros(0), repr=False)  # images answered rightly

    def to_json(self, images: int) -> dict[str, Any]:
        """Plain values, without the weights; ``images`` judged."""
        kept = {k: v for k, v in self.__dict__.items() if k not in ("flats", "right", "how")}
        sure = {"interval": interval_of(self.accuracy, images), "num_images": images}
        return {**kept, **sure, **self.how}


def _order(trial: Trial) -> tuple[float, float]:
    """What trials are ordered by."""
    return (trial.accuracy, -trial.loss)


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What came out.

    Attributes:
        flat: (P,) the network.
        chosen: which trial it is of.
        start: the start's.
        trials: all of them, in the order in which they were made.
        judged_on: how many images judged.
        folds: parts that each were left out once; 1 where one part was held back.
        calibration: ``temperature`` and what it was measured ``on``; None where that cannot be.
        remarks: sentences on what was not done and why.
        seconds: wall clock.
    """

    flat: Tensor
    chosen: Trial
    start: Trial
    trials: list[Trial]
    judged_on: int
    folds: int
    calibration: dict[str, Any] | None
    remarks: list[str]
    seconds: float

    @property
    def sentence(self) -> str:
        """What was chosen."""
        if self.chosen.what == "start":
            return (
                "nothing did better on the images held back by more than chance would have it: the network "
                "is the start, unchanged"
            )
        steps = f"{self.chosen.steps:,} step{'s' * (self.chosen.steps != 1)}"
        how = self.chosen.how
        if self.chosen.what == "last layer":
            return f"the last layer, fitted anew on the features of the others (pull {how['pull']:g})"
        moved = (
            f"moved by up to {how['shift']} pixel{'s' * (how['shift'] != 1)}"
            if how["shift"]
            else "as they are"
        )
        moved += " and mirrored" if how["flip"] else ""
        moved += "; the mean of its weights and those before" if "mix" in how else ""
        return f"all layers, {steps} of AdamW, rate up to {how['rate']:g} in one cycle, pictures {moved}"

    def to_json(self) -> dict[str, Any]:
        """Plain values for a file."""
        return {
            "chosen": self.chosen.to_json(self.judged_on),
            "sentence": self.sentence,
            "held_back": {
                "before": self.start.accuracy,
                "before_interval": interval_of(self.start.accuracy, self.judged_on),
                "after": self.chosen.accuracy,
                "after_interval": interval_of(self.chosen.accuracy, self.judged_on),
                "num_images": self.judged_on,
                "parts": self.folds,
            },
            "trials": [trial.to_json(self.judged_on) for trial in self.trials],
            "calibration": self.calibration,
            "remarks": self.remarks,
            "seconds": self.seconds,
        }


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
        self.parts = parts_of(data, names, settings, start.unseen)
        self.judging = [part.held.all() for part in self.parts]
        self.trials: list[Trial] = []
        self.remarks: list[str] = []
        self.large = spec.num_parameters() > LARGE

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
        start = self.judge(Trial("start"), self.flat.expand(count, -1))
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
            judged_on=sum(len(labels) for _, labels in self.judging),
            folds=count,
            calibration=self.calibrated(best),
            remarks=self.remarks,
            seconds=self.now(),
        )

    def judge(self, trial: Trial, flats: Tensor) -> Trial:
        """The trial with networks (K, P) and how they do on the part that each did not learn from."""
        logits = torch.cat([self.answers(flat, images) for flat, (images, _) in self.pairs(flats)])
        labels = torch.cat([labels for _, labels in self.judging])
        trial.right = logits.argmax(1) == labels
        trial.accuracy = float(trial.right.float().mean())
        trial.loss = float(F.cross_entropy(logits, labels))
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

    def pairs(self, flats: Tensor) -> list[tuple[Tensor, tuple[Tensor, Tensor]]]:
        return list(zip(flats, self.judging, strict=True))

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
        features, labels = self.features(self.data), self.data.labels
        for pull in PULLS:
            begun = time.perf_counter()
            flats = []
            for part in self.parts:
                fitted = fit_last_layer(head, features[part.learning], labels[part.learning], pull)
                flats.append(with_last_layer(self.spec, self.flat, fitted))
            trial = Trial("last layer", {"pull": pull}, seconds=time.perf_counter() - begun)
            self.judge(trial, torch.stack(flats))
            if self.now() > self.deadline:
                break
        self.all_features = features

    def reaches(self) -> bool:
        """Whether the seconds reach for training all layers; said where they do not."""
        left = self.deadline - self.now()
        if not self.large:
            return left > 0
        images, _ = self.data.batch(torch.arange(min(4, len(self.data))))
        begun = time.perf_counter()
        self.answers(self.flat, images)
        # Backwards costs about twice as much as forwards; the images of batch norms come on top.
        step = 4 * (time.perf_counter() - begun) / len(images) * self.batch
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
        begin = self.calmer(max(self.trials, key=_order).flats)
        shift = max(1, SHIFT * self.spec.input[1] // 16)  # type: ignore[index]
        each = _TRYING * (self.deadline - self.now()) / (len(FAR) + 3)
        if self.large:  # a few steps say nothing of rates
            best = Trial("all layers", {"rate": NEAR, "shift": shift, "flip": False}, flats=begin)
        else:
            near = self.cycle({"rate": NEAR, "shift": 0, "flip": False}, begin, each)
            self.mixed(near, begin)
            tried = [self.cycle({"rate": rate, "shift": 0, "flip": False}, begin, each) for rate in FAR]
            best = max(tried, key=_order)
            # Moved pictures are learned more slowly and for longer: a short trial is hard on them.
            moved = self.cycle({**best.how, "shift": shift}, begin, each)
            best = best if self.beats(best, moved) else moved
            mirrored = self.cycle({**best.how, "flip": True}, begin, each)
            best = mirrored if self.beats(mirrored, best) else best
        if len(self.parts) > 1:  # one more network, of all images, is trained for as many steps
            left = (self.deadline - self.now()) * len(self.parts) / (len(self.parts) + 1)
            self.mixed(self.cycle(best.how, begin, 0.9 * left), begin)
            return
        for share in (0.6, 0.95):
            left = share * (self.deadline - self.now())
            if left < 0.02 * self.settings.seconds:
                return
            found = self.cycle(best.how, best.flats, left)
            found.steps += best.steps
            self.mixed(found, begin)
            best = max(best, found, key=_order)

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

    def cycle(self, how: dict[str, Any], flats: Tensor, seconds: float) -> Trial:
        """One training of the parts' networks (K, P) from ``flats``, judged at its end."""
        trial, begun = Trial("all layers", dict(how)), time.perf_counter()
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
        layers = [trial for trial in self.trials if trial.what == "last layer"]
        pull = max(layers, key=_order).how["pull"] if layers else None
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
        logits = torch.cat([self.answers(flat, images) for flat, (images, _) in self.pairs(best.flats)])
        what = "training pictures held back from fine-tuning"
        if len(self.parts) > 1:
            what = "training pictures, each answered by a network fine-tuned in the same way without it"
        return calibration(logits, torch.cat([labels for _, labels in self.judging]), what)
