"""Training of a generator of networks from words: through the networks that it makes, one architecture at a
time.

A step takes one task: classes of one source of pictures, in words. The part writes a network for it, and the
loss is that network's on pictures of the task. Nothing else is needed: no checkpoint, no teacher. Towards
the end the batch norms use the statistics that words predict. A second training, which begins where the first
ended, learns from examples.

Shapes: C classes, B images of a step, S examples a class, D width of a text vector.
Sources: learning through the made network, Ha et al. (arXiv 1609.09106), equation 3; episodes, Vinyals et al.
(arXiv 1606.04080), section 2.2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from weightloom.architectures import parse_architecture
from weightloom.conditioning import encode_text
from weightloom.conditioning.lexicon import lexicon_names
from weightloom.conditioning.names import encode_names
from weightloom.errors import SpecError
from weightloom.generators.examples_part import ExamplesPart
from weightloom.generators.load import save_generator
from weightloom.generators.words import Words, words_validity
from weightloom.generators.words_part import WordsConfig, WordsPart
from weightloom.generators.words_turns import letters
from weightloom.io import read_yaml
from weightloom.seeding import numpy_generator, torch_generator
from weightloom.tasks import DatasetTask
from weightloom.tasks.store import datasets
from weightloom.tasks.transforms import transform_names
from weightloom.tasks.words import Subject, instructions
from weightloom.training.loop import Progress, run_loop
from weightloom.training.recipe import UNDECISIVE, WordsPartRecipe, WordsRecipe
from weightloom.training.stages import claim, round_parameters
from weightloom.training.trainers import trainers
from weightloom.training.words_expected import fit_expectations
from weightloom.training.words_objectives import ExamplesObjective, WordsObjective, WordsObjectiveSettings
from weightloom.training.words_tasks import (
    Pictures,
    PictureSource,
    holds_out_pair,
    known_stems,
    names_of_split,
    open_sources,
)


@torch.no_grad()
def probe_words(
    part: WordsPart, sources: Sequence[Pictures], salt: str, *, draws: int = 30, images: int = 1000
) -> dict[str, float]:
    """Accuracy from words alone on test pictures: of whole known datasets, and five-way of names that
    training has and of names kept for choices.
    """
    part.eval()
    known = known_stems(tuple(p.source for p in sources))
    found: dict[str, float] = {}

    def right(task: DatasetTask, sentence: Tensor) -> float:
        data = task.data("test")
        order = torch.randperm(len(data), generator=torch_generator("probe", str(task)))[:images]
        batch, labels = data.batch(order)
        answers = part.answer(part.write(encode_names(task.class_names), sentence), batch)
        return float((answers.argmax(1) == labels).float().mean())

    for pictures in sources:
        source, task = pictures.source, pictures.task
        if not source.names:
            found[f"whole_{source.dataset}"] = right(task, pictures.sentences[0])
            continue
        for split in ("train", "choices"):
            pool = names_of_split(source.dataset, split, salt, known)
            generator = numpy_generator("probe", source.dataset, split)
            reached = []
            for _ in range(draws):
                classes = tuple(int(label) for label in generator.choice(pool, 5, replace=False))
                reached.append(right(replace(task, classes=classes), pictures.sentences[0]))
            found[f"five_{split}_{source.dataset}"] = sum(reached) / draws
    part.train()
    return found


@trainers.register(Words.kind)
def train_from_recipe(recipe_path: Path, zoo: Path | None, out: Path, progress: Progress) -> Words:
    """See :data:`weightloom.training.trainers.Trainer`. A zoo is not needed, and not looked at."""
    return train_words(read_yaml(recipe_path, WordsRecipe), out, progress)


def train_words(recipe: WordsRecipe, out: Path, progress: Progress) -> Words:
    """Every architecture's part, one after another; goes on where an interrupted run stopped; saves in
    ``out``.

    Raises:
        SpecError: an option or an architecture that makes no sense.
        TrainingError: a loss stays not finite.
        DataUnavailableError: a dataset or the sentence encoder is not on this machine.
    """
    try:
        config, settings = WordsConfig(**recipe.config), WordsObjectiveSettings(**recipe.objective)
    except TypeError as error:
        raise SpecError(f"the recipe's config or objective: {error}") from None
    sources = tuple(PictureSource(**source.model_dump()) for source in recipe.sources)
    specs = [
        parse_architecture(one.architecture).resolve(input=(recipe.channels, one.size, one.size))
        for one in recipe.parts
    ]
    pictures: dict[int, list[Pictures]] = {}
    parts: dict[str, tuple[WordsPart, ExamplesPart]] = {}
    for number, (spec, one) in enumerate(zip(specs, recipe.parts, strict=True)):
        part = WordsPart(config, spec.resolve(classes=2), seed=recipe.seed)
        work = out / "work" / f"part-{number}"
        claim(work, _origin(recipe, one))
        if one.size not in pictures:
            pictures[one.size] = open_sources(
                sources, recipe.salt, one.size, recipe.channels, settings.sentences
            )
        what, opened = f"{spec.family} {number + 1}", pictures[one.size]
        _train_part(part, what, recipe, one, opened, work, progress)
        seer = ExamplesPart(config, spec.resolve(classes=2), seed=recipe.seed)
        _train_seer(seer, part, what, recipe, one, opened, work, progress)
        parts[str(spec)] = part, seer
    validity = words_validity(tuple(parts), tuple(source.dataset for source in sources))
    model = Words(config, validity, name=recipe.name)
    for number, (part, seer) in enumerate(parts.values()):
        model.parts[number].load_state_dict(part.state_dict())
        model.seers[number].load_state_dict(seer.state_dict())
    train_turns(model, sources, recipe, out / "work" / "turns", progress)
    model.eval()
    fit_expectations(model, pictures, recipe.salt, settings.expected_tasks, progress)
    save_generator(model, out)
    return model


def _train_part(
    part: WordsPart,
    what: str,
    recipe: WordsRecipe,
    one: WordsPartRecipe,
    opened: list[Pictures],
    work: Path,
    progress: Progress,
) -> None:
    """What words say of one architecture."""
    settings = WordsObjectiveSettings(**recipe.objective)

    def probe(_: int) -> dict[str, float]:
        return probe_words(part, opened, recipe.salt)

    part.train()
    run_loop(
        f"{what} from words",
        part,
        WordsObjective(part, opened, settings, steps=one.loop.steps, seed=recipe.seed),
        one.loop.settings(),
        folder=work / "words",
        evaluate=probe,
        evaluate_every=max(1, one.loop.steps // 6),
        progress=progress,
    )
    round_parameters(part)


def _train_seer(
    seer: ExamplesPart,
    part: WordsPart,
    what: str,
    recipe: WordsRecipe,
    one: WordsPartRecipe,
    opened: list[Pictures],
    work: Path,
    progress: Progress,
) -> None:
    """What examples say of one architecture; it begins as the part for words alone."""
    settings = WordsObjectiveSettings(**recipe.objective)
    seer.begin_as(part)
    seer.train()
    run_loop(
        f"{what} from examples",
        seer,
        ExamplesObjective(seer, opened, settings, steps=one.examples.steps, seed=recipe.seed),
        one.examples.settings(),
        folder=work / "examples",
        progress=progress,
    )
    round_parameters(seer)


def _learn_only(module: torch.nn.Module, learned: Callable[[str], bool]) -> None:
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(learned(name))


def _origin(recipe: WordsRecipe, one: WordsPartRecipe) -> dict[str, Any]:
    """What the training of one part is of; how often it is logged and kept changes nothing."""
    origin = recipe.model_dump(mode="json", exclude={"parts", "turns", "name"})
    origin["part"] = one.model_dump(mode="json")
    for name in UNDECISIVE:
        for loop in ("loop", "examples"):
            origin["part"][loop].pop(name, None)
    return origin


class TurnObjective:
    """Loss of one step: which turn sentences speak of; vectors (N, E), labels (N, 3) of its three parts."""

    def __init__(
        self, model: Words, vectors: Tensor, texts: Sequence[str], labels: Tensor, *, seed: int
    ) -> None:
        self.model, self.vectors, self.labels, self.seed = model, vectors, labels, seed
        self.letters = letters(texts)

    def __call__(self, step: int) -> tuple[Tensor, dict[str, float]]:
        generator = torch_generator("turns", self.seed, step)
        chosen = torch.randint(len(self.vectors), (128,), generator=generator)
        # Some runs of letters are missing, as in words that are mistyped in other ways.
        written = self.letters[chosen]
        written = written & (torch.rand(written.shape, generator=generator) > 0.2)
        noise = 0.02 * torch.randn(len(chosen), self.vectors.shape[1], generator=generator)
        logits = self.model.turns.parts(self.vectors[chosen] + noise, written)
        wanted = self.labels[chosen].unbind(1)
        loss = torch.stack([F.cross_entropy(a, b) for a, b in zip(logits, wanted, strict=True)]).sum()
        right = torch.stack([a.argmax(1) == b for a, b in zip(logits, wanted, strict=True)]).all(0)
        return loss, {"accuracy": float(right.float().mean())}


def train_turns(
    model: Words, sources: tuple[PictureSource, ...], recipe: WordsRecipe, folder: Path, progress: Progress
) -> None:
    """Learn which turn a sentence speaks of, on pairs of dataset and turn that training may see.

    Half of the sentences name other things than the datasets' classes, drawn from the lexicon: mirrors,
    nights and arrows are no turns.
    """
    claim(folder, {"recipe": recipe.model_dump(mode="json", exclude={"parts", "name"})})
    texts: list[str] = []
    labels: list[tuple[int, int, int]] = []
    known, settings = known_stems(sources), WordsObjectiveSettings(**recipe.objective)
    for source in sources:
        own = names_of_split(source.dataset, "train", recipe.salt, known) if source.names else None
        for number, transform in enumerate(transform_names()):
            if holds_out_pair(recipe.salt, source.dataset, transform):
                continue
            count = settings.turned_sentences * (5 if transform == "id" else 1)
            written = _turned_sentences(source.dataset, transform, own, count)
            written += other_sentences(transform, count, source.dataset)
            texts += written
            labels += [(number % 4, number // 4 % 2, number // 8)] * len(written)
    _learn_only(model, lambda name: name.startswith("turns."))
    objective = TurnObjective(model, encode_text(texts), texts, torch.tensor(labels), seed=recipe.seed)
    run_loop("turns in words", model, objective, recipe.turns.settings(), folder=folder, progress=progress)
    model.requires_grad_(True)
    round_parameters(model.turns)


def other_sentences(transform: str, count: int, address: str) -> list[str]:
    """Instructions about pictures and classes of all kinds under a turn: names are drawn from the lexicon."""
    generator = numpy_generator("other sentences", transform, address)
    things, found = lexicon_names(), []
    for number in range(count):
        drawn = [
            things[int(place)]
            for place in generator.integers(len(things), size=int(generator.integers(3, 9)))
        ]
        subject = Subject(
            title="",
            subject=f"{('pictures', 'photos', 'drawings')[number % 3]} of {drawn[0]}",
            whole=number % 2 == 0,
        )
        address_of = ("other sentences", transform, address, number)
        found += instructions(subject, drawn[1:], transform, 1, address_of, misspelt=0.25)
    return found


def _turned_sentences(dataset: str, transform: str, labels: list[int] | None, count: int) -> list[str]:
    """Instructions for tasks of a dataset under a transform, one in four misspelt."""
    generator = numpy_generator("turned sentences", dataset, transform)
    found: list[str] = []
    while len(found) < count:
        pool = labels if labels is not None else list(range(datasets.get(dataset).num_classes))
        size = int(generator.integers(2, min(11, len(pool) + 1)))
        classes = tuple(int(label) for label in generator.choice(pool, size, replace=False))
        task = DatasetTask(dataset=dataset, classes=classes, transform=transform)
        found += task.instructions(4, seed=len(found), misspelt=0.25)
    return found[:count]
