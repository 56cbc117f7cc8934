"""Losses of one step of the training from words and from examples: through the networks that are made.

A step takes one task: classes of one source of pictures, in words; with examples, some pictures of each class
as well. With examples names are at times left out, and at times mixed with those of other classes, so that it
is learned to believe a name as far as the examples agree with it: a name never seen is partly right at best.

Shapes: C classes, S examples a class, Q other pictures a class, D width of a text vector, H features of the
trunk. Sources: learning through the made network, Ha et al. (arXiv 1609.09106), equation 3; episodes, Vinyals
et al. (arXiv 1606.04080), section 2.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from weightloom.errors import SpecError
from weightloom.generators.examples_part import ExamplesPart
from weightloom.generators.words_part import WordsPart
from weightloom.seeding import seed_for, torch_generator
from weightloom.training.parallel import WHOLE, Part
from weightloom.training.words_tasks import Pictures


@dataclass(frozen=True, kw_only=True)
class WordsObjectiveSettings:
    """Sizes of a step and what is left out of it at random."""

    batch: int = 256
    most_classes: int = 40
    told_sentence: float = 0.8
    name_noise: float = 0.02
    code_noise: float = 0.1
    predicted_statistics: float = 0.25
    """In the last so large share of the steps every other one uses the statistics that words predict."""
    statistics_weight: float = 0.1
    shots: tuple[int, ...] = (1, 2, 4, 8, 16)
    most_examples: int = 200
    queries: int = 160
    """Other pictures of a step with examples, all classes together."""
    dropped_names: float = 0.4
    """Share of the steps with examples in which no names are told."""
    mixed_names: float = 0.3
    """Share of the steps with examples in which names are mixed with those of other classes."""
    unlabelled_share: float = 0.15
    """Share of the steps with examples in which pictures without labels are there as well, 20 a class."""
    most_unlabelled: int = 120
    expected_tasks: int = 200
    """Tasks for each architecture that the expected accuracy is fitted on."""
    sentences: int = 64
    """Instructions that each source is spoken of in."""
    turned_sentences: int = 32
    """Instructions about each pair of dataset and turn; five times as many about pictures as they are."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shots", tuple(self.shots) if isinstance(self.shots, list) else self.shots)
        counts = (
            "batch", "most_classes", "most_examples", "queries", "most_unlabelled", "expected_tasks",
            "sentences", "turned_sentences",
        )  # fmt: skip
        for name in counts:
            value = getattr(self, name)
            if type(value) is not int or not 2 <= value <= 1_000_000:
                raise SpecError(f"{name} must be a whole number from 2, not {value!r}")
        good = isinstance(self.shots, tuple) and self.shots
        if not good or any(type(shot) is not int or shot < 0 for shot in self.shots):
            raise SpecError(f"shots must be numbers of examples from 0, not {self.shots!r}")
        for name in (
            "told_sentence",
            "name_noise",
            "code_noise",
            "predicted_statistics",
            "statistics_weight",
            "dropped_names",
            "mixed_names",
            "unlabelled_share",
        ):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value <= 10:
                raise SpecError(f"{name} must be a number from 0 to 10, not {value!r}")


