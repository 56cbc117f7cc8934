"""One process of a data-parallel step: rank, number of processes, rendezvous file, file for the result."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from weightloom.nn import HyperLSTM, hyperize


class Both(nn.Module):
    """A generated convolution before a HyperLSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = hyperize(nn.Sequential(nn.Conv2d(1, 6, 3), nn.Conv2d(6, 4, 3)), embedding_size=3)
        self.lstm = HyperLSTM(4, 5, hyper_size=3, embedding_size=2, layer_norm=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W) to (steps, B, 5)."""
        return self.lstm(self.conv(x).flatten(2).permute(2, 0, 1))[0]  # (B, 4, T) -> (T, B, 4)


def model_and_data() -> tuple[Both, torch.Tensor]:
    torch.manual_seed(0)
    model = Both()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model, torch.randn(4, 1, 7, 7)


def main(rank: int, size: int, meeting: str, result: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    model, data = model_and_data()
    parallel = DistributedDataParallel(model)
    parallel(data.chunk(size)[rank]).square().mean().backward()
    if rank == 0:
        torch.save({name: p.grad for name, p in model.named_parameters()}, result)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
