"""Every reader, on files that have been changed at random: read or refused, never another kind of failure.

The quick size is the same few inputs each time; ``make faults`` runs a million new ones.
"""

from __future__ import annotations

import shutil
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.faults.readers import READERS, good_readers

from weightloom.errors import WeightloomError

# What files are made of, and what has broken readers before.
PIECES = [
    b'"', b"{", b"}", b"[", b"]", b":", b",", b"null", b"true", b"-1", b"0", b"1e999", b"NaN", b"9" * 40,
    b"\\u0000", b"../", b"\x00", b"\xff", b"\xff" * 8, b"\x00" * 16, b"[" * 2000, b"&a", b"*a",
    b"!!python/object:os.system",
]  # fmt: skip
EDITS = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["flip", "set", "piece", "delete", "copy", "cut"]),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=4,
)


def mutated(data: bytes, edits: list[tuple[float, str, int]]) -> bytes:
    changed = bytearray(data)
    for share, kind, value in edits:
        if not changed:
            break
        place = int(share * len(changed))
        if kind == "flip":
            changed[place] ^= 1 << value % 8
        elif kind == "set":
            changed[place] = value
        elif kind == "piece":
            piece = PIECES[value % len(PIECES)]
            changed[place : place + (len(piece) if value % 2 else 0)] = piece
        elif kind == "delete":
            del changed[place : place + 1 + value % 20]
        elif kind == "copy":
            changed[place:place] = changed[place : place + 1 + value % 40]
        else:
            del changed[place:]
    return bytes(changed)


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    """Good files of every kind with their readers."""
    return good_readers(tmp_path_factory.mktemp("good"))


@pytest.mark.parametrize("name", READERS)
def test_a_changed_file_is_read_or_refused(readers, tmp_path, name, full, record_property):
    reader = readers[name]
    good = reader.file.read_bytes()
    refused = inputs = 0
    kept = tmp_path / "kept"
    if reader.folder is not None:
        shutil.copytree(reader.folder, kept)

    @settings(
        max_examples=int(reader.share * 1_000_000) if full else reader.quick,
        deadline=None,
        derandomize=not full,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(EDITS)
    def try_one(edits):
        nonlocal inputs
        inputs += 1
        if reader.folder is not None:
            shutil.rmtree(reader.folder)
            shutil.copytree(kept, reader.folder)
        reader.file.unlink()  # some file systems flush a file that is written over
        reader.file.write_bytes(mutated(good, edits))
        took = seconds()
        # Once in some hundred thousand times Python's own garbage collection takes a second.
        assert took < 1.0 or seconds() < 1.0, "it hangs"

    def seconds() -> float:
        nonlocal refused
        start = time.process_time()
        try:
            reader.read(reader.file)
        except WeightloomError as error:
            refused += 1
            assert len(str(error)) < 2000
        return time.process_time() - start

    try:
        try_one()
    finally:
        if reader.folder is not None:
            shutil.rmtree(reader.folder)
            shutil.copytree(kept, reader.folder)
        reader.file.write_bytes(good)
    record_property("inputs", inputs)
    assert refused or not reader.refuses, "nothing was refused: the changes change nothing that is read"
