"""Training a graph hypernetwork by the loss of the networks that it predicts.

A step draws a few random architectures and one batch of images, predicts all their weights in one pass, and
goes down the mean of their losses. No trained network is needed, and none is ever trained.

Shapes: K architectures of a step, B images, C classes.
Source: Knyazev et al. (arXiv 2110.13100), equation 2 and section 3.3 (meta-batches); the penalty of GHN-3
(arXiv 2303.04143), equation 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.architectures.capture import graph_of
from weightloom.architectures.deepnet import DeepNetSpec
from weightloom.architectures.genotype import SPACES
from weightloom.errors import SpecError
from weightloom.fitting import accuracy, left_out, recalibrate
from weightloom.fitting.precision import full_precision
from weightloom.generators.ghn import GHN, GHNConfig, make_validity
from weightloom.generators.load import load_generator, save_generator
from weightloom.io import read_yaml
from weightloom.seeding import seed_for, torch_generator
from weightloom.tasks import DatasetTask, Task, TaskData, parse_task
from weightloom.training.loop import Progress, run_loop
from weightloom.training.parallel import WHOLE, Part
from weightloom.training.recipe import UNDECISIVE, GHNRecipe
from weightloom.training.stages import claim
from weightloom.training.trainers import trainers

VALIDATION_IMAGES = 1000
CALIBRATION_IMAGES = 512
MOST_TOO_LARGE = 100
"""Networks in a row that may be too large."""


@dataclass(frozen=True, kw_only=True)
class GHNSettings:
    """What a step is made of.

    Attributes:
        space: which architectures (``architectures/genotype.py``).
        networks: how many of them there are to draw from.
        architectures: others beside them, as text without classes and input.
        share: how many of the networks that are drawn are of those others.
        meta_batch: K.
        images: B.
        augment: pictures are shifted by up to an eighth, and flipped half of the time.
        flip: whether a mirrored picture is of the same class.
        features: weight of the loss that the network would have with a head in closed form, beside that with
            the predicted head: at the start all networks' features differ, and no head can be right for all.
        clip: the longest gradient of one network's weights; without norms it can be a hundred times others'.
        norm_penalty: what the mean norm of the predicted tensors is added to the loss with.
        memory: the most GiB that one training network may keep for its backward pass
            (:func:`activation_memory`); a larger one is passed over for the next. Infinite: none is.
    """

    space: str = "tiny"
    networks: int = 100_000
    architectures: Sequence[str] = ()
    share: float = 0.0
    meta_batch: int = 4
    images: int = 64
    augment: bool = True
    flip: bool = True
    features: float = 1.0
    clip: float = 2.0
    norm_penalty: float = 0.0
    memory: float = math.inf

    def __post_init__(self) -> None:
        if self.space not in SPACES:
            raise SpecError(f"space is one of {', '.join(SPACES)}, not {self.space!r}")
        if min(self.networks, self.meta_batch) < 1 or self.images < 2 or not self.clip > 0:
            raise SpecError("networks and meta_batch must be at least 1, images at least 2, clip above 0")
        if not min(self.features, self.norm_penalty) >= 0:
            raise SpecError("features and norm_penalty must not be negative")
        if not self.memory > 0:
            raise SpecError(f"memory must be above 0, not {self.memory}")
        if not 0 <= self.share <= 1 or (self.share > 0) != (len(self.architectures) > 0):
            raise SpecError("share is from 0 to 1, and above 0 where there are architectures to draw")


_Buffer = tuple[str, tuple[int, ...], torch.dtype]


@lru_cache(maxsize=2048)
def _template(spec: ArchitectureSpec) -> tuple[nn.Module, tuple[_Buffer, ...]]:
    """The module's structure in training mode, and its buffers; nothing is allocated."""
    with torch.device("meta"):
        module = spec.build().train()
    return module, tuple((name, tuple(b.shape), b.dtype) for name, b in module.named_buffers())


