"""The paper's tokenizer: a Gumbel vector-quantised autoencoder over weight chunks.

z = E(theta); z_q = sum_j y_j e_j with y = softmax((log pi + g) / tau); the loss is the masked
reconstruction error plus a codebook and a commitment term; the temperature is annealed by the trainer
through :attr:`GumbelTokenizer.temperature`.

Source: IGPG (arXiv 2504.02012), equations 1 and 2; codebook size 1024 and width 64 are inferred from
its table 4, weights of the two terms are not given there and are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightloom.errors import SpecError
from weightloom.seeding import torch_generator
from weightloom.tokenizers.base import DescribedSlots, TokenizerConfig, WeightTokenizer, tokenizers
from weightloom.tokenizers.blocks import TokenRefiner
from weightloom.weights import WeightStatistics


@dataclass(frozen=True, kw_only=True)
class GumbelTokenizerConfig(TokenizerConfig):
    """``codes`` entries of one shared codebook of ``vocabulary`` vectors of ``code_width``."""

    codes: int = 8
    vocabulary: int = 1024
    code_width: int = 64
    codebook_weight: float = 1.0
    commitment_weight: float = 0.25

    def __post_init__(self) -> None:
        TokenizerConfig.__post_init__(self)
        if not 1 <= self.code_width <= 4096 or self.codebook_weight < 0 or self.commitment_weight < 0:
            raise SpecError("code_width must be 1 to 4096, and the weights of the loss terms not negative")


@tokenizers.register("gumbel")
class GumbelTokenizer(WeightTokenizer):
    """Tokens to D entries of one codebook."""

    kind: ClassVar[str] = "gumbel"
    ordered: ClassVar[bool] = False
    config_type: ClassVar[type[TokenizerConfig]] = GumbelTokenizerConfig

    def __init__(self, config: GumbelTokenizerConfig, statistics: Mapping[str, WeightStatistics]) -> None:
        super().__init__(config, statistics)
        self.codes, self.code_width = config.codes, config.code_width
        self.latent_width = config.codes * config.code_width
        self.terms = (config.codebook_weight, config.commitment_weight)
        width, depth, attention = config.width, config.depth, config.attention
        self.encoder = TokenRefiner(
            config.chunk, self.latent_width, width=width, depth=depth, attention=attention
        )
        self.decoder = TokenRefiner(
            self.latent_width, config.chunk, width=width, depth=depth, attention=attention
        )
        self.project = nn.Linear(config.code_width, config.vocabulary)
        self.codebook = nn.Embedding(config.vocabulary, config.code_width)
        self.temperature = 1.0
        self.noise = torch_generator("gumbel")
        """Where training draws from; the trainer sets a stream of its own for every step."""
        self.decoder.outward.weight.data.mul_(0.1)
        self.decoder.outward.bias.data.zero_()

    def encode_tokens(self, tokens: Tensor, slots: DescribedSlots) -> tuple[Tensor, Tensor, Tensor]:
        z = self.encoder(tokens, slots.vectors)
        z = z.unflatten(-1, (self.codes, self.code_width))  # (N, T, Z) -> (N, T, D, e)
        logits = self.project(z)  # (N, T, D, V): log pi, up to a constant
        if self.training:
            uniform = torch.rand(logits.shape, generator=self.noise).clamp(1e-12, 1 - 1e-7).to(logits.device)
            y = ((logits - (-uniform.log()).log()) / self.temperature).softmax(-1)
        else:
            y = F.one_hot(logits.argmax(-1), logits.shape[-1]).to(z.dtype)
        quantised = y @ self.codebook.weight  # (N, T, D, e)
        codebook_weight, commitment_weight = self.terms
        penalty = codebook_weight * F.mse_loss(quantised, z.detach())
        penalty = penalty + commitment_weight * F.mse_loss(z, quantised.detach())
        return quantised.flatten(-2), logits.argmax(-1), penalty

    def embed(self, probabilities: Tensor) -> Tensor:
        return (probabilities @ self.codebook.weight).flatten(-2)  # (..., D, V) -> (..., D*e)

    def embed_codes(self, codes: Tensor) -> Tensor:
        embedded: Tensor = self.codebook(codes)  # (..., D, e)
        return embedded.flatten(-2)

    def closeness(self, codes: Tensor) -> Tensor:
        table = torch.cdist(self.codebook.weight, self.codebook.weight).square()  # (V, V)
        nearest = table.masked_fill(torch.eye(len(table), dtype=torch.bool), torch.inf).min(1).values.mean()
        return -(table / nearest.clamp_min(1e-6))[codes]

    def decode_tokens(self, latents: Tensor, slots: DescribedSlots) -> Tensor:
        return self.decoder(latents, slots.vectors)


def annealed_temperature(step: int, steps: int, cycles: int = 4, low: float = 1e-4) -> float:
    """Cyclical annealing of the temperature from 1 to ``low`` (IGPG, appendix A.1), geometric in a cycle.

    Example:
        >>> annealed_temperature(0, 100), annealed_temperature(99, 100, cycles=1, low=0.5)
        (1.0, 0.5...)
    """
    length = max(1, steps // cycles)
    along = min(1.0, (step % length) / max(1, length - 1))
    return float(torch.tensor(low) ** along) if along else 1.0
