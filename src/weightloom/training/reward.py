"""Steering by reward: what a layer-wise generator draws is moved toward what scores well, no gradient of any
network needed.

*One task* ("make this one better"): the distribution of the layers' codes and of the head is a normal one
around what the generator would make; in every round a group of networks is drawn from it and scored on
labelled images, and the distribution moves along the group-relative policy gradient, held back by a leash to
where it started. *Across tasks*: the prior itself is trained by the same rule, on training tasks. The reward
is accuracy unless the caller has another one.

Shapes: K trunks of a round, G heads a trunk, N images of a round, T layers, R codes a layer, C classes, S
examples a class, H features.
Sources: group-relative advantages and the leash, Shao et al., "DeepSeekMath" (arXiv 2402.03300), section 4.1;
score-function gradients of a normal distribution, Wierstra et al. (arXiv 1106.4487), section 2.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.defaults import with_plain_defaults
from weightloom.errors import CheckpointError, InputError, SpecError, TrainingError
from weightloom.fitting import discriminant, recalibrate, trunk_features
from weightloom.generators import Generator
from weightloom.generators.base import Request
from weightloom.generators.layerwise import Layerwise
from weightloom.generators.load import save_generator
from weightloom.generators.streaming import layerwise_of
from weightloom.io import load_tensors, read_yaml, save_tensors
from weightloom.seeding import torch_generator
from weightloom.tasks import TaskData, TaskSampler
from weightloom.training.layerwise import FIRST_TASK, draw_episode
from weightloom.training.loop import Progress, run_loop
from weightloom.training.recipe import RewardRecipe
from weightloom.training.stages import round_parameters
from weightloom.weights import layout_of
from weightloom.whole import whole_fields

Reward = Callable[[Tensor, Tensor], Tensor]
"""From answers (..., N, C) and labels (N,) to a number for each network (...)."""


def accuracy_reward(answers: Tensor, labels: Tensor) -> Tensor:
    """(...) share of right answers of (..., N, C)."""
    return (answers.argmax(-1) == labels).float().mean(-1)


@dataclass(frozen=True, kw_only=True)
class RewardSettings:
    """How far and how fast one task is steered. A round scores ``trunks`` times ``heads`` networks."""

    rounds: int = 40
    trunks: int = 8
    heads: int = 16
    images: int = 400
    code_rate: float = 0.02
    head_rate: float = 2.0
    spread: float = 0.1
    """Standard deviation of the codes that are tried, in units of their reach."""
    leash: float = 0.002
    """How strongly the distribution is drawn back to where it started (the weight of the divergence)."""

    def __post_init__(self) -> None:
        least = {"rounds": 1, "trunks": 2, "heads": 2, "images": 2}
        whole_fields(self, {name: (count, 1_000_000) for name, count in least.items()})
        for name in ("code_rate", "head_rate", "leash"):
            if not 0 <= getattr(self, name) <= 1000:
                raise SpecError(f"{name} must be from 0 to 1000, not {getattr(self, name)!r}")
        if not 0 < self.spread <= 1:
            raise SpecError(f"spread must be above 0 and at most 1, not {self.spread!r}")


@dataclass(frozen=True)
class Steered:
    """Where the distribution was moved to.

    Attributes:
        means: (T, R) means of the codes before.
        shift: (T, R) what was added to them, before the squashing to [-1, 1].
        moves: (C, H) of the class means, in units of their uncertainty.
        rewards: the mean reward of every round.
        scored: how many networks were scored in all.
    """

    means: Tensor
    shift: Tensor
    moves: Tensor
    rewards: tuple[float, ...]
    scored: int

    @property
    def latents(self) -> Tensor:
        """(T, R) means of the codes now."""
        return _shifted(self.means, self.shift)


def _shifted(means: Tensor, shift: Tensor) -> Tensor:
    return torch.tanh(torch.atanh(means.clamp(-0.999, 0.999)) + shift)


@torch.no_grad()
@with_plain_defaults
def steer(
    model: Layerwise,
    request: Request,
    data: TaskData,
    settings: RewardSettings | None = None,
    *,
    reward: Reward = accuracy_reward,
    folder: Path | None = None,
    progress: Progress = lambda *_: None,
) -> Steered:
    """Move the distribution of ``request``'s networks toward what ``data`` rewards.

    With a ``folder`` the state is kept there after every few rounds, and the run goes on from it.

    Raises:
        InputError: no examples, or fewer than 2 of a class: heads are moved by how uncertain they leave it.
        TrainingError: a reward that is not finite; the state before that round is kept.
    """
    settings = settings or RewardSettings()
    spec, support = request.architecture, request.support
    if support is None or support.shots < 2:
        raise InputError("steering by reward starts from examples, at least 2 of each class")
    means = model.describe(request)[0]  # (T, R)
    classes, width = support.num_classes, _head_width(spec)
    shift, moves = torch.zeros_like(means), torch.zeros(classes, width)
    rewards: list[float] = []
    store = None if folder is None else folder / "steering.safetensors"
    if store is not None and store.is_file():
        shift, moves, rewards = _restored(store, shift, moves)
    size = min(settings.images, len(data))
    half = settings.heads // 2

    def keep() -> None:
        if store is not None:
            save_tensors(store, {"shift": shift, "moves": moves, "rewards": torch.tensor(rewards)})

    for number in range(len(rewards), settings.rounds):
        generator = torch_generator("reward", request.seed, number)
        order = torch.randperm(len(data), generator=generator)[:size]
        images, labels = data.batch(order)
        tried = torch.randn(settings.trunks, *means.shape, generator=generator)  # (K, T, R)
        # Heads come in pairs around the mean, which halves the noise of the gradient.
        pairs = torch.randn(settings.trunks, half, *moves.shape, generator=generator)
        heads = torch.cat([pairs, -pairs], dim=1)  # (K, G, C, H)
        latents = (_shifted(means, shift) + settings.spread * tried).clamp(-1, 1)
        scores = torch.stack(
            [
                reward(_answers(model, spec, z, support.images, images, moves + one), labels)
                for z, one in zip(latents, heads, strict=True)
            ]
        )  # (K, G)
        if not bool(torch.isfinite(scores).all()):
            keep()
            raise TrainingError(
                f"a reward of round {number + 1} is not finite; what was reached before is kept"
            )
        within = _advantage(scores - scores.mean(1, keepdim=True))
        between = _advantage(scores.mean(1) - scores.mean())
        ascent = torch.einsum("kg,kgch->ch", within, heads) / within.numel()
        moves = moves + settings.head_rate * ascent - settings.leash * moves
        ascent = torch.einsum("k,ktr->tr", between, tried) / len(between)
        shift = shift + settings.code_rate * ascent - settings.leash * shift
        rewards.append(float(scores.mean()))
        if (number + 1) % 5 == 0 or number + 1 == settings.rounds:
            keep()
        progress("steering", number + 1, settings.rounds)
    scored = len(rewards) * settings.trunks * 2 * half
    return Steered(means, shift, moves, tuple(rewards), scored)


def _restored(path: Path, shift: Tensor, moves: Tensor) -> tuple[Tensor, Tensor, list[float]]:
    """What an earlier run of the same shapes reached: shift, moves and the reward of every round.

    Raises:
        InputError: it was of another architecture or task.
        CheckpointError: it is no such state.
    """
    held, _ = load_tensors(path)
    rewards = held.get("rewards")
    if not {"shift", "moves"} <= held.keys() or rewards is None or rewards.dim() != 1:
        raise CheckpointError(path, "is no state of a steering; remove it to begin anew")
    if held["shift"].shape != shift.shape or held["moves"].shape != moves.shape:
        raise InputError(f"{path} is of another architecture or task; choose another folder")
    return held["shift"].to(shift), held["moves"].to(moves), rewards.tolist()


def _advantage(scores: Tensor) -> Tensor:
    return scores / scores.std().clamp_min(1e-6)


def _head_width(spec: ArchitectureSpec) -> int:
    return layout_of(spec).layers[-1].cols - 1


@torch.no_grad()
def _answers(
    model: Layerwise, spec: ArchitectureSpec, latents: Tensor, support: Tensor, images: Tensor, moves: Tensor
) -> Tensor:
    """(G, N, C) answers of one trunk with G heads, whose class means are moved by ``moves`` (G, C, H)."""
    (classes, shots), seen = support.shape[:2], support.flatten(0, 1)
    trunk = recalibrate(spec, model.dictionary.decode(spec, latents[None]), seen)
    features = trunk_features(spec, trunk, torch.cat([seen, images]))[0]  # (C*S + N, H)
    known, asked = features.split([len(seen), len(images)])
    weight, bias = discriminant(known.unflatten(0, (classes, shots))[None], model.shrink(spec), moves)
    return torch.einsum("nh,gch->gnc", asked, weight) + bias[:, None]


@torch.no_grad()
@with_plain_defaults
def steered_network(model: Layerwise, request: Request, steered: Steered) -> Tensor:
    """(P,) the network in the middle of the steered distribution."""
    assert request.support is not None
    levels = model.config.levels // 2
    latents = (steered.latents * levels).round() / levels  # what codes can say
    trunk = model.dictionary.decode(request.architecture, latents[None], seed=request.seed)[0]
    return model.with_head(request.architecture, trunk, request.support.images, steered.moves)


@torch.no_grad()
def best_of_prior(
    model: Layerwise, request: Request, data: TaskData, settings: RewardSettings, *, images: int = 2000
) -> tuple[Tensor, Tensor]:
    """(T, R) latents and (C, H) moves of the best of as many networks as steering scores, drawn from the
    distribution that it starts from and scored on ``images`` of ``data``: the same cost without learning.
    """
    assert request.support is not None
    spec, means = request.architecture, model.describe(request)[0]
    order = torch.randperm(len(data), generator=torch_generator("best of prior", request.seed))[:images]
    batch, labels = data.batch(order)
    best, found = -1.0, (means, torch.zeros(request.support.num_classes, _head_width(spec)))
    for number in range(settings.rounds * settings.trunks):
        generator = torch_generator("best of prior", request.seed, number)
        noise = torch.randn(means.shape, generator=generator)
        latents = (means + model.config.spread * noise).clamp(-1, 1)
        moves = torch.randn(settings.heads, *found[1].shape, generator=generator)
        moves[0] = 0.0
        scores = accuracy_reward(_answers(model, spec, latents, request.support.images, batch, moves), labels)
        if float(scores.max()) > best:
            best, found = float(scores.max()), (latents, moves[int(scores.argmax())])
    return found


# ------------------------------------------------------------------------------------ across tasks


class RewardObjective:
    """Policy-gradient loss of one step: for a few training tasks K networks each, scored on other images."""

    def __init__(
        self, model: Layerwise, sampler: TaskSampler, specs: Sequence[ArchitectureSpec], recipe: RewardRecipe
    ) -> None:
        self.model, self.sampler, self.specs, self.recipe = model, sampler, list(specs), recipe
        self.before = copy.deepcopy(model).requires_grad_(False).eval()

    def __call__(self, step: int) -> tuple[Tensor, dict[str, float]]:
        recipe, model = self.recipe, self.model
        generator = torch_generator("reward across", recipe.seed, step)
        spec = self.specs[int(torch.randint(len(self.specs), (), generator=generator))].resolve(classes=2)
        spread, loss, total = recipe.spread, torch.zeros(()), 0.0
        for index in range(recipe.tasks):
            task = self.sampler.task(2 * FIRST_TASK + step * recipe.tasks + index)
            support, queries = draw_episode(task, recipe.shots, recipe.queries, generator)
            seen = model.images.describe(support)[None]
            means = model.means(spec, None, seen)[0]  # (T, R)
            with torch.no_grad():
                start = self.before.means(spec, None, seen)[0]
                noise = torch.randn(recipe.samples, *means.shape, generator=generator)
                tried = (means + spread * noise).clamp(-1, 1)
                labels = torch.arange(len(support)).repeat_interleave(queries.shape[1])
                still = torch.zeros(1, len(support), _head_width(spec))
                images = queries.flatten(0, 1)  # (C, Q, ...) -> (C*Q, ...)
                answers = [_answers(model, spec, z, support, images, still) for z in tried]
                scores = torch.cat([accuracy_reward(one, labels) for one in answers])  # (K,)
            likelihood = -0.5 * ((tried - means) / spread).square().sum((1, 2))  # up to a constant
            divergence = 0.5 * ((means - start) / spread).square().sum()
            loss = loss - (_advantage(scores - scores.mean()) * likelihood).mean() + recipe.leash * divergence
            total += float(scores.mean())
        return loss / recipe.tasks, {"reward": total / recipe.tasks, "divergence": float(divergence.detach())}


@with_plain_defaults
def train_across(recipe_path: Path, start: Generator, out: Path, progress: Progress) -> Generator:
    """Train the prior of ``start`` by reward on the recipe's tasks; saves the whole generator in ``out``.

    Raises:
        InputError: ``start`` has no layer-wise part.
        TrainingError: a loss stays not finite.
    """
    recipe = read_yaml(recipe_path, RewardRecipe)
    shape = start.validity.input
    sampler = TaskSampler(
        recipe.datasets, recipe.salt, "train", recipe.classes, size=shape[1], channels=shape[0]
    )
    parts: dict[int, tuple[Layerwise, list[ArchitectureSpec]]] = {}
    for text in recipe.architectures:
        spec = parse_architecture(text).resolve(input=shape, classes=recipe.classes[0])
        model = layerwise_of(start, spec)
        parts.setdefault(id(model), (model, []))[1].append(replace(spec, classes=None))
    for number, (model, specs) in enumerate(parts.values()):
        _train_prior(
            model, RewardObjective(model, sampler, specs, recipe), recipe, out / f"work-{number}", progress
        )
    save_generator(start, out)  # type: ignore[arg-type]
    return start


def _train_prior(
    model: Layerwise, objective: RewardObjective, recipe: RewardRecipe, folder: Path, progress: Progress
) -> None:
    """Only what decides the codes is steered: not the dictionary, not the image encoder, not the heads."""
    kept = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for part in (model.images, model.dictionary, model.shrinkage, model.sharpness):
        part.requires_grad_(False)
    model.train()
    model.images.eval()
    run_loop(
        "steering across tasks",
        model,
        objective,
        recipe.loop.settings(),
        folder=folder,
        progress=progress,
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(kept[name])
    round_parameters(model)
    model.eval()


def settings_of(recipe: RewardRecipe, **changes: Any) -> RewardSettings:
    """The recipe's settings for one task.

    Raises:
        SpecError: one that makes no sense.
    """
    try:
        return replace(RewardSettings(**recipe.one_task), **changes)
    except TypeError as error:
        raise SpecError(f"the recipe's one_task: {error}") from None
