"""The layout of the published model zoos: one folder for each trial of a Ray Tune experiment.

Source: Schürholt et al., "Model Zoos: A Dataset of Diverse Populations of Neural Network Models" (NeurIPS
2022 Datasets and Benchmarks), and the code that wrote them::

    EXPERIMENT/NN_tune_trainable_ID_00012_.../
        params.json                    the trial's options, its seed among them
        result.json                    one line of JSON for each epoch
        checkpoint_000050/checkpoints  a state dict, written by torch.save

Knows the layout alone: no file of weights is opened here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.errors import CheckpointError, InputError
from weightloom.io import parse_json, read_bytes, read_json
from weightloom.zoo.reading import plain_facts

PARAMS, RESULTS, WEIGHTS = "params.json", "result.json", "checkpoints"
PARAMS_LIMIT, RESULTS_LIMIT, MAX_RESULTS = 1 << 20, 32 << 20, 100_000

Epochs = str | tuple[int, ...]
"""``last``, ``all``, or the epochs that are wanted."""

_CHECKPOINT = re.compile(r"checkpoint_([0-9]{1,9})")
_VARIANTS = {"CNN": ("small", 28), "CNN3": ("medium", 32)}
_ACTIVATIONS = {
    "tanh": "tanh", "relu": "relu", "gelu": "gelu", "silu": "silu", "leakyrelu": "leaky_relu",
}  # fmt: skip
_OPTIONS = ("model::", "optim::", "training::batchsize", "training::epochs_train")


@dataclass(frozen=True)
class Trial:
    """What a trial says of its networks.

    Attributes:
        architecture: None if no family here is that network; ``unknown`` says why.
        options: the options that made it, plain values.
        results: what is told of each epoch.
        epochs: the folder of each epoch's checkpoint.
        twice: folders whose epoch another folder has too.
    """

    architecture: ArchitectureSpec | None
    unknown: str
    options: dict[str, Any]
    seed: int | None
    results: dict[int, dict[str, int | float]]
    epochs: dict[int, Path]
    twice: list[Path]


def is_trial(folders: list[str], files: list[str]) -> bool:
    """Whether a folder with these entries is a trial."""
    return PARAMS in files and any(_CHECKPOINT.fullmatch(name) for name in folders)


def has_trials(root: Path) -> bool:
    """Whether a trial is in ``root``, or is it itself."""
    return next(_walk(root), None) is not None


def _walk(root: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(root):
        if is_trial(folders, files):
            yield Path(place)
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def trials(root: Path) -> list[Path]:
    """The trials in ``root``, sorted; links to folders are not followed."""
    return list(_walk(root))


def parse_epochs(text: str) -> Epochs:
    """Which checkpoints of a trial are wanted: ``last``, ``all``, or numbers.

    Raises:
        InputError: neither.

    Example:
        >>> parse_epochs("5, 25"), parse_epochs("last")
        ((5, 25), 'last')
    """
    if text in ("last", "all"):
        return text
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch("[0-9]{1,9}", part) for part in parts):
        raise InputError(f"epochs are 'last', 'all' or numbers such as 5,25,50; not {text[:80]!r}")
    return tuple(sorted({int(part) for part in parts}))


def read_trial(folder: Path) -> Trial:
    """What the files beside the weights of one trial say.

    Raises:
        CheckpointError: ``params.json`` cannot be read.
    """
    params = read_json(folder / PARAMS, limit=PARAMS_LIMIT)
    if not isinstance(params, dict):
        raise CheckpointError(folder / PARAMS, "holds no options by name")
    try:
        architecture, unknown = _architecture(params), ""
    except InputError as error:
        architecture, unknown = None, str(error)
    epochs: dict[int, Path] = {}
    twice = []
    for entry in sorted(folder.iterdir()):
        found = _CHECKPOINT.fullmatch(entry.name)
        if found is None:
            continue
        if int(found[1]) in epochs:
            twice.append(entry)
        else:
            epochs[int(found[1])] = entry
    return Trial(
        architecture=architecture,
        unknown=unknown,
        options=_options(params),
        seed=int(told["seed"]) if "seed" in (told := plain_facts({"seed": params.get("seed")})) else None,
        results=_results(folder / RESULTS),
        epochs=dict(sorted(epochs.items())),
        twice=twice,
    )


def _architecture(params: Mapping[str, Any]) -> ArchitectureSpec:
    """The family here that is layer for layer the network of these options.

    ``model::o_dim`` is not heeded: the published zoos say 4 there and have ten classes.
    """
    kind, activation = params.get("model::type"), params.get("model::nlin")
    channels = params.get("model::channels_in")
    if not isinstance(kind, str) or kind not in _VARIANTS:
        raise InputError(f"is a network of type {str(kind)[:40]!r}, which no family here is")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise InputError(f"has the activation {str(activation)[:40]!r}, which no family here has")
    if type(channels) is not int or not 1 <= channels <= 4:
        raise InputError(f"reads pictures of {str(channels)[:40]} channels")
    variant, size = _VARIANTS[kind]
    return parse_architecture(
        f"tinycnn(variant={variant},activation={_ACTIVATIONS[activation]},classes=10,"
        f"input={channels}x{size}x{size})"
    )


def _options(params: Mapping[str, Any]) -> dict[str, Any]:
    """The options that say how a network was trained, as far as they are plain values."""
    kept: dict[str, Any] = {}
    for name, value in params.items():
        if name.startswith(_OPTIONS) and len(name) <= 80 and len(kept) < 64:
            short = len(value) <= 200 if isinstance(value, str) else False
            if short or (isinstance(value, bool | int | float) and abs(value) < 1 << 53):
                kept[name] = value
    return kept


def _results(path: Path) -> dict[int, dict[str, int | float]]:
    """What is told of each epoch; nothing where the file or a line cannot be read.

    A network is worth having without its results, and a trial that was killed has half a line at the end.
    """
    try:
        lines = read_bytes(path, limit=RESULTS_LIMIT).split(b"\n", MAX_RESULTS)[:MAX_RESULTS]
    except CheckpointError:
        return {}
    found: dict[int, dict[str, int | float]] = {}
    for line in lines:
        try:
            held = parse_json(path, line) if line.strip() else None
        except CheckpointError:
            continue
        if not isinstance(held, dict):
            continue
        facts = plain_facts(held)
        # A result's number is its epoch, also where the first line is of the network before training.
        if "epoch" in (at := plain_facts({"epoch": held.get("training_iteration")})):
            found[int(at["epoch"])] = {k: v for k, v in facts.items() if k in ("accuracy", "loss")}
    return found
