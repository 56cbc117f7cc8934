"""Baseline: a kernel density over the latents of good checkpoints of the nearest tasks, drawn and decoded.

Only the best share of a task's checkpoints count (S_KDE30: 30 per cent). A draw is one of them plus
Gaussian noise whose bandwidth is set for each latent number by its own spread: the whole network stays
one network, where drawing every latent number by itself would mix many. With ``candidates`` every sample is
the best of so many draws on the request's examples.

Shapes: M samples, N checkpoints kept, P values of a network, T tokens, Z latent width.
Sources: S_KDE30 of hyper-representations (arXiv 2209.14733), section 3.2; subsampling as in SANE (arXiv
2406.09997), section 3.3; bandwidths by Scott (1992) and Silverman (1986) for one dimension.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from weightloom.conditioning import SupportEncoder
from weightloom.defaults import with_plain_defaults
from weightloom.errors import InputError, SpecError
from weightloom.fitting import recalibrate
from weightloom.generators.base import (
    Generator,
    Request,
    Validity,
    generators,
    sample_generators,
    support_scores,
)
from weightloom.generators.nearest import Neighbours, ZooGenerator, require_positive
from weightloom.generators.zoo_index import ZooIndex
from weightloom.tokenizers import WeightTokenizer

Bandwidth = Literal["scott", "silverman"]


def bandwidth_factor(rule: Bandwidth, count: int) -> float:
    """What the spread of ``count`` points in one dimension is multiplied by.

    Example:
        >>> bandwidth_factor("scott", 32), round(bandwidth_factor("silverman", 32), 4)
        (0.5, 0.5296)
    """
    assert count >= 1
    factor: float = count**-0.2
    return factor * (4 / 3) ** 0.2 if rule == "silverman" else factor


@generators.register("kde")
class KernelDensity(ZooGenerator):
    """Kernel density in the tokenizer's latent space."""

    kind: ClassVar[str] = "kde"

    def __init__(
        self,
        zoo_index: ZooIndex,
        images: SupportEncoder,
        validity: Validity,
        tokenizer: WeightTokenizer,
        *,
        tasks: int = 3,
        share: float = 0.3,
        bandwidth: Bandwidth = "scott",
        candidates: int = 1,
        name: str | None = None,
    ) -> None:
        """
        Args:
            tokenizer: in whose latents is drawn.
            tasks: of how many nearest tasks.
            share: best share of each task's checkpoints, by the zoo's accuracy; at least one is kept.
            bandwidth: the rule of thumb.
            candidates: draws a sample, of which the one with the lowest loss on the examples is given.
            zoo_index, images, validity, name: as in :class:`ZooGenerator`.

        Raises:
            SpecError: an option is out of range.
        """
        super().__init__(zoo_index, images, validity, name=name)
        self.tokenizer = tokenizer
        if not 0 < share <= 1:
            raise SpecError(f"share must be above 0 and at most 1, not {share}")
        if bandwidth not in ("scott", "silverman"):
            raise SpecError(f"bandwidth must be scott or silverman, not {bandwidth!r}")
        self.tasks, self.share, self.bandwidth = require_positive("tasks", tasks), share, bandwidth
        self.candidates = require_positive("candidates", candidates)

    @classmethod
    @with_plain_defaults
    def from_generator(cls, model: Generator, **options: Any) -> Self:
        """As every baseline's over a zoo.

        Raises:
            InputError: the generator carries no index of its zoo, or has no weight tokenizer.
        """
        tokenizer = getattr(model, "tokenizer", None)
        if not isinstance(tokenizer, WeightTokenizer):
            raise InputError(f"generator {model.name} has no weight tokenizer, in whose latents to draw")
        return super().from_generator(model, tokenizer=tokenizer, **options)

    def kept(self, found: Neighbours) -> list[int]:
        """Rows of the best checkpoints: best of each task apart, so that an easy task drives no other out."""
        rows: list[int] = []
        for task in found.tasks(self.tasks):
            own = found.rows_of(task)
            own.sort(key=lambda row: -(found.group.rows[row].get("accuracy") or 0.0))
            rows += own[: math.ceil(self.share * len(own))]
        return rows

    @torch.no_grad()
    def sample_flats(self, request: Request) -> tuple[Tensor, list[dict[str, Any]]]:
        """(M, P) draws from the density."""
        found = self.neighbours(request)
        rows = self.kept(found)
        tokenizer, spec = self.tokenizer, request.architecture
        latents = tokenizer.embed_codes(tokenizer.encode(spec, found.group.flats[rows]))  # (N, T, Z)
        factor = bandwidth_factor(self.bandwidth, len(rows))
        width = factor * latents.std(0, correction=1) if len(rows) > 1 else torch.zeros_like(latents[0])
        made, reports = [], []
        for noise in sample_generators(request):
            drawn, places = [], []
            for _ in range(self.candidates):
                places.append(int(torch.randint(len(rows), (1,), generator=noise)))
                move = width * torch.randn(width.shape, generator=noise).to(width)
                # One by one: a batched product may round differently, and a batch has to equal its singles.
                drawn.append(tokenizer.decode_latents(spec, (latents[places[-1]] + move)[None]))
            chosen = self.chosen(request, torch.cat(drawn))
            made.append(drawn[chosen])
            best = found.group.rows[rows[places[chosen]]]
            reports.append(
                {
                    "checkpoint": best.get("id"),
                    "checkpoint_task": best["task"],
                    "checkpoints": len(rows),
                    "bandwidth": factor,
                    "candidates": self.candidates,
                }
            )
        return torch.cat(made), reports

    def chosen(self, request: Request, flats: Tensor) -> int:
        """Which of (K, P) draws does best on the examples, with batch norms as the request wants them."""
        if len(flats) == 1 or request.support is None:
            return 0
        if request.batch_norm == "support":
            flats = recalibrate(request.architecture, flats, request.support.flat()[0])
        scores = support_scores(request.architecture, flats, request.support)
        return min(range(len(scores)), key=lambda place: scores[place]["support_loss"])
