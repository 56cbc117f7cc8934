"""Networks from files into a zoo: our own safetensors and foreign state dicts, all of a call or none.

Knows files and zoos; nothing of how the networks were trained.

Shapes: P values of a network.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.errors import CheckpointError, InputError, SpecError
from weightloom.fitting import accuracy
from weightloom.io import load_legacy, load_tensors, read_header, sha256_of
from weightloom.seeding import torch_generator
from weightloom.tasks import DatasetTask, TaskSampler
from weightloom.weights import layout_of
from weightloom.zoo.index import Record
from weightloom.zoo.store import Zoo

TEST_IMAGES = 2000
"""Test images on which an imported network's accuracy is measured (all of them if there are fewer)."""

LEGACY_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
Match = Literal["names", "order"]
_CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "weights")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")


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
    path = Path(path)
    state: Mapping[str, Any]  # of tensors, or at first of what the header says of them
    legacy = path.suffix.lower() in LEGACY_SUFFIXES
    metadata: dict[str, str] = {}
    if legacy:
        state = _plain_state(path, load_legacy(path))
    else:
        if match == "order":
            raise CheckpointError(path, "tensors can be matched by order in PyTorch files only")
        header = read_header(path)
        state, metadata = dict[str, Any](header.tensors), header.metadata
    spec = _agreed_spec(path, spec, metadata)
    if match == "order":
        state = _in_order(path, spec, state)
    layout = layout_of(spec)
    try:
        layout.check(state)  # shapes alone, before any number is read
    except InputError as error:
        raise CheckpointError(path, str(error).removeprefix("state dict: ") + f" ({spec})") from None
    if not legacy:
        state, _ = load_tensors(path)
    floats = {}
    for slot in layout.slots:
        tensor = state[slot.name]
        if not tensor.is_floating_point():
            raise CheckpointError(path, f"tensor {slot.name!r} holds {tensor.dtype}, not floats")
        floats[slot.name] = tensor.float()
        if not bool(torch.isfinite(floats[slot.name]).all()):
            raise CheckpointError(path, f"tensor {slot.name!r} has values that are not finite")
    return spec, layout.flatten(floats), metadata


def import_checkpoints(
    zoo: Zoo,
    files: Sequence[str | Path],
    *,
    architecture: ArchitectureSpec | None = None,
    task: DatasetTask | None = None,
    match: Match = "names",
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> list[Record]:
    """Add ``files`` to ``zoo`` as one shard for each architecture among them; the same files only once.

    Every file is read and checked before the first is added.

    Args:
        zoo: where to.
        files: one network each.
        architecture: what they are; may be left out for files that Weightloom wrote.
        task: what they were trained for; their accuracy is measured on its test images.
        match: see :func:`read_network`.
        progress: called with the file's name, files done and files in all.

    Returns:
        The new records, in the order of ``files``; none for files that the zoo holds already.

    Raises:
        CheckpointError: a file is broken or does not fit; nothing is added then.
        InputError: no file is given, or the task does not fit the architecture.
        DataUnavailableError: the task's images are not on this machine.
    """
    if not files:
        raise InputError("name at least one file to import")
    if architecture is not None and task is not None:
        architecture = architecture.resolve(classes=task.num_classes, input=task.input_shape)
    groups: dict[ArchitectureSpec, list[tuple[Path, str, Tensor]]] = {}
    for number, file in enumerate(files):
        path = Path(file)
        spec, flat, _ = read_network(path, architecture, match=match)
        if task is not None and (spec.classes, spec.input) != (task.num_classes, task.input_shape):
            raise SpecError(f"{path} holds {spec}, which does not fit the task {task}")
        groups.setdefault(spec, []).append((path, sha256_of(path), flat))
        progress(path.name, number + 1, len(files))

    added: list[Record] = []
    for spec, members in groups.items():
        digest = hashlib.sha256("".join(sum_ for _, sum_, _ in members).encode()).hexdigest()[:12]
        shard = f"import-{digest}"
        held = {r.provenance.get("sha256") for r in zoo.records(architecture=str(spec))}
        members = [member for member in members if member[1] not in held]
        if not members or zoo.has_shard(shard):
            continue
        flats = torch.stack([flat for *_, flat in members])
        scores: list[float | None] = [None] * len(members)
        if task is not None:
            scores = [float(value) for value in accuracy(spec, flats, *_test_images(task))]
        records = [
            Record(
                id=f"{shard}-{row:03d}",
                shard=shard,
                row=row,
                architecture=spec.full_text(),
                task="" if task is None else str(task),
                dataset="" if task is None else task.dataset,
                classes=spec.classes or 0,
                split=_split_of(zoo, task),
                member=row,
                step=0,
                final=True,
                accuracy=score,
                loss=None,
                provenance={"file": path.name, "sha256": checksum, "imported": True},
            )
            for row, ((path, checksum, _), score) in enumerate(zip(members, scores, strict=True))
        ]
        zoo.add(shard, spec, flats, records)
        added += records
    return added


def _agreed_spec(path: Path, spec: ArchitectureSpec | None, metadata: Mapping[str, str]) -> ArchitectureSpec:
    """The architecture that the file names and the caller, if he named one, agrees with."""
    named = metadata.get("architecture")
    if named is not None:
        try:
            own = parse_architecture(named)
        except InputError as error:
            raise CheckpointError(path, f"names an architecture that is none ({error})") from None
        if (
            spec is not None
            and replace(spec, classes=spec.classes or own.classes, input=spec.input or own.input) != own
        ):
            raise SpecError(f"{path} holds {own}, not {spec}")
        spec = own
    if spec is None:
        raise CheckpointError(path, "does not say its architecture; give it with --arch")
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
    state = {str(name): tensor for name, tensor in value.items() if isinstance(tensor, torch.Tensor)}
    if not state:
        raise CheckpointError(path, "holds no tensors by name")
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


def _test_images(task: DatasetTask) -> tuple[Tensor, Tensor]:
    data = task.data("test")
    if len(data) <= TEST_IMAGES:
        return data.all()
    order = torch.randperm(len(data), generator=torch_generator("zoo-test", str(task)))
    return data.batch(order[:TEST_IMAGES])


def _split_of(zoo: Zoo, task: DatasetTask | None) -> str:
    """The split the zoo's own recipe gives this task, so that nothing held out gets in by the back door."""
    recipe = zoo.about().get("recipe")
    if task is None or not isinstance(recipe, dict) or task.dataset not in recipe.get("datasets", ()):
        return "train"
    sampler = TaskSampler(
        datasets=list(recipe["datasets"]),
        salt=str(recipe["salt"]),
        split="train",
        classes=(2, task.num_classes),
        size=task.size,
        channels=task.channels,
    )
    return sampler.split_of(task)
