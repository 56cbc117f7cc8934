from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weightloom.errors import CheckpointError
from weightloom.io import load_tensors, read_header, save_tensors, shapes_of, tensors
from weightloom.io.tensors import _DTYPES

DTYPES = sorted(_DTYPES.values(), key=str)
EIGHT_ZEROS = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    values = torch.randint(0, 2, shape)
    if dtype.is_complex or (dtype.is_floating_point and dtype.itemsize > 1):
        return torch.randn(shape).to(dtype)
    return values.to(dtype)


def raw(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def a_checkpoint() -> dict[str, torch.Tensor]:
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Linear(4, 3))
    return module.state_dict()


# -- what is written comes back ----------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}(\.[0-9a-z]{1,4}){0,3}", fullmatch=True),
        st.tuples(st.lists(st.integers(0, 4), max_size=5).map(tuple), st.sampled_from(DTYPES)),
        max_size=6,
    ),
    st.dictionaries(st.text(max_size=10), st.text(max_size=20), max_size=3),
)
def test_round_trip(
    tmp_path: Path, layout: dict[str, tuple[tuple[int, ...], torch.dtype]], metadata: dict[str, str]
) -> None:
    written = {name: random_tensor(shape, dtype) for name, (shape, dtype) in layout.items()}
    path = tmp_path / "x.safetensors"
    try:
        save_tensors(path, written, metadata)
    except CheckpointError as error:
        assert "is not text" in str(error) and any(
            "\ud800" <= letter <= "\udfff" for text in (*metadata, *metadata.values()) for letter in text
        )
        return
    read, said = load_tensors(path, expected=shapes_of(written))
    assert said == metadata
    assert list(read) == sorted(written)
    for name, tensor in written.items():
        assert read[name].dtype == tensor.dtype and read[name].shape == tensor.shape
        assert read[name].reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8))
    # The library reads what we write, and agrees.
    theirs = safetensors.torch.load_file(path)
    assert set(theirs) == set(read)
    assert all(theirs[name].shape == read[name].shape for name in read)


def test_we_read_what_the_library_writes(tmp_path: Path) -> None:
    written = a_checkpoint()
    safetensors.torch.save_file(written, tmp_path / "theirs.safetensors", {"format": "pt"})
    read, metadata = load_tensors(tmp_path / "theirs.safetensors", expected=shapes_of(written))
    assert metadata == {"format": "pt"}
    assert all(read[name].equal(written[name]) for name in written)


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    written = a_checkpoint()
    one = save_tensors(tmp_path / "one", written, {"a": "1", "b": "2"})
    two = save_tensors(tmp_path / "two", dict(reversed(written.items())), {"b": "2", "a": "1"})
    assert one == two
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_loaded_tensors_own_their_memory(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x", a_checkpoint())
    read, _ = load_tensors(tmp_path / "x")
    for tensor in read.values():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
        assert tensor.data_ptr() % tensor.element_size() == 0
        tensor.zero_()  # writable


def test_the_default_device_does_not_matter(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x", a_checkpoint())
    with torch.device("meta"):
        read, _ = load_tensors(tmp_path / "x")
    assert all(tensor.device.type == "cpu" for tensor in read.values())


def test_what_the_caller_hands_in_is_not_changed(tmp_path: Path, rng_untouched: None) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    save_tensors(tmp_path / "x", {"p": parameter})
    assert parameter.requires_grad and parameter.equal(torch.ones(3))


def test_read_header_reads_no_numbers(tmp_path: Path) -> None:
    written = a_checkpoint()
    save_tensors(tmp_path / "x", written, {"task": "digits"})
    header = read_header(tmp_path / "x")
    assert header.metadata == {"task": "digits"}
    assert header.num_elements == sum(tensor.numel() for tensor in written.values())
    assert {name: (info.shape, info.dtype) for name, info in header.tensors.items()} == shapes_of(written)


# -- what is not written -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.tensor([1.0, float("nan")]), "not finite"),
        (torch.tensor([float("-inf")], dtype=torch.bfloat16), "not finite"),
        (torch.tensor([float("nan")]).to(torch.float8_e5m2), "not finite"),
        (torch.tensor([complex(0, float("inf"))], dtype=torch.complex64), "not finite"),
        (torch.ones(3, 2).t(), "not contiguous"),
        (torch.ones(1).expand(4), "not contiguous"),
        (torch.ones(2, dtype=torch.complex64).conj(), "not contiguous"),
        (torch.ones(2, device="meta"), "cannot be written"),
        (torch.eye(2).to_sparse(), "cannot be written"),
        (torch.ones(2, dtype=torch.complex128), "cannot be written"),
        (torch.ones((1,) * 9), "9 dimensions"),
        ([1.0], "is no tensor but list"),
    ],
)
def test_a_tensor_that_cannot_be_kept_is_named(tmp_path: Path, tensor: Any, reason: str) -> None:
    with pytest.raises(CheckpointError, match=f"tensor 'bad.one' .*{reason}"):
        save_tensors(tmp_path / "x", {"good": torch.ones(2), "bad.one": tensor})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["", "../../etc/passwd", "a..b", "/a", "a b", "a\0", "é", "x" * 513, 3, "a\n"]
)
def test_a_bad_name_is_refused_on_both_sides(tmp_path: Path, name: Any) -> None:
    with pytest.raises(CheckpointError, match="has a name"):
        save_tensors(tmp_path / "x", {name: torch.zeros(2)})
    if isinstance(name, str):
        (tmp_path / "x").write_bytes(raw({name: EIGHT_ZEROS}, bytes(8)))
        with pytest.raises(CheckpointError, match="has a name"):
            load_tensors(tmp_path / "x")


