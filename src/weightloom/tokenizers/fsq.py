"""The default tokenizer: finite scalar quantisation, one level a latent dimension.

Every latent number is rounded to one of V levels, so there is no codebook that can die, likely
neighbours are near in value, and the expected latent under a prior's probabilities is itself a
meaningful network: what training a prior through the decoded network needs.

Source: finite scalar quantisation, Mentzer et al. (arXiv 2309.15505); layer through
vector-quantize-pytorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from vector_quantize_pytorch import FSQ

from weightloom.errors import SpecError
from weightloom.tokenizers.base import TokenizerConfig, WeightTokenizer, tokenizers
from weightloom.tokenizers.blocks import TokenRefiner
from weightloom.weights import WeightStatistics


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
    config_type: ClassVar[type[TokenizerConfig]] = FSQTokenizerConfig

    def __init__(self, config: FSQTokenizerConfig, statistics: Mapping[str, WeightStatistics]) -> None:
        super().__init__(config, statistics)
        self.latent_width = config.codes
        sizes = {"width": config.width, "depth": config.depth, "attention": config.attention}
        self.encoder = TokenRefiner(config.chunk, config.codes, **sizes)
        self.decoder = TokenRefiner(config.codes, config.chunk, **sizes)
        self.quantiser = FSQ(
            levels=[config.vocabulary],
            num_codebooks=config.codes,
            dim=config.codes,
            keep_num_codebooks_dim=True,
        )
        # The rebuilt network starts at the zoo's mean network instead of at noise.
        self.decoder.outward.weight.data.mul_(0.1)
        self.decoder.outward.bias.data.zero_()

    def encode_tokens(self, tokens: Tensor, described: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        latents, codes = self.quantiser(self.encoder(tokens, described))  # (N, T, D) both
        return latents, codes.long(), tokens.new_zeros(())

    def embed(self, probabilities: Tensor) -> Tensor:
        half = self.config.vocabulary // 2
        levels = (probabilities.new_tensor(range(self.config.vocabulary)) - half) / half  # (V,) in [-1, 1]
        return probabilities @ levels  # (..., D, V) -> (..., D)

    def decode_tokens(self, latents: Tensor, described: Tensor) -> Tensor:
        return self.decoder(latents, described)
