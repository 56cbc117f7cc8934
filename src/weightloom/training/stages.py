"""Stages and measurements that several families of generators share: dataset encoder, tokenizer, zoo index,
probes. Each stage is resumed where an interrupted training stopped. Knows no family.

Shapes: T tokens, D codes a token, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from weightloom.architectures import parse_architecture
from weightloom.conditioning import SupportEncoder
from weightloom.errors import InputError, SpecError
from weightloom.fitting import accuracy, closed_form_network
from weightloom.generators import Generator, Sample, Validity
from weightloom.generators.zoo_index import ZooIndex, ZooIndexGroup
from weightloom.io import dump_json, read_json, write_json
from weightloom.seeding import seed_for, torch_generator
from weightloom.tasks import DatasetTask, Task, TaskSampler
from weightloom.tokenizers import WeightTokenizer, load_tokenizer, tokenizers
from weightloom.tokenizers.base import round_to_half
from weightloom.tokenizers.fsq import FSQTokenizer
from weightloom.training.encoder import EncoderObjective
from weightloom.training.loop import Progress, run_loop
from weightloom.training.recipe import EncoderRecipe, StagedRecipe
from weightloom.training.tokenizer import (
    Population,
    TokenizerObjective,
    initialise_bases,
    measure_statistics,
    round_trip,
    with_closed_forms,
)
from weightloom.zoo import Zoo

ENCODER_FIRST = 2_000_000
VALIDATION_FIRST = 3_000_000
"""Index of the first training task that nothing learns from: what choices are made on. Held-out tasks of the
zoo are for results alone, and training never looks at them."""


class ImageSizes(Protocol):
    """The part of a generator's config that says how large its dataset encoder is."""

    @property
    def channels(self) -> int: ...

    @property
    def image_features(self) -> int: ...

    @property
    def image_width(self) -> int: ...


class HasEncoder(Protocol):
    """The part of a recipe that says how the dataset encoder is trained."""

    @property
    def seed(self) -> int: ...

    @property
    def encoder(self) -> EncoderRecipe: ...


class MakesSamples(Protocol):
    """A generator over a tokenizer that can be probed."""

    tokenizer: WeightTokenizer

    @property
    def generate_many(self) -> Callable[..., list[Sample]]: ...


# ------------------------------------------------------------------------------------ what a stage is of


def source_of(zoo: Zoo) -> dict[str, Any]:
    """The recipe that ``zoo`` was built from.

    Raises:
        InputError: there is none.
    """
    source = zoo.recipe("datasets", "salt", "size", "channels")
    if source is None:
        raise InputError(f"{zoo.path} was not built from a recipe, so its held-out tasks are not known")
    return source


def claim(folder: Path, made_from: dict[str, Any]) -> None:
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


def zoo_tasks(source: dict, counts: dict[int, int], first: int) -> dict[int, list[DatasetTask]]:  # type: ignore[type-arg]
    """Training tasks of a zoo's recipe by class count: ``counts[classes]``, from index ``first`` on."""
    return {
        classes: [_sampler(source, "train", classes).task(first + i) for i in range(count)]
        for classes, count in counts.items()
    }


@torch.no_grad()
def round_parameters(module: torch.nn.Module) -> None:
    """Every parameter in half precision, which is what files hold."""
    for parameter in module.parameters():
        parameter.copy_(parameter.half().float())


def spans(source: dict[str, Any], tokenizer: WeightTokenizer, *more: int) -> Validity:
    """What a generator of the zoo's networks is valid for; ``more`` are class counts beyond the zoo's own."""
    counts = sorted({*more, *(group["classes"] for group in source["groups"] if group["split"] == "train")})
    return Validity(
        architectures=tuple(sorted(tokenizer.statistics)),
        input=(source["channels"], source["size"], source["size"]),
        min_classes=counts[0],
        max_classes=counts[-1],
        tasks=tuple(source["datasets"]),
    )


# ------------------------------------------------------------------------------------ the stages


