"""What IGPG's prior minimises: the codes of real checkpoints, and the loss of the networks it makes itself.

The functional part decodes expected latents and runs the networks on their tasks' images. On tasks of the zoo
they are whole networks; on tasks outside it, of which there are far more than a zoo holds, the prior answers
for the trunk, and the head is made in closed form from the support set on that very trunk, inside the
gradient: a head made beforehand would punish every change of the trunk below it.

Shapes: B networks of a step, T tokens, D codes a token, V codes to choose from, C classes, S examples a
class, Q images a network, H features of the trunk.
Sources: next-token loss, IGPG (arXiv 2504.02012), equation 3; a closed-form solver inside a meta-learner's
gradient, Bertinetto et al. (arXiv 1805.08136), section 3.
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
from weightloom.fitting import discriminant, run_networks, trunk_features
from weightloom.fitting.train import draw_batch
from weightloom.generators.igpg import IGPG
from weightloom.seeding import torch_generator
from weightloom.tokenizers import architecture_key
from weightloom.training.bank import BankedTask, banked_condition
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
    drop_instruction: float = 0.3
    drop_dataset: float = 0.1
    drop_architecture: float = 0.0
    """Share of steps without the description of the architecture: all networks of a step share one."""
    drop_all: float = 0.05

    def __post_init__(self) -> None:
        for name, least, most in (("networks", 1, 4096), ("queries", 2, 65536)):
            count = getattr(self, name)
            if not isinstance(count, int) or isinstance(count, bool) or not least <= count <= most:
                raise SpecError(f"{name} must be a whole number from {least} to {most}, not {count!r}")
        for name, value in asdict(self).items():
            limit = 1.0 if name.endswith("_share") or name.startswith("drop_") else 1e6
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= limit:
                raise SpecError(f"{name} must be a number from 0 to {limit:g}, not {value!r}")
        if not self.code_weight and not self.functional_weight:
            raise SpecError("code_weight and functional_weight cannot both be 0: nothing would be learned")


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
        self.codes = [self._targets(population) for population in self.populations]
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
        if settings.functional_weight and bool(condition.guessed.any()):
            if is_fresh:
                functional, right = self._with_closed_heads(spec, condition, tasks, generator)
            else:
                functional, right = self._whole(spec, condition, tasks, generator, step)
            loss = loss + settings.functional_weight * functional
            kind = "fresh" if is_fresh else "zoo"
            numbers |= {f"{kind}_loss": float(functional.detach()), f"{kind}_accuracy": right}
        return loss, numbers

    def _targets(self, population: Population) -> Tensor:
        """(M, T, D): what is kept of every checkpoint's task, the checkpoint's own codes where nothing is."""
        codes = self.model.tokenizer.encode(population.spec, population.flats)
        fingerprint = self.model.fingerprint
        group = None if fingerprint is None else fingerprint.groups.get(population.spec)
        kept = {} if group is None else group.memories
        return torch.stack([kept.get(r.task, own) for r, own in zip(population.records, codes, strict=True)])

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

    def _whole(
        self,
        spec: ArchitectureSpec,
        condition: Condition,
        tasks: Sequence[BankedTask],
        generator: torch.Generator,
        step: int,
    ) -> tuple[Tensor, float]:
        """Cross-entropy and accuracy of the whole networks of requests that start from a guess."""
        rows = condition.guessed.nonzero().flatten().tolist()
        flats = self.expected(spec, condition)[rows]  # (B', P)
        images, labels = draw_batch([tasks[row].data for row in rows], self.settings.queries, generator)
        # With the statistics of the batch, as a sample's are measured anew on its support set; now and then
        # with the generated ones, which is what a sample without a support set has.
        own = step % _GENERATED_NORMS_EVERY != 0
        return _loss(run_networks(spec, flats, images, training=own), labels)

    def _with_closed_heads(
        self,
        spec: ArchitectureSpec,
        condition: Condition,
        tasks: Sequence[BankedTask],
        generator: torch.Generator,
    ) -> tuple[Tensor, float]:
        """Cross-entropy and accuracy of closed-form heads on the trunks that the prior makes."""
        flats = self.expected(spec, condition)  # (B, P)
        support = torch.stack([task.images[0] for task in tasks])  # (B, C, S, ...)
        images, labels = draw_batch([task.data for task in tasks], self.settings.queries, generator)
        seen = torch.cat([support.flatten(1, 2), images], dim=1)  # (B, C*S + Q, ...)
        features = trunk_features(spec, flats, seen, training=True)  # (B, C*S + Q, H)
        count = support.shape[1] * support.shape[2]
        weight, bias = discriminant(features[:, :count].unflatten(1, support.shape[1:3]))
        return _loss(features[:, count:] @ weight.mT + bias[:, None], labels)

    def expected(self, spec: ArchitectureSpec, condition: Condition) -> Tensor:
        """(B, P) networks of the expected latents: no sampling, so no noise in the gradient.

        Every token sees the likeliest codes of those before it, as they were after one pass over the first
        guess (a Jacobi step): two passes instead of one for each token.
        """
        with torch.no_grad():
            _, _, around = self.model.prefix(spec, condition)
            codes = self.model(spec, condition, around).argmax(-1)
        logits = self.model(spec, condition, codes)  # (B, T, D, V)
        return self.model.tokenizer.decode_latents(spec, self.model.tokenizer.embed(logits.softmax(-1)))


def _loss(answers: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """Cross-entropy of (B, Q, C) answers and the share that is right; labels (B, Q)."""
    loss = F.cross_entropy(answers.flatten(0, 1), labels.flatten())
    return loss, float((answers.argmax(-1) == labels).float().mean())
