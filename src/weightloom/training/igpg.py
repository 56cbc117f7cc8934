"""IGPG's training stage by stage, and what its prior minimises: the codes of real checkpoints, and the loss
of the networks it makes itself.

The functional part decodes expected latents and runs the networks on their tasks' images, tasks of the zoo
and tasks outside it, of which there are far more than a zoo holds. The prior answers for the trunk, and the
head is made in closed form from the support set on that very trunk, inside the gradient: a head made
beforehand would punish every change of the trunk below it.

Shapes: B networks of a step, T tokens, D codes a token, V codes to choose from, C classes, S examples a
class, Q images a network, H features of the trunk.
Sources: next-token loss, IGPG (arXiv 2504.02012), equation 3; a closed-form solver inside a meta-learner's
gradient, Bertinetto et al. (arXiv 1805.08136), section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from weightloom.architectures import ArchitectureSpec
from weightloom.conditioning import Condition, SupportEncoder, encode_text
from weightloom.errors import SpecError, WeightloomError
from weightloom.fitting import discriminant, trunk_features
from weightloom.fitting.train import draw_batch
from weightloom.generators.backbones import build_backbone
from weightloom.generators.igpg import IGPG, IGPGConfig
from weightloom.generators.load import save_generator
from weightloom.io import read_yaml
from weightloom.seeding import seed_for, torch_generator
from weightloom.tokenizers import WeightTokenizer, architecture_key, tokenizers
from weightloom.training.bank import BankedTask, banked_condition, build_bank
from weightloom.training.loop import Progress, run_loop
from weightloom.training.parallel import WHOLE, Part
from weightloom.training.recipe import UNDECISIVE, GeneratorRecipe
from weightloom.training.stages import (
    claim,
    make_zoo_index,
    round_parameters,
    source_of,
    spans,
    train_encoder,
    train_tokenizer,
    validation_probe,
    validation_tasks,
    zero_shot_probe,
    zoo_tasks,
)
from weightloom.training.tokenizer import Population, load_populations
from weightloom.training.trainers import open_zoo, trainers
from weightloom.whole import whole_fields
from weightloom.zoo import Zoo

FRESH_FIRST = 1_000_000
"""Index of the first task drawn for the functional loss: far beyond those that a zoo trains on."""


@dataclass(frozen=True, kw_only=True)
class PriorSettings:
    """Weights of the parts and sizes of a step."""

    networks: int = 16
    queries: int = 96
    code_weight: float = 0.1
    functional_weight: float = 1.0
    fresh_share: float = 0.5
    """Share of steps on tasks outside the zoo (functional loss only; none where that has no weight)."""
    drop_instruction: float = 0.3
    drop_dataset: float = 0.1
    drop_architecture: float = 0.0
    """Share of steps without the description of the architecture: all networks of a step share one."""
    drop_all: float = 0.05

    def __post_init__(self) -> None:
        whole_fields(self, {"networks": (1, 4096), "queries": (2, 65536)})
        for name, value in asdict(self).items():
            limit = 1.0 if name.endswith("_share") or name.startswith("drop_") else 1e6
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= limit:
                raise SpecError(f"{name} must be a number from 0 to {limit:g}, not {value!r}")
        if not self.code_weight and not self.functional_weight:
            raise SpecError("code_weight and functional_weight cannot both be 0: nothing would be learned")


class PriorObjective:
    """Loss of one step on B networks that share an architecture and a class count."""

    def __init__(
        self,
        model: IGPG,
        populations: Sequence[Population],
        zoo_bank: Mapping[str, BankedTask],
        fresh: Mapping[int, Sequence[BankedTask]],
        settings: PriorSettings,
        *,
        seed: int = 0,
    ) -> None:
        self.model, self.populations, self.settings, self.seed = model, list(populations), settings, seed
        self.bank, self.fresh = zoo_bank, fresh
        self.codes = [model.tokenizer.encode(p.spec, p.flats) for p in self.populations]
        self.trunks = list(
            {architecture_key(p.spec): replace(p.spec, classes=None) for p in populations}.values()
        )

    @property
    def items(self) -> int:
        """B."""
        return self.settings.networks

    def __call__(self, step: int, part: Part = WHOLE) -> tuple[Tensor, dict[str, float]]:
        settings = self.settings
        generator = torch_generator("prior", self.seed, step)
        is_fresh = bool(torch.rand((), generator=generator) < settings.fresh_share)
        is_fresh = is_fresh and bool(self.fresh) and settings.functional_weight > 0
        drops = {"drop_instruction": settings.drop_instruction, "drop_all": settings.drop_all}
        numbers: dict[str, float] = {}
        loss = torch.zeros(())
        if is_fresh:
            spec, tasks = self._draw_fresh(generator)
            condition = self._condition(tasks, generator, step, **drops)
        else:
            number = int(torch.randint(len(self.populations), (1,), generator=generator))
            population = self.populations[number]
            rows = torch.randint(len(population.records), (settings.networks,), generator=generator).tolist()
            spec = population.spec
            tasks = [self.bank[population.records[row].task] for row in rows]
            condition = self._condition(tasks, generator, step, drop_dataset=settings.drop_dataset, **drops)
            codes = self.codes[number][rows]
            if settings.code_weight:
                own, share = part.rows(len(codes)), part.share(len(codes))
                told = condition.rows(own)
                initial = self.model.initial_codes(spec, told, codes[own])
                logits = self.model(spec, told, codes[own], initial)
                likelihood = F.cross_entropy(logits.flatten(0, 2), codes[own].flatten()) * share
                loss = loss + settings.code_weight * likelihood
                numbers["code_nats"] = float(likelihood.detach())
        if settings.functional_weight:
            functional, right = self._with_closed_heads(spec, condition, tasks, generator, part)
            loss = loss + settings.functional_weight * functional
            kind = "fresh" if is_fresh else "zoo"
            numbers |= {f"{kind}_loss": float(functional.detach()), f"{kind}_accuracy": right}
        return loss, numbers

    def _draw_fresh(self, generator: torch.Generator) -> tuple[ArchitectureSpec, list[BankedTask]]:
        counts = sorted(self.fresh)
        sizes = torch.tensor([float(len(self.fresh[count])) for count in counts])
        classes = counts[int(torch.multinomial(sizes, 1, generator=generator))]
        pool = self.fresh[classes]
        chosen = torch.randint(len(pool), (self.settings.networks,), generator=generator).tolist()
        trunk = self.trunks[int(torch.randint(len(self.trunks), (1,), generator=generator))]
        return trunk.resolve(classes=classes), [pool[i] for i in chosen]

    def _condition(
        self,
        tasks: Sequence[BankedTask],
        generator: torch.Generator,
        step: int,
        **drops: float,
    ) -> Condition:
        condition = banked_condition(tasks, generator, initial=None, **drops)
        # A stream of its own: whether the architecture is told changes nothing else that is drawn.
        chance = torch.rand((), generator=torch_generator("prior architecture", self.seed, step))
        return condition.without("architecture") if chance < self.settings.drop_architecture else condition

    def _with_closed_heads(
        self,
        spec: ArchitectureSpec,
        condition: Condition,
        tasks: Sequence[BankedTask],
        generator: torch.Generator,
        part: Part = WHOLE,
    ) -> tuple[Tensor, float]:
        """Cross-entropy and accuracy of closed-form heads on the trunks that the prior makes."""
        images, labels = draw_batch([task.data for task in tasks], self.settings.queries, generator)
        own, share = part.rows(len(tasks)), part.share(len(tasks))
        images, labels, tasks = images[own], labels[own], tasks[own]
        flats = self.expected(spec, condition.rows(own))  # (B, P), of a part's B
        support = torch.stack([task.images[0] for task in tasks])  # (B, C, S, ...)
        seen = torch.cat([support.flatten(1, 2), images], dim=1)  # (B, C*S + Q, ...)
        features = trunk_features(spec, flats, seen, training=True)  # (B, C*S + Q, H)
        count = support.shape[1] * support.shape[2]
        weight, bias = discriminant(features[:, :count].unflatten(1, support.shape[1:3]))
        loss, right = _loss(features[:, count:] @ weight.mT + bias[:, None], labels)
        return loss * share, right * share

    def expected(self, spec: ArchitectureSpec, condition: Condition) -> Tensor:
        """(B, P) networks of the expected latents: no sampling, so no noise in the gradient.

        Every token sees the likeliest codes of those before it, as they were after one pass over the initial
        codes (a Jacobi step): two passes instead of one for each token.
        """
        with torch.no_grad():
            codes = self.model(spec, condition, self.model.initial_codes(spec, condition)).argmax(-1)
        logits = self.model(spec, condition, codes)  # (B, T, D, V)
        return self.model.tokenizer.decode_latents(spec, self.model.tokenizer.embed(logits.softmax(-1)))


def _loss(answers: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """Cross-entropy of (B, Q, C) answers and the share that is right; labels (B, Q)."""
    loss = F.cross_entropy(answers.flatten(0, 1), labels.flatten())
    return loss, float((answers.argmax(-1) == labels).float().mean())


# ------------------------------------------------------------------------------------ the stages


@trainers.register(IGPG.kind)
def train_from_recipe(recipe_path: Path, zoo: Path | None, out: Path, progress: Progress) -> IGPG:
    """See :data:`weightloom.training.trainers.Trainer`."""
    recipe = read_yaml(recipe_path, GeneratorRecipe)
    return train_generator(recipe, open_zoo(zoo, IGPG.kind), out, progress)


def train_generator(recipe: GeneratorRecipe, zoo: Zoo, out: Path, progress: Progress) -> IGPG:
    """The stages one after another; see :func:`weightloom.training.run.train_recipe`.

    Raises:
        DataUnavailableError: the sentence encoder is not installed.
    """
    work = out / "work"
    source = source_of(zoo)
    check_recipe(recipe, source)
    encode_text(["Can sentences be read here?"])  # the prior's stage needs it, hours from now
    populations = load_populations(zoo)
    for stage, made_from in _origins(recipe, source).items():
        claim(work / stage, made_from)
    encoder = train_encoder(recipe, IGPGConfig(**recipe.prior.config), source, work / "encoder", progress)
    tokenizer = train_tokenizer(recipe, populations, work / "tokenizer", progress)
    model = make_igpg(recipe, source, tokenizer, encoder)
    train_prior(recipe, source, model, populations, work / "prior", progress)
    round_parameters(model)
    save_generator(model, out)
    return model


def check_recipe(recipe: GeneratorRecipe, source: dict[str, Any]) -> None:
    """Raise :class:`SpecError` unless every stage's options make sense, before any stage takes its time."""
    family = tokenizers.get(recipe.tokenizer.kind)

    def prior() -> None:
        config = IGPGConfig(**recipe.prior.config)
        if config.channels != source["channels"]:
            raise SpecError(
                f"the prior reads images of {config.channels} channels, the zoo has {source['channels']}"
            )
        with torch.device("meta"):
            build_backbone(config.backbone, width=config.width, depth=config.depth, heads=config.heads)
            SupportEncoder(channels=config.channels, features=config.image_features, width=config.image_width)

    checks: dict[str, Callable[[], object]] = {
        "tokenizer": lambda: family.config_type(**recipe.tokenizer.config),  # type: ignore[attr-defined]
        "objective": lambda: PriorSettings(**recipe.prior.objective),
        "prior": prior,
    }
    for what, check in checks.items():
        try:
            check()
        except WeightloomError:
            raise
        except (TypeError, ValueError, RuntimeError) as error:
            raise SpecError(f"the recipe's {what}: {error}") from None


