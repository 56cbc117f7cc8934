"""Static hypernetworks on images: `python benchmarks/hyper_images.py cifar10 [--seeds 3]`, or mnist.

A network and its hyperized copies, each trained by itself: parameters, and error on all test images. Every
run is written to benchmarks/results/hypernetworks-DATASET-EPOCHS.json as it ends, and is not done again.

Sizes and epochs are small, for two cores. The paper's WRN 40-1, for a GPU (672,000 steps):

  cifar10 --network 'resnet(depth=38,width=16)' --pixels 32 --embedding 64 --epochs 1900
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from hypernetworks import DEVICE, Table, count
from torch import nn

from weightloom.architectures import parse_architecture
from weightloom.nn import hyperize, parameter_groups
from weightloom.seeding import seed_for, torch_generator
from weightloom.tasks import parse_task
from weightloom.training.ghn import shifted

BATCH = 128
"""Images of a step."""
RATE = 5e-3
"""Adam's, at the height of its curve; embeddings have thirty times as much (`parameter_groups`)."""
FASTER = "separable, embeddings twice as fast"
"""Sixty times as much did best on validation images after ten epochs (docs/experiments.md)."""
FIRST = ["body.0.conv", "*.shortcut.conv"]
"""What stays plain in the paper: the first kernel, and the shortcuts of 1 x 1."""


def paper_network() -> nn.Module:
    """The small convolutional network of the paper's MNIST experiment: two kernels of 7 x 7."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 7, padding=3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 7, padding=3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16 * 7 * 7, 10),
    )  # fmt: skip


def rows(options: argparse.Namespace) -> tuple[str, dict[str, Any], dict[str, Callable[[], nn.Module]]]:
    """The task, what to write down of the networks, and how to make each."""
    if options.dataset == "mnist":
        return (
            "mnist@28c1",
            {},
            {
                "plain": paper_network,
                "blocks": lambda: hyperize(paper_network(), skip=["0"], embedding_size=4),
                "coordinates": lambda: hyperize(paper_network(), skip=["0"], kind="coordinates"),
            },
        )
    pixels = options.pixels

    def residual() -> nn.Module:
        module = parse_architecture(options.network).resolve(classes=10, input=(3, pixels, pixels)).build()
        for layer in module.modules():  # in torch's own way, another start for each seed
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.reset_parameters()
        return module

    second = [*FIRST, "body.1.first.conv"]
    blocks = {"skip": FIRST, "block": (16, 16), "embedding_size": options.embedding}
    small = {"skip": [*FIRST, "body.1.*"], "block": (4, 4), "embedding_size": 15}
    return (
        f"cifar10@{pixels}c3",
        {"network": options.network, "pixels": pixels, "embedding": options.embedding},
        {
            "plain": residual,
            "separable": lambda: hyperize(residual(), kind="separable", skip=second),
            FASTER: lambda: hyperize(residual(), kind="separable", skip=second),
            "separable, blocks of 64": lambda: hyperize(
                residual(), kind="separable", skip=second, block=(1, 64), pattern_size=6
            ),
            "blocks": lambda: hyperize(residual(), **blocks),
            "small blocks": lambda: hyperize(residual(), **small),
        },
    )


def fit(
    task_text: str, make: Callable[[], nn.Module], options: argparse.Namespace, seed: int, embeddings: float
) -> dict[str, Any]:
    """Train one network with Adam and a rate that rises and falls; error on all test images."""
    task = parse_task(task_text)
    data, test = task.data("train"), task.data("test")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for("hypernetworks", "images", seed))
        net = make().train().to(DEVICE, memory_format=torch.channels_last)
    draw = torch_generator("hypernetworks", "images", "batches", seed)
    groups = parameter_groups(net, options.rate, embeddings=embeddings)
    optimiser = torch.optim.Adam(groups)
    steps = options.epochs * len(data) // BATCH
    rates = [group["lr"] for group in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rates, total_steps=steps, pct_start=0.15)
    for _ in range(steps):
        x, y = data.batch(torch.randint(len(data), (BATCH,), generator=draw))
        x = shifted(x, draw, flip=task_text.startswith("cifar10"))
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=not options.float32):
            logits = net(x.to(DEVICE, memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), y.to(DEVICE))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    net.eval()
    wrong = 0
    with torch.no_grad():
        for part in torch.arange(len(test)).split(500):
            x, y = test.batch(part)
            wrong += int((net(x.to(DEVICE)).argmax(1).cpu() != y).sum())
    return {"parameters": count(net), "error": wrong / len(test)}


def main() -> None:
    """Read the command line; all networks, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("dataset", choices=("cifar10", "mnist"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rate", type=float, default=RATE, help="Adam's, at the height of its curve")
    parser.add_argument("--float32", action="store_true", help="no bfloat16 in the forward pass")
    parser.add_argument("--network", default="resnet(depth=8,width=64)", help="for CIFAR-10")
    parser.add_argument("--pixels", type=int, default=16, help="sides of the pictures of CIFAR-10")
    parser.add_argument("--embedding", type=int, default=88, help="of the blocks, for CIFAR-10")
    parser.add_argument("--only", help="rows with semicolons between, such as plain;separable")
    options = parser.parse_args()
    task, made, networks = rows(options)
    half, other = not options.float32, "" if options.rate == RATE else f"-{options.rate:g}"
    table = Table(
        f"{options.dataset}-{options.epochs}{other}",
        {"epochs": options.epochs, "batch": BATCH, "rate": options.rate, "bfloat16": half, **made},
    )
    for seed in range(options.first, options.first + options.seeds):
        for name, make in networks.items():
            if options.only and name not in options.only.split(";"):
                continue
            rate = 60.0 if name == FASTER else 30.0
            table.add(
                f"{name}, seed {seed}",
                lambda m=make, s=seed, r=rate: fit(task, m, options, s, r),
            )


if __name__ == "__main__":
    main()
