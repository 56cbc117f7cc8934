"""Where networks from elsewhere lie: a file, a folder, a published model zoo, a repository on a hub.

Finds files that may be networks, and what is told of them beside their weights; of a file of weights only the
first bytes are read, which say what it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from weightloom.architectures import ArchitectureSpec
from weightloom.errors import CheckpointError, InputError
from weightloom.io import file_kind
from weightloom.io.kinds import plain_words
from weightloom.io.legacy import BIN_INDEX, BIN_NAME
from weightloom.io.shards import INDEX_FILE, SHARD_NAME
from weightloom.zoo import hub
from weightloom.zoo.contents import Format as Kind
from weightloom.zoo.contents import format_of
from weightloom.zoo.index import INDEX
from weightloom.zoo.modelzoos import PARAMS, RESULTS, WEIGHTS, Epochs, Trial, has_trials, read_trial, trials
from weightloom.zoo.reading import Match

Format = Literal["auto", "file", "folder", "modelzoos", "hub"]
MAX_FILES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A file that may be a network.

    Attributes:
        path: the file, or the folder of one network in several files.
        name: what it is called in reports and in the zoo: the path from the source on.
        kind: how it is read.
        architecture: what the format says that it is.
        unknown: why the format's network has no architecture here.
        match: how tensors are matched, where the format decides.
        final: whether it is the last of its run.
        facts: accuracy, loss, epoch, seed as the format tells them.
        provenance: what else is kept in the zoo.
        figures: whether the format's own accuracies are to be used.
        named: whether somebody named this very file, so that passing it over would be wrong.
        key: where in the file the network is, if several fit.
    """

    path: Path
    name: str
    kind: Kind
    architecture: ArchitectureSpec | None = None
    unknown: str = ""
    match: Match | None = None
    final: bool = True
    facts: Mapping[str, int | float] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    figures: bool = False
    named: bool = False
    key: str | None = None


@dataclass(frozen=True)
class Skipped:
    """A file that is not imported, and why.

    Attributes:
        weights: whether it may hold a network; false of texts, pictures and what is hidden.
    """

    name: str
    reason: str
    weights: bool = True


@dataclass(frozen=True)
class Found:
    """What lies at one source."""

    format: Format
    candidates: list[Candidate]
    skipped: list[Skipped]


def find_networks(
    source: str | Path, *, format: Format = "auto", epochs: Epochs = "last", key: str | None = None
) -> Found:
    """The files at ``source`` that may be networks: their first bytes decide, not their names.

    In a folder nothing is read that lies outside it: links out of it and links to folders are passed over.
    What is passed over is named, with what it is.

    Args:
        source: a file, a folder, or ``hf://owner/name``.
        format: what it is; ``auto`` looks.
        epochs: which checkpoints of each trial of a published model zoo.
        key: where in each file the network is, if several fit.

    Raises:
        CheckpointError: the source is a file of another kind.
        InputError: there is nothing, or something else than ``format`` says.
        DataUnavailableError: the hub does not answer.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> torch.save({"w": torch.ones(2)}, folder / "model_best.pth.tar")
        >>> _ = (folder / "notes.txt").write_text("accuracy: 0.9")
        >>> found = find_networks(folder)
        >>> found.format, [candidate.name for candidate in found.candidates]
        ('folder', ['model_best.pth.tar'])
        >>> found.skipped
        [Skipped(name='notes.txt', reason='is a text, not a file of weights', weights=False)]
    """
    found = _found(source, format, epochs)
    return replace(found, candidates=[replace(candidate, key=key) for candidate in found.candidates])


