"""From noise to latents: our own flow matching, or a scheduler of the ``diffusers`` library.

A schedule says how noise is mixed in for training, what the denoiser is to predict, and how one walks back.
Time t goes from 0 (a latent) to 1 (noise). Knows nothing of networks.

Shapes: B samples, T tokens, Z latent width.
Sources: flow matching along straight lines, Lipman et al. (arXiv 2210.02747) and Liu et al. (arXiv
2209.03003); DDPM, Ho et al. (arXiv 2006.11239), algorithms 1 and 2; DDIM, Song et al. (arXiv 2010.02502).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from weightloom.errors import DataUnavailableError, SpecError

SCHEDULES = ("flow", "ddpm", "ddim", "flow-diffusers")
"""``flow`` is our own; the others are of the ``diffusers`` library."""

_TRAINED_STEPS = 1000

Predict = Callable[[Tensor, Tensor], Tensor]
"""(B, T, Z) noisy latents and (B,) times to what was to be predicted, (B, T, Z)."""


class Schedule(ABC):
    """See the top of this file."""

    @abstractmethod
    def times(self, uniform: Tensor) -> Tensor:
        """(B,) training times from numbers drawn evenly from [0, 1)."""

    @abstractmethod
    def noisy(self, x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, Z) latents at times (B,), and what is to be predicted there."""

    @abstractmethod
    def clean(self, noisy: Tensor, predicted: Tensor, t: Tensor) -> Tensor:
        """(B, T, Z) the latents that a prediction implies."""

    @abstractmethod
    def plain(self, noisy: Tensor, t: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
        """(B, T, Z) the best prediction for latents of which only mean and spread are known, (B, T, Z) each.

        A denoiser that adds to it has the rest to learn (preconditioning, arXiv 2206.00364, section 5).
        """

    @abstractmethod
    def walk(self, predict: Predict, noise: Tensor, steps: int, streams: Sequence[torch.Generator]) -> Tensor:
        """(B, T, Z) latents from noise, in ``steps`` steps; sample b draws from ``streams[b]`` alone."""


def build_schedule(name: str) -> Schedule:
    """The schedule called ``name``.

    Raises:
        SpecError: there is none.
        DataUnavailableError: it needs the ``diffusers`` library, which is not installed.
    """
    if name == "flow":
        return Flow()
    if name not in SCHEDULES:
        raise SpecError(f"unknown schedule {name!r}; known: {', '.join(SCHEDULES)}")
    try:
        import diffusers
    except ImportError:
        raise DataUnavailableError(
            f"the schedule {name!r} needs diffusers: pip install 'weightloom[diffusion]' (or take 'flow')"
        ) from None
    if name == "flow-diffusers":
        return DiffusersFlow(diffusers.FlowMatchEulerDiscreteScheduler)
    options: dict[str, Any] = {"num_train_timesteps": _TRAINED_STEPS, "clip_sample": False}
    if name == "ddpm":
        return DiffusersNoise(lambda: diffusers.DDPMScheduler(**options))
    return DiffusersNoise(lambda: diffusers.DDIMScheduler(**options, set_alpha_to_one=True))


def _wide(t: Tensor) -> Tensor:
    return t[:, None, None]  # (B,) -> (B, 1, 1)


class Flow(Schedule):
    """Straight lines from latents to noise, walked back in equal Euler steps.

    Example:
        >>> x, noise = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
        >>> schedule = Flow()
        >>> noisy, wanted = schedule.noisy(x, noise, torch.tensor([0.25]))
        >>> float(noisy[0, 0, 0]), float(wanted[0, 0, 0])
        (0.25, 1.0)
        >>> bool((schedule.walk(lambda x, t: torch.ones_like(x), noise, 4, []) == 0).all())
        True
    """

    def times(self, uniform: Tensor) -> Tensor:
        return uniform

    def noisy(self, x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.lerp(x, noise, _wide(t)), noise - x

    def clean(self, noisy: Tensor, predicted: Tensor, t: Tensor) -> Tensor:
        return noisy - _wide(t) * predicted

    def plain(self, noisy: Tensor, t: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
        t = _wide(t)
        # noisy = (1 - t) x + t noise, so that both are known in proportion to their part of its variance.
        known = (noisy - (1 - t) * mean) / ((1 - t).square() * spread.square() + t.square()).clamp_min(1e-6)
        return known * (t - (1 - t) * spread.square()) - mean

    def walk(self, predict: Predict, noise: Tensor, steps: int, streams: Sequence[torch.Generator]) -> Tensor:
        x = noise
        for step in range(steps):
            t = torch.full((len(x),), 1 - step / steps)
            x = x - predict(x, t) / steps
        return x


class DiffusersFlow(Flow):
    """The same training, walked back by diffusers' ``FlowMatchEulerDiscreteScheduler``."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make

    def walk(self, predict: Predict, noise: Tensor, steps: int, streams: Sequence[torch.Generator]) -> Tensor:
        scheduler = self.make()  # a scheduler counts its own steps: one for each walk
        scheduler.set_timesteps(steps)
        x = noise
        for now in scheduler.timesteps:
            t = (now / scheduler.config.num_train_timesteps).to(x).expand(len(x))
            x = scheduler.step(predict(x, t), now, x).prev_sample
        return x


class DiffusersNoise(Schedule):
    """Prediction of the noise itself, with diffusers' DDPM or DDIM scheduler."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make, self.scheduler = make, make()

    def _index(self, t: Tensor) -> Tensor:
        return (t * _TRAINED_STEPS).round().long().clamp(0, _TRAINED_STEPS - 1)

    def times(self, uniform: Tensor) -> Tensor:
        return (uniform * _TRAINED_STEPS).floor() / _TRAINED_STEPS

    def noisy(self, x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.scheduler.add_noise(x, noise, self._index(t)), noise

    def clean(self, noisy: Tensor, predicted: Tensor, t: Tensor) -> Tensor:
        kept = _wide(self.scheduler.alphas_cumprod[self._index(t)].to(noisy))
        return (noisy - (1 - kept).sqrt() * predicted) / kept.sqrt()

    def plain(self, noisy: Tensor, t: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
        kept = _wide(self.scheduler.alphas_cumprod[self._index(t)].to(noisy))
        variance = (kept * spread.square() + 1 - kept).clamp_min(1e-6)
        return (noisy - kept.sqrt() * mean) * (1 - kept).sqrt() / variance

    def walk(self, predict: Predict, noise: Tensor, steps: int, streams: Sequence[torch.Generator]) -> Tensor:
        scheduler = self.make()
        scheduler.set_timesteps(steps)
        x = noise
        for now in scheduler.timesteps:
            t = (now / _TRAINED_STEPS).to(x).expand(len(x))
            x = scheduler.step(predict(x, t), now, x, generator=list(streams)).prev_sample
        return x
