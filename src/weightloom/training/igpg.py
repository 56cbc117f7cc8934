"""What IGPG's prior minimises: the codes of real checkpoints, and the loss of the networks it makes itself.

On tasks outside the zoo it also learns what many examples would have made of the first guess.
The functional part samples codes from the prior, takes the straight-through gradient through the frozen
decoder and runs the decoded networks on their tasks' images. It needs no checkpoint, so it sees far more
tasks than the zoo holds.

Shapes: B networks of a step, T tokens, D codes a token, V codes to choose from, Q images a network.
Sources: next-token loss, IGPG (arXiv 2504.02012), equation 3; straight-through estimator, Bengio et al.
(arXiv 1308.3432).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from weightloom.architectures import ArchitectureSpec
from weightloom.conditioning import Condition
from weightloom.errors import SpecError
from weightloom.fitting import run_networks
from weightloom.fitting.train import draw_batch
from weightloom.generators.base import Sampling
from weightloom.generators.igpg import IGPG
from weightloom.seeding import torch_generator
from weightloom.tokenizers import architecture_key
from weightloom.training.bank import BankedTask, banked_condition, teacher_codes
from weightloom.training.tokenizer import Population

_GENERATED_NORMS_EVERY = 16
"""Steps from one with generated batch-norm statistics to the next: their large losses drown the others."""


@dataclass(frozen=True, kw_only=True)
class PriorSettings:
    """Weights of the parts and sizes of a step."""

    networks: int = 16
    queries: int = 96
    code_weight: float = 0.1
    functional_weight: float = 1.0
    fresh_share: float = 0.5
    """Share of steps on tasks outside the zoo (functional loss only; none where that has no weight)."""
    teacher_weight: float = 0.05
    teacher_shots: int = 100
    """On tasks outside the zoo: likelihood of the codes of the closed-form network of that many examples."""
    rollout_share: float = 0.1
    """Share of steps that sample codes one after another, as generation does, and take the straight-through
    gradient; the others decode expected latents, which is cheaper and less noisy."""
    temperature: float = 1.0
    drop_instruction: float = 0.3
    drop_dataset: float = 0.1
    drop_architecture: float = 0.0
    """Share of steps without the description of the architecture: all networks of a step share one."""
    drop_all: float = 0.05

    def __post_init__(self) -> None:
        for name, least, most in (("networks", 1, 4096), ("queries", 2, 65536), ("teacher_shots", 1, 65536)):
            count = getattr(self, name)
            if not isinstance(count, int) or isinstance(count, bool) or not least <= count <= most:
                raise SpecError(f"{name} must be a whole number from {least} to {most}, not {count!r}")
        for name, value in asdict(self).items():
            limit = 1.0 if name.endswith("_share") or name.startswith("drop_") else 1e6
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= limit:
                raise SpecError(f"{name} must be a number from 0 to {limit:g}, not {value!r}")
        if not self.code_weight and not self.functional_weight:
            raise SpecError("code_weight and functional_weight cannot both be 0: nothing would be learned")
        Sampling(temperature=self.temperature)


class PriorObjective:
    """Loss of one step on B networks that share an architecture and a class count."""

    def __init__(
        self,
        model: IGPG,
        populations: Sequence[Population],
        zoo_bank: Mapping[str, BankedTask],
        fresh: Mapping[int, Sequence[BankedTask]],
        settings: PriorSettings,
        *,
        seed: int = 0,
    ) -> None:
        self.model, self.populations, self.settings, self.seed = model, list(populations), settings, seed
        self.bank, self.fresh = zoo_bank, fresh
        self.codes = [model.tokenizer.encode(p.spec, p.flats) for p in self.populations]
        self.trunks = list(
            {architecture_key(p.spec): replace(p.spec, classes=None) for p in populations}.values()
        )

    def __call__(self, step: int) -> tuple[Tensor, dict[str, float]]:
        settings = self.settings
        generator = torch_generator("prior", self.seed, step)
        is_fresh = bool(torch.rand((), generator=generator) < settings.fresh_share)
        is_fresh = is_fresh and bool(self.fresh) and settings.functional_weight > 0
        drops = {"drop_instruction": settings.drop_instruction, "drop_all": settings.drop_all}
        numbers: dict[str, float] = {}
        loss = torch.zeros(())
        if is_fresh:
            spec, tasks = self._draw_fresh(generator)
            condition = self._condition(spec, tasks, generator, step, **drops)
        else:
            number = int(torch.randint(len(self.populations), (1,), generator=generator))
            population = self.populations[number]
            rows = torch.randint(len(population.records), (settings.networks,), generator=generator).tolist()
            spec = population.spec
            tasks = [self.bank[population.records[row].task] for row in rows]
            condition = self._condition(
                spec, tasks, generator, step, drop_dataset=settings.drop_dataset, **drops
            )
            codes = self.codes[number][rows]
            if settings.code_weight:
                logits = self.model(spec, condition, codes)
                likelihood = F.cross_entropy(logits.flatten(0, 2), codes.flatten())
                loss = loss + settings.code_weight * likelihood
                numbers["code_nats"] = float(likelihood.detach())
        if settings.functional_weight:
            functional, right, logits = self._functional(spec, condition, tasks, generator, step)
            if is_fresh and settings.teacher_weight:
                wanted = teacher_codes(self.model, spec, tasks, settings.teacher_shots)
                teaching = F.cross_entropy(logits.flatten(0, 2), wanted.flatten())
                loss = loss + settings.teacher_weight * teaching
                numbers["teacher_nats"] = float(teaching.detach())
            loss = loss + settings.functional_weight * functional
            kind = "fresh" if is_fresh else "zoo"
            numbers |= {f"{kind}_loss": float(functional.detach()), f"{kind}_accuracy": right}
        return loss, numbers

    def _draw_fresh(self, generator: torch.Generator) -> tuple[ArchitectureSpec, list[BankedTask]]:
        counts = sorted(self.fresh)
        sizes = torch.tensor([float(len(self.fresh[count])) for count in counts])
        classes = counts[int(torch.multinomial(sizes, 1, generator=generator))]
        pool = self.fresh[classes]
        chosen = torch.randint(len(pool), (self.settings.networks,), generator=generator).tolist()
        trunk = self.trunks[int(torch.randint(len(self.trunks), (1,), generator=generator))]
        return trunk.resolve(classes=classes), [pool[i] for i in chosen]

    def _condition(
        self,
        spec: ArchitectureSpec,
        tasks: Sequence[BankedTask],
        generator: torch.Generator,
        step: int,
        **drops: float,
    ) -> Condition:
        condition = banked_condition(self.model, spec, tasks, generator, **drops)
        # A stream of its own: whether the architecture is told changes nothing else that is drawn.
        chance = torch.rand((), generator=torch_generator("prior architecture", self.seed, step))
        return condition.without("architecture") if chance < self.settings.drop_architecture else condition

    def _functional(
        self,
        spec: ArchitectureSpec,
        condition: Condition,
        tasks: Sequence[BankedTask],
        generator: torch.Generator,
        step: int,
    ) -> tuple[Tensor, float, Tensor]:
        """Cross-entropy of the networks that the prior itself makes, their accuracy, and the logits."""
        chance = torch.rand((), generator=torch_generator("prior rollout", self.seed, step))
        if chance < self.settings.rollout_share:
            noise = [torch_generator("rollout", self.seed, step, i) for i in range(len(tasks))]
            sampling = Sampling(temperature=self.settings.temperature)
            codes = self.model.sample_codes(spec, condition, noise, sampling)
            logits = self.model(spec, condition, codes)
            flats = self.straight_through(spec, logits, codes)
        else:
            flats, logits = self.expected(spec, condition)
        images, labels = draw_batch([task.data for task in tasks], self.settings.queries, generator)
        # With the statistics of the batch, as a sample's are measured anew on its support set; now and then
        # with the generated ones, which is what a sample without a support set has.
        own = step % _GENERATED_NORMS_EVERY != 0
        answers = run_networks(spec, flats, images, training=own)  # (B, Q, C)
        loss = F.cross_entropy(answers.flatten(0, 1), labels.flatten())
        return loss, float((answers.argmax(-1) == labels).float().mean()), logits

    def straight_through(self, spec: ArchitectureSpec, logits: Tensor, codes: Tensor) -> Tensor:
        """(B, P) networks of hard ``codes`` with the gradient of the soft ones."""
        soft = logits.softmax(-1)  # (B, T, D, V)
        hard = F.one_hot(codes, soft.shape[-1]).to(soft.dtype)
        return self.model.tokenizer.decode_latents(
            spec, self.model.tokenizer.embed(hard + soft - soft.detach())
        )

    def expected(self, spec: ArchitectureSpec, condition: Condition) -> tuple[Tensor, Tensor]:
        """(B, P) networks of the expected latents and the logits: no sampling, so no noise in the gradient.

        Every token sees the likeliest codes of those before it, as they were after one pass over the first
        guess (a Jacobi step): two passes instead of one for each token.
        """
        with torch.no_grad():
            _, _, around = self.model.prefix(spec, condition)
            codes = self.model(spec, condition, around).argmax(-1)
        logits = self.model(spec, condition, codes)  # (B, T, D, V)
        latents = self.model.tokenizer.embed(logits.softmax(-1))
        return self.model.tokenizer.decode_latents(spec, latents), logits
