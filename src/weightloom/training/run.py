"""From a recipe and a zoo to a generator's directory, resumable at every stage."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.conditioning import SupportEncoder, encode_text
from weightloom.errors import InputError, SpecError, WeightloomError
from weightloom.fitting import accuracy, closed_form_network, recalibrate
from weightloom.generators import Generator, Validity, generators
from weightloom.generators.backbones import build_backbone
from weightloom.generators.diffusion import DiffusionConfig, LatentDiffusion
from weightloom.generators.fingerprint import Fingerprint, FingerprintGroup
from weightloom.generators.ghn import GHN
from weightloom.generators.igpg import IGPG, IGPGConfig
from weightloom.generators.static_hypernetwork import StaticHypernetwork
from weightloom.io import dump_json, load_tensors, read_json, read_yaml, save_tensors, write_json
from weightloom.seeding import seed_for, torch_generator
from weightloom.tasks import DatasetTask, Task, TaskSampler
from weightloom.tokenizers import WeightTokenizer, load_tokenizer, tokenizers
from weightloom.tokenizers.base import round_to_half
from weightloom.tokenizers.fsq import FSQTokenizer
from weightloom.training.bank import BankedTask, build_bank
from weightloom.training.encoder import EncoderObjective
from weightloom.training.ghn import train_ghn
from weightloom.training.igpg import PriorObjective, PriorSettings
from weightloom.training.loop import Progress, run_loop
from weightloom.training.memories import make_memories
from weightloom.training.recipe import (
    DiffusionRecipe,
    GeneratorKind,
    GeneratorRecipe,
    GHNRecipe,
    PlainRecipe,
    StaticHypernetworkRecipe,
)
from weightloom.training.static_hypernetwork import train_static_hypernetwork
from weightloom.training.tokenizer import (
    Population,
    TokenizerObjective,
    initialise_bases,
    load_populations,
    measure_statistics,
    round_trip,
    with_first_guesses,
)
from weightloom.zoo import Zoo

FRESH_FIRST = 1_000_000
"""Index of the first task drawn for the functional loss: far beyond those that a zoo trains on."""
ENCODER_FIRST = 2_000_000
VALIDATION_FIRST = 3_000_000
"""Index of the first training task that nothing learns from: what choices are made on. Held-out tasks of the
zoo are for results alone, and training never looks at them."""


def train_recipe(
    recipe_path: str | Path,
    zoo: str | Path | None,
    out: str | Path,
    progress: Progress = lambda *_: None,
) -> Generator:
    """Train every stage of the recipe that ``out`` does not hold yet; the generator is saved in ``out``.

    IGPG, diffusions and hypernetworks are trained (graph hypernetworks without a zoo); another kind of
    generator is made by its own ``from_zoo(zoo, name=..., **options)``.

    Raises:
        SpecError: the recipe makes no sense.
        UnknownNameError: no generator of that kind.
        InputError: ``out`` holds stages of another recipe or zoo, or there is no zoo to learn from.
        CheckpointError: the zoo or a stage's files are broken.
        TrainingError: a loss stays not finite.
    """
    kind = read_yaml(recipe_path, GeneratorKind).generator
    if kind == GHN.kind:
        from_task = read_yaml(recipe_path, GHNRecipe)
        _claim(Path(out) / "work" / "ghn", _of_ghn(from_task))
        return train_ghn(from_task, Path(out), progress)
    if zoo is None:
        raise InputError(f"a {kind!r} generator learns from a zoo; name one with --zoo")
    if kind == LatentDiffusion.kind:
        from weightloom.training.diffusion import train_diffusion

        return train_diffusion(read_yaml(recipe_path, DiffusionRecipe), Zoo(zoo), Path(out), progress)
    if kind == IGPG.kind:
        return train_generator(read_yaml(recipe_path, GeneratorRecipe), Zoo(zoo), Path(out), progress)
    if kind == StaticHypernetwork.kind:
        static = read_yaml(recipe_path, StaticHypernetworkRecipe)
        return train_static_hypernetwork(static, Zoo(zoo), Path(out), progress)
    family = generators.get(kind)
    if not hasattr(family, "from_zoo") or not hasattr(family, "save_pretrained"):
        raise SpecError(
            f"a {kind!r} generator is not made by a recipe: it has no from_zoo and save_pretrained"
        )
    recipe = read_yaml(recipe_path, PlainRecipe)
    try:
        model = family.from_zoo(Zoo(zoo), name=recipe.name, **recipe.options)
    except TypeError as error:
        raise SpecError(f"the recipe's options: {error}") from None
    model.save_pretrained(out)
    progress(recipe.name, 1, 1)
    assert isinstance(model, Generator)
    return model


def train_generator(recipe: GeneratorRecipe, zoo: Zoo, out: Path, progress: Progress) -> IGPG:
    """The stages one after another; see :func:`train_recipe`.

    Raises:
        DataUnavailableError: the sentence encoder is not installed.
    """
    work = out / "work"
    source = zoo.about().get("recipe")
    if source is None:
        raise InputError(f"{zoo.path} was not built from a recipe, so its held-out tasks are not known")
    check_recipe(recipe, source)
    encode_text(["Can sentences be read here?"])  # the prior's stage needs it, hours from now
    populations = load_populations(zoo)
    for stage, made_from in _origins(recipe, source).items():
        _claim(work / stage, made_from)
    encoder = train_encoder(recipe, source, work / "encoder", progress)
    tokenizer = train_tokenizer(recipe, populations, work / "tokenizer", progress)
    memories = keep_memories(recipe, tokenizer, populations, work / "memories", progress)
    model = make_igpg(recipe, source, tokenizer, encoder)
    train_prior(recipe, source, model, populations, memories, work / "prior", progress)
    _round_to_half(model)
    model.config = replace(model.config, correction=recipe.prior.correction)
    model.save_pretrained(out)
    return model


@torch.no_grad()
def _round_to_half(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        parameter.copy_(parameter.half().float())


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
        for name in ("log_every", "save_every"):
            said[part]["loop"].pop(name, None)
    said["prior"].pop("evaluate_every", None)
    config = IGPGConfig(**recipe.prior.config)
    images = {"channels": config.channels, "features": config.image_features, "width": config.image_width}
    tasks = {key: source[key] for key in ("datasets", "salt", "size", "channels")}
    origins = {
        "encoder": {"encoder": said["encoder"], "images": images, "tasks": tasks},
        "tokenizer": {"tokenizer": said["tokenizer"], "zoo": source},
        "memories": {"tokenizer": said["tokenizer"], "memories": said.get("memories", {}), "zoo": source},
        "prior": {key: said.get(key, {}) for key in ("encoder", "tokenizer", "memories", "prior")}
        | {"zoo": source},
    }
    return {stage: {**origin, "seed": recipe.seed} for stage, origin in origins.items()}


def _of_ghn(recipe: GHNRecipe) -> dict[str, Any]:
    said = recipe.model_dump(mode="json", exclude_defaults=True)
    for name in ("log_every", "save_every"):
        said["loop"].pop(name, None)
    return {key: value for key, value in said.items() if not key.startswith("evaluate_")}


def _claim(folder: Path, made_from: dict[str, Any]) -> None:
    """Note in ``folder`` what its stage is made from; refuse a folder that holds another one."""
    note, made_from = folder / "made-from.json", json.loads(dump_json(made_from))
    if not note.is_file():
        write_json(note, made_from)
    elif read_json(note) != made_from:
        raise InputError(f"{folder} is of another recipe or zoo; choose another folder, or remove this one")


def _sampler(source: dict, split: str, classes: int) -> TaskSampler:  # type: ignore[type-arg]
    return TaskSampler(
        datasets=list(source["datasets"]),
        salt=source["salt"],
        split=split,
        classes=(classes, classes),
        size=source["size"],
        channels=source["channels"],
    )


def _tasks(source: dict, counts: dict[int, int], first: int) -> dict[int, list[DatasetTask]]:  # type: ignore[type-arg]
    return {
        classes: [_sampler(source, "train", classes).task(first + i) for i in range(count)]
        for classes, count in counts.items()
    }


def generator_config(recipe: GeneratorRecipe | DiffusionRecipe) -> IGPGConfig | DiffusionConfig:
    """The sizes of the generator that a recipe trains, the dataset encoder's among them."""
    if isinstance(recipe, DiffusionRecipe):
        return DiffusionConfig(**recipe.denoiser.config)
    return IGPGConfig(**recipe.prior.config)