def _found(source: str | Path, format: Format, epochs: Epochs) -> Found:
    if format not in get_args(Format):
        raise InputError(f"a format is one of {', '.join(get_args(Format))}, not {str(format)[:80]!r}")
    if str(source).startswith(hub.PREFIX) or format == "hub":
        return _repository(str(source), format)
    path = Path(source).expanduser()
    if not path.is_dir():
        if format not in ("auto", "file"):
            raise InputError(f"{path}: is no folder, so it is no {format!r}")
        candidate = Candidate(path=path, name=plain_name(path.name), kind=format_of(path), named=True)
        return Found("file", [candidate], [])
    if format == "file":
        raise InputError(f"{path}: is a folder, not a file")
    if (path / INDEX).exists():
        raise InputError(f"{path}: is a zoo already; `weightloom zoo export` writes its networks as files")
    if format == "modelzoos" or (format == "auto" and has_trials(path)):
        return _modelzoos(path, epochs)
    return _folder(path, path, "folder", {})


def plain_name(name: str) -> str:
    r"""``name`` without characters that a terminal would obey.

    Example:
        >>> plain_name("a\x1b[2J.pt")
        'a\\x1b[2J.pt'
    """
    return plain_words(name, limit=4096)


# -- a folder ----------------------------------------------------------------------------------


def _folder(root: Path, fence: Path, format: Format, provenance: Mapping[str, Any]) -> Found:
    candidates: list[Candidate] = []
    skipped: list[Skipped] = []
    for place, files in _places(root, skipped):
        parts: set[str] = set()
        for index, part in ((INDEX_FILE, SHARD_NAME), (BIN_INDEX, BIN_NAME)):
            if index in files:
                own = [name for name in files if name == index or part.fullmatch(name)]
                candidates += _checked(root, fence, place, [place / name for name in own], skipped)
                parts |= set(own)
                break  # of two layouts in one folder the hub's libraries read safetensors
        for name in files:
            if name not in parts:
                candidates += _checked(root, fence, place / name, [place / name], skipped)
        if len(candidates) + len(skipped) > MAX_FILES:
            raise InputError(f"{root}: holds more than {MAX_FILES:,} files")
    if format == "hub":
        skipped += [Skipped(c.name, "is no safetensors file") for c in candidates if c.kind == "pytorch"]
        candidates = [candidate for candidate in candidates if candidate.kind != "pytorch"]
    if not candidates and not any(entry.weights for entry in skipped):
        others = f" (but {len(skipped):,} of other kinds)" if skipped else ""
        raise InputError(f"{root}: holds no file of weights{others}: safetensors, or PyTorch checkpoints")
    return Found(format, [replace(candidate, provenance=provenance) for candidate in candidates], skipped)


def _places(root: Path, skipped: list[Skipped]) -> Iterator[tuple[Path, list[str]]]:
    """Folders and their files, sorted, none of them hidden or through a link."""

    def unreadable(error: OSError) -> None:
        if error.filename is not None:
            skipped.append(Skipped(_name(root, Path(error.filename)), f"cannot be read ({error.strerror})"))

    for place, folders, files in os.walk(root, onerror=unreadable):
        here = Path(place)
        kept = []
        for name in sorted(folders):
            if name.startswith("."):
                skipped.append(Skipped(_name(root, here / name), "is a hidden folder", weights=False))
            elif (here / name).is_symlink():
                skipped.append(Skipped(_name(root, here / name), "is a link to a folder"))
            elif (here / name / INDEX).exists():
                skipped.append(Skipped(_name(root, here / name), "is a zoo already"))
            else:
                kept.append(name)
        folders[:] = kept
        skipped += [
            Skipped(_name(root, here / name), "is hidden", weights=False)
            for name in sorted(files)
            if name.startswith(".")
        ]
        yield here, sorted(name for name in files if not name.startswith("."))


def _checked(
    root: Path, fence: Path, path: Path, files: list[Path], skipped: list[Skipped]
) -> list[Candidate]:
    """The candidate at ``path``, made of ``files``; none if it is of another kind, which is noted."""
    name = _name(root, path)
    if not all(_inside(file, fence) for file in files):
        skipped.append(Skipped(name, "is a link that leads out of the folder"))
        return []
    if path.is_dir():
        return [Candidate(path=path, name=name, kind="shards")]
    try:
        kind = file_kind(path)
    except CheckpointError as error:
        skipped.append(Skipped(name, error.reason))
        return []
    if kind.name == "other":
        skipped.append(Skipped(name, kind.reason, kind.weights))
        return []
    return [Candidate(path=path, name=name, kind="safetensors" if kind.name == "safetensors" else "pytorch")]