class WordsObjective:
    """Loss of one step on words alone; everything that it draws comes from the address (seed, step)."""

    def __init__(
        self,
        part: WordsPart,
        sources: Sequence[Pictures],
        settings: WordsObjectiveSettings,
        *,
        steps: int,
        seed: int,
    ) -> None:
        self.part, self.sources, self.settings = part, list(sources), settings
        self.steps, self.seed = steps, seed
        weights = torch.tensor([pictures.source.weight for pictures in self.sources], dtype=torch.float64)
        self._shares = weights / weights.sum()

    @property
    def items(self) -> int:
        """One task a step."""
        return 1

    def draw(self, generator: torch.Generator) -> tuple[Pictures, list[int], Tensor, Tensor | None]:
        """A source, classes of it, vectors of their names, and a sentence's vector or none."""
        settings = self.settings
        pictures = self.sources[int(torch.multinomial(self._shares, 1, generator=generator))]
        classes = pictures.draw_classes(generator, settings.most_classes)
        names = pictures.draw_names(classes, generator)
        names = names + settings.name_noise * torch.randn(names.shape, generator=generator)
        chosen = pictures.sentences[int(torch.randint(len(pictures.sentences), (), generator=generator))]
        told = float(torch.rand((), generator=generator)) < settings.told_sentence
        return pictures, classes, names, chosen if told else None

    def __call__(self, step: int, part: Part = WHOLE) -> tuple[Tensor, dict[str, float]]:
        settings = self.settings
        generator = torch_generator("words", self.seed, step)
        pictures, classes, names, sentence = self.draw(generator)
        images = pictures.draw(classes, max(2, settings.batch // len(classes)), generator)
        labels = torch.arange(len(classes)).repeat_interleave(images.shape[1])
        noise = torch.randn((len(self.part.layers), self.part.config.codes), generator=generator)
        with torch.random.fork_rng(devices=[]):  # of the dropout in the rows
            torch.manual_seed(seed_for("words", self.seed, step))
            written = self.part.write(names, sentence, settings.code_noise * noise, dropout=0.1)
        late = step >= (1 - settings.predicted_statistics) * self.steps and step % 2 == 1
        batch = images.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        # What words predict of the statistics is learned from what is measured, not through the loss.
        predicted = {name: value.detach() for name, value in written.statistics.items()}
        features, measured = self.part.run(written.trunk, batch, predicted if late else None)
        logits = features @ written.rows.T + written.biases
        loss = F.cross_entropy(logits, labels)
        if not late and self.part.norms:
            loss = loss + settings.statistics_weight * self.part.statistics_loss(written.statistics, measured)
        right = float((logits.argmax(1) == labels).float().mean())
        return loss, {f"{pictures.source.dataset}_accuracy": right}


class ExamplesObjective(WordsObjective):
    """Loss of one step; everything that it draws comes from the address (seed, step)."""

    def __init__(
        self,
        part: ExamplesPart,
        sources: Sequence[Pictures],
        settings: WordsObjectiveSettings,
        *,
        steps: int,
        seed: int,
    ) -> None:
        super().__init__(part, sources, settings, steps=steps, seed=seed)
        self.examples = part

    def mix_names(self, pictures: Pictures, names: Tensor, generator: torch.Generator) -> Tensor:
        """Names (C, D), each moved towards that of another class of the source by the same random share."""
        others = pictures.names[:, 0]
        drawn = others[torch.randint(len(others), (len(names),), generator=generator)]
        share = torch.rand((), generator=generator)
        return (1 - share) * names + share * drawn

    def __call__(self, step: int, part: Part = WHOLE) -> tuple[Tensor, dict[str, float]]:
        settings, made = self.settings, self.examples
        generator = torch_generator("examples", self.seed, step)
        pictures, classes, names, sentence = self.draw(generator)
        limit = max(1, settings.most_examples // len(classes))
        shots = min(settings.shots[int(torch.randint(len(settings.shots), (), generator=generator))], limit)
        fate = float(torch.rand((), generator=generator))
        told: Tensor | None = names
        if shots and fate < settings.dropped_names:
            told, sentence = None, None if fate < settings.dropped_names / 2 else sentence
        elif shots and fate < settings.dropped_names + settings.mixed_names:
            told = self.mix_names(pictures, names, generator)
        queries = max(2, settings.queries // len(classes))
        images = pictures.draw(classes, shots + queries, generator)
        support = images[:, :shots] if shots else None
        noise = torch.randn((len(made.layers), made.config.codes), generator=generator)
        with torch.random.fork_rng(devices=[]):  # of the dropout in the rows
            torch.manual_seed(seed_for("examples", self.seed, step))
            written = made.make(told, sentence, support, settings.code_noise * noise, dropout=0.1)
        others = None
        if support is not None and float(torch.rand((), generator=generator)) < settings.unlabelled_share:
            count = min(20 * len(classes), settings.most_unlabelled)
            others = pictures.draw_mixed(classes, count, generator)
        shown = images[:, :shots].flatten(0, 1)  # (C*S, ...)
        if others is not None:
            shown = torch.cat([shown, others])
        late = step >= (1 - settings.predicted_statistics) * self.steps and step % 2 == 1
        statistics = None
        if late:
            statistics = {name: value.detach() for name, value in written.statistics.items()}
            if support is not None:
                worth = made.weigh(shots, len(classes), support.new_zeros(2))
                trunk = {name: value.detach() for name, value in written.trunk.items()}
                statistics = made.blend(replace(written, trunk=trunk, statistics=statistics), shown, worth[3])
        asked = images[:, shots:].flatten(0, 1)  # (C*Q, ...)
        batch = torch.cat([shown, asked]).contiguous(memory_format=torch.channels_last)
        features, measured = made.run(written.trunk, batch, statistics)
        rows, biases = written.rows, written.biases
        if support is not None:
            known = features[: len(classes) * shots].unflatten(0, (len(classes), shots))  # (C, S, H)
            without = None if others is None else features[len(classes) * shots : len(shown)]
            rows, biases = made.head(written, known, without)
        logits = features[len(shown) :] @ rows.T + biases
        labels = torch.arange(len(classes)).repeat_interleave(queries)
        loss = F.cross_entropy(logits, labels)
        right = float((logits.argmax(1) == labels).float().mean())
        if not late and made.norms:
            loss = loss + settings.statistics_weight * made.statistics_loss(written.statistics, measured)
        return loss, {f"{pictures.source.dataset}_accuracy": right, f"{shots}_shots": right}