@full_precision
def logits_of(spec: ArchitectureSpec, weights: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C) logits of the network with these weights, and (B, H) what its head sees.

    Batch norms use the batch.
    """
    module, buffers = _template(spec)
    fresh = {name: torch.zeros(shape, dtype=dtype, device=images.device) for name, shape, dtype in buffers}
    seen: list[Tensor] = []
    hook = module.get_submodule("head").register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        found: Tensor = functional_call(module, {**weights, **fresh}, (images,), tie_weights=False)
    finally:
        hook.remove()
    return found, seen[0]


@lru_cache(maxsize=2048)
def activation_memory(spec: ArchitectureSpec, images: int) -> float:
    """GiB that one forward pass in training keeps for the backward pass, weights left out.

    Found on the meta device: nothing of that size is allocated.

    Example:
        >>> from weightloom.architectures import parse_architecture
        >>> small = parse_architecture("cnn(depth=2,width=8)").resolve(classes=10, input=(3, 16, 16))
        >>> round(activation_memory(small, 128) / activation_memory(small, 64), 2)
        2.0
    """
    assert spec.input is not None
    module, _ = _template(spec)
    weights = {name: value.detach().requires_grad_() for name, value in module.named_parameters()}
    own = {value.untyped_storage()._cdata for value in weights.values()}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is given away twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits_of(spec, weights, torch.empty([images, *spec.input], device="meta"))
    return sum(storage.nbytes() for storage in kept.values()) / 2**30


class GHNObjective:
    """Loss of one step; everything that is drawn comes from the address (seed, first + step)."""

    def __init__(
        self, model: GHN, data: TaskData, settings: GHNSettings, *, seed: int = 0, first: int = 0
    ) -> None:
        self.model, self.data, self.settings, self.seed, self.first = model, data, settings, seed, first
        self.classes, self.input = model.config.classes, model.validity.input
        self.others = tuple(
            parse_architecture(text).resolve(classes=self.classes, input=self.input)
            for text in settings.architectures
        )
        held = torch.randperm(len(data), generator=torch_generator("ghn-validation", seed))
        self.validation, self.training = held[:VALIDATION_IMAGES], held[VALIDATION_IMAGES:]

    def specs(self, stream: torch.Generator) -> list[ArchitectureSpec]:
        """K training architectures."""
        count = self.settings.meta_batch
        drawn = torch.randint(self.settings.networks, (count,), generator=stream).tolist()
        if not self.others:
            return [self.drawn(index) for index in drawn]
        other = (torch.rand(count, generator=stream) < self.settings.share).tolist()
        which = torch.randint(len(self.others), (count,), generator=stream).tolist()
        return [
            self.others[second] if instead else self.drawn(first)
            for first, second, instead in zip(drawn, which, other, strict=True)
        ]

    def drawn(self, index: int) -> DeepNetSpec:
        """Training network ``index``, or the first after it that is not too large."""
        settings, most = self.settings, min(self.settings.networks, MOST_TOO_LARGE)
        for later in range(most):
            found = self.spec("train", (index + later) % settings.networks)
            if settings.memory == math.inf or activation_memory(found, settings.images) <= settings.memory:
                return found
        raise SpecError(
            f"memory: networks {index} and the {most - 1} after it all keep more than {settings.memory} GiB"
        )

    def spec(self, split: str, index: int) -> DeepNetSpec:
        """A random network for the images of the task."""
        return DeepNetSpec(
            space=self.settings.space, split=split, index=index, classes=self.classes, input=self.input
        )

    def batch(self, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) images, shifted and flipped, and (B,) labels."""
        chosen = torch.randint(len(self.training), (self.settings.images,), generator=stream)
        images, labels = self.data.batch(self.training[chosen])
        if self.settings.augment:
            images = shifted(images, stream, flip=self.settings.flip)
        return images.to(self.model.device), labels.to(self.model.device)

    @property
    def items(self) -> int:
        """K: networks are whole, and see all images."""
        return self.settings.meta_batch

    def __call__(self, step: int, part: Part = WHOLE) -> tuple[Tensor, dict[str, float]]:
        """The mean loss of K predicted networks on one batch."""
        settings = self.settings
        stream = torch_generator("ghn", self.seed, self.first + step)
        drawn = self.specs(stream)
        images, labels = self.batch(stream)
        specs = drawn[part.rows(len(drawn))]
        predicted = self.model([graph_of(spec) for spec in specs])
        losses, told = [], {"accuracy": 0.0} | ({"fitted_accuracy": 0.0} if settings.features else {})

        def judge(spec: ArchitectureSpec, weights: dict[str, Tensor]) -> Tensor:
            logits, features = logits_of(spec, weights, images)
            told["accuracy"] += float((logits.argmax(1) == labels).float().mean()) / len(drawn)
            loss = held_back(F.cross_entropy(logits, labels), self.classes)
            if not settings.features:
                return loss
            judged = left_out(features, labels, self.classes)
            told["fitted_accuracy"] += float((judged.argmax(1) == labels).float().mean()) / len(drawn)
            return loss + settings.features * F.cross_entropy(judged, labels)

        for spec, weights in zip(specs, predicted, strict=True):
            losses.append(_judged(partial(judge, spec), weights, settings.clip))
        loss = torch.stack(losses).mean() * part.share(len(drawn))
        if settings.norm_penalty:
            norms = [value.norm() for weights in predicted for value in weights.values()]
            loss = loss + settings.norm_penalty * torch.stack(norms).sum() / len(drawn)
        return loss, told

    def evaluate(self, split: str, count: int) -> dict[str, float]:
        """Mean and best zero-shot accuracy of ``count`` networks on images that are held back."""
        scores = zero_shot(
            self.model,
            [self.spec(split, index) for index in range(count)],
            self.data.batch(self.training[:CALIBRATION_IMAGES])[0],
            *self.data.batch(self.validation),
        )
        return {f"{split}_mean": sum(scores) / len(scores), f"{split}_max": max(scores)}


