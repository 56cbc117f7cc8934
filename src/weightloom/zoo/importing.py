"""Networks from elsewhere into a zoo: first everything is read and checked, then it is added shard by shard.

A file that somebody names must fit, or nothing is added; what lies in a folder, a published model zoo or a
repository is taken as far as it fits, and the rest is reported. An import that was interrupted goes on when
it is given again.

Knows files and zoos; nothing of how the networks were trained.

Shapes: P values of a network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from weightloom.architectures import ArchitectureSpec
from weightloom.defaults import with_plain_defaults
from weightloom.engines import one_thread
from weightloom.errors import CheckpointError, InputError, SpecError
from weightloom.fitting import accuracy
from weightloom.io import sha256_of
from weightloom.io.legacy import BIN_INDEX, BIN_NAME, ONE_BIN
from weightloom.io.shards import INDEX_FILE, ONE_FILE, SHARD_NAME
from weightloom.seeding import torch_generator
from weightloom.tasks import DatasetTask, TaskSampler
from weightloom.weights import layout_of
from weightloom.zoo.index import Record
from weightloom.zoo.reading import Match, Reading, agreed, load_network, read_checked, read_network
from weightloom.zoo.sources import Candidate, Found, Skipped, find_networks
from weightloom.zoo.store import Zoo

__all__ = [
    "Plan",
    "Planned",
    "Skipped",
    "carry_out",
    "import_checkpoints",
    "input_of",
    "load_network",
    "plan_import",
    "read_network",
    "to_measure",
]

TEST_IMAGES = 2000
"""Test images on which an imported network's accuracy is measured (all of them if there are fewer)."""

SHARD_NETWORKS, SHARD_VALUES = 256, 1 << 26
"""The most networks, and values, of one shard: so much is held in memory."""

LEFT_OUT = 20
"""Names of tensors that were left out, which a checkpoint's provenance keeps."""

