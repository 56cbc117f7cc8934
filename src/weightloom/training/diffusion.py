"""What a latent diffusion minimises, and its training stage by stage.

The loss is the error of what the schedule wants predicted, over the latents of the zoo's checkpoints, and
where it is asked for the loss of the network that the prediction implies: behaviour decides, and small errors
of latents that matter little should not cost as much as those that matter.

Shapes: B networks of a step, T tokens, Z latent width, P values of a network.
Sources: denoising objective, Ho et al. (arXiv 2006.11239), equation 14, or flow matching (arXiv 2210.02747),
equation 23; latent noise augmentation, p-diff (arXiv 2402.13144), section 2.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from weightloom.architectures import ArchitectureSpec
from weightloom.conditioning import Condition, SupportEncoder, encode_text
from weightloom.errors import InputError, SpecError
from weightloom.fitting import run_networks
from weightloom.fitting.train import draw_batch
from weightloom.generators.diffusion import DiffusionConfig, LatentDiffusion
from weightloom.generators.load import load_generator, save_generator
from weightloom.generators.zoo_index import ZooIndex
from weightloom.io import read_yaml
from weightloom.seeding import seed_for, torch_generator
from weightloom.tasks import TaskData
from weightloom.tokenizers import WeightTokenizer, tokenizers
from weightloom.training.bank import BankedTask, banked_condition, build_bank, initial_codes_of
from weightloom.training.loop import Progress, run_loop
from weightloom.training.parallel import WHOLE, Part
from weightloom.training.recipe import UNDECISIVE, CarriedDiffusionRecipe, DiffusionRecipe, GeneratorKind
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
)
from weightloom.training.tokenizer import Population, load_populations
from weightloom.training.trainers import open_zoo, trainers
from weightloom.zoo import Record, Zoo, ZooRecipe


@dataclass(frozen=True, kw_only=True)
class DiffusionSettings:
    """What a step is made of.

    Attributes:
        networks: B.
        latent_noise: Gaussian noise on the latents before anything else, in their spreads.
        functional_weight: of the implied network's own loss; 0 does without.
        queries: images that it is measured on.
        drop_instruction, drop_dataset, drop_all, drop_architecture: how often a part of the condition is left
            out; what is never left out cannot be missing later, and guidance needs ``drop_all``.
    """

    networks: int = 16
    latent_noise: float = 0.0
    functional_weight: float = 0.0
    queries: int = 32
    drop_instruction: float = 0.3
    drop_dataset: float = 0.1
    drop_all: float = 0.1
    drop_architecture: float = 0.05

    def __post_init__(self) -> None:
        if not 1 <= self.networks <= 4096 or not 1 <= self.queries <= 65536:
            raise SpecError("networks must be from 1 to 4096, queries from 1 to 65536")
        if not 0 <= self.latent_noise <= 10 or not 0 <= self.functional_weight <= 1e6:
            raise SpecError("latent_noise must be from 0 to 10, functional_weight not negative")
        drops = (self.drop_instruction, self.drop_dataset, self.drop_all, self.drop_architecture)
        if not all(0 <= drop <= 1 for drop in drops):
            raise SpecError("what is dropped is dropped in a share from 0 to 1")


class DiffusionObjective:
    """Loss of one step over B checkpoints of one architecture and class count, drawn at random."""

    def __init__(
        self,
        model: LatentDiffusion,
        populations: list[Population],
        bank: dict[str, BankedTask],
        settings: DiffusionSettings,
        *,
        seed: int = 0,
    ) -> None:
        self.model, self.populations, self.bank = model, populations, bank
        self.settings, self.seed = settings, seed
        with torch.no_grad():
            self.latents = [
                model.rescale(p.spec, model.tokenizer.embed_codes(model.tokenizer.encode(p.spec, p.flats)))
                for p in populations
            ]

    @property
    def items(self) -> int:
        """B."""
        return self.settings.networks

    def __call__(self, step: int, part: Part = WHOLE) -> tuple[Tensor, dict[str, float]]:
        settings, model = self.settings, self.model
        stream = torch_generator("diffusion", self.seed, step)
        number = int(torch.randint(len(self.populations), (1,), generator=stream))
        population = self.populations[number]
        rows = torch.randint(len(population.records), (settings.networks,), generator=stream)
        tasks = [self.bank[population.records[row].task] for row in rows.tolist()]
        condition = self.condition(population.spec, tasks, stream)
        spec, mask = population.spec, model.latent_mask(population.spec)
        x = self.latents[number][rows]  # (B, T, Z)
        if settings.latent_noise:
            x = x + settings.latent_noise * torch.randn(x.shape, generator=stream)
        noise = torch.randn(x.shape, generator=stream) * mask
        x = x * mask
        t = model.schedule.times(torch.rand(len(x), generator=stream))
        noisy, wanted = model.schedule.noisy(x, noise, t)
        own = part.rows(len(x))
        predicted = model(model.described(spec, condition.rows(own)), noisy[own], t[own])
        error = ((predicted - wanted[own]).square() * mask).sum() / (mask.sum() * len(x))
        numbers = {"error": float(error.detach())}
        if not settings.functional_weight:
            return error, numbers
        implied = model.schedule.clean(noisy[own], predicted, t[own]) * mask
        loss, right = self.functional(spec, implied, tasks, stream, part)
        numbers |= {"functional": float(loss.detach()), "query_accuracy": right}
        return error + settings.functional_weight * loss, numbers

    def functional(
        self,
        spec: ArchitectureSpec,
        implied: Tensor,
        tasks: list[BankedTask],
        stream: torch.Generator,
        part: Part = WHOLE,
    ) -> tuple[Tensor, float]:
        """Loss and accuracy of implied networks on train images, whatever noise they were implied from.

        Of a part's networks alone, for which they count in the whole.

        From noise alone the mean of what fits the condition is implied: it has to work too.
        """
        flats = self.model.to_flats(spec, implied)
        images, labels = draw_batch([task.data for task in tasks], self.settings.queries, stream)
        own, share = part.rows(len(tasks)), part.share(len(tasks))
        images, labels = images[own], labels[own]
        answers = run_networks(spec, flats, images, training=True)  # (B, Q, C), statistics of the batch
        loss = F.cross_entropy(answers.flatten(0, 1), labels.flatten())
        return loss * share, float((answers.argmax(-1) == labels).float().mean()) * share

    def condition(
        self, spec: ArchitectureSpec, tasks: list[BankedTask], stream: torch.Generator
    ) -> Condition:
        """One condition a task, wording and support set drawn at random, parts left out at random."""
        settings = self.settings
        condition = banked_condition(
            tasks,
            stream,
            initial=initial_codes_of(self.model, spec, tasks),
            drop_instruction=settings.drop_instruction,
            drop_dataset=settings.drop_dataset,
            drop_all=settings.drop_all,
        )
        if float(torch.rand((), generator=stream)) < settings.drop_architecture:
            condition = condition.without("architecture")
        return condition


# ------------------------------------------------------------------------------------- stages


@trainers.register(LatentDiffusion.kind)
def train_from_recipe(recipe_path: Path, zoo: Path | None, out: Path, progress: Progress) -> LatentDiffusion:
    """See :data:`weightloom.training.trainers.Trainer`."""
    if "parts" not in (read_yaml(recipe_path, GeneratorKind).model_extra or {}):
        recipe = read_yaml(recipe_path, DiffusionRecipe)
        return train_diffusion(recipe, open_zoo(zoo, LatentDiffusion.kind), out, progress)
    carried = read_yaml(recipe_path, CarriedDiffusionRecipe)
    if zoo is not None:
        raise InputError(f"{carried.name} takes its checkpoints from {carried.parts}; leave --zoo out")
    source = read_yaml(recipe_path.parent / f"{carried.zoo}.yaml", ZooRecipe)
    return train_over(carried, source, out, progress)


def train_diffusion(recipe: DiffusionRecipe, zoo: Zoo, out: Path, progress: Progress) -> LatentDiffusion:
    """Dataset encoder, weight tokenizer, denoiser; resumable at every stage.

    Raises:
        SpecError: the recipe makes no sense.
        InputError: ``out`` holds stages of another recipe or zoo, or the zoo was not built from a recipe.
        DataUnavailableError: the sentence encoder or the schedule's library is not installed.
        TrainingError: a loss stays not finite.
    """
    source = source_of(zoo)
    config, settings = _checked(recipe, source)
    encode_text(["Can sentences be read here?"])  # the denoiser's stage needs it, later
    populations = load_populations(zoo)
    work = out / "work"
    said = recipe.model_dump(mode="json", exclude_defaults=True)
    for part in ("encoder", "tokenizer", "denoiser"):
        for name in UNDECISIVE:
            said[part]["loop"].pop(name, None)
    said["denoiser"].pop("evaluate_every", None)
    tasks = {key: source[key] for key in ("datasets", "salt", "size", "channels")}
    claim(work / "encoder", {"encoder": said["encoder"], "tasks": tasks, "seed": recipe.seed})
    claim(work / "tokenizer", {"tokenizer": said["tokenizer"], "zoo": source, "seed": recipe.seed})
    claim(work / "denoiser", {"recipe": said, "zoo": source})
    encoder = train_encoder(recipe, config, source, work / "encoder", progress)
    tokenizer = train_tokenizer(recipe, populations, work / "tokenizer", progress)
    model = _untrained(recipe, config, source, tokenizer, encoder)
    model.measure_latents({p.spec: p.flats for p in populations})
    for population in populations:
        model.generated(population.spec)  # a pattern that fits nothing is found before any training
    _train_denoiser(recipe, settings, source, model, populations, work / "denoiser", progress)
    round_parameters(model)
    save_generator(model, out)
    return model


def train_over(
    recipe: CarriedDiffusionRecipe, zoo: ZooRecipe, out: Path, progress: Progress
) -> LatentDiffusion:
    """The denoiser alone, over the encoder, tokenizer and checkpoints that another generator carries.

    Raises:
        SpecError: the recipe makes no sense, or its sizes are not those of the generator's encoder.
        InputError: the generator carries no checkpoints, or ``out`` holds stages of another recipe.
        DataUnavailableError: the sentence encoder or the schedule's library is not installed.
        TrainingError: a loss stays not finite.
    """
    source = zoo.model_dump(mode="json")
    config, settings = _checked_denoiser(recipe, source)
    encode_text(["Can sentences be read here?"])
    base = load_generator(recipe.parts)
    images, tokenizer = getattr(base, "images", None), getattr(base, "tokenizer", None)
    if (
        base.zoo_index is None
        or not isinstance(images, SupportEncoder)
        or not isinstance(tokenizer, WeightTokenizer)
    ):
        raise InputError(
            f"generator {recipe.parts} does not carry what a diffusion is trained over: an image encoder, a "
            "weight tokenizer and the checkpoints of its zoo"
        )
    populations = carried_populations(base.zoo_index)
    said = recipe.model_dump(mode="json", exclude_defaults=True)
    for name in UNDECISIVE:
        said["denoiser"]["loop"].pop(name, None)
    said["denoiser"].pop("evaluate_every", None)
    ids = [record.id for population in populations for record in population.records]
    claim(out / "work" / "denoiser", {"recipe": said, "zoo": source, "checkpoints": ids})
    try:
        model = _untrained(recipe, config, source, tokenizer, images)
    except RuntimeError:
        raise SpecError(
            f"image_features, image_width or channels are not those of the encoder of {recipe.parts}"
        ) from None
    model.measure_latents({p.spec: p.flats for p in populations})
    for population in populations:
        model.generated(population.spec)
    _train_denoiser(recipe, settings, source, model, populations, out / "work" / "denoiser", progress)
    round_parameters(model)
    save_generator(model, out)
    return model


def carried_populations(zoo_index: ZooIndex) -> list[Population]:
    """The training checkpoints that a generator carries."""
    cache: dict[str, TaskData] = {}
    populations = []
    for spec, group in zoo_index.groups.items():
        records = [
            Record(
                id=str(row["id"]), shard="", row=number, architecture=spec.full_text(), task=str(row["task"]),
                dataset=str(row["dataset"]), classes=spec.classes or 0, split="train", member=number, step=0,
                final=True, accuracy=row.get("accuracy"), loss=None, provenance={},
            )
            for number, row in enumerate(group.rows)
        ]  # fmt: skip
        for record in records:
            if record.task not in cache:
                cache[record.task] = record.parsed_task().data("train")
        populations.append(Population(spec, records, group.flats, [cache[r.task] for r in records]))
    return populations


def _checked(recipe: DiffusionRecipe, source: dict[str, Any]) -> tuple[DiffusionConfig, DiffusionSettings]:
    family = tokenizers.get(recipe.tokenizer.kind)
    try:
        family.config_type(**recipe.tokenizer.config)  # type: ignore[attr-defined]
    except TypeError as error:
        raise SpecError(f"the recipe's options: {error}") from None
    return _checked_denoiser(recipe, source)


def _checked_denoiser(
    recipe: DiffusionRecipe | CarriedDiffusionRecipe, source: dict[str, Any]
) -> tuple[DiffusionConfig, DiffusionSettings]:
    try:
        settings = DiffusionSettings(**recipe.denoiser.objective)
        config = DiffusionConfig(**recipe.denoiser.config)
    except TypeError as error:
        raise SpecError(f"the recipe's options: {error}") from None
    if config.channels != source["channels"]:
        raise SpecError(
            f"the denoiser reads images of {config.channels} channels, the zoo has {source['channels']}"
        )
    return config, settings


def _untrained(
    recipe: DiffusionRecipe | CarriedDiffusionRecipe,
    config: DiffusionConfig,
    source: dict[str, Any],
    tokenizer: WeightTokenizer,
    encoder: SupportEncoder,
) -> LatentDiffusion:
    validity = spans(source, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for("denoiser", recipe.seed))
        model = LatentDiffusion(config, tokenizer, validity, name=recipe.name)
    model.images.load_state_dict(encoder.state_dict())
    model.images.requires_grad_(False)
    return model


def _initial(
    model: LatentDiffusion, population: Population, bank: dict[str, BankedTask]
) -> tuple[Tensor, Tensor]:
    """Codes (N, T, D) of final checkpoints, and those that each one's task starts from."""
    rows = [row for row, record in enumerate(population.records) if record.final]
    tasks = [bank[population.records[row].task] for row in rows]
    own = initial_codes_of(model, population.spec, tasks)
    parts = population.flats[rows].split(16)
    codes = torch.cat([model.tokenizer.encode(population.spec, part) for part in parts])
    return codes, torch.stack([initial[0] for initial in own])


