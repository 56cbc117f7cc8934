"""What a weight tokenizer minimises: the error of the weights, and of what the rebuilt networks answer.

Shapes: N networks of a step, P values of a network, B images a network.
Sources: IGPG (arXiv 2504.02012), equation 2; behavioural loss, "Structure Is Not Enough" (arXiv 2503.17138).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from weightloom.architectures import ArchitectureSpec
from weightloom.errors import InputError
from weightloom.fitting import accuracy, closed_form_network, recalibrate, run_networks
from weightloom.fitting.train import draw_batch
from weightloom.seeding import torch_generator
from weightloom.tasks import TaskData
from weightloom.tokenizers import WeightTokenizer, architecture_key
from weightloom.tokenizers.fsq import FSQTokenizer
from weightloom.tokenizers.gumbel import GumbelTokenizer, annealed_temperature
from weightloom.training.parallel import WHOLE, Part
from weightloom.weights import BoundStatistics, WeightStatistics, layout_of
from weightloom.zoo import Record, Zoo


@dataclass(frozen=True)
class Population:
    """The checkpoints of one resolved architecture: records, (M, P) weights and their tasks' images."""

    spec: ArchitectureSpec
    records: list[Record]
    flats: Tensor
    data: list[TaskData]


def load_populations(zoo: Zoo, *, split: str = "train", final: bool | None = None) -> list[Population]:
    """Every checkpoint of ``split``, grouped by architecture and class count.

    Raises:
        InputError: the zoo has none.
    """
    cache: dict[str, TaskData] = {}
    populations = []
    for spec, records in zoo.by_architecture(split=split, final=final):
        for record in records:
            if record.task not in cache:
                cache[record.task] = record.parsed_task().data("train")
        populations.append(Population(spec, records, zoo.load(records), [cache[r.task] for r in records]))
    if not populations:
        raise InputError(f"{zoo.path} holds no checkpoints of the split {split!r}")
    return populations


def held_out_populations(zoo: Zoo) -> list[Population]:
    """Final checkpoints of the held-out splits that the zoo has."""
    held: list[Population] = []
    for split in ("held-out-subset", "held-out-order", "held-out-transform"):
        if zoo.records(split=split, final=True):
            held += load_populations(zoo, split=split, final=True)
    return held


def measure_statistics(populations: list[Population]) -> dict[str, WeightStatistics]:
    """Weight statistics by architecture, over all its class counts."""
    groups: dict[str, list[tuple[object, Tensor]]] = {}
    for population in populations:
        key = architecture_key(population.spec)
        groups.setdefault(key, []).append((layout_of(population.spec), population.flats))
    return {key: WeightStatistics.measure(group) for key, group in groups.items()}  # type: ignore[arg-type]


def with_closed_forms(populations: list[Population]) -> list[Population]:
    """The populations and, for each of their tasks, a closed-form head on their mean trunk.

    A tokenizer that is to code closed-form heads has to have seen some: they reach further along the small
    components than trained ones do.
    """
    statistics = measure_statistics(populations)
    result = []
    for population in populations:
        layout = layout_of(population.spec)
        own = statistics[architecture_key(population.spec)]
        centre = own.bind(layout).mean_network()
        records, flats, data = list(population.records), [population.flats], list(population.data)
        seen: set[str] = set()
        for record, images in zip(population.records, population.data, strict=True):
            if record.task in seen:
                continue
            seen.add(record.task)
            support = record.parsed_task().support(16, seed=1).images
            rms = own.head_rms(layout)
            flats.append(closed_form_network(population.spec, centre, support, head_rms=rms)[None])
            records.append(record)
            data.append(images)
        result.append(Population(population.spec, records, torch.cat(flats), data))
    return result


def initialise_bases(tokenizer: FSQTokenizer, populations: list[Population]) -> None:
    """Set the tokenizer's bases to the principal components of the populations' networks, and its steps to
    what their answers can bear.
    """
    groups: dict[str, list[Population]] = {}
    for population in populations:
        groups.setdefault(architecture_key(population.spec), []).append(population)
    for group in groups.values():
        bound = tokenizer.bind(group[0].spec)[2]
        sensitivity = layer_sensitivity(group[0], bound)
        tokenizer.initialise_bases([(p.spec, p.flats) for p in group], sensitivity)


@torch.no_grad()
def layer_sensitivity(
    population: Population,
    bound: BoundStatistics,
    *,
    networks: int = 12,
    images: int = 64,
    noise: float = 0.1,
    seed: int = 0,
) -> Tensor:
    """(layers,) divergence of a network's answers for each unit of squared error of a normalised weight.

    Measured with noise in one layer at a time, half with batch-norm statistics of the images and half with
    the network's own. It weighs layers against each other, so its scale means nothing.
    """
    generator = torch_generator("sensitivity", seed)
    count = len(population.records)
    rows = torch.linspace(0, count - 1, min(networks, count)).long().tolist()
    flats = population.flats[rows]
    batch, _ = draw_batch([population.data[row] for row in rows], images, generator)
    normal = bound.normalise(flats)
    result, start = [], 0
    clean = [
        run_networks(population.spec, flats, batch, training=own).log_softmax(-1) for own in (True, False)
    ]
    for layer in layout_of(population.spec).layers:
        stop = start + layer.rows * layer.cols
        shaken = normal.clone()
        shaken[:, start:stop] += noise * torch.randn(len(flats), stop - start, generator=generator)
        moved = bound.denormalise(shaken)
        divergence = 0.0
        for own, wanted in zip((True, False), clean, strict=True):
            given = run_networks(population.spec, moved, batch, training=own).log_softmax(-1)
            divergence += float(F.kl_div(given, wanted, log_target=True, reduction="none").sum(-1).mean())
        result.append(max(divergence, 1e-9) / (stop - start) / noise**2)
        start = stop
    return torch.tensor(result)


