"""Fitting what accuracy is to be expected of networks from words alone.

On test pictures: of tasks that training may draw, and of names that are kept for choices. Held-out tasks and
unseen names, which results are of, are not looked at; test pictures of known datasets are the same in both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from weightloom.architectures import parse_architecture
from weightloom.conditioning import encode_text
from weightloom.conditioning.names import encode_names
from weightloom.generators.words import Words
from weightloom.generators.words_expected import fit_expected, vocabulary_of
from weightloom.seeding import torch_generator
from weightloom.tasks import DatasetTask
from weightloom.training.loop import Progress
from weightloom.training.words_tasks import Pictures, known_stems, names_of_split

IMAGES = 300


@torch.no_grad()
def fit_expectations(
    model: Words, sources: dict[int, list[Pictures]], salt: str, tasks: int, progress: Progress
) -> None:
    """Fit ``model.expected`` on ``tasks`` tasks for each part."""
    first = next(iter(sources.values()))
    known = known_stems(tuple(p.source for p in first))
    model.expected.vocabulary = vocabulary_of(
        [p.task.class_names[label] for p in first for label in p.labels]
    )
    for number, pictures in enumerate(first):
        model.expected.names[number] = torch.nn.functional.normalize(pictures.names[:, 0], dim=1).mean(0)
        model.expected.sentences[number] = pictures.sentences.mean(0)
    model.expected.half().float()
    for number, key in enumerate(model.validity.architectures):
        spec = parse_architecture(key)
        assert spec.input is not None
        rows, reached, chance = [], [], []
        for index in range(tasks):
            generator = torch_generator("expected", number, index)
            task = _draw(sources[spec.input[1]], salt, known, generator)
            part = model.part(spec.resolve(classes=task.num_classes))
            vectors = encode_names(task.class_names)
            told = float(torch.rand((), generator=generator)) < 0.8
            sentence = encode_text(task.instructions(1, seed=index))[0] if told else None
            data = task.data("test")
            images, labels = data.batch(torch.randperm(len(data), generator=generator)[:IMAGES])
            written = part.write(vectors, sentence)
            answers = part.answer(written, images).argmax(1)
            rows.append(model.expected.features(task.class_names, vectors, sentence))
            reached.append(float((answers == labels).float().mean()))
            chance.append(1 / task.num_classes)
            progress("expected accuracy", number * tasks + index + 1, tasks * len(model.parts))
        weights = fit_expected(torch.stack(rows), torch.tensor(reached), torch.tensor(chance))
        model.expected.weights[number] = weights.half().float()


def _draw(
    sources: Sequence[Pictures], salt: str, known: frozenset[str], generator: torch.Generator
) -> DatasetTask:
    pictures = sources[int(torch.randint(len(sources), (), generator=generator))]
    classes = pictures.draw_classes(generator, 20)
    if pictures.source.names and float(torch.rand((), generator=generator)) < 0.6:
        pool = names_of_split(pictures.source.dataset, "choices", salt, known)
        count = min(len(classes), len(pool))
        classes = [pool[place] for place in torch.randperm(len(pool), generator=generator)[:count].tolist()]
    task = pictures.task
    return DatasetTask(dataset=task.dataset, classes=tuple(classes), size=task.size, channels=task.channels)
