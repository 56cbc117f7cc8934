"""The learned part that makes networks of one architecture from examples, with class names or without.

It extends :class:`weightloom.generators.words_part.WordsPart`: the token of a class also holds what a small
encoder sees in its examples, and each layer is written in view of what reaches it. The examples run through
the layers that are already written; their activations, pooled by class, are told to the prior before it
writes the next one. ``view`` says how much the prior sees; the other ways are for comparisons.

How much a class's name counts beside its examples is learned by the number of examples and by how well the
names alone answer them, which is an honest measure: the names' network never saw these examples.

Knows nothing of files, requests or training. Shapes: C classes, S examples a class, D width of a text vector,
T layers, R codes a layer, H features of the trunk, E hidden width, B images.
Sources: support activations in layers already made, HyperTransformer (arXiv 2201.04182), section 3; ridge
heads, Bertinetto et al. (arXiv 1805.08136), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightloom.architectures import ArchitectureSpec
from weightloom.errors import SpecError
from weightloom.fitting import (
    copies_of,
    discriminant,
    discriminant_left_out,
    discriminant_of_shares,
    left_out_residuals,
)
from weightloom.generators.words_part import ONE_AT_A_TIME, TrunkLayer, WordsConfig, WordsPart, Written
from weightloom.seeding import seed_for

ENCODED = 64
"""Features that the encoder of examples has of a picture."""

ROUNDS = 4
"""Times that pictures without labels are answered and the head is made anew."""

PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
NAMES = (1.0, 0.3, 0.0)
"""What the learned penalty and the learned worth of the names are multiplied by, whichever is best."""

SHRINKAGES, SCALES = (0.3, 0.6, 0.9), (0.1, 0.3, 1.0)
"""Of linear discriminants that stand beside the regression: of their covariance, and of their answers."""

CLEAR = 0.9
"""Share of the loss with what was learned below which something else is clearly better."""

_SIDE = 16


@dataclass(frozen=True)
class Fit:
    """A head of examples: rows (C, H) and biases (C,), what the names' rows are worth in it, and logits (C*S,
    C) of the examples, each by the head that was made without it.
    """

    rows: Tensor
    biases: Tensor
    names: Tensor
    left_out: Tensor


class ExamplesPart(WordsPart):
    """See the module. ``spec`` is resolved; its number of classes does not matter."""

    def __init__(self, config: WordsConfig, spec: ArchitectureSpec, *, seed: int = 0) -> None:
        order: Any = "autoregressive" if config.view in ("codes", "activations") else "one-pass"
        super().__init__(replace(config, order=order), spec, seed=seed)
        hidden = config.hidden
        assert spec.input is not None
        body = self._trunk[0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for("examples", seed))
            self.no_name = nn.Parameter(torch.zeros(hidden))
            self.evidence = nn.Sequential(nn.Linear(5, 32), nn.GELU(), nn.Linear(32, 4))
            if config.view == "nothing":
                del self.atoms, self.place, self.cell, self.code
                self.before = None
            else:
                self.encoder = nn.Sequential(
                    nn.Conv2d(spec.input[0], 24, 3, 2, 1), nn.ReLU(),
                    nn.Conv2d(24, 48, 3, 2, 1), nn.ReLU(),
                    nn.Conv2d(48, ENCODED, 3, 2, 1), nn.ReLU(),
                )  # fmt: skip
                self.seen = nn.Linear(2 * ENCODED, hidden)
            if config.view in ("activations", "unadapted"):
                self.pooled = nn.ModuleList(
                    nn.Sequential(nn.Linear(3 * _reaching(body, layer), 96), nn.GELU())
                    for layer in self.layers
                )
                self.viewed = nn.ModuleList(nn.Linear(96, hidden) for _ in self.layers)
            self.unlabelled = nn.Sequential(nn.Linear(5, 32), nn.GELU(), nn.Linear(32, 5))
        for net, first in (
            (self.evidence, [0.5, 3.0, -2.0, 1.0]),
            (self.unlabelled, [0.5, 0.5, 2.0, 1.0, 0.0]),
        ):
            last = net[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            with torch.no_grad():
                last.bias.copy_(torch.tensor(first))

    def begin_as(self, part: WordsPart) -> None:
        """Take over what ``part``, for words alone, has learned; what only this part has stays as it is."""
        own, other = self.state_dict(), part.state_dict()
        shared = {k: v for k, v in other.items() if k in own and own[k].shape == v.shape}
        self.load_state_dict({**own, **shared})

    # ---------------------------------------------------------------------------------- writing

    def known(
        self, names: Tensor | None, sentence: Tensor | None, support: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Tokens (C, E) and context (E,) of name vectors (C, D), a sentence (E,) and examples (C, S, ...);
        any may be missing, but not both names and examples.
        """
        if names is None:
            assert support is not None
            tokens = self.no_name.expand(len(support), -1)
        else:
            tokens = self.name(names)
        if support is not None and self.config.view != "nothing":
            images = support.flatten(0, 1)  # (C, S, ...) -> (C*S, ...)
            if images.shape[-1] > _SIDE or images.shape[-2] > _SIDE:
                images = F.adaptive_avg_pool2d(images, _SIDE)
            features = self.encoder(images).flatten(2).mean(2).unflatten(0, support.shape[:2])  # (C, S, 64)
            tokens = tokens + self.seen(torch.cat([features.mean(1), features.std(1, correction=0)], 1))
        return tokens, self._context(tokens, sentence)

    def make(
        self,
        names: Tensor | None,
        sentence: Tensor | None,
        support: Tensor | None,
        noise: Tensor | None = None,
        *,
        dropout: float = 0.0,
    ) -> Written:
        """All that names, sentence and examples (C, S, ...) say; ``noise`` (T, R) moves the codes.

        Rows and biases are those of the names; without names they are zero. :meth:`see` adds the examples.
        """
        if support is not None:
            support = support[:, : self.config.looked]
        tokens, context = self.known(names, sentence, support)
        if self.config.view == "nothing":
            codes = context.new_zeros(len(self.layers), self.config.codes)
            pairs = zip(self.layers, self.base, strict=True)
            trunk = {name: value for layer, base in pairs for name, value in layer.cut(base).items()}
        else:
            codes, trunk = self._write_trunk(context, support, noise)
        if names is None:
            rows, biases = context.new_zeros(len(tokens), self.features), context.new_zeros(len(tokens))
        else:
            rows, biases = self._rows(tokens, context, codes, dropout)
        return Written(codes, trunk, self._predict_statistics(context, codes), rows, biases)

    def _write_trunk(
        self, context: Tensor, support: Tensor | None, noise: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(T, R) codes and the trunk's tensors by name."""
        view = self.config.view
        views: dict[int, Tensor] = {}
        state = context[None]
        found: dict[int, Tensor] = {}
        cut: dict[int, dict[str, Tensor]] = {}
        last: Tensor | None = None

        def write(number: int) -> None:
            nonlocal state, last
            told = context + views[number] if number in views else context
            found[number], state = self.write_layer(number, told, state, last, noise)
            last = found[number]
            cut[number] = self.layers[number].cut(self.base[number] + last @ self.atoms[number])

        if support is not None and view == "unadapted":

            def look(number: int, inputs: Tensor) -> dict[str, Tensor]:
                views[number] = self._pool(number, inputs, support)
                return self.layers[number].cut(self.base[number])

            self._walk(support, look)
        if support is not None and view == "activations":

            def written(number: int, inputs: Tensor) -> dict[str, Tensor]:
                views[number] = self._pool(number, inputs, support)
                write(number)
                return cut[number]

            self._walk(support, written)
        numbers = range(len(self.layers))
        for number in numbers:
            if number not in found:
                write(number)
        trunk = {name: value for number in numbers for name, value in cut[number].items()}
        return torch.stack([found[number] for number in numbers]), trunk

    def _pool(self, number: int, inputs: Tensor, support: Tensor) -> Tensor:
        """(E,) what is told of activations (C*S, channels, ...) that reach a layer, whatever the classes'
        order.
        """
        spots = inputs.flatten(2) if inputs.dim() > 2 else inputs[..., None]  # (C*S, ch, L)
        means = spots.mean(2).unflatten(0, support.shape[:2])  # (C, S, ch)
        overall = means.mean((0, 1))  # (ch,)
        spread = means.std((0, 1), correction=0) + 1e-2
        own = (means.mean(1) - overall) / spread  # (C, ch)
        size = spots.square().mean((0, 2)).sqrt()
        seen = torch.cat([own, overall.expand_as(own), size.expand_as(own)], 1)  # (C, 3*ch)
        return self.viewed[number](self.pooled[number](seen).mean(0))

    def _walk(self, support: Tensor, write: Callable[[int, Tensor], dict[str, Tensor]]) -> None:
        """Run examples (C, S, ...) through the trunk; ``write(number, inputs)`` gives a layer's tensors when
        its inputs are there. Batch norms use the statistics of these examples.
        """
        body = self._trunk[0]
        with ONE_AT_A_TIME, _loose(body, self.layers, write) as module:
            module(support.flatten(0, 1).contiguous(memory_format=torch.channels_last))

    # --------------------------------------------------------------------------------- evidence

    def weigh(self, shots: int, classes: int, agreement: Tensor) -> Tensor:
        """(4,) what names and examples are worth: of the rows of the names, of the labels, the ridge's
        penalty, and the images that the predicted statistics count for. ``agreement`` (2,) is
        :meth:`agreement`'s.
        """
        raw = self.evidence(self._counted(shots, classes, agreement))
        return torch.stack([torch.sigmoid(raw[0]), F.softplus(raw[1]), (2 * raw[2]).exp(), 4 * raw[3].exp()])

    def _counted(self, shots: int, classes: int, agreement: Tensor) -> Tensor:
        known = torch.tensor([math.log(shots), math.log(classes), math.log(shots * classes)]) / 3
        return torch.cat([known.to(agreement.device), agreement])

    def agreement(self, written: Written, features: Tensor) -> Tensor:
        """(2,) how well the rows of the names answer features (C, S, H): likelihood and share right, from
        about 0 (chance) to 1; both -1 without names.
        """
        classes, shots = features.shape[:2]
        if not written.rows.any():
            return features.new_full((2,), -1.0)
        with torch.no_grad():
            logits = (features @ written.rows.T + written.biases).flatten(0, 1)  # (C*S, C)
            labels = torch.arange(classes, device=features.device).repeat_interleave(shots)
            chance = math.log(classes)
            gain = 1 - float(F.cross_entropy(logits, labels)) / chance
            right = (float((logits.argmax(1) == labels).float().mean()) - 1 / classes) / (1 - 1 / classes)
        return features.new_tensor([max(-1.0, gain), right])

    def blend(self, written: Written, images: Tensor, worth: Tensor) -> dict[str, Tensor]:
        """Running statistics of predicted and measured ones, by what each is worth."""
        with torch.no_grad():
            _, measured = self.run(written.trunk, images, None)
        share = len(images) / (len(images) + worth)
        blended: dict[str, Tensor] = {}
        for slot in self.norms:
            variance = slot.name.removesuffix("mean") + "var"
            mean, said = measured[slot.name], written.statistics[slot.name]
            middle = share * mean + (1 - share) * said
            blended[slot.name] = middle
            blended[variance] = share * (measured[variance] + (mean - middle) ** 2) + (1 - share) * (
                written.statistics[variance] + (said - middle) ** 2
            )
        return blended

    def with_examples(self, written: Written, features: Tensor, worth: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (C, H) and biases (C,) after features (C, S, H) of examples have been seen.

        The rows of the names answer first; a ridge regression answers for what they leave unexplained of the
        labels.
        """
        design, wanted, middle, size = self._regression(written, features, worth)
        # The same solution by examples or by features, whichever are fewer.
        if len(design) <= design.shape[1]:
            kernel = design @ design.T + worth[2] * torch.eye(len(design), device=design.device)
            moved = design.T @ torch.linalg.solve(kernel, wanted)  # (H + 1, C)
        else:
            gram = design.T @ design + worth[2] * torch.eye(design.shape[1], device=design.device)
            moved = torch.linalg.solve(gram, design.T @ wanted)  # (H + 1, C)
        change = moved[:-1].T / size  # (C, H)
        rows = worth[0] * written.rows + change
        biases = worth[0] * written.biases + 0.3 * moved[-1] - change @ middle
        return rows, biases

    def _regression(
        self, written: Written, features: Tensor, worth: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Design (C*S, H + 1) and targets (C*S, C) of the ridge regression, and the middle (H,) and size ()
        that the features (C, S, H) are brought to the design by.
        """
        classes, shots, width = features.shape
        flat = features.flatten(0, 1)  # (C, S, H) -> (C*S, H)
        middle = flat.mean(0)
        size = (flat - middle).square().mean().sqrt() * width**0.5 + 1e-4
        design = torch.cat([(flat - middle) / size, flat.new_full((len(flat), 1), 0.3)], 1)  # (C*S, H + 1)
        said = flat @ written.rows.T + written.biases
        said = said - said.mean(1, keepdim=True)
        labels = torch.arange(classes, device=flat.device).repeat_interleave(shots)
        wanted = worth[1] * (F.one_hot(labels, classes).to(flat.dtype) - 1 / classes) - worth[0] * said
        return design, wanted, middle, size

    def fit(self, written: Written, features: Tensor, copies: Tensor) -> Fit:
        """The head of features (C, S, H) of examples and of the rows of the names, whichever answers left-out
        examples best.

        The worth of the names and the penalty of the ridge regression that were learned are right for
        pictures like those of training. For others they are multiplied by :data:`NAMES` and
        :data:`PENALTIES`, and linear discriminants stand beside the regression. One example a class cannot be
        left out: what was learned holds.

        Source: leave-one-out residuals of ridge regression, Hastie et al., "The Elements of Statistical
        Learning", equation 7.64.
        """
        classes, shots = features.shape[:2]
        learned = self.weigh(shots, classes, self.agreement(written, features))
        labels = torch.arange(classes, device=features.device).repeat_interleave(shots)
        said = features.flatten(0, 1) @ written.rows.T + written.biases  # (C*S, C)
        judged = copies < shots  # the others are all that their class has
        free = bool(judged.any())
        worths = NAMES if free and written.rows.any() else (1.0,)
        best = (math.inf, learned, 0.0, 0.0, said)

        def offer(
            names: float, answers: Tensor, penalty: float, shrinkage: float = 0.0, scale: float = 0.0
        ) -> None:
            nonlocal best
            shown, wanted = (answers[judged], labels[judged]) if free else (answers, labels)
            loss = float(F.cross_entropy(shown.detach(), wanted))
            if names == penalty == 1.0:
                loss *= CLEAR
            if loss < best[0]:
                worth = learned * learned.new_tensor([names, 1.0, penalty or 1.0, 1.0])
                best = (loss, worth, shrinkage, scale, answers)

        middle = said.mean(1, keepdim=True)
        wanted = learned[1] * (F.one_hot(labels, classes).to(said.dtype) - 1 / classes)
        design = self._regression(written, features, learned)[0]
        residual = left_out_residuals(design, torch.cat([wanted, said - middle], 1), copies)
        for penalty in PENALTIES if free else (1.0,):
            shown = residual(penalty * learned[2])  # (C*S, 2*C)
            for names in worths:
                # The targets, less what is left of them where they are left out, and the names' own answer.
                own = wanted - shown[:, :classes] + names * learned[0] * (shown[:, classes:] + middle)
                offer(names, own, penalty)
        for shrinkage in SHRINKAGES if free else ():
            own = discriminant_left_out(features, shrinkage, copies)
            for scale in SCALES:
                for names in worths:
                    offer(names, scale * own + names * learned[0] * said, 0.0, shrinkage, scale)
        _, worth, shrinkage, scale, answers = best
        if not shrinkage:
            return Fit(*self.with_examples(written, features, worth), worth[0], answers)
        rows, biases = discriminant(features, shrinkage)
        rows, biases = scale * rows + worth[0] * written.rows, scale * biases + worth[0] * written.biases
        return Fit(rows, biases, worth[0], answers)

    def head(
        self, written: Written, features: Tensor, others: Tensor | None = None, fit: Fit | None = None
    ) -> tuple[Tensor, Tensor]:
        """Rows (C, H) and biases (C,) from features (C, S, H) of examples, the rows of the names, and
        features (U, H) of pictures without labels; ``fit`` is that of the examples, left out what was
        learned.
        """
        classes, shots = features.shape[:2]
        agreement = self.agreement(written, features)
        if fit is None:
            worth = self.weigh(shots, classes, agreement)
            rows, biases = self.with_examples(written, features, worth)
            names = worth[0]
        else:
            rows, biases, names = fit.rows, fit.biases, fit.names
        if others is None:
            return rows, biases
        raw = self.unlabelled(self._counted(shots, classes, agreement))
        sharpness, scale = F.softplus(raw[0]), F.softplus(raw[1])
        shrinkage, count, share = torch.sigmoid(raw[2]), torch.sigmoid(raw[3]), torch.sigmoid(raw[4])
        answers = features.new_zeros(classes, shots, classes)
        answers[torch.arange(classes), :, torch.arange(classes)] = 1.0
        together = torch.cat([features.flatten(0, 1), others])  # (C*S + U, H)
        new_rows, new_biases = rows, biases
        for _ in range(ROUNDS):
            guessed = (sharpness * (others @ new_rows.T + new_biases)).softmax(1)  # (U, C)
            given = torch.cat([answers.flatten(0, 1), count * guessed])  # (C*S + U, C)
            weight, bias = discriminant_of_shares(together, given, shrinkage)
            said, said_bias = names * written.rows, names * written.biases
            new_rows = (1 - share) * rows + share * (said + scale * weight)
            new_biases = (1 - share) * biases + share * (said_bias + scale * bias)
        return new_rows, new_biases

    def see(
        self, written: Written, support: Tensor, *, measure: bool = True, others: Tensor | None = None
    ) -> tuple[Written, Tensor]:
        """The network once examples (C, S, ...) have been seen, and pictures without labels (U, ...); and
        logits (C*S, C) of the examples by :meth:`fit`.

        Without ``measure`` the statistics stay those that are predicted.
        """
        classes, shots = support.shape[:2]
        images = support.flatten(0, 1)  # (C, S, ...) -> (C*S, ...)
        if others is not None:
            images = torch.cat([images, others])
        statistics = written.statistics
        if measure:
            statistics = self.blend(written, images, self.weigh(shots, classes, support.new_zeros(2))[3])
        features, _ = self.run(written.trunk, images, statistics)
        seen = features[: classes * shots].unflatten(0, (classes, shots))  # (C*S, H) -> (C, S, H)
        fit = self.fit(written, seen, copies_of(support))
        without = None if others is None else features[classes * shots :]
        rows, biases = self.head(written, seen, without, fit)
        return replace(written, statistics=statistics, rows=rows, biases=biases), fit.left_out


def _owner(body: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module of ``body`` that a tensor of the network belongs to, and the tensor's name there."""
    path, _, own = name.removeprefix("body.").rpartition(".")
    return body.get_submodule(path), own


def _reaching(body: nn.Module, layer: TrunkLayer) -> int:
    """Channels that reach a layer."""
    module, _ = _owner(body, layer.slots[0].name)
    if isinstance(module, nn.Linear):
        return module.in_features
    if isinstance(module, nn.Conv2d):
        return module.in_channels
    raise SpecError(f"activations before {layer.slots[0].name} cannot be pooled")


@contextmanager
def _loose(
    body: nn.Module, layers: tuple[TrunkLayer, ...], write: Callable[[int, Tensor], dict[str, Tensor]]
) -> Iterator[nn.Module]:
    """``body`` with a layer's parameters asked for when its input is there, and as it was at the end."""
    taken: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for module in body.modules():
        taken += [(own, dict(own)) for own in (module._parameters, module._buffers)]
    handles: list[Any] = []

    def asked(number: int) -> Callable[..., None]:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            for name, value in write(number, arguments[0]).items():
                module, own = _owner(body, name)
                module._parameters[own] = value  # type: ignore[assignment]

        return hook

    try:
        for module in body.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                # Without running statistics a batch norm takes the batch's.
                module._buffers.update(dict.fromkeys(module._buffers))
        for number, layer in enumerate(layers):
            owner = _owner(body, layer.slots[0].name)[0]
            handles.append(owner.register_forward_pre_hook(asked(number)))
        yield body.train()
    finally:
        for handle in handles:
            handle.remove()
        for own, before in taken:
            own.clear()
            own.update(before)
