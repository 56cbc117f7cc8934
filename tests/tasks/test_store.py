from __future__ import annotations

import os

import numpy as np
import pytest

from weightloom.errors import (
    CheckpointError,
    DataUnavailableError,
    InputError,
    UnknownNameError,
    WeightloomError,
)
from weightloom.tasks import dataset_info, dataset_names, fetch_dataset
from weightloom.tasks.store import (
    Arrays,
    DatasetInfo,
    Source,
    SourceSilent,
    content_checksum,
    datasets,
    in_digest_order,
    read_split,
)


def toy_arrays(order: int = 1) -> Arrays:
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 12), ("test", 6)):
        images = generator.integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)
        arrays[split] = (images[::order].copy(), (np.arange(count) % 3).astype(np.int16)[::order].copy())
    return arrays


def silent(progress: object) -> Arrays:
    raise SourceSilent("is out of order")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch):
    """Registers a dataset named ``toy`` with the given sources."""

    def register(*sources: Source, checksums: dict[str, str] | None = None) -> DatasetInfo:
        right = {split: content_checksum(*in_digest_order(*pair)) for split, pair in toy_arrays().items()}
        info = DatasetInfo(
            name="toy",
            title="Toy",
            subject="toys",
            class_names=("a", "b", "c"),
            channels=1,
            size=8,
            counts={"train": 12, "test": 6},
            licence="none",
            sources=sources,
            checksums=right if checksums is None else checksums,
        )
        monkeypatch.setitem(datasets._things, "toy", info)
        return info

    return register


GOOD = Source(name="good", read=lambda progress: toy_arrays())


def test_the_first_source_that_answers_is_kept_and_the_others_remembered(toy, tmp_path):
    toy(
        Source(name="first", read=silent),
        GOOD,
        Source(name="never", read=lambda progress: pytest.fail("asked")),
    )
    said: list[str] = []
    report = fetch_dataset("toy", tmp_path, said.append)
    assert report.source == "good"
    assert report.tried == (("first", "is out of order"),)
    assert report.path == tmp_path / "datasets" / "toy"
    assert report.num_bytes > 0 and any("first" in line for line in said)
    images, labels = read_split("toy", "train", tmp_path)
    assert images.shape == (12, 1, 8, 8) and images.dtype == np.uint8 and labels.dtype == np.int16
    assert sorted(path.name for path in report.path.iterdir()) == [
        "meta.json",
        "test.safetensors",
        "train.safetensors",
    ]
    assert fetch_dataset("toy", tmp_path).source == "cache"


def test_sources_in_another_order_give_the_same_arrays(toy, tmp_path):
    toy(Source(name="backwards", read=lambda progress: toy_arrays(-1)))
    fetch_dataset("toy", tmp_path)
    images, labels = read_split("toy", "train", tmp_path)
    wanted = in_digest_order(*toy_arrays()["train"])
    assert (images == wanted[0]).all() and (labels == wanted[1]).all()


def test_no_source_is_one_sentence_that_names_them_all(toy, tmp_path):
    wrong = toy_arrays()
    wrong["train"][0][0] ^= 1
    short = {split: (images[1:], labels[1:]) for split, (images, labels) in toy_arrays().items()}
    toy(
        Source(name="one", read=silent),
        Source(name="two", read=lambda progress: wrong),
        Source(name="three", read=lambda progress: short),
    )
    with pytest.raises(DataUnavailableError) as caught:
        fetch_dataset("toy", tmp_path)
    text = str(caught.value)
    assert "one is out of order" in text and "two gave train images with another checksum" in text
    assert "three gave train images of shape" in text and "weightloom data fetch toy" in text
    assert "\n" not in text
    assert not (tmp_path / "datasets").exists()


def test_unfetched_data_says_how_to_fetch_it(toy, tmp_path):
    toy(GOOD)
    with pytest.raises(DataUnavailableError, match="weightloom data fetch toy"):
        read_split("toy", "train", tmp_path)


def test_installed_data_needs_no_cache(toy, tmp_path):
    toy(Source(name="installed", read=lambda progress: toy_arrays(), local=True))
    images, _ = read_split("toy", "test", tmp_path)
    assert len(images) == 6 and not (tmp_path / "datasets").exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign"])
def test_a_broken_cache_is_found_and_refetched(toy, tmp_path, damage):
    toy(GOOD)
    path = fetch_dataset("toy", tmp_path).path / "train.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(
        {"flip": bytes(content), "cut": bytes(content[:-9]), "empty": b"", "foreign": b"hello" * 9}[damage]
    )
    with pytest.raises(CheckpointError, match="weightloom data fetch toy") as caught:
        read_split("toy", "train", tmp_path)
    assert caught.value.path == path
    report = fetch_dataset("toy", tmp_path)
    assert report.source == "good" and report.tried[0][0] == "cache"
    read_split("toy", "train", tmp_path)


def test_without_a_pinned_checksum_the_written_one_counts(toy, tmp_path):
    toy(GOOD, checksums={})
    folder = fetch_dataset("toy", tmp_path).path
    read_split("toy", "train", tmp_path)
    (folder / "meta.json").write_text("{}")
    with pytest.raises(CheckpointError, match="lacks the checksum"):
        read_split("toy", "train", tmp_path)


def test_a_cache_that_cannot_be_written_is_said(toy, tmp_path):
    toy(GOOD)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        fetch_dataset("toy", tmp_path / "file")


def test_a_full_disk_loses_nothing(toy, tmp_path, monkeypatch):
    toy(GOOD)
    with monkeypatch.context() as patch:
        patch.setattr(
            os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
        with pytest.raises(WeightloomError, match="no space left") as caught:
            fetch_dataset("toy", tmp_path)
        assert caught.value.exit_code == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    fetch_dataset("toy", tmp_path)


def test_an_interrupt_leaves_nothing_half_written(toy, tmp_path):
    def interrupted(progress: object) -> Arrays:
        raise KeyboardInterrupt

    toy(Source(name="slow", read=interrupted))
    with pytest.raises(KeyboardInterrupt):
        fetch_dataset("toy", tmp_path)
    assert not (tmp_path / "datasets").exists()


def test_names():
    assert dataset_names() == [
        "cifar10",
        "digits",
        "fashion-mnist",
        "glyphs",
        "icons",
        "mnist",
        "quickdraw",
        "shapes",
    ]
    with pytest.raises(UnknownNameError, match="did you mean 'cifar10'"):
        dataset_info("cifar")


@pytest.mark.parametrize(
    "name", ["cifar10", "digits", "fashion-mnist", "glyphs", "icons", "mnist", "quickdraw", "shapes"]
)
def test_what_is_known_of_each_dataset(name):
    info = dataset_info(name)
    assert info.name == name and info.licence and info.sources and info.subject
    assert len(set(info.class_names)) == info.num_classes >= 10
    assert set(info.counts) == {"train", "test"}
    assert name in ("glyphs", "icons", "shapes") or {len(value) for value in info.checksums.values()} == {64}
    assert not any("," in word for word in info.class_names)  # they are listed with commas
