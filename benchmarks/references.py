"""Fully trained networks: what every ratio in a table is to.

One recipe, tuned once: AdamW, one cycle at 0.01, batches of 128, all training images, eight epochs and at
least 1,500 steps. Accuracies are kept in ``benchmarks/references.json``; what is missing is trained when it
is asked for.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from weightloom.architectures import ArchitectureSpec
from weightloom.fitting import FitSettings, accuracy, fit_population, initial_flats
from weightloom.io import write_json
from weightloom.tasks import Task

FILE = Path(__file__).with_suffix(".json")
EPOCHS, LEAST, BATCH, RATE, DECAY = 8, 1500, 128, 0.01, 0.01


def fully_trained(spec: ArchitectureSpec, task: Task) -> float:
    """Test accuracy of ``spec`` trained to the end on ``task``; trained once, then read."""
    resolved = spec.resolve(classes=task.num_classes, input=(task.channels, task.size, task.size))
    key = f"{resolved} | {task}"
    kept = json.loads(FILE.read_text()) if FILE.exists() else {}
    if key not in kept:
        data = task.data("train")
        steps = max(LEAST, EPOCHS * (len(data) // BATCH))
        settings = FitSettings(steps=steps, batch_size=BATCH, learning_rate=RATE, weight_decay=DECAY)
        (last,) = fit_population(resolved, initial_flats(resolved, [0]), [data], settings)
        reached = float(accuracy(resolved, last.flats, *task.data("test").all())[0])
        kept = json.loads(FILE.read_text()) if FILE.exists() else {}  # another process may have written
        kept[key] = {"accuracy": round(reached, 4), "steps": steps}
        write_json(FILE, dict(sorted(kept.items())))
        print(f"reference: {key}: {reached:.3f} after {steps:,} steps", flush=True)
    return float(kept[key]["accuracy"])


torch.set_num_threads(1)
