"""Thousands of small networks trained together: one matrix of weights, one optimiser, own data each.

Knows nothing of zoos: it yields snapshots and its caller keeps them.

Shapes: N networks, P values of a network, B images a network and step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from weightloom.architectures import ArchitectureSpec
from weightloom.defaults import with_plain_defaults
from weightloom.errors import InputError, SpecError, TrainingError
from weightloom.finite import all_finite
from weightloom.fitting.population import images_at_once, initial_flats, recalibrate, run_networks
from weightloom.seeding import check_seed, torch_generator
from weightloom.tasks import TaskData
from weightloom.weights import checked_flats, layout_of
from weightloom.whole import whole_fields, whole_number


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How target networks are trained.

    With ``tied_steps`` all networks share every layer but the head for that many first steps (their
    gradients are averaged), and go their own ways from there: a zoo with one trained trunk as its
    common start.
    """

    steps: int = 300
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    tied_steps: int = 0
    head_rate: float = 1.0
    """The head's learning rate over that of the other layers. Above 1 a trained trunk stays close to where it
    was: networks of one zoo then differ by what their tasks need, not by the noise of their training."""
    epsilon: float = 1e-8
    """Adam's constant. Far above the gradients' size it makes steps follow their size, as plain gradient
    descent does: weights that a task asks nothing of then stay where they were."""
    own_units: bool = False
    """The weights of every layer but the head are counted in units of their size over that of fresh ones.
    Generated convolutions are five to fifteen times as large as fresh ones. With a batch norm behind them
    their answers are the same at any size, but a step of one length turns them five to fifteen times less."""
    shift: int = 0
    """Pictures are moved by up to so many pixels, up or down and left or right, anew at each step."""
    flip: bool = False
    """Every second picture, by chance, is seen in a mirror."""
    snapshots: tuple[int, ...] = ()
    """Steps after which the networks are handed out; the last step always is."""

    def __post_init__(self) -> None:
        limits = {"steps": (1, 10**9), "batch_size": (2, 10**6), "tied_steps": (0, 10**9), "shift": (0, 64)}
        whole_fields(self, limits)
        rates = (self.learning_rate, self.head_rate, self.epsilon)
        if not all(math.isfinite(rate) and rate > 0 for rate in rates):
            raise SpecError("learning_rate, head_rate and epsilon must be above 0 and finite")
        steps = tuple(whole_number(step, "a snapshot's step", 0, error=SpecError) for step in self.snapshots)
        object.__setattr__(self, "snapshots", steps)
        if any(not 0 < step <= self.steps for step in steps):
            raise SpecError(f"snapshots {list(steps)} must lie between 1 and steps={self.steps}")


@dataclass(frozen=True)
class Snapshot:
    """Networks after ``step`` steps: flats (N, P) with calibrated batch norms, loss (N,) of the step."""

    step: int
    flats: Tensor
    loss: Tensor