def _train_denoiser(
    recipe: DiffusionRecipe | CarriedDiffusionRecipe,
    settings: DiffusionSettings,
    source: dict[str, Any],
    model: LatentDiffusion,
    populations: list[Population],
    folder: Path,
    progress: Progress,
) -> None:
    options = recipe.denoiser
    tasks = {record.task: record.parsed_task() for p in populations for record in p.records}
    bank = build_bank(
        model.images,
        list(tasks.values()),  # type: ignore[arg-type]
        wordings=options.wordings,
        supports=options.supports,
        shots=(16, 8, 16),
        seed=recipe.seed,
        progress=progress,
    )
    # Initial codes stand on the trunks of alike tasks, so the index comes before any of them is made.
    model.zoo_index = make_zoo_index(populations, {name: task.supports[0] for name, task in bank.items()})
    model.measure_initial({p.spec: _initial(model, p, bank) for p in populations})
    unseen = validation_tasks(source, model.validity)

    def evaluate(step: int) -> dict[str, float]:
        model.eval()
        return zero_shot_probe(model, populations) | validation_probe(model, unseen)

    run_loop(
        "denoiser",
        model,
        DiffusionObjective(model, populations, bank, settings, seed=recipe.seed),
        options.loop.settings(),
        folder=folder,
        evaluate=evaluate,
        evaluate_every=options.evaluate_every or max(1, options.loop.steps // 4),
        progress=progress,
    )
    model.eval()
