"""What files are, by their first bytes; tests/faults/foreign_files.py has one of every kind."""

from __future__ import annotations

import os
import pickle
import zipfile

import pytest
import torch

from weightloom.errors import CheckpointError
from weightloom.io import file_kind, save_tensors
from weightloom.io.kinds import check_directory, first_class, folder_reason, plain_words


def test_names_do_not_matter(tmp_path):
    for name in ("a.safetensors", "a.pt", "a.npz", "a", "a.txt"):
        save_tensors(tmp_path / name, {"w": torch.ones(2)})
        assert file_kind(tmp_path / name).name == "safetensors"
        torch.save({"w": torch.ones(2)}, tmp_path / name)
        assert file_kind(tmp_path / name).name == "pytorch"
        torch.save({"w": torch.ones(2)}, tmp_path / name, _use_new_zipfile_serialization=False)
        assert file_kind(tmp_path / name).name == "pytorch before 1.6"


@pytest.mark.parametrize(
    ("begin", "words"),
    [
        (b"PK\x03\x04", "is cut off: it begins as a zip archive"),
        (b"", "begins with zeros alone"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        (b"{", "is no file of weights"),
        (b"\x80\x02}", "is a pickle"),
    ],
)
def test_a_terabyte_is_not_read(tmp_path, memory_growth, begin, words):
    (tmp_path / "x.pt").write_bytes(begin)
    os.truncate(tmp_path / "x.pt", 1 << 40)
    with memory_growth(5):
        kind = file_kind(tmp_path / "x.pt")
    assert kind.name == "other" and words in kind.reason


def test_a_directory_of_millions_of_entries_is_not_listed(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"")
    good = (tmp_path / "x.pt").read_bytes()
    end = good.rindex(b"PK\x05\x06")
    for change, words in (
        (
            good[: end + 12] + (1 << 30).to_bytes(4, "little") + good[end + 16 :],
            "has a directory of 1,073,741,824",
        ),
        (_with_zip64(good, end, entries=1 << 40), "has 1,099,511,627,776 entries"),
    ):
        (tmp_path / "x.pt").write_bytes(change)
        assert words in file_kind(tmp_path / "x.pt").reason
    with (tmp_path / "x.pt").open("rb") as handle, pytest.raises(CheckpointError, match="entries"):
        check_directory(
            "x.pt", handle, len(change), change[change.rindex(b"PK\x05\x06") :], change.rindex(b"PK\x05\x06")
        )


def _with_zip64(good, end, entries):
    """The archive with the records of a large one before its end."""
    record = (
        b"PK\x06\x06" + (44).to_bytes(8, "little") + bytes(12) + entries.to_bytes(8, "little") * 2 + bytes(16)
    )
    locator = b"PK\x06\x07" + bytes(4) + end.to_bytes(8, "little") + (1).to_bytes(4, "little")
    return good[:end] + record + locator + good[end:]


def test_a_damaged_directory(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "x.pt")
    good = (tmp_path / "x.pt").read_bytes()
    at = good.index(b"PK\x01\x02")
    (tmp_path / "x.pt").write_bytes(good[:at] + b"XX" + good[at + 2 :])
    assert "whose directory is damaged" in file_kind(tmp_path / "x.pt").reason


def test_letters_that_are_cut_in_two_are_text(tmp_path):
    (tmp_path / "x").write_text("x" * 4095 + "é" * 10, encoding="utf-8")
    assert "is a text" in file_kind(tmp_path / "x").reason
    (tmp_path / "x").write_bytes(b"x" * 4000 + b"\xff" + b"x" * 200)
    assert "is no file of weights" in file_kind(tmp_path / "x").reason


@pytest.mark.parametrize(
    "text", ["class\nants\nbees\n", "colour\nred\ngreen.", "(a) one\n(b) two\n", "}", "c"]
)
def test_a_text_is_no_pickle(tmp_path, text):
    (tmp_path / "x").write_text(text)
    assert "is a text" in file_kind(tmp_path / "x").reason
    (tmp_path / "x").write_text("class\nants\n" + "bees\n" * 2000)
    assert "is a text" in file_kind(tmp_path / "x").reason


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("size", [1, 3000])
def test_a_pickle_of_any_protocol_is_one(tmp_path, protocol, size):
    (tmp_path / "x").write_bytes(pickle.dumps({"w": list(range(size)), "b": 0.5}, protocol=protocol))
    assert "is a pickle" in file_kind(tmp_path / "x").reason


def test_names_in_a_file_cannot_talk_to_the_terminal(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a\x1b[2J", b"")
    assert "\x1b" not in file_kind(tmp_path / "x.zip").reason
    assert plain_words("\x1b[31m" + "x" * 200) == "\\x1b[31m" + "x" * 92 + "..."
    assert plain_words("\ud800") == "\\ud800"
    assert first_class(b"\x80\x04\x8c\x02os\x8c\x06system\x93.") == "os.system"
    assert first_class(b"\x80\x04\x8c") == ""


def test_folders(tmp_path):
    assert folder_reason(tmp_path) == "is a folder"
    (tmp_path / "zoo.sqlite3").touch()
    assert "zoo export" in folder_reason(tmp_path)