def train_encoder(
    recipe: GeneratorRecipe | DiffusionRecipe,
    source: dict,  # type: ignore[type-arg]
    folder: Path,
    progress: Progress,
) -> SupportEncoder:
    """The dataset encoder, trained on training tasks of the zoo's datasets."""
    settings = recipe.encoder
    tasks = [t for group in _tasks(source, settings.tasks, ENCODER_FIRST).values() for t in group]
    config = generator_config(recipe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for("encoder", recipe.seed))
        encoder = SupportEncoder(
            channels=config.channels, features=config.image_features, width=config.image_width
        )
    objective = EncoderObjective(
        encoder,
        tasks,
        tasks_at_once=settings.tasks_at_once,
        shots=settings.shots,
        queries=settings.queries,
        seed=recipe.seed,
    )
    run_loop(
        "dataset encoder", encoder, objective, settings.loop.settings(), folder=folder, progress=progress
    )
    _round_to_half(encoder)  # before anything is described with it: the file holds no more
    return encoder.requires_grad_(False).eval()


def train_tokenizer(
    recipe: GeneratorRecipe | DiffusionRecipe,
    populations: list[Population],
    folder: Path,
    progress: Progress,
) -> WeightTokenizer:
    """The weight tokenizer, trained on the zoo's training checkpoints."""
    done = folder / "trained"
    if (done / "config.json").is_file():
        return load_tokenizer(done)
    settings = recipe.tokenizer
    family = tokenizers.get(settings.kind)
    try:
        config = family.config_type(**settings.config)  # type: ignore[attr-defined]
    except TypeError as error:
        raise SpecError(f"the recipe's tokenizer: {error}") from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for("tokenizer", recipe.seed))
        seen = with_first_guesses(populations)
        tokenizer: WeightTokenizer = family(config, measure_statistics(seen))
    if isinstance(tokenizer, FSQTokenizer):
        initialise_bases(tokenizer, seen)
    objective = TokenizerObjective(
        tokenizer,
        seen,
        networks=settings.networks,
        images=settings.images,
        functional_weight=settings.functional_weight,
        input_noise=settings.input_noise,
        latent_noise=settings.latent_noise,
        seed=recipe.seed,
        steps=settings.loop.steps,
    )

    def evaluate(step: int) -> dict[str, float]:
        codes = torch.cat([tokenizer.encode(p.spec, p.flats).flatten(0, 1) for p in populations])
        numbers = dict(tokenizer.health(codes).summary())
        # The accuracy of rebuilt networks, not only the error of their weights: the one says little of the
        # other.
        rows = round_trip(tokenizer, populations, limit=3, images=500)
        for key in ("rebuilt", "rebuilt_norms_as_coded"):
            total = sum(float(r["original"]) for r in rows)
            numbers[f"zoo_{key}"] = sum(float(r[key]) for r in rows) / total
        return numbers

    run_loop(
        "weight tokenizer",
        tokenizer,
        objective,
        settings.loop.settings(),
        folder=folder,
        evaluate=evaluate,
        evaluate_every=max(1, settings.loop.steps // 4),
        progress=progress,
    )
    tokenizer.requires_grad_(False).eval()
    round_to_half(tokenizer)
    tokenizer.save(done)
    return tokenizer


def keep_memories(
    recipe: GeneratorRecipe,
    tokenizer: WeightTokenizer,
    populations: list[Population],
    folder: Path,
    progress: Progress,
) -> dict[ArchitectureSpec, dict[str, Tensor]]:
    """The codes kept for every task of the zoo, by architecture; a file each, made where it is missing."""
    found = {}
    for number, population in enumerate(populations):
        path = folder / f"{number}.safetensors"
        if path.is_file():
            tensors, about = load_tensors(path)
            made = dict(zip(json.loads(about["tasks"]), tensors["codes"], strict=True))
        else:
            settings = recipe.memories.settings()
            made = make_memories(tokenizer, population, settings, seed=recipe.seed, progress=progress)
            save_tensors(path, {"codes": torch.stack(list(made.values()))}, {"tasks": json.dumps(list(made))})
        found[population.spec] = made
    return found


def make_igpg(
    recipe: GeneratorRecipe, source: dict, tokenizer: WeightTokenizer, encoder: SupportEncoder
) -> IGPG:  # type: ignore[type-arg]
    """An untrained prior around a trained tokenizer and dataset encoder."""
    counts = sorted({*recipe.prior.fresh, *(g["classes"] for g in source["groups"] if g["split"] == "train")})
    validity = Validity(
        architectures=tuple(sorted(tokenizer.statistics)),
        input=(source["channels"], source["size"], source["size"]),
        min_classes=counts[0],
        max_classes=counts[-1],
        tasks=tuple(source["datasets"]),
    )
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
    memories: dict[ArchitectureSpec, dict[str, Tensor]],
    folder: Path,
    progress: Progress,
) -> None:
    """The prior, and the fingerprint of the zoo that it learned from."""
    settings = recipe.prior
    shots = (16, 8, 16)
    seen = {record.task: record.parsed_task() for p in populations for record in p.records}
    options = {"wordings": settings.wordings, "supports": settings.supports, "shots": shots}
    bank = build_bank(model.images, list(seen.values()), **options, seed=recipe.seed, progress=progress)  # type: ignore[arg-type]
    fresh: dict[int, list[BankedTask]] = {}
    for classes, tasks in _tasks(source, settings.fresh, FRESH_FIRST).items():
        made = build_bank(
            model.images, tasks, wordings=2, supports=1, shots=(16,), seed=recipe.seed + 1, progress=progress
        )
        fresh[classes] = list(made.values())
    model.fingerprint = make_fingerprint(model, populations, bank, memories)
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