def _inside(path: Path, fence: Path) -> bool:
    try:
        return path.resolve().is_relative_to(fence.resolve())
    except (OSError, RuntimeError):  # a ring of links
        return False


def _name(root: Path, path: Path) -> str:
    return plain_name(path.name if path == root else path.relative_to(root).as_posix())


# -- a published model zoo ---------------------------------------------------------------------


def _modelzoos(root: Path, epochs: Epochs) -> Found:
    candidates: list[Candidate] = []
    skipped: list[Skipped] = []
    found = trials(root)
    if not found:
        raise InputError(f"{root}: holds no trial (a folder with {PARAMS} and checkpoint_000000/{WEIGHTS})")
    if len(found) > MAX_FILES:
        raise InputError(f"{root}: holds more than {MAX_FILES:,} trials")
    for folder in found:
        name = _name(root, folder)
        try:
            if not (_inside(folder / PARAMS, root) and _inside(folder / RESULTS, root)):
                raise CheckpointError(folder, "has a file that is a link out of the folder")
            trial = read_trial(folder)
        except CheckpointError as error:
            skipped.append(Skipped(name, f"{error.path.name} {error.reason}"))
            continue
        except OSError as error:
            skipped.append(Skipped(name, f"cannot be read ({error.strerror})"))
            continue
        skipped += [
            Skipped(_name(root, place), "is a second checkpoint of one epoch") for place in trial.twice
        ]
        candidates += _of_trial(root, name, trial, epochs, skipped)
    return Found("modelzoos", candidates, skipped)


def _of_trial(root: Path, name: str, trial: Trial, epochs: Epochs, skipped: list[Skipped]) -> list[Candidate]:
    held = {epoch for epoch, place in trial.epochs.items() if (place / WEIGHTS).exists()}
    # A trial that was killed may have a folder without weights at its end.
    last = max(held, default=None)
    if epochs == "all":
        wanted = set(trial.epochs)
    elif isinstance(epochs, tuple):
        wanted = set(epochs)
    else:
        wanted = set() if last is None else {last}
    missing = sorted(wanted - held) if held else sorted(trial.epochs)[-1:]
    skipped += [Skipped(name, f"has no weights of epoch {epoch}") for epoch in missing]
    found = []
    for epoch in sorted(wanted & held):
        path = trial.epochs[epoch] / WEIGHTS
        if not _inside(path, root):
            skipped.append(Skipped(_name(root, path), "is a link that leads out of the folder"))
            continue
        facts = {**trial.results.get(epoch, {}), "epoch": epoch}
        if trial.seed is not None:
            facts["seed"] = trial.seed
        found.append(
            Candidate(
                path=path,
                name=_name(root, path),
                kind="pytorch",
                architecture=trial.architecture,
                unknown=trial.unknown,
                match="order",
                figures=True,
                final=epoch == last,
                facts=facts,
                provenance={"trial": name, "options": trial.options},
            )
        )
    return found


# -- a hub -------------------------------------------------------------------------------------


def _repository(address: str, format: Format) -> Found:
    if format not in ("auto", "hub"):
        raise InputError(f"{address[:120]!r} is on a hub, so it is no {format!r}")
    found = hub.fetch(address)
    about = {"repository": found.name, "revision": found.revision}
    if not found.folder.is_dir():  # nothing was worth downloading
        raise InputError(f"{address}: holds no file that ends in .safetensors")
    try:
        return _folder(found.folder, found.cache, "hub", about)
    except InputError as error:
        reason = str(error).removeprefix(f"{found.folder}: ")
        raise InputError(f"{address}: {reason}") from None