class _Judged(torch.autograd.Function):
    """The loss of one network by its weights, with what it keeps of its activations already given back.

    The gradient by the weights is found at once, so that of K networks no two are held at a time. It is no
    longer than ``most``, and none where not finite.
    """

    @staticmethod
    def forward(ctx: Any, judge: Callable[[list[Tensor]], Tensor], most: float, *weights: Tensor) -> Tensor:
        with torch.enable_grad():
            leaves = [weight.detach().requires_grad_() for weight in weights]
            loss = judge(leaves)
            gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        length = torch.stack([gradient.norm() for gradient in gradients]).norm()
        if bool(torch.isfinite(length)):
            factor = (most / length.clamp(min=1e-12)).clamp(max=1.0)
            ctx.gradients = [gradient * factor for gradient in gradients]
        else:
            ctx.gradients = [torch.zeros_like(gradient) for gradient in gradients]
        return loss.detach()

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *(gradient * outer for gradient in ctx.gradients))


def _judged(judge: Callable[[dict[str, Tensor]], Tensor], weights: dict[str, Tensor], most: float) -> Tensor:
    """``judge(weights)``, from which no more than ``most`` of gradient comes back."""

    def by_list(values: list[Tensor]) -> Tensor:
        return judge(dict(zip(weights, values, strict=True)))

    return _Judged.apply(by_list, most, *weights.values())  # type: ignore[no-untyped-call, no-any-return]


def held_back(loss: Tensor, classes: int) -> Tensor:
    """The loss with a gradient that grows no further beyond twice the loss of chance.

    A network without norms whose outputs explode would otherwise decide the direction of the whole step.

    Example:
        >>> [round(float(held_back(torch.tensor(x), 10)), 2) for x in (2.3, 460.5)]
        [2.3, 4.61]
    """
    most = 2 * math.log(classes)
    return loss * (most / loss.detach().clamp(min=most))


