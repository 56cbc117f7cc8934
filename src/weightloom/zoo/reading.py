"""One network from one file: Weightloom's own, safetensors and PyTorch state dicts from elsewhere.

Knows files and architectures; nothing of zoos, or of how the networks were trained.

Shapes: P values of a network.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.defaults import with_plain_defaults
from weightloom.errors import CheckpointError, InputError, SpecError
from weightloom.finite import all_finite
from weightloom.io import load_legacy, load_tensors, parse_json, read_header, read_shards, shards_metadata
from weightloom.io.shards import INDEX_FILE, ONE_FILE
from weightloom.weights import layout_of

LEGACY_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
Match = Literal["names", "order"]
Kind = Literal["safetensors", "pytorch", "shards"]
_CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "weights")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")

# What files from elsewhere call the same thing. "best" accuracies are of another moment, and left out.
_FACTS = {
    "accuracy": ("test_acc", "test_accuracy", "accuracy", "acc", "val_acc", "val_accuracy"),
    "loss": ("train_loss", "loss"),
    "epoch": ("epoch", "training_iteration"),
    "step": ("step", "global_step"),
    "seed": ("seed",),
}


@dataclass(frozen=True)
class Reading:
    """What was read: the resolved architecture, weights (P,), the header's text, and what else is told.

    ``facts`` has some of ``accuracy`` (in [0, 1]), ``loss``, ``epoch``, ``step`` and ``seed``.
    """

    spec: ArchitectureSpec
    flat: Tensor
    metadata: dict[str, str]
    facts: dict[str, int | float] = field(default_factory=dict)


@with_plain_defaults
def load_network(path: str | Path, architecture: str | ArchitectureSpec | None = None) -> nn.Module:
    """The network of a file as an ordinary module in eval mode: what ``generate``, ``finetune`` and
    :meth:`weightloom.Sample.save` wrote, or any state dict whose ``architecture`` is given.

    It takes images (B, channels, height, width) in [-1, 1] and gives logits (B, classes), the classes in the
    order of the task that it was made for.

    Raises:
        CheckpointError: the file is broken, or does not hold exactly the architecture's tensors.
        SpecError: the architecture is undecided, or is not the one that the file names.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from weightloom.generators import Sample
        >>> spec = parse_architecture("mlp(depth=1,width=4,classes=2,input=1x4x4)")
        >>> flat = layout_of(spec).flatten(spec.initialise(0).state_dict()).detach()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Sample(spec, flat, {}).save(Path(folder) / "net.safetensors")
        ...     net = load_network(file)
        >>> net.training, sum(p.numel() for p in net.parameters()) == spec.num_parameters()
        (False, True)
    """
    wanted = parse_architecture(architecture) if isinstance(architecture, str) else architecture
    spec, flat, _ = read_network(path, wanted)
    module = spec.build()
    module.load_state_dict(layout_of(spec).unflatten(flat))
    return module.eval()


def read_network(
    path: str | Path, spec: ArchitectureSpec | None = None, *, match: Match = "names"
) -> tuple[ArchitectureSpec, Tensor, dict[str, str]]:
    """One network: its resolved architecture, weights (P,) and the file's metadata.

    Args:
        path: safetensors, or a PyTorch state dict (``.pt``, ``.pth``, ``.bin``, ``.ckpt``).
        spec: the architecture; may be left out for files that Weightloom wrote.
        match: ``names`` (tensors must be called as ours are), or ``order`` (a PyTorch file whose tensors
            have other names but come in the same order with the same shapes).

    Raises:
        CheckpointError: the file is broken, or does not hold exactly the architecture's tensors.
        SpecError: the architecture is undecided, or is not the one that the file names.
    """
    reading = read_checked(path, spec, match=match)
    return reading.spec, reading.flat, reading.metadata


def kind_of(path: str | Path) -> Kind:
    """How a file is read, by its suffix; a folder is one network in the hub's layout."""
    path = Path(path)
    if path.suffix.lower() in LEGACY_SUFFIXES:
        return "pytorch"
    return "shards" if any((path / name).is_file() for name in (INDEX_FILE, ONE_FILE)) else "safetensors"


@with_plain_defaults
def read_checked(
    path: str | Path,
    spec: ArchitectureSpec | None = None,
    *,
    match: Match = "names",
    kind: Kind | None = None,
) -> Reading:
    """As :func:`read_network`, with what else the file tells of the network.

    Args:
        path: the file, or the folder of one network in the hub's layout.
        spec: the architecture; may be left out for files that say it.
        match: see :func:`read_network`.
        kind: how the file is read, whatever it is called; by its suffix if left out.

    Raises:
        CheckpointError: the file is broken, or does not hold exactly the architecture's tensors.
        SpecError: the architecture is undecided, or is not the one that the file names.
    """
    path = Path(path)
    kind = kind or kind_of(path)
    if kind != "pytorch" and match == "order":
        raise CheckpointError(path, "tensors can be matched by order in PyTorch files only")
    state: Mapping[str, Any]  # of tensors, or at first of what the header says of them
    metadata: dict[str, str] = {}
    if kind == "pytorch":
        held = load_legacy(path)
        state, facts = _plain_state(path, held), _facts(held)
    else:
        if kind == "shards":
            metadata = {k: v for k, v in shards_metadata(path).items() if isinstance(v, str)}
        else:
            header = read_header(path)
            state, metadata = dict[str, Any](header.tensors), header.metadata
        facts = _told(metadata)
    spec = _agreed_spec(path, spec, metadata)
    layout = layout_of(spec)
    if kind == "shards":
        state = dict(read_shards(path))
    elif match == "order":
        state = _in_order(path, spec, state)
    try:
        layout.check(state)  # shapes alone, before any number is read
    except InputError as error:
        raise CheckpointError(path, str(error).removeprefix("state dict: ") + f" ({spec})") from None
    if kind == "safetensors":
        state, _ = load_tensors(path)
    floats = {}
    for slot in layout.slots:
        tensor = state[slot.name]
        if not tensor.is_floating_point():
            raise CheckpointError(path, f"tensor {slot.name!r} holds {tensor.dtype}, not floats")
        floats[slot.name] = tensor.float()
        if not all_finite(floats[slot.name]):
            raise CheckpointError(path, f"tensor {slot.name!r} has values that are not finite")
    return Reading(spec, layout.flatten(floats), metadata, facts)