def draw_batch(data: Sequence[TaskData], size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images (N, B, ...) and labels (N, B), each network's from its own task."""
    images, labels = [], []
    for one in data:
        x, y = one.batch(torch.randint(len(one), (size,), generator=generator))
        images.append(x)
        labels.append(y)
    return torch.stack(images), torch.stack(labels)


def sizes_over_fresh(spec: ArchitectureSpec, flats: Tensor) -> Tensor:
    """(N, P) root mean square of each weight's layer over that of a fresh network; 1 in heads and norms.

    At most a hundred, and at least a hundredth.
    """
    layout = layout_of(spec)
    fresh = initial_flats(spec, [0])[0]
    found = torch.ones(flats.shape, device=flats.device)
    place = 0
    for layer in layout.layers:
        end = place + layer.rows * layer.cols
        if layer.kind in ("conv", "depthwise", "linear"):
            own, usual = (values[..., place:end].square().mean(-1).sqrt() for values in (flats, fresh))
            if float(usual) > 0:
                ratio = (own.detach() / usual.to(own.device)).clamp(0.01, 100.0)
                found[:, place:end] = ratio[:, None]
        place = end
    return found


def moved(images: Tensor, shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Images (N, B, C, H, W), each moved by up to ``shift`` pixels and, with ``flip``, mirrored or not.

    What comes in at an edge repeats the edge.

    Example:
        >>> images = torch.arange(4.0).reshape(1, 1, 1, 1, 4)
        >>> moved(images, 1, False, torch.Generator().manual_seed(0)).flatten().tolist()
        [0.0, 0.0, 1.0, 2.0]
    """
    if not shift and not flip:
        return images
    count, (height, width) = images.shape[:2].numel(), images.shape[-2:]
    by = torch.randint(-shift, shift + 1, (2, count, 1), generator=generator)
    rows = (torch.arange(height) + by[0]).clamp_(0, height - 1)  # (N*B, H)
    columns = (torch.arange(width) + by[1]).clamp_(0, width - 1)
    if flip:
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    places = (rows[:, :, None] * width + columns[:, None, :]).reshape(count, 1, -1)  # (N*B, 1, H*W)
    pixels = images.flatten(0, 1).flatten(2)
    found = pixels.gather(2, places.to(images.device).expand(-1, pixels.shape[1], -1))
    return found.reshape(images.shape)


@with_plain_defaults
def fit_population(
    spec: ArchitectureSpec,
    flats: Tensor,
    data: Sequence[TaskData],
    settings: FitSettings,
    *,
    seed: int = 0,
    on_step: Callable[[int], None] | None = None,
    pace: Callable[[int], float] | None = None,
) -> Iterator[Snapshot]:
    """Train N networks, network n on ``data[n]``, and yield them at the settings' snapshots.

    AdamW, cosine schedule after a short warm-up. ``flats`` is not changed. With ``pace`` the schedule follows
    what that returns for a step, the share of the training that is over, and ends where it reaches 1, after
    ``settings.steps`` at the latest: a training that has to end at a given time still ends with small steps.

    Raises:
        InputError: the networks are not of ``spec``.
        TrainingError: a loss or a weight is not finite; the message names the step and the network.
    """
    flats = checked_flats(spec, flats)
    if len(data) != len(flats):
        raise InputError(f"{len(flats)} networks need data each, but there are data of {len(data)}")
    seed = check_seed(seed)
    layout = layout_of(spec)
    trunk = torch.cat(
        [torch.full((layer.rows * layer.cols,), layer.kind != "head") for layer in layout.layers]
    )
    # Adam's steps do not depend on the gradient's scale, so a rate of its own is a change of units.
    rate = torch.where(trunk, 1.0, settings.head_rate)
    if settings.own_units:
        rate = rate * sizes_over_fresh(spec, flats)
    units = (flats.detach() / rate).requires_grad_()
    optimiser = torch.optim.AdamW([units], lr=settings.learning_rate, eps=settings.epsilon, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.learning_rate, total_steps=settings.steps + 1, pct_start=0.1
    )
    trained = torch.ones(layout.size, dtype=torch.bool)
    for i, slot in enumerate(layout.slots):
        if slot.is_buffer:
            trained[layout.slot_of_value == i] = False
    generator = torch_generator("fit", seed)
    for step in range(1, settings.steps + 1):
        images, labels = draw_batch(data, settings.batch_size, generator)
        images = moved(images, settings.shift, settings.flip, generator)
        weights = units * rate
        logits = run_networks(spec, weights, images, training=True)
        loss = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(1)  # (N,)
        if not bool(torch.isfinite(loss).all()):
            bad = int((~torch.isfinite(loss)).nonzero()[0])
            raise TrainingError(f"the loss of network {bad} of {spec} is not finite at step {step}")
        optimiser.zero_grad()
        loss.sum().backward()
        assert units.grad is not None
        if step <= settings.tied_steps:
            units.grad[:, trunk] = units.grad[:, trunk].mean(0, keepdim=True)
        group = optimiser.param_groups[0]
        if pace is not None:
            cycle = _one_cycle(pace(step - 1))
            # torch's one-cycle schedule moves the momentum against the rate.
            group["lr"], group["betas"] = settings.learning_rate * cycle, (0.95 - 0.1 * cycle, 0.999)
        with torch.no_grad():  # decoupled decay, on trained values only
            units[:, trained] *= 1 - group["lr"] * settings.weight_decay
        optimiser.step()
        if pace is None:
            schedule.step()
        if on_step is not None:
            on_step(step)
        last = step == settings.steps or (pace is not None and pace(step) >= 1)
        if last or step in settings.snapshots:
            # A stream of its own: taking a snapshot must not change the steps that follow.
            apart = torch_generator("fit-calibration", seed, step)
            # Few of large pictures: a network of several million parameters would fill the memory.
            calibration, _ = draw_batch(data, 512 if images_at_once(spec) >= 128 else 64, apart)
            reached = recalibrate(spec, (units * rate).detach(), calibration)
            if not all_finite(reached):
                bad = next(n for n, flat in enumerate(reached) if not all_finite(flat))
                raise TrainingError(
                    f"the weights of network {bad} of {spec} are not finite after step {step}"
                )
            yield Snapshot(step, reached, loss.detach())
        if last:
            return


def _one_cycle(share: float) -> float:
    """Learning rate over its highest after ``share`` of a training: up in a tenth, then down to 0."""
    share = min(max(share, 0.0), 1.0)
    if share < 0.1:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * share / 0.1)) / 2
    return (1 + math.cos(math.pi * (share - 0.1) / 0.9)) / 2