class TokenizerObjective:
    """Loss of one step: N networks of one architecture, weight error plus divergence of their answers."""

    def __init__(
        self,
        tokenizer: WeightTokenizer,
        populations: list[Population],
        *,
        networks: int = 16,
        images: int = 64,
        functional_weight: float = 1.0,
        input_noise: float = 0.0,
        latent_noise: float = 0.0,
        seed: int = 0,
        steps: int = 1000,
    ) -> None:
        self.tokenizer, self.populations = tokenizer, populations
        self.networks, self.images, self.functional_weight = networks, images, functional_weight
        self.input_noise, self.latent_noise = input_noise, latent_noise
        self.seed, self.steps = seed, steps

    @property
    def items(self) -> int:
        """N, or 1 where a step draws noise for all networks at once, in the middle of the tokenizer."""
        noisy = isinstance(self.tokenizer, GumbelTokenizer) or self.input_noise or self.latent_noise
        return 1 if noisy else self.networks

    def __call__(self, step: int, part: Part = WHOLE) -> tuple[Tensor, dict[str, float]]:
        generator = torch_generator("tokenizer", self.seed, step)
        number = int(torch.randint(len(self.populations), (1,), generator=generator))
        population = self.populations[number]
        rows = torch.randint(len(population.records), (self.networks,), generator=generator).tolist()
        mine, share = part.rows(self.networks), part.share(self.networks)
        flats = population.flats[rows][mine]
        if isinstance(self.tokenizer, GumbelTokenizer):
            self.tokenizer.noise = torch_generator("gumbel", self.seed, step)
            self.tokenizer.temperature = annealed_temperature(step, self.steps)
        self.tokenizer.train()
        output = self.tokenizer(
            population.spec,
            flats,
            input_noise=self.input_noise,
            latent_noise=self.latent_noise,
            stream=torch_generator("augmentation", self.seed, step),
        )
        error = output.weight_error() * share
        loss = error + output.penalty * share
        numbers = {"weight_error": float(error.detach())}
        if self.functional_weight:
            images, _ = draw_batch([population.data[r] for r in rows], self.images, generator)
            images = images[mine]
            rebuilt = self.tokenizer.to_flats(population.spec, output.rebuilt)
            # Every other step with the statistics of the batch: small errors of a convolution are then not
            # blown up by running statistics that no longer fit it, and the gradient has something to follow.
            own = step % 2 == 0
            with torch.no_grad():
                wanted = run_networks(population.spec, flats, images, training=own).log_softmax(-1)
            given = run_networks(population.spec, rebuilt, images, training=own).log_softmax(-1)
            divergence = F.kl_div(given, wanted, log_target=True, reduction="none").sum(-1).mean() * share
            loss = loss + self.functional_weight * divergence
            numbers["divergence"] = float(divergence.detach())
        self.tokenizer.eval()
        return loss, numbers


@torch.no_grad()
def round_trip(
    tokenizer: WeightTokenizer, populations: list[Population], *, limit: int = 24, images: int = 2000
) -> list[dict[str, float | str]]:
    """Accuracy before and after coding, on test images, for up to ``limit`` checkpoints of each population.

    ``rebuilt`` has batch-norm statistics measured anew on 16 unlabelled train images a class, as generated
    networks do; ``rebuilt_norms_as_coded`` keeps those that were decoded.
    """
    rows: list[dict[str, float | str]] = []
    for population in populations:
        chosen = list(range(0, len(population.records), max(1, len(population.records) // limit)))[:limit]
        flats = population.flats[chosen]
        codes = tokenizer.encode(population.spec, flats)
        rebuilt = tokenizer.decode(population.spec, codes)
        for index, record in enumerate(chosen):
            task = population.records[record].parsed_task()
            data = task.data("test")
            order = torch.randperm(len(data), generator=torch_generator("zoo-test", str(task)))[:images]
            support, _ = task.support(16).flat()
            measured = recalibrate(population.spec, rebuilt[index : index + 1], support)
            nets = torch.cat([flats[index : index + 1], rebuilt[index : index + 1], measured])
            before, plain, after = accuracy(population.spec, nets, *data.batch(order)).tolist()
            rows.append(
                {
                    "id": population.records[record].id,
                    "architecture": architecture_key(population.spec),
                    "dataset": population.records[record].dataset,
                    "original": before,
                    "rebuilt": after,
                    "rebuilt_norms_as_coded": plain,
                    "bits_per_weight": tokenizer.bits_per_weight(population.spec),
                }
            )
    return rows
