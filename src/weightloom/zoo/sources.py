"""Where networks from elsewhere lie: a file, a folder, a published model zoo, a repository on a hub.

Finds files that may be networks, and what is told of them beside their weights; opens no file of weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from weightloom.architectures import ArchitectureSpec
from weightloom.errors import CheckpointError, InputError
from weightloom.io.shards import INDEX_FILE, SHARD_NAME
from weightloom.zoo import hub
from weightloom.zoo.index import INDEX
from weightloom.zoo.modelzoos import PARAMS, RESULTS, WEIGHTS, Epochs, Trial, has_trials, read_trial, trials
from weightloom.zoo.reading import LEGACY_SUFFIXES, Kind, Match, kind_of

Format = Literal["auto", "file", "folder", "modelzoos", "hub"]
MAX_FILES = 1_000_000
_SUFFIXES = (".safetensors", *LEGACY_SUFFIXES)


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


@dataclass(frozen=True)
class Skipped:
    """A file that is not imported, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Found:
    """What lies at one source."""

    format: Format
    candidates: list[Candidate]
    skipped: list[Skipped]


def find_networks(source: str | Path, *, format: Format = "auto", epochs: Epochs = "last") -> Found:
    """The files at ``source`` that may be networks.

    In a folder nothing is read that lies outside it: links out of it and links to folders are passed over.

    Args:
        source: a file, a folder, or ``hf://owner/name``.
        format: what it is; ``auto`` looks.
        epochs: which checkpoints of each trial of a published model zoo.

    Raises:
        InputError: there is nothing, or something else than ``format`` says.
        DataUnavailableError: the hub does not answer.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "a.safetensors").write_bytes(b""), (folder / "notes.txt").write_text("")
        >>> found = find_networks(folder)
        >>> found.format, [candidate.name for candidate in found.candidates]
        ('folder', ['a.safetensors'])
    """
    if format not in get_args(Format):
        raise InputError(f"a format is one of {', '.join(get_args(Format))}, not {str(format)[:80]!r}")
    if str(source).startswith(hub.PREFIX) or format == "hub":
        return _repository(str(source), format)
    path = Path(source).expanduser()
    if not path.is_dir():  # a file that is missing is found when it is read
        if format not in ("auto", "file"):
            raise InputError(f"{path}: is no folder, so it is no {format!r}")
        candidate = Candidate(path=path, name=plain_name(path.name), kind=kind_of(path), named=True)
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
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


# -- a folder ----------------------------------------------------------------------------------


def _folder(root: Path, fence: Path, format: Format, provenance: Mapping[str, Any]) -> Found:
    candidates: list[Candidate] = []
    skipped: list[Skipped] = []
    suffixes = _SUFFIXES if format == "folder" else (".safetensors",)
    for place, files in _places(root, skipped):
        shards = INDEX_FILE in files
        parts = [name for name in files if shards and (name == INDEX_FILE or SHARD_NAME.fullmatch(name))]
        if shards:
            found = _checked(root, fence, place, [place / name for name in parts], "shards", skipped)
            candidates += [replace(candidate, provenance=provenance) for candidate in found]
        for name in files:
            if name not in parts and Path(name).suffix.lower() in suffixes:
                path = place / name
                found = _checked(root, fence, path, [path], kind_of(path), skipped)
                candidates += [replace(candidate, provenance=provenance) for candidate in found]
        if len(candidates) + len(skipped) > MAX_FILES:
            raise InputError(f"{root}: holds more than {MAX_FILES:,} files")
    if not candidates and not skipped:
        raise InputError(f"{root}: holds no file that ends in {', '.join(suffixes)}")
    return Found(format, candidates, skipped)


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
                continue
            if (here / name).is_symlink():
                skipped.append(Skipped(_name(root, here / name), "is a link to a folder"))
            elif (here / name / INDEX).exists():
                skipped.append(Skipped(_name(root, here / name), "is a zoo already"))
            else:
                kept.append(name)
        folders[:] = kept
        yield here, sorted(name for name in files if not name.startswith("."))


def _checked(
    root: Path, fence: Path, path: Path, files: list[Path], kind: Kind, skipped: list[Skipped]
) -> list[Candidate]:
    name = _name(root, path)
    if not all(_inside(file, fence) for file in files):
        skipped.append(Skipped(name, "is a link that leads out of the folder"))
        return []
    return [Candidate(path=path, name=name, kind=kind)]


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