def test_metadata_is_text(tmp_path: Path) -> None:
    for metadata in ({"a": 1}, {1: "a"}, {"a": None}):
        with pytest.raises(CheckpointError, match="is not text"):
            save_tensors(tmp_path / "x", {}, metadata)  # type: ignore[arg-type]


# -- what is not read --------------------------------------------------------------------------


def test_missing_extra_misshapen_and_mistyped_tensors_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x"
    save_tensors(path, {"a": torch.zeros(2, 3), "b": torch.zeros(2)})
    good = {"a": ((2, 3), torch.float32), "b": ((2,), torch.float32)}
    load_tensors(path, expected=good)
    for change, reason in [
        ({"c": ((1,), torch.float32)}, "lacks tensor 'c'"),
        ({"c": ((1,), torch.float32), "d": ((1,), torch.float32)}, r"lacks tensor 'c' \(and 1 more\)"),
        ({"a": ((3, 2), torch.float32)}, r"tensor 'a' has shape \(2, 3\), not \(3, 2\)"),
        ({"b": ((2,), torch.float16)}, r"tensor 'b' is torch.float32, not torch.float16"),
    ]:
        with pytest.raises(CheckpointError, match=reason):
            load_tensors(path, expected={**good, **change})
    with pytest.raises(CheckpointError, match="holds tensor 'b', which nothing asks for"):
        load_tensors(path, expected={"a": good["a"]})


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    safetensors.torch.save_file({"w": torch.tensor([1.0, float("nan")])}, tmp_path / "x")
    with pytest.raises(CheckpointError, match="tensor 'w' has values that are not finite"):
        load_tensors(tmp_path / "x")
    read, _ = load_tensors(tmp_path / "x", allow_nonfinite=True)
    assert bool(read["w"].isnan().any())


