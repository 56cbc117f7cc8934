"""Fully trained networks: what every ratio in a table is to.

One recipe, tuned once: AdamW, one cycle at 0.01, batches of 128, all training images, eight epochs and at
least 1,500 steps. Accuracies are kept in ``benchmarks/references.json``; what is missing is trained when it
is asked for.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F

from weightloom.architectures import ArchitectureSpec
from weightloom.io import write_json
from weightloom.seeding import torch_generator
from weightloom.tasks import Task

FILE = Path(__file__).with_suffix(".json")
EPOCHS, LEAST, BATCH, RATE, DECAY = 8, 1500, 128, 0.01, 0.01


def fully_trained(spec: ArchitectureSpec, task: Task) -> float:
    """Test accuracy of ``spec`` trained to the end on ``task``; trained once, then read."""
    resolved = spec.resolve(classes=task.num_classes, input=(task.channels, task.size, task.size))
    key = f"{resolved} | {task}"
    kept = json.loads(FILE.read_text()) if FILE.exists() else {}
    if key not in kept:
        steps = max(LEAST, EPOCHS * (len(task.data("train")) // BATCH))
        network = train(resolved, task, steps)
        images, labels = task.data("test").all()
        with torch.no_grad():
            answers = torch.cat([network(part).argmax(1) for part in images.split(1000)])
        reached = float((answers == labels).float().mean())
        kept = json.loads(FILE.read_text()) if FILE.exists() else {}  # another process may have written
        kept[key] = {"accuracy": round(reached, 4), "steps": steps}
        write_json(FILE, dict(sorted(kept.items())))
        print(f"reference: {key}: {reached:.3f} after {steps:,} steps", flush=True)
    return float(kept[key]["accuracy"])


def second_trained(spec: ArchitectureSpec, task: Task, images: torch.Tensor) -> float:
    """The share of images that two fully trained networks of other seeds answer differently."""
    resolved = spec.resolve(classes=task.num_classes, input=(task.channels, task.size, task.size))
    steps = max(LEAST, EPOCHS * (len(task.data("train")) // BATCH))
    networks = [train(resolved, task, steps, seed) for seed in (0, 1)]
    with torch.no_grad():
        answers = [torch.cat([net(part).argmax(1) for part in images.split(1000)]) for net in networks]
    return float((answers[0] != answers[1]).float().mean())


def train(
    spec: ArchitectureSpec,
    task: Task,
    steps: int,
    seed: int = 0,
    *,
    start: torch.nn.Module | None = None,
    rate: float = RATE,
) -> torch.nn.Module:
    """``spec``, or ``start`` (which is changed), after so many steps on all training images of ``task``, in
    eval mode.
    """
    network, data = (start or spec.initialise(seed)).train(), task.data("train")
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps + 1, pct_start=0.2)
    generator = torch_generator("reference", str(task), *([seed] if seed else []))
    rows = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(rows) < min(BATCH, len(data)):
            rows = torch.randperm(len(data), generator=generator)
        images, labels = data.batch(rows[:BATCH])
        rows = rows[BATCH:]
        loss = F.cross_entropy(network(images.contiguous(memory_format=torch.channels_last)), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval()


torch.set_num_threads(1)
