"""Networks from class names, with or without a sentence and examples.

For every architecture that it makes it has one learned part for words alone
(:mod:`weightloom.generators.words_part`) and one for examples (:mod:`weightloom.generators.examples_part`).
Classes are a set: another order of the names gives the same network with its outputs in that order, bit for
bit. The sentence, and the examples where there are any, also say how the pictures are turned: the network is
written for pictures as they are, and turned as they are. Knows nothing of how it is trained.

Shapes: M samples, P values of a network, C classes, T layers, R codes a layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.conditioning import encode_text
from weightloom.conditioning.names import MAX_NAMES, encode_names
from weightloom.errors import CheckpointError, SpecError, WeightloomError
from weightloom.fitting import calibration, copies_of, interval_of
from weightloom.generators.base import (
    Generator,
    Request,
    Validity,
    generators,
    sample_generators,
)
from weightloom.generators.choice import LEFT_OUT
from weightloom.generators.class_names import told_names
from weightloom.generators.examples_part import CLEAR, ExamplesPart
from weightloom.generators.words_expected import ExpectedAccuracy
from weightloom.generators.words_part import WordsConfig, WordsPart, Written
from weightloom.generators.words_turns import TurnReader, without_names
from weightloom.io import load_tensors, read_json, save_tensors, write_json
from weightloom.tasks.data import SupportSet
from weightloom.tasks.transforms import transform_names
from weightloom.tokenizers.base import load_strictly, narrowed
from weightloom.weights import layout_of
from weightloom.weights.turning import EXACT, FAMILIES, turned, turned_tensors, undone

MOST_SHOWN = 512
"""Examples that the turn is looked for in."""

KNOWN = 0.6
"""Share of the loss of guessing below which words alone are clearly right about one example a class."""

AHEAD = 0.95
"""Share of the loss with examples below which words alone are better than words and examples."""


def words_validity(keys: tuple[str, ...], tasks: tuple[str, ...]) -> Validity:
    """What parts for the architectures ``keys`` (with their input, without classes) can be asked for."""
    first = parse_architecture(keys[0]).input
    assert first is not None
    return Validity(architectures=keys, input=first, min_classes=2, max_classes=MAX_NAMES, tasks=tasks)


@dataclass(frozen=True)
class Seen:
    """What the part for examples is told.

    Attributes:
        names: (C, D) vectors, or None where no name has a word that is known.
        sentence: (E,) vector, or None.
        upright: (C, S, ...) examples as they were before they were turned; the prior looks at them.
        support: (C, S, ...) examples as head and statistics are made for them.
        unlabelled: (U, ...) pictures without labels like these, or None.
        measure: whether batch-norm statistics are measured on the pictures.
        turn: how the trunk is turned before it sees them.
    """

    names: Tensor | None
    sentence: Tensor | None
    upright: Tensor
    support: Tensor
    unlabelled: Tensor | None
    measure: bool
    turn: str


@generators.register("words")
class Words(nn.Module, Generator):
    """One part for each architecture of ``validity``, in its order.

    Example:
        >>> limits = words_validity(("mlp(depth=1,width=4,input=1x8x8)",), ("digits",))
        >>> model = Words(WordsConfig(hidden=16), limits).eval()
        >>> sample = model.generate("mlp(depth=1,width=4)", classes=["cat", "dog", "truck"])
        >>> sample.module(torch.zeros(1, 1, 8, 8)).shape
        torch.Size([1, 3])
    """

    kind: ClassVar[str] = "words"
    reads_words: ClassVar[bool] = True
    reads_names: ClassVar[bool] = True
    reads_unlabelled: ClassVar[bool] = True
    makes_statistics: ClassVar[bool] = True
    heeds: ClassVar[frozenset[str]] = frozenset({"temperature"})

    def __init__(
        self, config: WordsConfig, validity: Validity, *, name: str = "words", seed: int = 0
    ) -> None:
        super().__init__()
        self.config, self.validity, self.name = config, validity, name
        specs = [parse_architecture(key).resolve(classes=2) for key in validity.architectures]
        self.parts = nn.ModuleList(WordsPart(config, spec, seed=seed) for spec in specs)
        self.seers = nn.ModuleList(ExamplesPart(config, spec, seed=seed) for spec in specs)
        self.turns = TurnReader(seed=seed)
        self.expected = ExpectedAccuracy(len(self.parts), len(validity.tasks))

    def find_turn(self, request: Request, sentence: Tensor | None, part: WordsPart, written: Written) -> str:
        """How the task's pictures are turned: as the sentence says; else as the examples say, where they do.

        Examples speak for a turn where the network from words alone is clearly better under it, and clearly
        better than chance: a network that knows none of the classes prefers some turn for no reason.
        """
        names = transform_names()
        if sentence is not None and request.instruction is not None:
            told = without_names(request.instruction, request.classes or ())
            if spoken := self.turns.read(sentence[None], [told])[0]:
                return names[spoken]
        if (support := request.support) is None:
            return "id"
        shown = support.images[:, : max(1, MOST_SHOWN // support.num_classes)]
        images = shown.flatten(0, 1)  # (C, S, ...) -> (C*S, ...)
        labels = torch.arange(support.num_classes, device=images.device).repeat_interleave(shown.shape[1])
        losses = []
        for name in names:
            logits = part.answer(written, undone(images, name))
            losses.append(F.cross_entropy(logits, labels, reduction="none"))
        loss = torch.stack(losses)  # (16, C*S)
        best = int(loss.mean(1).argmin())
        gain = loss[0] - loss[best]
        error = gain.std() / len(gain) ** 0.5
        clear = float(gain.mean()) > 3 * float(error) and float(gain.sum()) > 6
        return (
            names[best] if clear and float(loss[best].mean()) < 0.8 * math.log(support.num_classes) else "id"
        )

    def number(self, spec: ArchitectureSpec) -> int:
        """The place of the parts that make ``spec``."""
        return self.validity.architectures.index(str(replace(spec, classes=None)))

    def part(self, spec: ArchitectureSpec) -> WordsPart:
        """The part that makes ``spec`` from words alone."""
        found = self.parts[self.number(spec)]
        assert isinstance(found, WordsPart)
        return found

    def seer(self, spec: ArchitectureSpec) -> ExamplesPart:
        """The part that makes ``spec`` from examples."""
        found = self.seers[self.number(spec)]
        assert isinstance(found, ExamplesPart)
        return found

    def expect(
        self, spec: ArchitectureSpec, names: Sequence[str], vectors: Tensor, sentence: Tensor | None
    ) -> float:
        """The accuracy to expect of the network of ``spec`` that is made from names, without examples."""
        number = self.number(spec)
        features = self.expected.features(names, vectors, sentence)
        return float(self.expected(number, features, len(names)))

    @torch.no_grad()
    def sample_flats(self, request: Request) -> tuple[Tensor, list[dict[str, Any]]]:
        """(M, P). The first sample has the likeliest codes, the others are drawn around them.

        Raises:
            InputError: nothing names the classes.
            DataUnavailableError: the sentence encoder is not installed.
        """
        said = told_names(request, self.name)
        names = tuple(said["class_names"])
        device = next(self.parameters()).device
        # In alphabetical order, and back at the end: sums do not depend on the order that was given.
        order = sorted(range(len(names)), key=lambda place: (names[place].casefold(), names[place]))
        vectors = encode_names([names[place] for place in order]).to(device)
        sentence = None
        if request.instruction is not None:
            sentence = encode_text([request.instruction])[0].to(device)
        support = request.support
        known = True
        if self.expected.vocabulary:
            said["unknown_names"] = self.expected.unknown(names)
            known = len(said["unknown_names"]) < len(names)
            if support is None:
                said["expected_accuracy"] = (
                    self.expect(request.architecture, [names[place] for place in order], vectors, sentence)
                    if known
                    else 1 / len(names)
                )
        if support is not None:
            support = SupportSet(
                images=support.images[order], class_names=tuple(support.class_names[place] for place in order)
            )
        part = self.part(request.architecture)
        written, turn = part.write(vectors, sentence), "id"
        request = replace(request, support=support, classes=names)
        if request.architecture.family in FAMILIES:
            turn = self.find_turn(request, sentence, part, written)
        seen = first = None
        if support is not None:
            # Where turning is not exact, head and statistics are made for the pictures as they are.
            exact = request.architecture.family in EXACT
            others = request.unlabelled
            if exact and others is not None:
                others = undone(others, turn)
            upright = undone(support.images, turn)
            seen = Seen(
                names=vectors if known else None,
                sentence=sentence,
                upright=upright,
                support=upright if exact else support.images,
                unlabelled=others,
                measure=request.batch_norm == "support",
                turn="id" if exact else turn,
            )
            first, seen = self._best(request.architecture, seen, written)
        back = torch.argsort(torch.tensor(order))
        flats, reports = [], []
        temperature = request.sampling.temperature
        for number, generator in enumerate(sample_generators(request)):
            noise = None
            if number:
                shape = (len(part.layers), self.config.codes)
                noise = temperature * torch.randn(shape, generator=generator).to(device)
            if seen is None or first is None:
                network = written if noise is None else part.write(vectors, sentence, noise)
                own = {"head": "from the names", "batch_norm": "generated" if part.norms else "none"}
                if seen is not None:  # the network has seen none of them
                    own[LEFT_OUT] = "which the network was not made from"
            elif noise is None:
                network, own = first
            else:
                network, own = self._from_examples(request.architecture, seen, noise)
            flat = self._network(request.architecture, network, back)
            left = turn if seen is None or first is None or seen.turn == "id" else "id"
            flats.append(flat if left == "id" else turned(request.architecture, flat, left))
            reports.append({**said, **own, "transform": turn})
        return torch.stack(flats), reports

    def _best(
        self, spec: ArchitectureSpec, seen: Seen, written: Written
    ) -> tuple[tuple[Written, dict[str, Any]] | None, Seen]:
        """The network from names and examples, or from the examples alone, whichever answers each example
        better when it is left out, and what it has seen; None where the network ``written`` from words alone
        does better still.

        The network from words is judged by all examples: it was made from none of them. One example a class
        cannot be left out; then words are believed where they are clearly right, and names are always told.
        """
        if seen.unlabelled is not None:
            return self._with_unlabelled(spec, seen, written)
        if seen.names is None:
            return self._from_examples(spec, seen, None), seen
        classes, shots = seen.support.shape[:2]
        written = replace(written, trunk=turned_tensors(spec, written.trunk, seen.turn))
        loss = _loss(self.part(spec).answer(written, seen.support.flatten(0, 1)), shots)
        best, told = self._from_examples(spec, seen, None), seen
        if LEFT_OUT not in best[1]:
            return (None if loss < KNOWN * math.log(classes) else best), told
        nameless = replace(seen, names=None, sentence=None)
        other = self._from_examples(spec, nameless, None)
        if other[1]["support_loss"] < CLEAR * best[1]["support_loss"]:
            best, told = other, nameless
        return (None if loss < AHEAD * best[1]["support_loss"] else best), told

    def _with_unlabelled(
        self, spec: ArchitectureSpec, seen: Seen, written: Written
    ) -> tuple[tuple[Written, dict[str, Any]] | None, Seen]:
        """As :meth:`_best`: pictures without labels are used unless left-out examples are answered worse by
        it.
        """
        best, told = self._best(spec, replace(seen, unlabelled=None), written)
        if best is None:
            return None, told
        more = replace(told, unlabelled=seen.unlabelled)
        other = self._from_examples(spec, more, None)
        if LEFT_OUT in best[1] and other[1]["support_loss"] > best[1]["support_loss"]:
            return best, told
        return other, more

    def _from_examples(
        self,
        spec: ArchitectureSpec,
        seen: Seen,
        noise: Tensor | None,
    ) -> tuple[Written, dict[str, Any]]:
        """The network that names and examples say, and what the report says of it.

        Where a class has more examples than one, the scores on them are of each when it is left out.
        """
        seer, (classes, shots) = self.seer(spec), seen.support.shape[:2]
        written = seer.make(seen.names, seen.sentence, seen.upright, noise)
        written = replace(written, trunk=turned_tensors(spec, written.trunk, seen.turn))
        network, left_out = seer.see(written, seen.support, measure=seen.measure, others=seen.unlabelled)
        names = "the names" if seen.names is not None else ""
        more = " and pictures without labels" if seen.unlabelled is not None else ""
        between = (", " if more else " and ") if names else ""
        said: dict[str, Any] = {"head": f"from {names}{between}the examples{more}"}
        if seen.unlabelled is not None:
            said["unlabelled"] = len(seen.unlabelled)
        copies = copies_of(seen.support)
        judged = copies < shots  # the others are all that their class has
        if judged.any():
            labels = torch.arange(classes, device=left_out.device).repeat_interleave(shots)[judged]
            right = float((left_out[judged].argmax(1) == labels).float().mean())
            count = round(float((1 / copies[judged]).sum()))  # pictures that differ
            said["support_loss"] = float(F.cross_entropy(left_out[judged], labels))
            said["support_accuracy"] = right
            said["support_interval"] = interval_of(right, count)
            said["support_images"] = count
            said[LEFT_OUT] = "each when it is left out"
            found = calibration(left_out[judged], labels, f"examples, {said[LEFT_OUT]}")
            # With pictures without labels the head is another one than that which was left to answer.
            said["calibration"] = found if seen.unlabelled is None else None
        return network, said

    def _network(self, spec: ArchitectureSpec, written: Written, back: Tensor) -> Tensor:
        """(P,) with its rows in the order ``back`` of the request."""
        state = {**written.trunk, **written.statistics}
        layout = layout_of(spec)
        own = next(layer for layer in layout.layers if layer.kind == "head")
        state[own.slots[0].name], state[own.slots[1].name] = written.rows[back], written.biases[back]
        return layout.flatten(state)

    # ------------------------------------------------------------------ files

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json``, ``model.safetensors`` and, for examples, ``examples.safetensors``.

        Raises:
            CheckpointError: a file cannot be written.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = narrowed(self.state_dict())
        for file, seers in (("model", False), ("examples", True)):
            own = {name: value for name, value in tensors.items() if name.startswith("seers.") == seers}
            save_tensors(folder / f"{file}.safetensors", own, {"kind": self.kind})
        settings = {"name": self.name, "config": asdict(self.config), "validity": asdict(self.validity)}
        words = sorted(self.expected.vocabulary)
        write_json(folder / "config.json", {"kind": self.kind, **settings, "vocabulary": words})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Words:
        """Read what :meth:`save_pretrained` wrote. Raises CheckpointError where it is broken."""
        folder = Path(folder)
        config = read_json(folder / "config.json")
        tensors, _ = load_tensors(folder / "model.safetensors")
        tensors |= load_tensors(folder / "examples.safetensors")[0]
        try:
            validity = Validity.from_json(config["validity"])
            model = cls(WordsConfig(**config["config"]), validity, name=str(config["name"]))
            words = config["vocabulary"]
            if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
                raise SpecError("the vocabulary is no list of words")
            model.expected.vocabulary = frozenset(words)
        except (AttributeError, KeyError, TypeError, ValueError, IndexError, WeightloomError) as error:
            raise CheckpointError(folder / "config.json", f"no generator from words ({error})") from None
        held = {
            name: value.float() if value.dtype == torch.float16 else value for name, value in tensors.items()
        }
        load_strictly(model, held, folder / "model.safetensors")
        return model.eval()


def _loss(logits: Tensor, shots: int) -> float:
    """Mean cross-entropy of logits (C*S, C) of ``shots`` S examples of each class, in the order of the
    classes.
    """
    labels = torch.arange(logits.shape[1], device=logits.device).repeat_interleave(shots)
    return float(F.cross_entropy(logits, labels))