def make_fingerprint(
    model: IGPG | LatentDiffusion,
    populations: list[Population],
    bank: dict[str, BankedTask],
    memories: Mapping[ArchitectureSpec, Mapping[str, Tensor]] | None = None,
) -> Fingerprint:
    """Codes, tasks and accuracies of the zoo's final training checkpoints, and what is kept of each task."""
    groups = []
    for population in populations:
        rows = [i for i, record in enumerate(population.records) if record.final]
        records = [population.records[i] for i in rows]
        groups.append(
            FingerprintGroup(
                population.spec,
                model.tokenizer.encode(population.spec, population.flats[rows]),
                # In the precision of the file, so that what was just trained finds what is loaded later.
                torch.stack([bank[record.task].supports[0] for record in records]).half().float(),
                [
                    {
                        "id": r.id,
                        "task": r.task,
                        "dataset": r.dataset,
                        "accuracy": round(r.accuracy or 0.0, 4),
                    }
                    for r in records
                ],
                torch.stack([bank[record.task].wordings.mean(0) for record in records]).half().float(),
                (memories or {}).get(population.spec, {}),
            )
        )
    return Fingerprint(model.tokenizer, groups)


def zero_shot_probe(
    model: Generator, populations: list[Population], *, limit: int = 6, images: int = 500
) -> dict[str, float]:
    """Mean accuracy of one sample for a few zoo tasks of every population over that of their checkpoints."""
    made = trained = 0.0
    for population in populations:
        finals = [r for r in population.records if r.final]
        order = torch.randperm(len(finals), generator=torch_generator("probe", len(finals)))[:limit].tolist()
        for record in (finals[i] for i in order):
            task = record.parsed_task()
            sample = model.generate_many(population.spec, support=task.support(16, seed=99))[0]
            made += float(accuracy(population.spec, sample.flat[None], *_probe_images(task, images))[0])
            trained += record.accuracy or 0.0
    return {"seen_ratio": made / max(trained, 1e-9)}


