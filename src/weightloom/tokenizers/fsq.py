"""The default tokenizer: finite scalar quantisation, one level a latent dimension.

Every latent number is rounded to one of V levels, so there is no codebook that can die, likely
neighbours are near in value, and the expected latent under a prior's probabilities is itself a
meaningful network: what training a prior through the decoded network needs.

A known architecture has, for each of its layers, a linear basis (at first the principal components of its
zoo's tokens); an encoder and a decoder that see all tokens of a network refine what the basis does. An
architecture without bases is coded by the two alone.

Source: finite scalar quantisation, Mentzer et al. (arXiv 2309.15505); layer through
vector-quantize-pytorch.
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
    resolved_example,
    tokenizers,
)
from weightloom.tokenizers.blocks import TokenRefiner
from weightloom.weights import WeightStatistics

_REACH = 4.0
"""Standard deviations of a coefficient that the outermost level stands for: coefficients have long tails,
and a filter whose own are cut off costs more than coarser steps do."""
_NOTHING = 1e-5
"""Variance of a coefficient, in units of a weight's, below which a component is left out."""


@dataclass(frozen=True, kw_only=True)
class FSQTokenizerConfig(TokenizerConfig):
    """``codes`` latent dimensions of ``vocabulary`` levels each (an odd number, so that zero is one)."""

    def __post_init__(self) -> None:
        TokenizerConfig.__post_init__(self)
        if self.vocabulary % 2 == 0:
            raise SpecError(f"finite scalar quantisation takes an odd vocabulary, not {self.vocabulary}")


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
        bases = {}
        for key in self.statistics:
            layers = int(self._cut(resolved_example(key)).slots.layer.max()) + 1
            bases[parameter_key(key)] = nn.Parameter(torch.zeros(layers, config.codes, config.chunk))
        self.bases = nn.ParameterDict(bases)
        # Both refiners start at nothing, the bases at the principal components: the first networks are whole.
        for refiner in (self.encoder, self.decoder):
            refiner.outward.weight.data.mul_(0.05)
            refiner.outward.bias.data.zero_()

    @torch.no_grad()
    def initialise_bases(self, key: str, layers: Sequence[Tensor]) -> None:
        """Principal components of the tokens (M, K) of every layer, the head's last as in the layout.

        Every component is scaled to the spread of its coefficients, so that codes have unit spread.
        """
        for layer, values in enumerate(layers):
            _, size, components = torch.linalg.svd(values, full_matrices=False)
            kept = min(self.config.codes, len(size))
            scale = size[:kept] / len(values) ** 0.5
            self.bases[parameter_key(key)][layer, :kept] = components[:kept] * scale[:, None]

    def _basis(self, slots: DescribedSlots) -> Tensor | None:
        """(T, D, K) bases of the tokens, or None for an architecture without."""
        if slots.key is None or parameter_key(slots.key) not in self.bases:
            return None
        return self.bases[parameter_key(slots.key)][slots.layers]

    def encode_tokens(self, tokens: Tensor, slots: DescribedSlots) -> tuple[Tensor, Tensor, Tensor]:
        z = self.encoder(tokens, slots.vectors)
        basis = self._basis(slots)
        if basis is not None:
            square = basis.square().sum(-1)  # (T, D)
            # A component that holds nothing codes nothing: dividing by next to nothing would give it a
            # gradient thousands of times that of everything else.
            inverse = torch.where(square > _NOTHING, 1 / square.clamp_min(_NOTHING), 0.0)
            coefficients = torch.einsum("ntk,tdk->ntd", tokens, basis) * inverse
            # The quantiser squashes with tanh: atanh beforehand makes its levels evenly spaced.
            z = z + torch.atanh((coefficients / _REACH).clamp(-0.999, 0.999))
        # A token of few values has no more free codes than values; the others stay at the middle.
        places = torch.arange(self.config.codes, device=tokens.device)
        latents, codes = self.quantiser(z * (places < slots.values[:, None]))  # (N, T, D) both
        return latents, codes.long(), tokens.new_zeros(())

    def free_codes(self, spec: ArchitectureSpec) -> Tensor:
        _, chunking, _ = self.bind(spec)
        return chunking.mask.sum(-1).clamp_max(self.num_codes)

    def embed(self, probabilities: Tensor) -> Tensor:
        half = self.config.vocabulary // 2
        levels = (probabilities.new_tensor(range(self.config.vocabulary)) - half) / half  # (V,) in [-1, 1]
        return probabilities @ levels  # (..., D, V) -> (..., D)

    def closeness(self, codes: Tensor) -> Tensor:
        levels = torch.arange(self.config.vocabulary, device=codes.device)
        return -(codes[..., None] - levels).square().to(self.slots.kinds.weight.dtype)

    def decode_tokens(self, latents: Tensor, slots: DescribedSlots) -> Tensor:
        rebuilt = self.decoder(latents, slots.vectors)
        basis = self._basis(slots)
        if basis is not None:
            rebuilt = rebuilt + torch.einsum("ntd,tdk->ntk", _REACH * latents, basis)
        return rebuilt
