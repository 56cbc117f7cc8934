from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from weightloom.errors import CheckpointError
from weightloom.io import cache_dir, open_regular, read_bytes, sha256_of


def test_reads_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc" * 1_000_000)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_bytes(tmp_path / "link", limit=3_000_000) == b"abc" * 1_000_000
    assert sha256_of(tmp_path / "file") == hashlib.sha256(b"abc" * 1_000_000).hexdigest()
    with open_regular(tmp_path / "file") as (handle, size):
        assert (handle.read(3), size) == (b"abc", 3_000_000)


def test_what_is_no_plain_file_is_a_checkpoint_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for place, reason in {
        tmp_path: "is a folder",
        tmp_path / "nothing": "does not exist",
        tmp_path / "pipe": "not a regular file",
        tmp_path / "loop": "cannot be read",
        tmp_path / "nul\0": "cannot be read",
        Path("/dev/zero"): "not a regular file",
    }.items():
        with pytest.raises(CheckpointError, match=reason) as caught:
            read_bytes(place, limit=10)
        assert "\0" in str(place) or caught.value.path == place


def test_the_limit_holds(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_bytes(tmp_path / "file", limit=5) == b"12345"
    with pytest.raises(CheckpointError, match="more than the 4 bytes"):
        read_bytes(tmp_path / "file", limit=4)


def test_the_cache_is_where_the_variable_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WEIGHTLOOM_CACHE", str(tmp_path / "here"))
    assert cache_dir("a", "b") == tmp_path / "here" / "a" / "b"
    assert not (tmp_path / "here").exists()
    monkeypatch.setenv("WEIGHTLOOM_CACHE", "")
    assert cache_dir() == Path.home() / ".cache" / "weightloom"