def plain_facts(values: Mapping[Any, Any]) -> dict[str, int | float]:
    """What ``values`` tell of a network, under our names; what makes no sense is left out.

    Accuracies above 1 are taken for per cent.

    Example:
        >>> plain_facts({"epoch": 3, "test_acc": 91.5, "train_loss": float("nan"), "seed": -1})
        {'accuracy': 0.915, 'epoch': 3}
    """
    found: dict[str, int | float] = {}
    for name, keys in _FACTS.items():
        for key in keys:
            value = values.get(key)
            if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex():
                value = value.item()
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if not 0 <= value < 1 << 53:  # neither negative, nor infinite, nor more than JSON holds
                continue
            if name in ("epoch", "step", "seed"):
                if value == int(value):
                    found[name] = int(value)
                    break
            elif name == "loss" or value <= 100:
                found[name] = float(value) / (100 if name == "accuracy" and value > 1 else 1)
                break
    return found


def _facts(held: Mapping[Any, Any]) -> dict[str, int | float]:
    if any(isinstance(value, torch.Tensor) and value.dim() > 0 for value in held.values()):
        return {}  # a bare state dict: what is called "loss" there is a weight
    return plain_facts(held)


def _told(metadata: Mapping[str, str]) -> dict[str, int | float]:
    """What the text of a header tells: the report of our own files, numbers of others."""
    try:
        report = parse_json("report", metadata.get("report", "{}"))
    except CheckpointError:
        report = {}
    values: dict[str, Any] = dict(report) if isinstance(report, dict) else {}
    for key in (key for keys in _FACTS.values() for key in keys):
        if key in metadata and key not in values:
            try:
                number = float(metadata[key][:40])
            except ValueError:
                continue
            values[key] = number if math.isfinite(number) else None
    return plain_facts(values)


def agreed(path: Path, own: ArchitectureSpec, wanted: ArchitectureSpec | None) -> ArchitectureSpec:
    """``own``, what the file or its format names, if it is what the caller wants too.

    Raises:
        SpecError: it is not.
    """
    if wanted is not None:
        try:
            filled = replace(wanted, classes=wanted.classes or own.classes, input=wanted.input or own.input)
        except SpecError:  # no such network on pictures of that size
            filled = None
        if filled != own:
            raise SpecError(f"{path} holds {own}, not {wanted}")
    return own


def _agreed_spec(path: Path, spec: ArchitectureSpec | None, metadata: Mapping[str, str]) -> ArchitectureSpec:
    """The architecture that the file names and the caller, if he named one, agrees with."""
    named = metadata.get("architecture")
    if named is not None:
        try:
            own = parse_architecture(named)
        except InputError as error:
            raise CheckpointError(path, f"names an architecture that is none ({error})") from None
        spec = agreed(path, own, spec)
    if spec is None:
        raise CheckpointError(
            path,
            "does not say its architecture (a module of your own is measured in Python); give it with --arch",
        )
    if not spec.resolved:
        raise SpecError(f"{spec} does not say its classes and input; add them, or give the task")
    return spec


def _plain_state(path: Path, value: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The state dict in a foreign checkpoint, without its wrapping."""
    for key in _CONTAINERS:
        inner = value.get(key)
        if isinstance(inner, dict) and any(isinstance(entry, torch.Tensor) for entry in inner.values()):
            value = inner
            break
    tensors = [(str(name), tensor) for name, tensor in value.items() if isinstance(tensor, torch.Tensor)]
    state = dict(tensors)
    if not state:
        raise CheckpointError(path, "holds no tensors by name")
    if len(state) != len(tensors):  # 1 and "1"
        raise CheckpointError(path, "has two tensors of one name")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _in_order(path: Path, spec: ArchitectureSpec, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of ``state`` under our names, one after another."""
    counters = {slot.name for slot in layout_of(spec).counters}
    with torch.device("meta"):
        wanted = {n: tuple(t.shape) for n, t in spec.build().state_dict().items() if n not in counters}
    given = {n: t for n, t in state.items() if not re.search(r"num_batches_tracked$", n)}
    if len(given) != len(wanted):
        raise CheckpointError(path, f"holds {len(given)} tensors, {spec} has {len(wanted)}")
    for (name, tensor), (own, shape) in zip(given.items(), wanted.items(), strict=True):
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                path, f"tensor {name!r} has shape {tuple(tensor.shape)}, but {own!r} of {spec} has {shape}"
            )
    return dict(zip(wanted, given.values(), strict=True))
