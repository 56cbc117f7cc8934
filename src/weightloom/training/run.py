"""From a recipe and a zoo to a generator's directory, resumable at every stage."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from weightloom.conditioning import SupportEncoder, encode_text
from weightloom.errors import InputError, SpecError, WeightloomError
from weightloom.fitting import accuracy
from weightloom.generators import Generator, Validity, generators
from weightloom.generators.backbones import build_backbone
from weightloom.generators.fingerprint import Fingerprint, FingerprintGroup
from weightloom.generators.ghn import GHN
from weightloom.generators.igpg import IGPG, IGPGConfig
from weightloom.io import dump_json, read_json, read_yaml, write_json
from weightloom.seeding import seed_for, torch_generator
from weightloom.tasks import DatasetTask, TaskSampler
from weightloom.tokenizers import WeightTokenizer, architecture_key, load_tokenizer, tokenizers
from weightloom.tokenizers.base import round_to_half
from weightloom.tokenizers.fsq import FSQTokenizer
from weightloom.training.bank import BankedTask, build_bank
from weightloom.training.encoder import EncoderObjective
from weightloom.training.ghn import train_ghn
from weightloom.training.igpg import PriorObjective, PriorSettings
from weightloom.training.loop import Progress, run_loop
from weightloom.training.recipe import GeneratorKind, GeneratorRecipe, GHNRecipe, PlainRecipe
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


def train_recipe(
    recipe_path: str | Path,
    zoo: str | Path | None,
    out: str | Path,
    progress: Progress = lambda *_: None,
) -> Generator:
    """Train every stage of the recipe that ``out`` does not hold yet; the generator is saved in ``out``.

    A graph hypernetwork learns from a dataset and takes no zoo. A kind of generator other than these two is
    made by its own ``from_zoo(zoo, name=..., **options)``.

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
    if kind == IGPG.kind:
        return train_generator(read_yaml(recipe_path, GeneratorRecipe), Zoo(zoo), Path(out), progress)
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
    tokenizer = train_tokenizer(recipe, zoo, populations, work / "tokenizer", progress)
    model = make_igpg(recipe, source, tokenizer, encoder)
    train_prior(recipe, zoo, source, model, populations, work / "prior", progress)
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
        "prior": {key: said[key] for key in ("encoder", "tokenizer", "prior")} | {"zoo": source},
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


def train_encoder(recipe: GeneratorRecipe, source: dict, folder: Path, progress: Progress) -> SupportEncoder:  # type: ignore[type-arg]
    """The dataset encoder, trained on training tasks of the zoo's datasets."""
    settings = recipe.encoder
    tasks = [t for group in _tasks(source, settings.tasks, ENCODER_FIRST).values() for t in group]
    config = IGPGConfig(**recipe.prior.config)
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
    recipe: GeneratorRecipe, zoo: Zoo, populations: list[Population], folder: Path, progress: Progress
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
        seed=recipe.seed,
        steps=settings.loop.steps,
    )
    held = held_out_populations(zoo)

    def evaluate(step: int) -> dict[str, float]:
        codes = torch.cat([tokenizer.encode(p.spec, p.flats).flatten(0, 1) for p in populations])
        numbers = dict(tokenizer.health(codes).summary())
        rows = round_trip(tokenizer, held, limit=4, images=500) if held else []
        for key in ("rebuilt", "rebuilt_norms_as_coded"):
            if rows:
                total = sum(float(r["original"]) for r in rows)
                numbers[f"held_out_{key}"] = sum(float(r[key]) for r in rows) / total
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


def held_out_populations(zoo: Zoo) -> list[Population]:
    """Final checkpoints of the held-out splits that the zoo has."""
    held: list[Population] = []
    for split in ("held-out-subset", "held-out-order", "held-out-transform"):
        if zoo.records(split=split, final=True):
            held += load_populations(zoo, split=split, final=True)
    return held


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
    zoo: Zoo,
    source: dict,  # type: ignore[type-arg]
    model: IGPG,
    populations: list[Population],
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
    model.fingerprint = make_fingerprint(model, populations, bank)
    try:
        objective_settings = PriorSettings(**settings.objective)
    except TypeError as error:
        raise SpecError(f"the recipe's objective: {error}") from None
    objective = PriorObjective(model, populations, bank, fresh, objective_settings, seed=recipe.seed)
    held = held_out_populations(zoo)

    def evaluate(step: int) -> dict[str, float]:
        return zero_shot_probe(model, populations, "seen") | zero_shot_probe(model, held, "unseen")

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


def make_fingerprint(model: IGPG, populations: list[Population], bank: dict[str, BankedTask]) -> Fingerprint:
    """Codes, tasks and accuracies of the zoo's final training checkpoints."""
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
            )
        )
    return Fingerprint(model.tokenizer, groups)


def zero_shot_probe(
    model: IGPG, populations: list[Population], name: str, *, limit: int = 6, images: int = 500
) -> dict[str, float]:
    """Mean accuracy of one sample for a few tasks of every population, over the mean of its checkpoints."""
    sums: dict[str, list[float]] = {}
    for population in populations:
        finals = [r for r in population.records if r.final]
        order = torch.randperm(len(finals), generator=torch_generator("probe", len(finals)))[:limit].tolist()
        for record in (finals[i] for i in order):
            task = record.parsed_task()
            spec = replace(population.spec)
            sample = model.generate_many(spec, support=task.support(16, seed=99))[0]
            data = task.data("test")
            chosen = torch.randperm(len(data), generator=torch_generator("probe", record.task))[:images]
            score = float(accuracy(spec, sample.flat[None], *data.batch(chosen))[0])
            pair = sums.setdefault(architecture_key(spec).split("(")[0], [0.0, 0.0])
            pair[0] += score
            pair[1] += record.accuracy or 0.0
    numbers = {f"{name}_{key}": a / max(b, 1e-9) for key, (a, b) in sums.items()}
    total = [sum(column) for column in zip(*sums.values(), strict=True)] if sums else [0.0, 1.0]
    return numbers | {f"{name}_ratio": total[0] / max(total[1], 1e-9)}