_AT_ONCE = 8  # networks that are measured together
Source = Literal["auto", "reported", "measured"]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Planned:
    """A network that was read, checked, and would be added.

    Attributes:
        key: where in its file it is; ``.`` where nothing wraps it.
        left_out: tensors of the file that are none of the network's.
    """

    candidate: Candidate
    spec: ArchitectureSpec
    sha256: str
    facts: dict[str, int | float]
    key: str = "."
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What an import would do.

    Attributes:
        formats: of each source.
        networks: what would be added, in order.
        held: names of files that the zoo holds already.
        skipped: what is passed over, and why.
    """

    formats: tuple[str, ...]
    networks: tuple[Planned, ...]
    held: tuple[str, ...]
    skipped: tuple[Skipped, ...]


def import_checkpoints(
    zoo: Zoo,
    files: Sequence[str | Path],
    *,
    architecture: ArchitectureSpec | None = None,
    task: DatasetTask | None = None,
    match: Match = "names",
    progress: Progress = lambda *_: None,
) -> list[Record]:
    """Add ``files`` to ``zoo``; :func:`plan_import` and :func:`carry_out` in one.

    Every file is read and checked before the first is added.

    Args:
        zoo: where to.
        files: files of one network each, or whatever else :func:`plan_import` takes.
        architecture: what they are; may be left out where the file or the format says it.
        task: what they were trained for; their accuracy is measured on its test images.
        match: see :func:`read_network`.
        progress: called with the file's name, files done and files in all.

    Returns:
        The new records, in the order of ``files`` within each architecture; none for files that the zoo holds
        already.

    Raises:
        CheckpointError: a file is broken or does not fit; nothing is added then.
        InputError: no file is given, or the task does not fit the architecture.
        DataUnavailableError: the task's images are not on this machine.
    """
    if not files:
        raise InputError("name at least one file to import")
    found = [find_networks(file) for file in files]
    plan = plan_import(found, zoo=zoo, architecture=architecture, task=task, match=match, progress=progress)
    return carry_out(zoo, plan, task=task, match=match)


@with_plain_defaults
def plan_import(
    found: Sequence[Found],
    *,
    zoo: Zoo | None = None,
    architecture: ArchitectureSpec | None = None,
    task: DatasetTask | None = None,
    match: Match = "names",
    strict: bool = False,
    progress: Progress = lambda *_: None,
) -> Plan:
    """Read and check every network, and write nothing.

    Args:
        found: what :func:`weightloom.zoo.sources.find_networks` found.
        zoo: what it holds already is not planned again.
        architecture: what the networks are, where the file or the format does not say it.
        task: what they were trained for.
        match: how tensors are matched, where the format does not say it.
        strict: something that would be skipped is an error.
        progress: called with the file's name, files done and files in all.

    Raises:
        CheckpointError: a file that somebody named is broken or does not fit; nothing at all fits; or
            something is skipped, and ``strict`` is given.
        SpecError: as before, for an architecture or a task that does not fit.

    Example:
        >>> import tempfile
        >>> from weightloom.architectures import parse_architecture
        >>> from weightloom.generators import Sample
        >>> folder = Path(tempfile.mkdtemp())
        >>> spec = parse_architecture("mlp(depth=1,width=4,classes=2,input=1x4x4)")
        >>> flat = layout_of(spec).flatten(spec.initialise(0).state_dict()).detach()
        >>> _ = Sample(spec, flat, {}).save(folder / "a.safetensors")
        >>> _ = (folder / "b.pt").write_bytes(b"something else")
        >>> plan = plan_import([find_networks(folder)])
        >>> [network.candidate.name for network in plan.networks], plan.skipped[0].name
        (['a.safetensors'], 'b.pt')
        >>> zoo = Zoo(folder / "zoo", create=True)
        >>> [record.provenance["file"] for record in carry_out(zoo, plan)]
        ['a.safetensors']
    """
    if architecture is not None and task is not None:
        architecture = architecture.resolve(classes=task.num_classes, input=task.input_shape)
    skipped = [entry for each in found for entry in each.skipped]
    if strict and (odd := next((entry for entry in skipped if entry.weights), None)) is not None:
        raise CheckpointError(odd.name, odd.reason)
    held: list[str] = []
    networks: list[Planned] = []
    there: dict[tuple[str, str], set[str]] = {} if zoo is None else zoo.imported()
    first: dict[tuple[str, str, str], str] = {}
    candidates = [candidate for each in found for candidate in each.candidates]
    for number, candidate in enumerate(candidates):
        try:
            wanted = _wanted(candidate, architecture)
            if there and _plausible(candidate, wanted):
                assert wanted is not None
                if _is_one_of(there.get((wanted.full_text(), _digest(candidate)), set()), candidate.key):
                    held.append(candidate.name)  # read once, and not again
                    continue
            reading = _read(candidate, wanted, match)  # before its checksum: it may be a terabyte of nothing
            spec, digest = reading.spec, _digest(candidate)
            if task is not None and (spec.classes, spec.input) != (task.num_classes, task.input_shape):
                raise SpecError(f"{candidate.path} holds {spec}, which does not fit the task {task}")
        except InputError as error:
            if strict or candidate.named:
                raise
            skipped.append(Skipped(candidate.name, _reason(error, candidate)))
            continue
        finally:
            progress(candidate.name, number + 1, len(candidates))
        key = (spec.full_text(), digest, reading.key)
        if reading.key in there.get(key[:2], ()):
            held.append(candidate.name)
        elif key in first:
            skipped.append(Skipped(candidate.name, f"has the same bytes as {first[key]}"))
        else:
            first[key] = candidate.name
            facts = {**reading.facts, **candidate.facts}
            networks.append(Planned(candidate, spec, digest, facts, reading.key, reading.left_out))
    if not networks and not held:
        nearest = sorted(skipped, key=lambda entry: not entry.weights)
        odd = nearest[0] if nearest else Skipped("import", "nothing was found")
        more = f" (and {len(skipped) - 1} more)" if len(skipped) > 1 else ""
        raise CheckpointError(odd.name, f"nothing can be imported: it {odd.reason}{more}")
    return Plan(tuple(each.format for each in found), tuple(networks), tuple(held), tuple(skipped))


@with_plain_defaults
def carry_out(
    zoo: Zoo,
    plan: Plan,
    *,
    task: DatasetTask | None = None,
    match: Match = "names",
    source: Source = "auto",
    progress: Progress = lambda *_: None,
) -> list[Record]:
    """Add what was planned, shard by shard; each is there as a whole or not at all.

    What another import has added since the plan was made is passed over.

    Args:
        zoo: where to; one that is planned (:meth:`Zoo.planned`) is made with its first shard.
        plan: from :func:`plan_import`, with the same task.
        task: what the networks were trained for.
        match: as for the plan.
        source: where accuracies are from: ``reported`` by the file or the format, ``measured`` on the task's
            test images, or ``auto``: measured where there is a task, but for published model zoos, whose
            pictures are normalised in their own ways.
        progress: called with a name, networks done and networks in all.

    Raises:
        CheckpointError: a file is another one than when it was checked; shards before it stay.
        InputError: accuracies are to be measured, and there is no task.
        DataUnavailableError: the task's images are not on this machine.
    """
    if source == "measured" and task is None:
        raise InputError("accuracy is measured on a task's test images; name the task")
    images: tuple[Tensor, Tensor] | None = None
    if task is not None and to_measure(plan, source):
        images = _test_images(task)  # before anything is written
    zoo.tidy()
    split = _split_of(zoo, task)
    added: list[Record] = []
    done = 0
    for spec, members in _shards(plan.networks):
        flats = torch.empty(len(members), layout_of(spec).size)
        for row, member in enumerate(members):
            if _digest(member.candidate) != member.sha256:
                raise CheckpointError(member.candidate.path, "was changed while it was imported")
            reading = _read(member.candidate, spec, match)
            flats[row] = reading.flat
        scores = [member.facts.get("accuracy") for member in members]
        measured = [images is not None and _measured(member, source) for member in members]
        if images is not None and any(measured):
            for start in range(
                0, len(members), _AT_ONCE
            ):  # as many pictures as networks are in memory at once
                with one_thread():
                    found = accuracy(spec, flats[start : start + _AT_ONCE], *images)
                for row, score in enumerate(found.tolist(), start=start):
                    scores[row] = score if measured[row] else scores[row]
        records = [
            Record(
                id="",  # the zoo names and numbers what it takes
                shard="",
                row=row,
                architecture=spec.full_text(),
                task="" if task is None else str(task),
                dataset="" if task is None else task.dataset,
                classes=spec.classes or 0,
                split=split,
                member=row,
                step=int(member.facts.get("step", member.facts.get("epoch", 0))),
                final=member.candidate.final,
                accuracy=None if (score := scores[row]) is None else float(score),
                loss=float(member.facts["loss"]) if "loss" in member.facts else None,
                provenance=_provenance(member, measured[row]),
            )
            for row, member in enumerate(members)
        ]
        added += zoo.add_new(spec, flats, records)
        done += len(members)
        progress("importing", done, len(plan.networks))
    return added


def to_measure(plan: Plan, source: Source = "auto") -> bool:
    """Whether :func:`carry_out` would need the task's images."""
    return any(_measured(member, source) for member in plan.networks)


