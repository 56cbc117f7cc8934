"""Networks from elsewhere, and files that try something, for the tests of imports."""

from __future__ import annotations

import json
import os

import torch

from weightloom.architectures import parse_architecture
from weightloom.fitting import initial_flats
from weightloom.io import save_tensors
from weightloom.weights import layout_of

SPEC = parse_architecture("mlp(depth=1,width=4,classes=10,input=3x8x8)")
SMALL = parse_architecture("tinycnn(variant=small,activation=tanh,classes=10,input=1x28x28)")


def tensors_of(spec, seed):
    flat = initial_flats(spec, [seed])[0]
    return flat, {name: value.contiguous() for name, value in layout_of(spec).unflatten(flat).items()}


def write(path, number=0, spec=SPEC, **metadata):
    """A safetensors file of ours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flat, tensors = tensors_of(spec, number)
    save_tensors(path, tensors, {"architecture": spec.full_text(), **metadata})
    return flat


def reasons(plan):
    return {entry.name: entry.reason for entry in plan.skipped}


class Ran:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


PARAMS = {
    "model::type": "CNN", "model::channels_in": 1, "model::o_dim": 4, "model::nlin": "tanh",
    "model::dropout": 0.0, "model::init_type": "uniform", "optim::optimizer": "adam", "optim::lr": 0.0003,
    "training::batchsize": 10, "dataset::dump": "/home/somebody/dataset.pt", "cuda": False,
}  # fmt: skip
LAYERS = {"small": (0, 3, 6, 9, 11), "medium": (0, 4, 8, 13, 16)}


def published(spec, seed):
    """A state dict with the names of the published zoos, and its weights."""
    flat, tensors = tensors_of(spec, seed)
    with torch.device("meta"):
        own = list(spec.build().state_dict())
    numbers = iter(range(10))
    names = [
        f"module_list.{LAYERS[spec.variant][next(numbers) // 2]}.{name.rpartition('.')[2]}" for name in own
    ]
    return flat, {name: tensors[mine] for name, mine in zip(names, own, strict=True)}


def trial(root, number, epochs=(0, 1, 2), spec=SMALL, digits=6, **changes):
    folder = root / f"NN_tune_trainable_ab12c_{number:05d}_{number}_seed={number}_2021-10-01_10-00-00"
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps({**PARAMS, "seed": number, **changes}))
    lines = [
        {
            "train_loss": -999 if e == 0 else 2.0 / e, "train_acc": -999 if e == 0 else 0.2, "test_loss": 1.0,
            "test_acc": 0.1 * (e + 1), "training_iteration": e, "config": PARAMS,
        }
        for e in epochs
    ]  # fmt: skip
    (folder / "result.json").write_text("\n".join(map(json.dumps, lines)) + "\n")
    flats = {}
    for epoch in epochs:
        place = folder / f"checkpoint_{epoch:0{digits}d}"
        place.mkdir()
        flats[epoch], state = published(spec, 100 * number + epoch)
        torch.save(state, place / "checkpoints")
        (place / "optimizer").write_bytes(b"never read")
    return folder, flats
