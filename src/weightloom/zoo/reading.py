"""One network from one file: Weightloom's own, safetensors and PyTorch files from elsewhere.

Knows files and architectures; nothing of zoos, or of how the networks were trained.

Shapes: P values of a network.
"""

from __future__ import annotations

import math
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
from weightloom.fitting import with_card
from weightloom.io import parse_json
from weightloom.io.kinds import quoted
from weightloom.tasks import NetworkCard
from weightloom.weights import layout_of
from weightloom.zoo.contents import Contents, contents_of
from weightloom.zoo.unwrapping import Network, left_out, unwrap

Match = Literal["names", "order"]

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

    Attributes:
        facts: some of ``accuracy`` (in [0, 1]), ``loss``, ``epoch``, ``step`` and ``seed``.
        key: where in the file it is: a dictionary's path or a prefix of names; ``.`` is the outermost.
        left_out: tensors of the file that are none of the network's.
        folded: weights that are made of others, and how: ``head.weight (weight norm)``.
        card: class names, input and what else a user of the network needs, as far as the file says it.
    """

    spec: ArchitectureSpec
    flat: Tensor
    metadata: dict[str, str]
    facts: dict[str, int | float] = field(default_factory=dict)
    key: str = "."
    left_out: tuple[str, ...] = ()
    folded: tuple[str, ...] = ()
    card: NetworkCard = field(default_factory=NetworkCard)


@with_plain_defaults
def load_network(
    path: str | Path, architecture: str | ArchitectureSpec | None = None, *, key: str | None = None
) -> nn.Module:
    """The network of a file as an ordinary module in eval mode: what ``generate``, ``finetune`` and
    :meth:`weightloom.Sample.save` wrote, or any checkpoint whose ``architecture`` is given.

    A checkpoint may wrap the network as it likes: what lies under one prefix and fits exactly is taken, and
    the rest is left out; ``weightloom info`` and :func:`weightloom.zoo.reading.read_checked` say what that
    is. ``key`` chooses where several networks fit and differ (``key="model_ema"``).

    It takes images (B, channels, height, width) in [-1, 1] and gives logits (B, classes), the classes in the
    order of its ``class_names`` (None where the file says none). ``network.predict(pictures, top=3,
    reject=None)`` reads files, PIL images and arrays as folders are read, and names what they show
    (:func:`weightloom.fitting.predict`); ``network.card`` says what else is known.

    Raises:
        CheckpointError: the file is broken or of another kind, or does not hold exactly the architecture's
            tensors under one prefix.
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
    reading = read_checked(path, wanted, key=key)
    module = reading.spec.build()
    module.load_state_dict(layout_of(reading.spec).unflatten(reading.flat))
    return with_card(module.eval(), reading.card)


def read_network(
    path: str | Path,
    spec: ArchitectureSpec | None = None,
    *,
    match: Match = "names",
    key: str | None = None,
) -> tuple[ArchitectureSpec, Tensor, dict[str, str]]:
    """One network: its resolved architecture, weights (P,) and the file's metadata.

    Args:
        path: safetensors, or a PyTorch checkpoint, whatever it is called; or the folder of one network in the
            hub's layout.
        spec: the architecture; may be left out for files that Weightloom wrote.
        match: ``names`` (tensors must be called as ours are), or ``order`` (a PyTorch file whose tensors
            have other names but come in the same order with the same shapes).
        key: see :func:`read_checked`.

    Raises:
        CheckpointError: the file is broken, or does not hold exactly the architecture's tensors.
        SpecError: the architecture is undecided, or is not the one that the file names.
    """
    reading = read_checked(path, spec, match=match, key=key)
    return reading.spec, reading.flat, reading.metadata


@with_plain_defaults
def read_checked(
    path: str | Path,
    spec: ArchitectureSpec | None = None,
    *,
    match: Match = "names",
    key: str | None = None,
) -> Reading:
    """As :func:`read_network`, with what else the file tells of the network.

    Args:
        path: the file, or the folder of one network in the hub's layout.
        spec: the architecture; may be left out for files that say it.
        match: see :func:`read_network`.
        key: where in the file the network is, if several fit and differ: a dictionary's path or a prefix of
            names (``"model_ema"``, ``"student.module"``), or ``"."`` for the outermost.

    Raises:
        CheckpointError: the file is broken or of another kind, or does not hold exactly the architecture's
            tensors under one prefix.
        SpecError: the architecture is undecided, or is not the one that the file names.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> spec = parse_architecture("mlp(depth=1,width=4,classes=2,input=1x4x4)")
        >>> state = {f"module.{name}": value for name, value in spec.initialise(0).state_dict().items()}
        >>> path = Path(tempfile.mkdtemp()) / "model_best.pth.tar"
        >>> torch.save({"epoch": 3, "state_dict": {"n_averaged": torch.tensor(1), **state}}, path)
        >>> reading = read_checked(path, spec)
        >>> reading.key, reading.left_out, reading.facts
        ('state_dict.module', ('state_dict.n_averaged',), {'epoch': 3})
    """
    path = Path(path)
    contents = contents_of(path)
    if match == "order" and contents.format == "safetensors":
        raise CheckpointError(path, "tensors can be matched by order in PyTorch files only")
    spec = _agreed_spec(path, spec, contents.metadata)
    ours = contents.metadata if "weightloom" in contents.metadata else {}
    card = NetworkCard.from_metadata(path, ours, input=spec.input, classes=spec.classes)
    network, tensors = unwrap(contents, spec, in_order=match == "order", key=key)
    for name, tensor in tensors.items():
        if not all_finite(tensor):
            own = quoted(network.entries[name].names()[0])
            raise CheckpointError(path, f"tensor {own} has values that are not finite")
    return Reading(
        spec,
        layout_of(spec).flatten(tensors),
        contents.metadata,
        _facts(contents, network) if contents.places else _told(contents.metadata),
        network.key,
        tuple(left_out(contents, network, layout_of(spec))),
        tuple(network.folded()),
        card,
    )


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


def _facts(contents: Contents, network: Network) -> dict[str, int | float]:
    """What the dictionaries around a network tell; the outermost has the last word."""
    facts: dict[str, int | float] = {}
    used, path = network.names(), network.container
    while True:
        place = contents.places.get(path)
        if place is None:
            return facts
        before = f"{path}." if path else ""
        # What is called "loss" in the network's own dictionary may be one of its weights.
        notes = {key: value for key, value in place.entries.items() if f"{before}{key}" not in used}
        facts |= plain_facts(notes)
        if not path:
            return facts
        path = place.parent


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
            if spec is None or "weightloom" in metadata:
                raise CheckpointError(path, f"names an architecture that is none ({error})") from None
        else:  # another library's word may be a name of its own
            spec = agreed(path, own, spec)
    if spec is None and isinstance(kind := metadata.get("kind"), str) and kind:
        raise CheckpointError(path, f"is part of a generator or tokenizer ({kind[:40]}), not a network")
    if spec is None:
        raise CheckpointError(
            path,
            "does not say its architecture (a module of your own is measured in Python); give it with --arch",
        )
    if not spec.resolved:
        raise SpecError(f"{spec} does not say its classes and input; add them, or give the task")
    return spec
