"""One process of a training whose weights are divided: result's file, steps, and `shard` or not."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from weightloom.io import save_tensors, write_json
from weightloom.seeding import torch_generator
from weightloom.training import LoopSettings, parallel, run_loop, sharding
from weightloom.training.parallel import WHOLE


class Odd(nn.Module):
    """What makes dividing hard: uneven rows, shared, frozen and lone numbers, a weight that few steps use."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.again = nn.Linear(4, 5), nn.Linear(4, 5, bias=False)
        self.again.weight = self.first.weight
        self.norm = nn.BatchNorm1d(5)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.seldom, self.never = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(1))
        self.frozen = nn.Parameter(torch.ones(5), requires_grad=False)
        with torch.no_grad():
            for parameter in (self.first.weight, self.first.bias):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, x):
        return self.scale * (self.norm(self.first(x)) * self.frozen + self.again(x))


class Objective:
    """Six items, of which item 0 alone sees `seldom`, and only at every second step."""

    items = 6

    def __init__(self, model):
        self.model = model

    def __call__(self, step, part=WHOLE):
        x = torch.randn(self.items, 4, generator=torch_generator("odd", step))
        self.model.norm.eval()  # its statistics would be those of a part
        loss = (self.model(x[part.rows(self.items)]) - 1).square().sum() / self.items
        if 0 in part.of(self.items) and step % 2:
            loss = loss + (self.model.seldom - 1).square().sum()
        return loss * (float("inf") if step == 5 and 0 in part.of(self.items) else 1.0), {}


def train(folder, steps, **options):
    """The model, its log, and how many numbers of weights this process held in training."""
    model, held = Odd(), []
    kept = dict(model.named_parameters())

    def progress(what, done, total):
        own = [sharding.share(p) for p in model.parameters() if p.requires_grad]
        before = [p for p in kept.values() if p.requires_grad and all(p is not part for part in own)]
        held.append(sum(part.untyped_storage().nbytes() // part.element_size() for part in own + before))

    settings = LoopSettings(
        steps=steps, learning_rate=0.05, warmup=1, log_every=1, save_every=3, average=0.5, clip=0.7, **options
    )

    @torch.no_grad()
    def probe(step):
        return {"probe": float(model(torch.ones(2, 4)).sum())}

    log = run_loop(
        "odd", model, Objective(model), settings, folder=folder, progress=progress,
        evaluate=probe, evaluate_every=4,
    )  # fmt: skip
    assert dict(model.named_parameters()).keys() == kept.keys()
    assert all(value is kept[name] for name, value in model.named_parameters()), "other parameters"
    assert model.again.weight is model.first.weight
    return model, log, held


def main(folder: str, steps: str, accumulate: str, result: str) -> None:
    torch.set_num_threads(1)
    with parallel.joined():
        own = folder if parallel.rank() == 0 else f"{folder}-none"
        model, log, held = train(own, int(steps), shard=True, accumulate=int(accumulate))
        rank = parallel.rank()
        save_tensors(f"{result}.{rank}.safetensors", {n: p.detach() for n, p in model.named_parameters()})
        write_json(Path(f"{result}.{rank}.json"), {"log": log, "held": held})


if __name__ == "__main__":
    main(*sys.argv[1:])