def train_encoder(
    recipe: HasEncoder,
    sizes: ImageSizes,
    source: dict,  # type: ignore[type-arg]
    folder: Path,
    progress: Progress,
) -> SupportEncoder:
    """The dataset encoder, trained on training tasks of the zoo's datasets."""
    settings = recipe.encoder
    tasks = [t for group in zoo_tasks(source, settings.tasks, ENCODER_FIRST).values() for t in group]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for("encoder", recipe.seed))
        encoder = SupportEncoder(
            channels=sizes.channels, features=sizes.image_features, width=sizes.image_width
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
    round_parameters(encoder)  # before anything is described with it: the file holds no more
    return encoder.requires_grad_(False).eval()


def train_tokenizer(
    recipe: StagedRecipe,
    populations: list[Population],
    folder: Path,
    progress: Progress,
) -> WeightTokenizer:
    """The weight tokenizer, trained on the zoo's training checkpoints."""
    done = folder / "trained"
    if (done / "config.json").is_file():
        # As the stage itself leaves it: with gradients torch takes other kernels, which round otherwise.
        return load_tokenizer(done).requires_grad_(False)
    settings = recipe.tokenizer
    family = tokenizers.get(settings.kind)
    try:
        config = family.config_type(**settings.config)  # type: ignore[attr-defined]
    except TypeError as error:
        raise SpecError(f"the recipe's tokenizer: {error}") from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for("tokenizer", recipe.seed))
        seen = with_closed_forms(populations)
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


def make_zoo_index(populations: list[Population], described: Mapping[str, Tensor]) -> ZooIndex:
    """The zoo's final training checkpoints with their tasks and accuracies; ``described`` (C, 2F) are
    examples of every task by its name.
    """
    groups = []
    for population in populations:
        rows = [i for i, record in enumerate(population.records) if record.final]
        records = [population.records[i] for i in rows]
        facts = [
            {"id": r.id, "task": r.task, "dataset": r.dataset, "accuracy": round(r.accuracy or 0.0, 4)}
            for r in records
        ]
        classes = torch.stack([described[record.task] for record in records])
        groups.append(ZooIndexGroup(population.spec, population.flats[rows], classes, facts).rounded())
    return ZooIndex(groups)


# ------------------------------------------------------------------------------------ probes


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
    """Training tasks that nothing learns from: five each of 4 and of 10 classes where it makes such."""
    least, most = validity.min_classes, validity.max_classes
    counts = {max(least, min(count, most)): 5 for count in (4, 10)}
    return [task for group in zoo_tasks(source, counts, VALIDATION_FIRST).values() for task in group]


@torch.no_grad()
def validation_probe(
    model: MakesSamples, tasks: list[DatasetTask], *, images: int = 500, samples: int = 2
) -> dict[str, float]:
    """Mean accuracy on tasks that nothing learned from: of samples, and of the closed form on the zoo's mean
    trunk.
    """
    sums = {"sample": 0.0, "closed_form": 0.0}
    keys = sorted(model.tokenizer.statistics)
    for key in keys:
        for task in tasks:
            spec = parse_architecture(key).resolve(classes=task.num_classes)
            support = task.support(16, seed=99)
            batch = _probe_images(task, images)
            made = model.generate_many(spec, support=support, num_samples=samples)
            sums["sample"] += float(accuracy(spec, torch.stack([s.flat for s in made]), *batch).mean())
            centre, rms = model.tokenizer.centre(spec), model.tokenizer.head_rms(spec)
            closed = closed_form_network(spec, centre, support.images, head_rms=rms)[None]
            sums["closed_form"] += float(accuracy(spec, closed, *batch)[0])
    return {f"validation_{name}": total / len(tasks) / len(keys) for name, total in sums.items()}


def _probe_images(task: Task, count: int) -> tuple[Tensor, Tensor]:
    data = task.data("test")
    order = torch.randperm(len(data), generator=torch_generator("probe", str(task)))[:count]
    return data.batch(order)