def test_a_truth_value_is_zero_or_one(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(raw({"b": {"dtype": "BOOL", "shape": [1], "data_offsets": [0, 1]}}, b"\x07"))
    with pytest.raises(CheckpointError, match="truth value"):
        load_tensors(tmp_path / "x")


def entry(**changes: Any) -> dict[str, Any]:
    return {"w": {**EIGHT_ZEROS, **changes}}


HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "nine bytes": b"\x01" + bytes(8),
    "text": b"version https://example.invalid/spec/v1\n" * 3,
    "header of 2^64 - 1": raw({}, length=2**64 - 1),
    "header beyond the limit": raw({}, length=tensors.MAX_HEADER_BYTES + 1),
    "header beyond the end": raw({}, length=100),
    "not JSON": raw(b"{'w': 1}"),
    "a list": raw(b"[]"),
    "no object": raw(b'"{}"'),
    "not UTF-8": raw(b'{"\xff": 1}'),
    "NaN": raw(b'{"w": NaN}'),
    "nested": raw(b'{"w":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    "a long number": raw(b'{"w": ' + b"9" * 10_000 + b"}"),
    "a name twice": raw(b'{"w":%s,"w":%s}' % ((json.dumps(EIGHT_ZEROS).encode(),) * 2), bytes(8)),
    "a field twice": raw(b'{"w":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
    "metadata no object": raw({"__metadata__": []}),
    "metadata not text": raw({"__metadata__": {"a": 1}}),
    "entry no object": raw({"w": 3}),
    "entry with more": raw(entry(extra=1), bytes(8)),
    "entry with less": raw({"w": {"dtype": "F32"}}),
    "unknown type": raw(entry(dtype="F33"), bytes(8)),
    "type no text": raw(entry(dtype=[]), bytes(8)),
    "shape no list": raw(entry(shape="2"), bytes(8)),
    "negative shape": raw(entry(shape=[-1, -2]), bytes(8)),
    "shape of floats": raw(entry(shape=[2.0]), bytes(8)),
    "shape of truths": raw(entry(shape=[True, 2]), bytes(8)),
    "shape that overflows": raw(entry(shape=[2**33, 2**33]), bytes(8)),
    "a shape beyond the limit": raw(entry(shape=[0, 2**41], data_offsets=[0, 0])),
    "rank 9": raw(entry(shape=[1] * 8 + [2]), bytes(8)),
    "offsets of floats": raw(entry(data_offsets=[0.0, 8.0]), bytes(8)),
    "offsets turned round": raw(entry(data_offsets=[8, 0]), bytes(8)),
    "three offsets": raw(entry(data_offsets=[0, 8, 8]), bytes(8)),
    "a hole": raw(entry(data_offsets=[8, 16]), bytes(16)),
    "an overlap": raw({**entry(), "v": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, bytes(12)),
    "the same bytes twice": raw({**entry(), "v": EIGHT_ZEROS}, bytes(8)),
    "bytes after the end": raw(entry(), bytes(9)),
    "bytes missing": raw(entry(), bytes(7)),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_header_is_refused_at_once(
    tmp_path: Path, case: str, memory_growth: Callable[[int], AbstractContextManager[None]]
) -> None:
    (tmp_path / "x").write_bytes(HOSTILE[case])
    for read in (load_tensors, read_header):
        start = time.perf_counter()
        with memory_growth(30), pytest.raises(CheckpointError) as caught:
            read(tmp_path / "x")
        assert time.perf_counter() - start < 1.0
        assert caught.value.path == tmp_path / "x" and len(str(caught.value)) < 600


def test_the_largest_header_that_is_read_costs_little(tmp_path: Path) -> None:
    count = tensors.MAX_TENSORS + 1
    header = {f"t{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(count)}
    (tmp_path / "x").write_bytes(raw(json.dumps(header, separators=(",", ":")).encode()))
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match="65,537 tensors where 65,536 are allowed"):
        load_tensors(tmp_path / "x")
    assert time.perf_counter() - start < 3.0


def test_a_mutated_file_is_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, a_checkpoint(), {"task": "digits"})
    original, dice = path.read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(original[:8], "little")
    refused = 0
    for _ in range(10_000):
        data = bytearray(original)
        for _ in range(dice.randint(1, 3)):
            # Mostly in the header: there is nothing to break in the numbers but their finiteness.
            place = dice.randrange(header if dice.random() < 0.9 else len(data))
            kind = dice.randrange(4)
            if kind == 0:
                data[place] ^= 1 << dice.randrange(8)
            elif kind == 1:
                data[place] = dice.choice(b'0123456789{}[]",:\x00\xff')
            elif kind == 2:
                del data[place : place + dice.randint(1, 20)]
            else:
                data[place:place] = data[place : place + dice.randint(1, 20)]
        path.unlink()  # some file systems flush a file that is written over
        path.write_bytes(data[: dice.randrange(len(data))] if dice.random() < 0.1 else data)
        try:
            load_tensors(path)
        except CheckpointError:
            refused += 1
    assert refused > 7000
