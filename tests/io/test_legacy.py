from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import time
import warnings
import zipfile
from argparse import Namespace
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from weightloom.errors import CheckpointError
from weightloom.io import load_legacy, load_parts, load_pinned, pickles, sha256_of


def a_network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 3))


def save(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def rewrite(source: Path, target: Path, change: Callable[[str, bytes], bytes | None], **options: Any) -> Path:
    """A copy of the archive ``source`` with every entry passed through ``change`` (None leaves it out)."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", **options) as new:
        for entry in old.infolist():
            data = change(entry.filename.partition("/")[2], old.read(entry))
            if data is not None:
                new.writestr(entry.filename, data)
    return target


def with_pickle(tmp_path: Path, pickled: bytes) -> Path:
    source = save(tmp_path / "source.pt", {"w": torch.arange(4.0)})
    return rewrite(source, tmp_path / "x.pt", lambda name, data: pickled if name == "data.pkl" else data)


# -- what is read ------------------------------------------------------------------------------


def test_a_state_dict_comes_back(tmp_path: Path) -> None:
    state = a_network().state_dict()
    read = load_legacy(save(tmp_path / "x.pt", state))
    assert list(read) == list(state)
    for name, tensor in state.items():
        assert read[name].equal(tensor) and read[name].dtype == tensor.dtype
        assert read[name].untyped_storage().nbytes() == tensor.nbytes


def test_a_training_checkpoint_comes_back(tmp_path: Path) -> None:
    network = a_network()
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 1, 6, 4 + 2)).sum().backward()
    optimizer.step()
    value = {
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "loss": 0.5,
        "names": ["a", ("b", None, True)],
        "types": {
            d: torch.ones(3).to(d) for d in (torch.float16, torch.bfloat16, torch.int8, torch.bool)
        }.values(),
        "weight": torch.nn.Parameter(torch.ones(2)),
        "large": 2**70,
    }
    value["types"] = list(value["types"])
    read = load_legacy(save(tmp_path / "x.pt", value))
    assert read["epoch"] == 3 and read["names"] == ["a", ("b", None, True)] and read["large"] == 2**70
    assert [tensor.dtype for tensor in read["types"]] == [tensor.dtype for tensor in value["types"]]
    assert type(read["weight"]) is torch.Tensor
    step = next(iter(read["optimizer"]["state"].values()))["exp_avg"]
    assert step.shape == (4, 1, 3, 3)


def test_tied_and_transposed_weights_are_read_as_they_are(tmp_path: Path) -> None:
    weight = torch.randn(5, 3)
    value = {"a": weight, "b": weight, "t": weight.t(), "row": weight[2], "u": torch.ones(2).to(torch.uint16)}
    read = load_legacy(save(tmp_path / "x.pt", value))
    assert all(read[name].equal(value[name]) and read[name].is_contiguous() for name in value)


def test_the_global_stream_is_left_alone(tmp_path: Path, rng_untouched: None) -> None:
    load_legacy(save(tmp_path / "x.pt", {"w": torch.zeros(2)}))


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_itself_takes(tmp_path: Path, zipped: bool) -> None:
    marked = torch.ones(2)
    marked.note = "kept by torch, let go here"  # type: ignore[attr-defined]
    value = {
        "set": {1, 2},
        "complex": 1 + 2j,
        "bytes": b"ab",
        "bytearray": bytearray(b"xyz"),
        "size": torch.Size([1, 2]),
        "counter": Counter("aab"),
        "marked": marked,
        "parameter": torch.nn.Parameter(marked.clone(), requires_grad=False),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "device": torch.device("cuda", 0),
        "types": [torch.float8_e4m3fn, torch.uint16, torch.bfloat16],
        (1, "a"): None,
        0.5: True,
    }
    if zipped:  # torch reads no 8-bit floats from old files
        value["eight"] = torch.ones(3).to(torch.float8_e5m2)
    path = tmp_path / "x.pt"
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    assert len(torch.load(path, weights_only=True)) == len(value)
    read = load_legacy(path)
    assert read["set"] == {1, 2} and read["complex"] == 1 + 2j and read["bytes"] == b"ab"
    assert read["bytearray"] == b"xyz" and read["size"] == (1, 2) and read["counter"] == {"a": 2, "b": 1}
    assert read["marked"].equal(torch.ones(2)) and not hasattr(read["marked"], "note")
    assert read["conjugate"].equal(torch.tensor([1 - 2j])) and not read["conjugate"].is_conj()
    assert read["types"] == value["types"]
    assert not zipped or read["eight"].dtype == torch.float8_e5m2
    assert read["(1, 'a')"] is None and read["0.5"] is True


@pytest.mark.parametrize("value", [[torch.ones(2)], torch.ones(2), (1, {"w": torch.ones(2)})])
def test_the_outermost_value_is_any(tmp_path: Path, value: Any) -> None:
    assert str(load_legacy(save(tmp_path / "x.pt", value))) == str(value)


def test_a_file_from_before_pytorch_1_6(tmp_path: Path) -> None:
    network = a_network()
    base = torch.randn(10)
    value = {"net": network.state_dict(), "part": base[2:5], "again": base, "epoch": 3}
    path = tmp_path / "old.pt"
    torch.save(value, path, _use_new_zipfile_serialization=False)
    read = load_legacy(path)
    assert read["epoch"] == 3 and read["part"].equal(base[2:5]) and read["again"].equal(base)
    for name, tensor in network.state_dict().items():
        assert read["net"][name].equal(tensor) and read["net"][name].dtype == tensor.dtype


def test_old_files_with_something_hidden(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    torch.save({"w": torch.arange(4.0), "v": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    good = path.read_bytes()
    first = good.index(b"X\x0e\0\0\0") if b"X\x0e\0\0\0" in good else good.index(b"X\x0f\0\0\0")
    key = good[first + 5 : first + 5 + good[first + 1]]
    claim = good.index(b"K\x04Nt")  # the first storage has four numbers
    assert good.count(key) == 2
    for data, reason in {
        good[:-1]: "cut off",
        good + b"x": "bytes after its end",
        good[:40]: "cut off",
        good.replace(b"K\x04Nt", b"K\x05Nt"): "claims 5 numbers",
        good.replace(b"K\x04Nt", b"J\xff\xff\xff\x7fNt"): "tensors that claim|claims",
        good[:claim] + good[claim:].replace(b"K\x04\x85", b"K\x09\x85", 1): "in a storage of 16 bytes",
        good.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"): "big-endian",
        good[: good.rindex(key)] + key[::-1] + good[good.rindex(key) + len(key) :]: "lists other storages",
        good.replace(b"M\xe9\x03.", b"M\xe8\x03.", 1): "before version 1.6",
    }.items():
        assert data != good
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=reason):
            load_legacy(path)


def test_a_network_in_several_files(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.zeros(1)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    index = tmp_path / "pytorch_model.bin.index.json"

    def write(**where: str) -> None:
        index.write_text(json.dumps({"metadata": {}, "weight_map": where}))

    write(a="pytorch_model-00001-of-00002.bin", b="pytorch_model-00002-of-00002.bin")
    assert list(load_parts(tmp_path)) == ["a", "b"]
    write(a="pytorch_model-00001-of-00002.bin", c="pytorch_model-00002-of-00002.bin")
    with pytest.raises(CheckpointError, match="lacks tensor 'c'"):
        load_parts(tmp_path)
    write(a="../pytorch_model-00001-of-00002.bin")
    with pytest.raises(CheckpointError, match="which is no part"):
        load_parts(tmp_path)
    index.write_text("[]")
    with pytest.raises(CheckpointError, match="is not the index"):
        load_parts(tmp_path)


# -- what is refused ---------------------------------------------------------------------------


class Payload:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


def test_nothing_of_the_file_is_called(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    path = save(tmp_path / "x.pt", {"w": Payload(os.system, f"touch {mark}")})
    with pytest.raises(CheckpointError, match=r"names posix\.system|names nt\.system"):
        load_legacy(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "value",
    [
        {"module": torch.nn.Linear(2, 2)},
        {"w": torch.eye(3).to_sparse()},
        {"w": torch.ones(2, device="meta")},
        {"best": np.float64(0.5)},
        {"w": Payload(bytearray, 10**12)},
        {"w": Payload(torch.Tensor, 10**6, 10**6)},
    ],
)
def test_what_is_no_plain_checkpoint(
    tmp_path: Path, value: Any, memory_growth: Callable[[int], AbstractContextManager[None]]
) -> None:
    path = save(tmp_path / "x.pt", value)
    with memory_growth(30), pytest.raises(CheckpointError):
        load_legacy(path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
            "a quantised tensor; save deq",
        ),
        (lambda: torch.eye(3).to_sparse(), "a sparse tensor; save to_dense"),
        (lambda: torch.eye(3).to_sparse_csr(), "a sparse tensor; save to_dense"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "a nested tensor"),
        (lambda: torch.ones(2, device="meta"), "a tensor on the meta device, which has no values"),
        (lambda: np.float64(0.5), "NumPy values beside its tensors"),
    ],
)
def test_tensors_of_other_kinds_are_called_what_they_are(tmp_path: Path, make: Any, words: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls three of these kinds unfinished or deprecated
        path = save(tmp_path / "x.pt", {"w": torch.ones(2), "odd": make()})
    with pytest.raises(CheckpointError, match=words):
        load_legacy(path)


def test_a_deflate_bomb_is_refused_before_it_is_unpacked(
    tmp_path: Path, memory_growth: Callable[[int], AbstractContextManager[None]]
) -> None:
    source = save(tmp_path / "source.pt", {"w": torch.zeros(1 << 20)})
    path = rewrite(source, tmp_path / "x.pt", lambda _, data: data, compression=zipfile.ZIP_DEFLATED)
    with memory_growth(2), pytest.raises(CheckpointError, match="compressed"):
        load_legacy(path)


def test_a_stride_bomb_is_refused(
    tmp_path: Path, memory_growth: Callable[[int], AbstractContextManager[None]]
) -> None:
    path = save(tmp_path / "x.pt", {"w": torch.zeros(1).expand(10**6, 10**6)})
    assert path.stat().st_size < 4000
    with (
        memory_growth(10),
        pytest.raises(CheckpointError, match=r"shape \(1000000, 1000000\) in a storage of 4"),
    ):
        load_legacy(path)


def test_many_tensors_over_one_storage_are_refused(tmp_path: Path) -> None:
    weight = torch.zeros(10_000)
    path = save(tmp_path / "x.pt", {str(i): weight[:] for i in range(100)})
    with pytest.raises(CheckpointError, match="tensors that claim 4,000,000"):
        load_legacy(path)


def test_a_storage_that_claims_more_than_it_holds(tmp_path: Path) -> None:
    source = save(tmp_path / "source.pt", {"w": torch.arange(4.0)})
    path = rewrite(source, tmp_path / "x.pt", lambda name, data: data[:8] if name == "data/0" else data)
    with pytest.raises(CheckpointError, match="claims 4 numbers in the 8 bytes of storage '0'"):
        load_legacy(path)
    path = rewrite(source, tmp_path / "x.pt", lambda name, data: None if name == "data/0" else data)
    with pytest.raises(CheckpointError, match="storage '0' that it does not hold"):
        load_legacy(path)


@pytest.mark.parametrize(
    ("pickled", "reason"),
    [
        (pickle.dumps({"w": 1}, protocol=4), "newer pickle protocol"),
        (b"\x80\x02(" + b"]" * 2_000_000 + b"t.", "more lists, dictionaries, texts"),
        (b"\x80\x02(" + b"N" * 2_000_000 + b"t.", "pickle instructions"),
        (
            b"\x80\x02}("
            + b"".join(b"\x8a\x0a" + bytes([i % 256, i >> 8]) + b"\1" * 8 + b"N" for i in range(9000))
            + b"u.",
            "long numbers",
        ),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "more memory than it describes"),
        (b"\x80\x02}" + b"0" * 10 + b".", "pickle instruction b'0'"),
        (b"\x80\x02cbuiltins\neval\n.", r"names builtins\.eval"),
        (b"\x80\x02ccollections\nOrderedDict\n](\x85R.", "can be read safely|instruction"),
        (b"\x80\x02}q\x00U\x01aU\x01bs", "can be read safely"),
        (b"", "can be read safely"),
        (b"\x80\x02" + b"(" * 100 + b".", "can be read safely"),
        (b"\x80\x02" + b"]" * 3000 + b"a" * 2999 + b".", "holds no tensors"),
        (b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.", "can be read safely"),
        (
            b"\x80\x02c__builtin__\nset\n]("
            + b"N" * 100_000
            + b"eq\0\x85R("
            + b"c__builtin__\nset\nh\0\x85R" * 200
            + b"t.",
            "more copies than it has bytes",
        ),
        (b"\x80\x02ctorch\nTensor\nK\x01\x85R.", "can be read safely"),
        (b"\x80\x02ctorch\nTensor\nN}X\x01\0\0\0xK\x01s\x86b.", "can be read safely"),
        (b"\x80\x02}X\x01\x00\x00\x00a" + b"]" * 5000 + b"a" * 4999 + b"s.", "holds no tensors"),
    ],
)
def test_a_pickle_that_is_none_of_ours(tmp_path: Path, pickled: bytes, reason: str) -> None:
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_legacy(with_pickle(tmp_path, pickled))
    assert "weights_only" not in str(caught.value), "torch's advice is to switch the protection off"
    assert time.perf_counter() - start < 5.0


def test_shared_lists_are_visited_once(tmp_path: Path) -> None:
    value: list[Any] = [torch.ones(1)]
    for _ in range(60):
        value = [value, value]  # 2^60 paths lead to one tensor
    read = load_legacy(save(tmp_path / "x.pt", {"w": value}))
    assert read["w"][0] is read["w"][1]


def test_archives_with_something_hidden(tmp_path: Path) -> None:
    good = save(tmp_path / "source.pt", {"w": torch.arange(4.0)}).read_bytes()
    end = good.rfind(b"PK\x05\x06")
    cases = {
        "zip file": b"MZ" + good,
        "cut off": good[:-1],
        "bytes after its end": good + b"x",
        "comment": good[: end + 20] + struct.pack("<H", 5) + b"hello",
        "older": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + good,
    }
    for data in cases.values():
        (tmp_path / "x.pt").write_bytes(data)
        with pytest.raises(CheckpointError):
            load_legacy(tmp_path / "x.pt")
    for extra, reason in [
        ("source/data/../../x", "outside its one folder"),
        ("elsewhere/data/0", "outside its one folder"),
        ("source/DATA.PKL", "two entries of one name"),
        ("source/constants.pkl", "TorchScript"),
        ("source/data/a b", "strange name"),
    ]:
        (tmp_path / "x.pt").write_bytes(good)
        with zipfile.ZipFile(tmp_path / "x.pt", "a") as archive:
            archive.writestr(extra, b"")
        with pytest.raises(CheckpointError, match=reason):
            load_legacy(tmp_path / "x.pt")


def test_other_files_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "empty.pt").touch()
    with zipfile.ZipFile(tmp_path / "plain.zip", "w") as archive:
        archive.writestr("a/readme", "hello")
    for name, reason in {
        "empty.pt": "is empty",
        "plain.zip": "no data.pkl",
        "nothing.pt": "does not exist",
        ".": "is a folder",
    }.items():
        with pytest.raises(CheckpointError, match=reason):
            load_legacy(tmp_path / name)


@pytest.mark.parametrize(
    "made", [torch.nn.Linear(2, 2), {"net": torch.nn.Linear(2, 2)}, {"ns": Namespace(a=1)}]
)
@pytest.mark.parametrize("zipped", [True, False])
def test_objects_are_named_with_what_to_do(tmp_path: Path, made: Any, zipped: bool) -> None:
    path = tmp_path / "x.pt"
    torch.save(made, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError) as caught:
        load_legacy(path)
    words = str(caught.value)
    whole = not isinstance(made, dict)
    assert ("torch.nn.modules.linear.Linear" in words) or ("argparse.Namespace" in words)
    assert ("is a pickled object of the class" in words) == whole
    assert "where it was made: torch.save(model.state_dict(), 'weights.pt')" in words
    assert not any(advice in words for advice in ("weights_only", "safe_globals", "trust"))


def test_a_mutated_file_is_read_or_refused(tmp_path: Path) -> None:
    value = OrderedDict(a_network().state_dict())
    buffer = io.BytesIO()
    torch.save(value, buffer)
    original, dice = buffer.getvalue(), random.Random(0)
    with zipfile.ZipFile(io.BytesIO(original)) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    path, refused = tmp_path / "x.pt", 0

    def mutate(data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(dice.randint(1, 3)):
            place = dice.randrange(len(changed))
            if dice.random() < 0.7:
                changed[place] = dice.randrange(256)
            else:
                del changed[place : place + dice.randint(1, 20)]
        return bytes(changed)

    for trial in range(1200):
        path.unlink(missing_ok=True)  # some file systems flush a file that is written over
        if trial % 3 == 0:  # the archive
            path.write_bytes(mutate(original))
        else:  # the pickle in a good archive, which no checksum protects
            with zipfile.ZipFile(path, "w") as archive:
                for name, data in entries.items():
                    archive.writestr(name, mutate(data) if name.endswith("data.pkl") else data)
        try:
            load_legacy(path)
        except CheckpointError:
            refused += 1
    assert refused > 500


def test_limits_are_what_a_real_checkpoint_needs(tmp_path: Path) -> None:
    # About 25 instructions, of which 10 make something, and 150 bytes a tensor.
    assert pickles.EACH_TENSOR > 2 * 25 and pickles.MAX_PICKLE_BYTES / 150 > 40_000
    value = {"w": torch.ones(2), "loss": [0.5] * 200_000, "steps": [(n, n) for n in range(10_000)]}
    path = save(tmp_path / "x.pt", value)
    assert len(load_legacy(path)["loss"]) == 200_000


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pinned_file_is_read_whatever_its_age(tmp_path, zipped):
    path = tmp_path / "x.pt"
    torch.save({"weight": torch.arange(6.0).view(2, 3).T}, path, _use_new_zipfile_serialization=zipped)
    read = load_pinned(path, sha256_of(path))
    assert torch.equal(read["weight"], torch.arange(6.0).view(2, 3).T) and read["weight"].is_contiguous()
    with pytest.raises(CheckpointError, match="is not the published file: its SHA-256 is another"):
        load_pinned(path, "0" * 64)
    torch.save([1], path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="holds list where a dictionary is expected"):
        load_pinned(path, sha256_of(path))
    torch.save({"run": print}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="is not a checkpoint that can be read safely"):
        load_pinned(path, sha256_of(path))
