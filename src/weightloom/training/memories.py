"""Memories: for every task of the zoo the codes that a generator keeps, better than its checkpoints.

The mean of a task's checkpoints is moved, in the tokenizer's latent space and through its frozen decoder,
down the loss of the network that it decodes to, on the task's own training images. What is stored are codes.

Shapes: N networks, T tokens, D codes a token, Z latent width, B images a network.
Source: straight-through rounding, Bengio et al. (arXiv 1308.3432).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from weightloom.architectures import ArchitectureSpec
from weightloom.errors import CheckpointError, SpecError
from weightloom.fitting import recalibrate, run_networks
from weightloom.fitting.train import draw_batch
from weightloom.io import dump_json, load_tensors, parse_json, save_tensors
from weightloom.seeding import seed_for, torch_generator
from weightloom.tasks import TaskData
from weightloom.tokenizers import WeightTokenizer
from weightloom.training.loop import Progress
from weightloom.training.tokenizer import Population
from weightloom.whole import whole_fields

_CALIBRATION_IMAGES = 512


@dataclass(frozen=True, kw_only=True)
class MemorySettings:
    """How far memories are moved: steps of Adam on latents, none for the mean of the checkpoints as it is."""

    steps: int = 160
    batch_size: int = 96
    learning_rate: float = 0.01
    epsilon: float = 1e-3
    """Adam's constant, as in :class:`weightloom.fitting.FitSettings`."""

    def __post_init__(self) -> None:
        whole_fields(self, {"steps": (0, 10**9), "batch_size": (2, 10**6)})
        if not min(self.learning_rate, self.epsilon) > 0:
            raise SpecError("memories need learning_rate and epsilon above 0")


def keep_memories(
    tokenizer: WeightTokenizer,
    population: Population,
    settings: MemorySettings,
    path: Path,
    *,
    seed: int = 0,
    progress: Progress = lambda *_: None,
) -> dict[str, Tensor]:
    """As :func:`make_memories`, kept in a ``.safetensors`` file and taken from it where it is there.

    Raises:
        CheckpointError: the file is not what an earlier run kept of these tasks.
    """
    if not path.is_file():
        made = make_memories(tokenizer, population, settings, seed=seed, progress=progress)
        save_tensors(path, {"codes": torch.stack(list(made.values()))}, {"tasks": dump_json(list(made))})
        return made
    tensors, about = load_tensors(path)
    codes, tasks = tensors.get("codes"), parse_json(path, about.get("tasks", "[]"), what="list of tasks")
    wanted = sorted({record.task for record in population.records if record.final})
    shape = (len(wanted), *tokenizer.allowed(population.spec).shape[:2])  # (N, T, D)
    if codes is None or codes.shape != shape or codes.dtype != torch.int64 or tasks != wanted:
        raise CheckpointError(path, "is not what was kept of these tasks; remove it to make it anew")
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < tokenizer.vocabulary:
        raise CheckpointError(path, "it holds codes that the tokenizer does not have")
    return dict(zip(wanted, codes, strict=True))


def make_memories(
    tokenizer: WeightTokenizer,
    population: Population,
    settings: MemorySettings,
    *,
    seed: int = 0,
    at_once: int = 16,
    progress: Progress = lambda *_: None,
) -> dict[str, Tensor]:
    """(T, D) codes for every task of ``population``, from the mean of its final checkpoints."""
    rows: dict[str, list[int]] = {}
    for row, record in enumerate(population.records):
        if record.final:
            rows.setdefault(record.task, []).append(row)
    tasks = sorted(rows)
    memories: dict[str, Tensor] = {}
    for first in range(0, len(tasks), at_once):
        some = tasks[first : first + at_once]
        flats = torch.stack([population.flats[rows[task]].mean(0) for task in some])
        data = [population.data[rows[task][0]] for task in some]
        address = seed_for("memories", seed, str(population.spec), first)
        codes = refine_codes(tokenizer, population.spec, flats, data, settings, seed=address)
        memories |= dict(zip(some, codes, strict=True))
        progress(f"memories of {population.spec.family}", len(memories), len(tasks))
    return memories


def refine_codes(
    tokenizer: WeightTokenizer,
    spec: ArchitectureSpec,
    flats: Tensor,
    data: Sequence[TaskData],
    settings: MemorySettings,
    *,
    seed: int = 0,
) -> Tensor:
    """(N, T, D) codes of networks (N, P), network n moved to do better on ``data[n]``."""
    codes = tokenizer.encode(spec, flats)
    if not settings.steps:
        return codes
    allowed = tokenizer.allowed(spec)
    latents = tokenizer.embed_codes(codes).detach().requires_grad_()  # (N, T, Z)
    optimiser = torch.optim.Adam([latents], lr=settings.learning_rate, eps=settings.epsilon)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, total_iters=settings.steps)
    generator = torch_generator("memories", seed)
    for _ in range(settings.steps):
        images, labels = draw_batch(data, settings.batch_size, generator)
        hard = tokenizer.embed_codes(tokenizer.nearest_codes(latents.detach(), allowed))
        networks = tokenizer.decode_latents(spec, latents + (hard - latents).detach())
        answers = run_networks(spec, networks, images, training=True)  # (N, B, C)
        loss = F.cross_entropy(answers.transpose(1, 2), labels, reduction="none").mean(1).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    codes = tokenizer.nearest_codes(latents.detach(), allowed)
    # The running statistics of batch norms have no gradient: those of the network as it now is are coded.
    images, _ = draw_batch(data, _CALIBRATION_IMAGES, generator)
    with torch.no_grad():
        measured = tokenizer.encode(spec, recalibrate(spec, tokenizer.decode(spec, codes), images))
    layout, chunking, _ = tokenizer.bind(spec)
    norms = torch.tensor([layer.kind == "norm" for layer in layout.layers])[chunking.slots.layer]  # (T,)
    return torch.where(norms[:, None], measured, codes)