def input_of(
    found: Sequence[Found], architecture: ArchitectureSpec | None = None
) -> tuple[int, int, int] | None:
    """(channels, height, width) that the first network with an answer reads; None if none says it."""
    if architecture is not None and architecture.input is not None:
        return architecture.input
    for candidate in (candidate for each in found for candidate in each.candidates):
        if candidate.architecture is not None and candidate.architecture.input is not None:
            return candidate.architecture.input
        if architecture is None and candidate.kind != "pytorch":  # which never say it
            try:
                return _read(candidate, None, "names").spec.input
            except InputError:
                if candidate.named:
                    raise
    return None


def _wanted(candidate: Candidate, architecture: ArchitectureSpec | None) -> ArchitectureSpec | None:
    """What a candidate must be, as far as that is known before it is read."""
    if candidate.architecture is not None:
        return agreed(candidate.path, candidate.architecture, architecture)
    if candidate.unknown and architecture is None:
        raise CheckpointError(candidate.path, f"{candidate.unknown}; name one that fits with --arch")
    return architecture


def _read(candidate: Candidate, wanted: ArchitectureSpec | None, match: Match) -> Reading:
    return read_checked(candidate.path, wanted, match=candidate.match or match, key=candidate.key)


def _plausible(candidate: Candidate, wanted: ArchitectureSpec | None) -> bool:
    """Whether a file is no larger than such a network's may be, whatever lies beside its weights."""
    if wanted is None or not wanted.resolved or candidate.kind == "shards":
        return False
    try:
        return candidate.path.stat().st_size <= 64 * layout_of(wanted).size + (1 << 20)
    except OSError:  # reading it says what is wrong
        return False


