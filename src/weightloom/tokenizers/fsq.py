"""The default tokenizer: finite scalar quantisation, one level a latent dimension.

Every latent number is rounded to one of V levels, so there is no codebook that can die, likely
neighbours are near in value, and the expected latent under a prior's probabilities is itself a
meaningful network: what training a prior through the decoded network needs.

A known architecture has, for each of its layers, a linear basis (at first the principal components of its
zoo's tokens). A component has as many levels as its spread asks for at a step that all components of a layer
share: what rate-distortion theory gives for a budget of bits. Layers on which the answers hang more have
finer steps. An encoder and a decoder that see all tokens of a network refine what the bases do. An
architecture without bases is coded by the two alone.

Sources: finite scalar quantisation, Mentzer et al. (arXiv 2309.15505), layer through
vector-quantize-pytorch; reverse water-filling, Cover and Thomas, "Elements of Information Theory", 10.3.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ

from weightloom.architectures import ArchitectureSpec
from weightloom.conditioning.architecture import parameter_key
from weightloom.errors import SpecError
from weightloom.tokenizers.base import (
    DescribedSlots,
    TokenizerConfig,
    WeightTokenizer,
    architecture_key,
    resolved_example,
    tokenizers,
)
from weightloom.tokenizers.blocks import TokenRefiner
from weightloom.weights import WeightStatistics

_REACH = 4.0
"""Standard deviations of a coefficient that the outermost level stands for: coefficients have long tails,
and a filter whose own are cut off costs more than coarser steps do."""
_NOTHING = 1e-10
"""Square of a basis vector below which it holds nothing."""


@dataclass(frozen=True, kw_only=True)
class FSQTokenizerConfig(TokenizerConfig):
    """``codes`` latent dimensions of at most ``vocabulary`` levels (an odd number, so that zero is one).

    ``bits`` a weight are what the levels of all dimensions together may take.
    """

    bits: float = 2.0

    def __post_init__(self) -> None:
        TokenizerConfig.__post_init__(self)
        if self.vocabulary % 2 == 0:
            raise SpecError(f"finite scalar quantisation takes an odd vocabulary, not {self.vocabulary}")
        if not 0 < self.bits <= 64:
            raise SpecError(f"bits must be above 0 and at most 64, not {self.bits!r}")


@tokenizers.register("fsq")
class FSQTokenizer(WeightTokenizer):
    """Tokens to D numbers of V levels each."""

    kind: ClassVar[str] = "fsq"
    ordered: ClassVar[bool] = True
    config_type: ClassVar[type[TokenizerConfig]] = FSQTokenizerConfig

    def __init__(self, config: FSQTokenizerConfig, statistics: Mapping[str, WeightStatistics]) -> None:
        super().__init__(config, statistics)
        self.latent_width = config.codes
        width, depth, attention = config.width, config.depth, config.attention
        self.encoder = TokenRefiner(config.chunk, config.codes, width=width, depth=depth, attention=attention)
        self.decoder = TokenRefiner(config.codes, config.chunk, width=width, depth=depth, attention=attention)
        self.quantiser = FSQ(
            levels=[config.vocabulary],
            num_codebooks=config.codes,
            dim=config.codes,
            keep_num_codebooks_dim=True,
        )
        self.middle = config.vocabulary // 2
        bases = {}
        for key in self.statistics:
            layers, name = int(self._cut(resolved_example(key)).slots.layer.max()) + 1, parameter_key(key)
            bases[name] = nn.Parameter(torch.zeros(layers, config.codes, config.chunk))
            # Levels on either side of the middle: how many a component may use.
            self.register_buffer(f"limit_{name}", torch.full((layers, config.codes), float(self.middle)))
        self.bases = nn.ParameterDict(bases)
        # Both refiners start at nothing, the bases at the principal components: the first networks are whole.
        for refiner in (self.encoder, self.decoder):
            refiner.outward.weight.data.mul_(0.05)
            refiner.outward.bias.data.zero_()

    @torch.no_grad()
    def initialise_bases(
        self, populations: Sequence[tuple[ArchitectureSpec, Tensor]], sensitivity: Tensor | None = None
    ) -> None:
        """Principal components of raw networks (M, P) that share an architecture, whatever their class
        counts.

        The steps between levels are the finest that fit the budget of bits for all of them. ``sensitivity``
        (layers,) is how much a network's answers change with the square of an error in each layer: its steps
        go with one over the root of it.
        """
        name, config = parameter_key(architecture_key(populations[0][0])), self.config
        assert isinstance(config, FSQTokenizerConfig)
        bases, limits = self.bases[name], getattr(self, f"limit_{name}")  # (layers, D, K), (layers, D)
        parts: dict[int, list[Tensor]] = {}
        for spec, flats in populations:
            _, chunking, bound = self.bind(spec)
            tokens = chunking.to_tokens(bound.normalise(flats))  # (M, T, K)
            for layer in range(len(bases)):
                parts.setdefault(layer, []).append(tokens[:, chunking.slots.layer == layer].flatten(0, 1))
        spread = torch.zeros_like(limits)
        for layer, pieces in parts.items():
            values = torch.cat(pieces)  # (tokens of the layer, K)
            _, size, vectors = torch.linalg.svd(values, full_matrices=False)
            kept = min(config.codes, len(size))
            bases[layer, :kept], spread[layer, :kept] = vectors[:kept], size[:kept] / len(values) ** 0.5
        finer = torch.ones(len(bases)) if sensitivity is None else sensitivity.rsqrt()  # (layers,)

        def fit(step: float) -> bool:
            levels = (_REACH * spread / (step * finer[:, None])).round().clamp_max(self.middle)
            limits.copy_(levels)
            return all(self.bits_per_weight(spec) <= config.bits for spec, _ in populations)

        fine, coarse = 1e-6, 1e6
        for _ in range(60):
            between = (fine * coarse) ** 0.5
            fine, coarse = (fine, between) if fit(between) else (between, coarse)
        fit(coarse)
        steps = torch.maximum(coarse * finer[:, None].expand_as(spread), _REACH * spread / self.middle)
        bases.mul_(self.middle * steps[..., None])

    def _in_bases(self, x: Tensor, slots: DescribedSlots, bases: Tensor) -> Tensor:
        """(N, T, a) tokens times the matrix (a, b) of their layer, of (layers, a, b): (N, T, b).

        Layer by layer: a matrix for each token would be most of the memory of a large network's decoding.
        """
        held, counts = torch.unique_consecutive(slots.layers, return_counts=True)
        parts = x.split(counts.tolist(), dim=1)
        matrices = bases.unbind(0)
        return torch.cat([part @ matrices[i] for i, part in zip(held.tolist(), parts, strict=True)], 1)

    def _limits(self, slots: DescribedSlots) -> Tensor:
        """(T, D) levels on either side of the middle that a code may take; a token of few values has no more
        free codes than values.
        """
        name = self._name(slots)
        free = torch.arange(self.config.codes, device=slots.values.device) < slots.values[:, None]
        return free * (float(self.middle) if name is None else getattr(self, f"limit_{name}")[slots.layers])

    def _name(self, slots: DescribedSlots) -> str | None:
        name = "" if slots.key is None else parameter_key(slots.key)
        return name if name in self.bases else None

    def encode_tokens(self, tokens: Tensor, slots: DescribedSlots) -> tuple[Tensor, Tensor, Tensor]:
        z = self.encoder(tokens, slots.vectors)
        name = self._name(slots)
        if name is not None:
            bases = self.bases[name]
            square = bases.square().sum(-1)  # (layers, D)
            # A component that holds nothing codes nothing: dividing by next to nothing would give it a
            # gradient thousands of times that of everything else.
            inverse = torch.where(square > _NOTHING, 1 / square.clamp_min(_NOTHING), 0.0)
            coefficients = self._in_bases(tokens, slots, bases.mT) * inverse[slots.layers]
            # The quantiser squashes with tanh: atanh beforehand makes its levels evenly spaced.
            z = z + torch.atanh(coefficients.clamp(-0.999, 0.999))
        limits = self._limits(slots)
        bound = torch.atanh(((limits + 0.45) / self.middle).clamp_max(0.999))
        latents, codes = self.quantiser(torch.clamp(z, -bound, bound) * (limits > 0))  # (N, T, D) both
        return latents, codes.long(), tokens.new_zeros(())

    def allowed(self, spec: ArchitectureSpec) -> Tensor:
        levels = torch.arange(self.vocabulary) - self.middle  # (V,)
        with torch.no_grad():
            return levels.abs() <= self._limits(self.describe(spec))[..., None]

    def embed(self, probabilities: Tensor) -> Tensor:
        half = self.config.vocabulary // 2
        levels = (probabilities.new_tensor(range(self.config.vocabulary)) - half) / half  # (V,) in [-1, 1]
        return probabilities @ levels  # (..., D, V) -> (..., D)

    def closeness(self, codes: Tensor) -> Tensor:
        levels = torch.arange(self.config.vocabulary, device=codes.device)
        return -(codes[..., None] - levels).square().to(self.slots.kinds.weight.dtype)

    def decode_tokens(self, latents: Tensor, slots: DescribedSlots) -> Tensor:
        rebuilt = self.decoder(latents, slots.vectors)
        name = self._name(slots)
        return rebuilt if name is None else rebuilt + self._in_bases(latents, slots, self.bases[name])
