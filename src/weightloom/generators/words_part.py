"""The learned part that makes networks of one architecture from class names and a sentence.

Every class name becomes a token; the tokens are a set. Their mean, with the sentence, is the context of a
prior that writes sixteen quantised codes for each layer of the trunk, layer after layer; a dictionary turns
a layer's codes into its weights. The row of the head for a class follows from the class's token and the
context, and so do the running statistics of batch norms, so that no image is needed.

Knows nothing of files, requests or training. Shapes: C classes, T layers, R codes a layer, H features of the
trunk, D width of a text vector, B images.
Sources: instruction-guided autoregressive generation, IGPG (arXiv 2504.02012), section 3; finite scalar
quantisation, Mentzer et al. (arXiv 2309.15505), section 3.1; rows of a head from class descriptions, T2M-HN
(arXiv 2210.15182).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from weightloom.architectures import ArchitectureSpec
from weightloom.conditioning.names import NAME_WIDTH
from weightloom.conditioning.text import TEXT_WIDTH
from weightloom.errors import SpecError
from weightloom.fitting.population import fold_batch_norms
from weightloom.seeding import seed_for
from weightloom.weights import Slot, layout_of

ONE_AT_A_TIME = threading.RLock()
"""Threads share the module that a part runs trunks through; each puts its own tensors into it."""

View = Literal["nothing", "one-pass", "unadapted", "codes", "activations"]


@dataclass(frozen=True, kw_only=True)
class WordsConfig:
    """Sizes. ``order`` says whether a layer's codes see those of the layers before.

    ``view`` is what the prior knows of examples when it writes a layer, where there are some:

    - ``nothing``: there are no codes, the trunk is the same for every task;
    - ``one-pass``: names and encoded examples; all layers at once;
    - ``unadapted``: the same, and the examples' activations in the trunk without codes;
    - ``codes``: layer after layer, the codes before;
    - ``activations``: layer after layer, the codes before and the examples' activations in what is written.
    """

    hidden: int = 256
    codes: int = 16
    levels: int = 9
    order: Literal["autoregressive", "one-pass"] = "autoregressive"
    view: View = "activations"
    looked: int = 5
    """Examples a class that the prior looks at; all count for head and statistics."""

    def __post_init__(self) -> None:
        limits = (("hidden", 8, 4096), ("codes", 1, 256), ("levels", 2, 257), ("looked", 1, 1000))
        for name, least, most in limits:
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise SpecError(f"{name} must be a whole number from {least} to {most}, not {value!r}")
        if self.order not in ("autoregressive", "one-pass"):
            raise SpecError(f"order is 'autoregressive' or 'one-pass', not {self.order!r}")
        if self.view not in get_args(View):
            raise SpecError(f"view is one of {', '.join(get_args(View))}, not {self.view!r}")


@dataclass(frozen=True)
class TrunkLayer:
    """What one token writes: a layer's weights, with those of the normalisation behind it."""

    slots: tuple[Slot, ...]

    @property
    def size(self) -> int:
        """Values."""
        return sum(slot.numel for slot in self.slots)

    def cut(self, values: Tensor) -> dict[str, Tensor]:
        """The layer's tensors by name from its values (P,)."""
        parts = values.split([slot.numel for slot in self.slots])
        return {slot.name: part.view(slot.shape) for slot, part in zip(self.slots, parts, strict=True)}


def trunk_layers(spec: ArchitectureSpec) -> tuple[TrunkLayer, ...]:
    """The layers of the trunk of ``spec``, in order; the head is not among them."""
    groups: list[list[Slot]] = []
    for layer in layout_of(spec).layers:
        own = [slot for slot in layer.slots if not slot.is_buffer]
        if layer.kind == "head" or not own:
            continue
        if layer.kind == "norm" and groups:
            groups[-1] += own
        else:
            groups.append(own)
    return tuple(TrunkLayer(tuple(group)) for group in groups)


@dataclass(frozen=True)
class Written:
    """What the words say of a network: codes (T, R), tensors of the trunk by name, rows (C, H) and biases
    (C,).
    """

    codes: Tensor
    trunk: dict[str, Tensor]
    statistics: dict[str, Tensor]
    rows: Tensor
    biases: Tensor