def validation_tasks(source: dict[str, Any], validity: Validity) -> list[DatasetTask]:
    """Training tasks that nothing learns from, five of each of a few class counts of the generator."""
    allowed = range(validity.min_classes, validity.max_classes + 1)
    counts = [count for count in (4, 10) if count in allowed] or [validity.min_classes]
    return [
        task
        for group in _tasks(source, dict.fromkeys(counts, 5), VALIDATION_FIRST).values()
        for task in group
    ]


@torch.no_grad()
def validation_probe(
    model: IGPG | LatentDiffusion, tasks: list[DatasetTask], *, images: int = 500, samples: int = 2
) -> dict[str, float]:
    """Mean accuracy on tasks that nothing learned from: of samples, of the guesses that they start from, and
    of the closed form on the zoo's mean trunk.
    """
    sums = {"sample": 0.0, "first_guess": 0.0, "closed_form": 0.0}
    keys = sorted(model.tokenizer.statistics)
    for key in keys:
        for task in tasks:
            spec = parse_architecture(key).resolve(classes=task.num_classes)
            support = task.support(16, seed=99)
            batch = _probe_images(task, images)
            made = model.generate_many(spec, support=support, num_samples=samples)
            sums["sample"] += float(accuracy(spec, torch.stack([s.flat for s in made]), *batch).mean())
            guess = model.tokenizer.decode(spec, model.first_guess(spec, support.images)[0][None])
            measured = recalibrate(spec, guess, support.images.flatten(0, 1))
            centre, rms = model.tokenizer.centre(spec), model.tokenizer.head_rms(spec)
            closed = closed_form_network(spec, centre, support.images, head_rms=rms)[None]
            scores = accuracy(spec, torch.cat([measured, closed]), *batch).tolist()
            sums["first_guess"] += scores[0]
            sums["closed_form"] += scores[1]
    return {f"validation_{name}": total / len(tasks) / len(keys) for name, total in sums.items()}


def _probe_images(task: Task, count: int) -> tuple[Tensor, Tensor]:
    data = task.data("test")
    order = torch.randperm(len(data), generator=torch_generator("probe", str(task)))[:count]
    return data.batch(order)