def shifted(images: Tensor, stream: torch.Generator, *, flip: bool) -> Tensor:
    """Images (B, C, H, W) moved by up to an eighth of their side, and mirrored half the time."""
    count, _, high, wide = images.shape
    reach = max(high // 8, 1)
    moves = torch.randint(2 * reach + 1, (count, 2), generator=stream)
    padded = F.pad(images, [reach] * 4, value=-1.0)
    rows = moves[:, :1] + torch.arange(high)  # (B, H)
    columns = moves[:, 1:] + torch.arange(wide)  # (B, W)
    mirrored = torch.rand(count, 1, generator=stream) < 0.5 * flip
    columns = torch.where(mirrored, columns.flip(1), columns)
    picture = torch.arange(count)[:, None, None]
    # (B, C, H', W') indexed by (B, H, W) -> (B, H, W, C) -> (B, C, H, W)
    return padded[picture, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


@torch.no_grad()
def zero_shot(
    model: GHN, specs: Sequence[ArchitectureSpec], calibration: Tensor, images: Tensor, labels: Tensor
) -> list[float]:
    """Accuracy of each predicted network, its batch norms measured on unlabelled ``calibration`` images."""
    scores = []
    for spec in specs:
        flat = model.generate_many(spec)[0].flat
        flat = recalibrate(spec, flat[None], calibration)
        scores.append(float(accuracy(spec, flat, images, labels)[0]))
    return scores


@trainers.register(GHN.kind)
def train_from_recipe(recipe_path: Path, zoo: Path | None, out: Path, progress: Progress) -> GHN:
    """See :data:`weightloom.training.trainers.Trainer`; a zoo is not needed and not read."""
    recipe = read_yaml(recipe_path, GHNRecipe)
    claim(out / "work" / "ghn", _origin(recipe))
    return train_ghn(recipe, out, progress)


def _origin(recipe: GHNRecipe) -> dict[str, Any]:
    """What the training is made from; how often it is logged, kept and measured changes nothing."""
    said = recipe.model_dump(mode="json", exclude_defaults=True)
    for name in UNDECISIVE:
        said["loop"].pop(name, None)
    return {key: value for key, value in said.items() if not key.startswith("evaluate_")}


def train_ghn(recipe: GHNRecipe, out: Path, progress: Progress = lambda *_: None) -> GHN:
    """Train the recipe's hypernetwork on its task; resumable, saved in ``out``.

    Raises:
        SpecError: options that make no sense.
        TrainingError: the loss stays not finite.
    """
    task = parse_task(recipe.task)
    model, settings = make_ghn(recipe, task)
    if recipe.start is not None:
        _take(model, recipe.start)
    objective = GHNObjective(model, task.data("train"), settings, seed=recipe.seed, first=recipe.first_step)
    model.train()
    run_loop(
        "graph hypernetwork",
        model,
        objective,
        recipe.loop.settings(),
        folder=out / "work" / "ghn",
        evaluate=lambda step: objective.evaluate("val", recipe.evaluate_networks),
        evaluate_every=recipe.evaluate_every,
        progress=progress,
    )
    model.eval()
    save_generator(model, out)
    return model


def _take(model: GHN, start: str) -> None:
    """Give ``model`` the weights of the generator ``start``.

    Raises:
        SpecError: it is no graph hypernetwork of the same sizes.
    """
    held = load_generator(start)
    if not isinstance(held, GHN) or held.config != model.config:
        raise SpecError(f"start: {start} is no graph hypernetwork of the recipe's config")
    model.load_state_dict(held.state_dict())


def make_ghn(recipe: GHNRecipe, task: Task) -> tuple[GHN, GHNSettings]:
    """An untrained hypernetwork for the recipe's task, and its settings."""
    assert isinstance(task, DatasetTask)
    try:
        config = GHNConfig(classes=task.num_classes, **recipe.config)
        settings = GHNSettings(**recipe.objective)
    except TypeError as error:
        raise SpecError(f"the recipe's options: {error}") from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for("ghn", recipe.seed))
        model = GHN(config, make_validity(task.input_shape, (str(task),)), name=recipe.name)
    return model, settings