class WordsPart(nn.Module):
    """See the module. ``spec`` is resolved; its number of classes does not matter."""

    def __init__(self, config: WordsConfig, spec: ArchitectureSpec, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        layout = layout_of(spec)
        self.layers = trunk_layers(spec)
        self.norms = tuple(s for s in layout.slots if s.name.endswith("running_mean"))
        head = next(layer for layer in layout.layers if layer.kind == "head")
        self.features = head.slots[0].shape[1]
        with torch.device("meta"):
            # A plain attribute of a tuple: the trunk's own tensors are never read, and are not the part's.
            self._trunk = (spec.build().get_submodule("body"),)
        hidden, codes, count = config.hidden, config.codes, len(self.layers)
        if not count:
            raise SpecError(f"the trunk of {spec} has no layer to write")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for("words", seed))
            start = _he(spec.initialise(seed).state_dict())
            flats = [torch.cat([start[s.name].flatten() for s in layer.slots]) for layer in self.layers]
            self.base = nn.ParameterList(nn.Parameter(flat.clone()) for flat in flats)
            self.atoms = nn.ParameterList(
                nn.Parameter(torch.randn(codes, layer.size) * _scales(layer, start)) for layer in self.layers
            )
            self.name = nn.Sequential(nn.Linear(NAME_WIDTH, hidden), nn.GELU(), nn.Linear(hidden, hidden))
            self.sentence = nn.Linear(TEXT_WIDTH, hidden)
            self.no_sentence = nn.Parameter(torch.zeros(hidden))
            self.place = nn.Parameter(torch.randn(count, hidden) * 0.1)
            self.before = nn.Linear(codes, hidden) if count > 1 and config.order == "autoregressive" else None
            self.cell = nn.GRUCell(hidden, hidden)
            self.code = nn.Sequential(
                nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, codes)
            )
            self.mixed = nn.Linear(count * codes, hidden)
            self.row = nn.Sequential(
                nn.Linear(2 * hidden, 2 * hidden), nn.GELU(), nn.Linear(2 * hidden, self.features + 1)
            )
            self.sharpness = nn.Parameter(torch.zeros(()))
            widths = sum(slot.numel for slot in self.norms)
            self.statistic = (
                nn.Sequential(
                    nn.Linear(hidden + count * codes, hidden), nn.GELU(), nn.Linear(hidden, 2 * widths)
                )
                if widths
                else None
            )

    # ---------------------------------------------------------------------------------- words

    def tokens(self, names: Tensor, sentence: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens (C, E) of name vectors (C, D), and the context (E,) with a sentence's vector or without."""
        tokens = self.name(names)
        return tokens, self._context(tokens, sentence)

    def _context(self, tokens: Tensor, sentence: Tensor | None) -> Tensor:
        return tokens.mean(0) + (self.no_sentence if sentence is None else self.sentence(sentence))

    def write_codes(self, context: Tensor, noise: Tensor | None = None) -> Tensor:
        """(T, R) quantised codes in [-1, 1]; ``noise`` (T, R) moves them before they are rounded."""
        state = context[None]
        found: list[Tensor] = []
        for number in range(len(self.layers)):
            last = found[-1] if found else None
            code, state = self.write_layer(number, context, state, last, noise)
            found.append(code)
        return torch.stack(found)

    def write_layer(
        self, number: int, context: Tensor, state: Tensor, last: Tensor | None, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Codes (R,) of one layer and the prior's state (1, E) behind it; ``last`` (R,) are those before."""
        told = context + self.place[number]
        if last is not None and self.before is not None:
            told = told + self.before(last)
        state = self.cell(told[None], state)
        code = torch.tanh(self.code(state)[0])
        if noise is not None:
            code = (code + noise[number]).clamp(-1, 1)
        return self._quantise(code), state

    def _quantise(self, code: Tensor) -> Tensor:
        half = (self.config.levels - 1) / 2
        return code + ((code * half).round() / half - code).detach()  # straight through

    def decode(self, codes: Tensor) -> dict[str, Tensor]:
        """The trunk's parameters by their names in the network, from codes (T, R)."""
        state: dict[str, Tensor] = {}
        for layer, base, atoms, code in zip(self.layers, self.base, self.atoms, codes, strict=True):
            state |= layer.cut(base + code @ atoms)
        return state

    def write(
        self, names: Tensor, sentence: Tensor | None, noise: Tensor | None = None, *, dropout: float = 0.0
    ) -> Written:
        """All that the words say; ``noise`` as in :meth:`write_codes`, ``dropout`` of rows in training."""
        tokens, context = self.tokens(names, sentence)
        codes = self.write_codes(context, noise)
        rows, biases = self._rows(tokens, context, codes, dropout)
        return Written(codes, self.decode(codes), self._predict_statistics(context, codes), rows, biases)

    def _rows(self, tokens: Tensor, context: Tensor, codes: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
        """Rows (C, H) and biases (C,) of the classes."""
        told = context + self.mixed(codes.flatten())
        inner = self.row[:2](torch.cat([tokens, told.expand_as(tokens)], 1))
        if dropout:
            inner = F.dropout(inner, dropout)
        rows = self.row[2:](inner) * self.sharpness.exp()  # (C, H + 1)
        return rows[:, :-1], rows[:, -1]

    def _predict_statistics(self, context: Tensor, codes: Tensor) -> dict[str, Tensor]:
        """Running means and variances by name, from the context and the codes; none without batch norms."""
        if self.statistic is None:
            return {}
        means, deviations = self.statistic(torch.cat([context, codes.flatten()]).detach()).chunk(2)
        sizes = [slot.numel for slot in self.norms]
        statistics: dict[str, Tensor] = {}
        for slot, mean, deviation in zip(
            self.norms, means.split(sizes), deviations.split(sizes), strict=True
        ):
            statistics[slot.name] = mean
            variance = slot.name.removesuffix("mean") + "var"
            statistics[variance] = (2 * deviation.clamp(-8, 8)).exp()
        return statistics

    # --------------------------------------------------------------------------------- images

    def run(
        self, trunk: dict[str, Tensor], images: Tensor, statistics: dict[str, Tensor] | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Features (B, H) of images, and the running statistics that were used, by name.

        Without ``statistics`` they are those of the batch.
        """
        state = {name.removeprefix("body."): value for name, value in trunk.items()}
        measured: dict[str, Tensor] = {}
        for slot in self.norms:
            place = slot.name.removeprefix("body.")
            variance = place.removesuffix("mean") + "var"
            count = place.removesuffix("running_mean") + "num_batches_tracked"
            if statistics is None:
                measured[place], measured[variance] = (
                    images.new_zeros(slot.shape),
                    images.new_ones(slot.shape),
                )
            else:
                measured[place] = statistics[slot.name]
                measured[variance] = statistics[f"body.{variance}"]
            measured[count] = torch.zeros((), dtype=torch.long, device=images.device)
        with ONE_AT_A_TIME:
            module = self._trunk[0].train(statistics is None)
            for child in module.modules():
                if isinstance(child, nn.modules.batchnorm._BatchNorm):
                    child.momentum = 1.0  # what runs in training is then the batch's own
            arguments = {**state, **measured}
            if any(value.requires_grad for value in measured.values()):
                fold_batch_norms(module, arguments)
            features = functional_call(module, arguments, (images,))
            assert isinstance(features, Tensor)
        used = {f"body.{name}": value for name, value in measured.items() if value.is_floating_point()}
        return features, used

    def answer(self, written: Written, images: Tensor) -> Tensor:
        """Logits (B, C) of the network that the words say, on images (B, ...)."""
        features, _ = self.run(written.trunk, images, written.statistics)
        return features @ written.rows.T + written.biases

    def statistics_loss(self, predicted: dict[str, Tensor], measured: dict[str, Tensor]) -> Tensor:
        """How far predicted running statistics are from those measured, in units of the spread."""
        loss = torch.zeros(())
        for slot in self.norms:
            variance = slot.name.removesuffix("mean") + "var"
            spread = measured[variance].detach() + 1e-5
            shift = (predicted[slot.name] - measured[slot.name].detach()) / spread.sqrt()
            scale = 0.5 * (predicted[variance] + 1e-5).log() - 0.5 * spread.log()
            loss = loss + F.smooth_l1_loss(shift, torch.zeros_like(shift))
            loss = loss + F.smooth_l1_loss(scale, torch.zeros_like(scale))
        return loss


def _he(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights with the spread that keeps the size of what goes through rectifiers.

    Adam's steps have one size, so where batch norms hide the size of weights it decides how fast they turn.
    Source: He et al. (arXiv 1502.01852), equation 10.
    """
    found = dict(state)
    for name, value in state.items():
        if value.dim() > 1:
            found[name] = value * ((2 / value[0].numel()) ** 0.5 / value.std())
    return found


def _scales(layer: TrunkLayer, start: dict[str, Tensor]) -> Tensor:
    """How far a code moves each value at first: a part of its tensor's own spread."""
    parts = []
    for slot in layer.slots:
        spread = float(start[slot.name].std()) if slot.numel > 1 else 0.0
        parts.append(torch.full((slot.numel,), 0.3 * spread if spread > 1e-3 else 0.05))
    return torch.cat(parts)