def _origins(recipe: GeneratorRecipe, source: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What each stage is made from; how often it is logged and kept changes nothing."""
    # Without defaults: an option that a later version adds does not make another recipe of this one.
    said = recipe.model_dump(mode="json", exclude_defaults=True)
    for part in ("encoder", "tokenizer", "prior"):
        for name in UNDECISIVE:
            said[part]["loop"].pop(name, None)
    said["prior"].pop("evaluate_every", None)
    config = IGPGConfig(**recipe.prior.config)
    images = {"channels": config.channels, "features": config.image_features, "width": config.image_width}
    tasks = {key: source[key] for key in ("datasets", "salt", "size", "channels")}
    origins = {
        "encoder": {"encoder": said["encoder"], "images": images, "tasks": tasks},
        "tokenizer": {"tokenizer": said["tokenizer"], "zoo": source},
        "prior": {key: said[key] for key in ("encoder", "tokenizer", "prior")} | {"zoo": source},
    }
    return {stage: {**origin, "seed": recipe.seed} for stage, origin in origins.items()}


def make_igpg(
    recipe: GeneratorRecipe, source: dict, tokenizer: WeightTokenizer, encoder: SupportEncoder
) -> IGPG:  # type: ignore[type-arg]
    """An untrained prior around a trained tokenizer and dataset encoder."""
    validity = spans(source, tokenizer, *recipe.prior.fresh)
    try:
        config = IGPGConfig(**recipe.prior.config)
    except TypeError as error:
        raise SpecError(f"the recipe's prior: {error}") from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for("prior", recipe.seed))
        model = IGPG(config, tokenizer, validity, name=recipe.name)
    model.images.load_state_dict(encoder.state_dict())
    model.images.requires_grad_(False)
    return model


def train_prior(
    recipe: GeneratorRecipe,
    source: dict,  # type: ignore[type-arg]
    model: IGPG,
    populations: list[Population],
    folder: Path,
    progress: Progress,
) -> None:
    """The prior, and the index of the zoo that it learned from."""
    settings = recipe.prior
    shots = (16, 8, 16)
    seen = {record.task: record.parsed_task() for p in populations for record in p.records}
    options = {"wordings": settings.wordings, "supports": settings.supports, "shots": shots}
    bank = build_bank(model.images, list(seen.values()), **options, seed=recipe.seed, progress=progress)  # type: ignore[arg-type]
    fresh: dict[int, list[BankedTask]] = {}
    for classes, tasks in zoo_tasks(source, settings.fresh, FRESH_FIRST).items():
        made = build_bank(
            model.images, tasks, wordings=2, supports=1, shots=(16,), seed=recipe.seed + 1, progress=progress
        )
        fresh[classes] = list(made.values())
    model.zoo_index = make_zoo_index(populations, {name: task.supports[0] for name, task in bank.items()})
    try:
        objective_settings = PriorSettings(**settings.objective)
    except TypeError as error:
        raise SpecError(f"the recipe's objective: {error}") from None
    objective = PriorObjective(model, populations, bank, fresh, objective_settings, seed=recipe.seed)
    unseen = validation_tasks(source, model.validity)

    def evaluate(step: int) -> dict[str, float]:
        return zero_shot_probe(model, populations) | validation_probe(model, unseen)

    model.train()
    model.images.eval()
    model.tokenizer.eval()
    run_loop(
        "prior",
        model,
        objective,
        settings.loop.settings(),
        folder=folder,
        evaluate=evaluate,
        evaluate_every=settings.evaluate_every or max(1, settings.loop.steps // 8),
        progress=progress,
    )
    model.eval()