def _digest(candidate: Candidate) -> str:
    if candidate.kind != "shards":
        return sha256_of(candidate.path)
    whole = hashlib.sha256()
    try:
        names = sorted(entry.name for entry in candidate.path.iterdir())
    except OSError as error:
        raise CheckpointError(candidate.path, f"cannot be read ({error.strerror})") from None
    for name in names:
        known = name in (INDEX_FILE, ONE_FILE, BIN_INDEX, ONE_BIN)
        if known or SHARD_NAME.fullmatch(name) or BIN_NAME.fullmatch(name):
            whole.update(f"{name} {sha256_of(candidate.path / name)}\n".encode())
    return whole.hexdigest()


def _is_one_of(places: set[str], key: str | None) -> bool:
    """Whether one of these places in a file is what ``key`` chooses; without one, whether there is any."""
    wanted = None if key is None else key.rstrip("./") or "."
    return any(
        wanted is None or place == wanted or place.startswith((f"{wanted}.", f"{wanted}/"))
        for place in places
    )


def _reason(error: Exception, candidate: Candidate) -> str:
    if isinstance(error, CheckpointError):
        return error.reason
    return str(error).removeprefix(str(candidate.path)).strip(" :")


def _shards(networks: Sequence[Planned]) -> Iterator[tuple[ArchitectureSpec, list[Planned]]]:
    """Networks of one architecture, as many as a shard may have; the same again after an interruption."""
    groups: dict[ArchitectureSpec, list[Planned]] = {}
    for network in networks:
        groups.setdefault(network.spec, []).append(network)
    for spec, members in groups.items():
        each = max(1, min(SHARD_NETWORKS, SHARD_VALUES // max(1, layout_of(spec).size)))
        for start in range(0, len(members), each):
            yield spec, members[start : start + each]


def _measured(member: Planned, source: Source) -> bool:
    if source == "auto":
        return not (member.candidate.figures and "accuracy" in member.facts)
    return source == "measured"


def _provenance(member: Planned, measured: bool) -> dict[str, Any]:
    held: dict[str, Any] = {"file": member.candidate.name, "sha256": member.sha256, "imported": True}
    held |= member.candidate.provenance
    if member.key != ".":
        held["read_from"] = member.key
    if member.left_out:
        held["left_out"] = list(member.left_out[:LEFT_OUT])
    held |= {name: member.facts[name] for name in ("epoch", "seed") if name in member.facts}
    if "accuracy" in member.facts:
        held["reported_accuracy"] = member.facts["accuracy"]
    if measured or "accuracy" in member.facts:
        held["accuracy"] = "measured" if measured else "reported"
    return held


def _test_images(task: DatasetTask) -> tuple[Tensor, Tensor]:
    data = task.data("test")
    if len(data) <= TEST_IMAGES:
        return data.all()
    order = torch.randperm(len(data), generator=torch_generator("zoo-test", str(task)))
    return data.batch(order[:TEST_IMAGES])


def _split_of(zoo: Zoo, task: DatasetTask | None) -> str:
    """The split the zoo's own recipe gives this task, so that nothing held out gets in by the back door."""
    recipe = zoo.recipe("salt")
    if task is None or recipe is None or task.dataset not in recipe.get("datasets", ()):
        return "train"
    sampler = TaskSampler(
        datasets=list(recipe["datasets"]),
        salt=recipe["salt"],
        split="train",
        classes=(2, task.num_classes),
        size=task.size,
        channels=task.channels,
    )
    return sampler.split_of(task)
