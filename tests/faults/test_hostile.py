"""Files that were made to hurt: refused in 100 ms and 50 MB, each."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import zipfile
from contextlib import closing, suppress
from pathlib import Path

import pytest
import torch
from tests.faults.writers import SPEC, record_of, tiny_generator
from tests.zoo.strangers import SCHEMAS, shared_pages

from weightloom.cli.info import _describe
from weightloom.errors import CheckpointError, WeightloomError
from weightloom.fitting import initial_flats
from weightloom.generators.load import load_generator, save_generator
from weightloom.io import COMMIT_FILE, load_legacy, load_tensors, read_header, settle, verify_folder
from weightloom.io.staged import STAGED
from weightloom.zoo import Zoo, repair
from weightloom.zoo.importing import plan_import, read_network
from weightloom.zoo.sources import find_networks

ESCAPES = [
    "../up", "../../etc/passwd", "a/../../up", "..", ".", "/etc/passwd", "//host/share", "a//b", "./a", "a/.",
    "", "C:/x", "C:x", "..\\up", "a\\..\\b", "\\\\host\\share", "a\0b", "a\nb", "~/x/../..",
    "a/" * 40 + "../" * 41 + "x", "%2e%2e/../x",
]  # fmt: skip


# -- safetensors -------------------------------------------------------------------------------


def test_a_header_of_84_megabytes(tmp_path, bounded):
    path = tmp_path / "x.safetensors"
    path.write_bytes((84_000_000).to_bytes(8, "little") + b'{"a":')
    os.truncate(path, 84_000_008)
    for read in (load_tensors, read_header, read_network):
        with bounded(), pytest.raises(CheckpointError, match=r"header \(84,000,000 bytes\) is too large"):
            read(path)


def test_tensors_that_the_file_does_not_hold(tmp_path, bounded):
    header = json.dumps({"w": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with bounded(), pytest.raises(CheckpointError, match="announces"):
        load_tensors(path)


def test_an_architecture_far_larger_than_its_file(tmp_path, bounded):
    text = "cnn(depth=200,width=4096,classes=10,input=3x16x16)"
    header = json.dumps({"__metadata__": {"architecture": text}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with bounded(seconds=1.0), pytest.raises(WeightloomError):
        read_network(path)


# -- PyTorch's files ---------------------------------------------------------------------------


def test_a_zip_bomb(tmp_path, bounded):
    source, bomb = tmp_path / "source.pt", tmp_path / "bomb.pt"
    torch.save({"w": torch.ones(4)}, source)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            data = bytes(64 << 20) if entry.filename.endswith("data/0") else old.read(entry)
            new.writestr(entry.filename, data)
    assert bomb.stat().st_size < 100_000
    with bounded(), pytest.raises(CheckpointError, match="compressed"):
        load_legacy(bomb)


def test_a_tensor_without_strides(tmp_path, bounded):
    path = tmp_path / "x.pt"
    torch.save({"w": torch.zeros(1).expand(10**6, 10**6)}, path)
    with bounded(), pytest.raises(CheckpointError, match="in a storage of 4 bytes"):
        load_legacy(path)


def with_pickle(path, pickled, storages=1):
    """A PyTorch file of a pickle of one's own."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        for number in range(storages):
            archive.writestr(f"x/data/{number}", bytes(4))
    return path


def saved(path, value):
    torch.save(value, path)
    return path


def branches(value, times, pair):
    """A value that 2^times paths lead to."""
    for _ in range(times):
        value = pair(value)
    return value


def copies(times):
    """A list of 30,000 entries that is made a set again and again."""
    begin = b"\x80\x02c__builtin__\nset\n](" + b"N" * 30_000 + b"eq\0\x85R("
    return begin + b"c__builtin__\nset\nh\0\x85R" * times + b"t."


PICKLES = {
    "two million lists": b"\x80\x02(" + b"]" * 2_000_000 + b"t.",
    "two million values": b"\x80\x02(" + b"N" * 2_000_000 + b"t.",
    "half a million texts": b"\x80\x02(" + b"X\0\0\0\0" * 400_000 + b"t.",
    "lists inside each other": b"\x80\x02" + b"]" * 60_000 + b"a" * 59_999 + b".",
    "keys that collide": b"\x80\x02}("
    + b"".join(b"\x8a\x0a" + ((2**61 - 1) * n).to_bytes(10, "little") + b"N" for n in range(20_000)) + b"u.",
    "copies": copies(5_000),
    "a gigabyte of bytes": b"\x80\x02c__builtin__\nbytearray\nJ\0\0\0\x40\x85R.",
    "an index of the memo": b"\x80\x02}r\xff\xff\xff\x7f.",
    "a text that is not there": b"\x80\x02X\xff\xff\xff\x7f.",
    "a tensor without a storage": b"\x80\x02ctorch\nTensor\nJ\0\0\0\x40\x85R.",
    "a class of ours": b"\x80\x02cweightloom.io\nsweep\nX\1\0\0\0/\x85R.",
}  # fmt: skip


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_that_ask_for_much(tmp_path, bounded, name):
    path = with_pickle(tmp_path / "x.pt", PICKLES[name])
    with bounded(), pytest.raises(CheckpointError):
        read_network(path, SPEC)


VALUES = {
    "2^60 lists": lambda: branches(torch.ones(1), 60, lambda value: [value, value]),
    "2^60 dictionaries": lambda: branches({"w": torch.ones(1)}, 60, lambda value: {"l": value, "r": value}),
    "2^60 without tensors": lambda: branches({"w": 1}, 60, lambda value: {"l": value, "r": value}),
    "a hundred gigabytes of names": lambda: {"x" * 1_000_000: {str(n): torch.ones(1) for n in range(300)}},
    "200 lists inside each other": lambda: branches(torch.ones(1), 200, lambda value: [value]),
}


@pytest.mark.parametrize("name", VALUES)
def test_dictionaries_that_lead_everywhere(tmp_path, bounded, name):
    path = saved(tmp_path / "x.pt", VALUES[name]())
    for read in (lambda: read_network(path, SPEC), lambda: _describe(str(path))):
        with bounded(), pytest.raises(CheckpointError):
            read()


def test_a_dictionary_that_holds_itself(tmp_path, bounded):
    ring = {"w": torch.ones(1)}
    ring["again"] = ring
    path = saved(tmp_path / "x.pt", ring)
    with bounded(), pytest.raises(CheckpointError):
        read_network(path, SPEC)


def test_an_old_file_that_claims_terabytes(tmp_path, bounded):
    path = tmp_path / "x.pt"
    torch.save({"w": torch.arange(4.0)}, path, _use_new_zipfile_serialization=False)
    good = path.read_bytes()
    for claim in (b"\x8a\x07" + (1 << 48).to_bytes(7, "little"), b"J\xff\xff\xff\x7f", b"J\xff\xff\xff\xff"):
        path.write_bytes(good.replace(b"K\x04Nt", claim + b"Nt"))
        with bounded(), pytest.raises(CheckpointError):
            read_network(path, SPEC)
    path.write_bytes(good)
    os.truncate(path, 1 << 40)
    with bounded(), pytest.raises(CheckpointError, match="cut off, or has bytes after its end"):
        read_network(path, SPEC)


def test_a_zip_directory_of_a_gigabyte(tmp_path, bounded):
    path = with_pickle(tmp_path / "x.pt", b"\x80\x02}.")
    data = path.read_bytes()
    end = data.rindex(b"PK\x05\x06")
    path.write_bytes(data[: end + 12] + (1 << 30).to_bytes(4, "little") + data[end + 16 :])
    with bounded(), pytest.raises(CheckpointError, match="a directory of 1,073,741,824 bytes"):
        read_network(path, SPEC)


@pytest.mark.parametrize(
    "begin", [b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"{", b"GGUF", b"\x80\x04", b""]
)
def test_a_terabyte_of_nothing(tmp_path, bounded, begin):
    path = tmp_path / "x.pt"
    path.write_bytes(begin)
    os.truncate(path, 1 << 40)
    for read in (lambda: read_network(path, SPEC), lambda: _describe(str(path)), lambda: find_networks(path)):
        with bounded(), pytest.raises(CheckpointError):
            read()
            raise CheckpointError(path, "found, and not read yet")


# -- model zoos from elsewhere ------------------------------------------------------------------


def test_trials_that_cost_nothing(tmp_path, bounded):
    """Options and results that are too large, too deep, or a pipe: the trial is passed over."""
    fine = '{"model::type": "CNN", "model::nlin": "tanh", "model::channels_in": 1}'
    strange = '{"model::type": "' + "C" * 500_000 + '"}'
    for number, text in enumerate((fine, strange, "x" * (2 << 20), "[" * 1_000_000)):
        trial = tmp_path / f"NN_tune_trainable_{number}"
        (trial / "checkpoint_000001").mkdir(parents=True)
        (trial / "params.json").write_text(text)
        (trial / "checkpoint_000001" / "checkpoints").write_bytes(b"x")
        os.truncate(trial / "checkpoint_000001" / "checkpoints", 1 << 40)
        with open(trial / "result.json", "wb") as handle:
            os.truncate(handle.fileno(), 1 << 40)
    trial = tmp_path / "NN_tune_trainable_pipe"
    (trial / "checkpoint_000001").mkdir(parents=True)
    os.mkfifo(trial / "params.json")
    with bounded(), pytest.raises(CheckpointError, match="nothing can be imported"):
        plan_import([find_networks(tmp_path)])


# -- generators --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"width": 8192, "depth": 128, "heads": 128},
        {"width": 8192},
        {"image_features": 4096, "image_width": 4096},
        {"codes": 1024, "largest": ["mlp(depth=64,width=4096)"]},
        {"experts": 1024, "largest": ["mlp(depth=2,width=4096)"]},
        {"largest": ["cnn(depth=200,width=4096)"]},
    ],
)
def test_a_config_that_asks_for_terabytes(tmp_path, bounded, change):
    tiny_generator(1).save_pretrained(tmp_path)
    held = json.loads((tmp_path / "config.json").read_text())
    held["config"] |= change
    (tmp_path / "config.json").write_text(json.dumps(held))
    with bounded(1.0), pytest.raises(CheckpointError):  # its layers are counted one by one
        load_generator(tmp_path)


def test_a_config_can_name_registered_kinds_only(tmp_path, bounded):
    for kind in ("os.system", "../igpg", "weightloom.io", "builtins", 3, None, ["layerwise"]):
        (tmp_path / "config.json").write_text(json.dumps({"kind": kind}))
        with bounded(), pytest.raises(CheckpointError, match="is no generator"):
            load_generator(tmp_path)


def test_no_config_makes_python_import_what_it_names(tmp_path):
    tiny_generator(1).save_pretrained(tmp_path)
    load_generator(tmp_path)
    held, before = json.loads((tmp_path / "config.json").read_text()), set(sys.modules)
    for key, value in {"name": "this", "module": "this", "auto_map": {"x": "this.s"}}.items():
        (tmp_path / "config.json").write_text(json.dumps({**held, key: value}))
        with suppress(WeightloomError):
            load_generator(tmp_path)
    assert set(sys.modules) == before


def test_one_flipped_byte_of_a_generator(tmp_path):
    save_generator(tiny_generator(1), tmp_path)
    assert load_generator(tmp_path).name == "version-1"
    for name in ("config.json", "model.safetensors"):
        good = (tmp_path / name).read_bytes()
        for place in range(0, len(good), max(1, len(good) // 20)):
            (tmp_path / name).write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
            with pytest.raises(CheckpointError, match="has changed since it was written"):
                load_generator(tmp_path)
        (tmp_path / name).write_bytes(good)


# -- zoos --------------------------------------------------------------------------------------


@pytest.fixture
def stranger(tmp_path):
    """A small zoo that a test may spoil, and has been opened before: what is imported late is imported."""
    zoo = Zoo(tmp_path / "zoo", create=True)
    zoo.add("s", SPEC, initial_flats(SPEC, [0, 1]), [record_of(SPEC, "s", n, row=n) for n in range(2)])
    zoo.set_about("recipe", {"name": "x"})
    assert zoo.verify() == []
    return zoo.path


@pytest.mark.parametrize("what", SCHEMAS)
def test_a_zoo_with_a_schema_of_a_strangers(stranger, bounded, what):
    SCHEMAS[what](stranger)
    for read in (Zoo, Zoo.planned):
        with bounded(), pytest.raises(CheckpointError):
            read(stranger)


@pytest.mark.parametrize("table", ["about", "shards", "checkpoints", "seals"])
def test_a_zoo_whose_rows_never_end(stranger, bounded, table):
    shared_pages(stranger, table)
    zoo = Zoo(stranger)
    for read in (zoo.records, zoo.about, zoo.summary, zoo.imported, zoo.shards):
        with bounded(), pytest.raises(CheckpointError, match="damaged"):
            read()
    with bounded():
        assert len(zoo.verify()) == 1


def test_a_zoo_whose_files_are_terabytes_of_nothing(stranger, bounded):
    os.truncate(stranger / "zoo.sqlite3", 1 << 40)
    zoo = Zoo(stranger)
    with bounded():
        assert len(zoo.records()) == 2 and zoo.verify() == []
    os.truncate(stranger / "shards" / "s.safetensors", 1 << 40)
    with bounded():
        assert len(zoo.verify()) == 1


# -- places ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ESCAPES)
def test_a_commit_cannot_lead_out(tmp_path, bounded, name):
    inner = tmp_path / "inner"
    (inner / STAGED).mkdir(parents=True)
    note = {"files": {name: {"sha256": "0" * 64, "bytes": 1}}}
    for place, read in ((inner, verify_folder), (inner / STAGED, lambda _: settle(inner))):
        (place / COMMIT_FILE).write_text(json.dumps(note))
        with bounded(), pytest.raises(CheckpointError, match="no place inside the folder"):
            read(place)


@pytest.mark.parametrize("name", ESCAPES)
def test_a_zoo_cannot_lead_out(tmp_path, bounded, name):
    zoo = Zoo(tmp_path / "zoo", create=True)
    zoo.add("s", SPEC, initial_flats(SPEC, [0]), [record_of(SPEC, "s", 0)])
    outside = [tmp_path / "up.safetensors", tmp_path / "zoo" / "up.safetensors"]
    for file in outside:
        file.write_bytes((tmp_path / "zoo" / "shards" / "s.safetensors").read_bytes())
    with closing(sqlite3.connect(tmp_path / "zoo" / "zoo.sqlite3")) as db, db:
        db.execute("UPDATE checkpoints SET shard = ?", (name,))
        db.execute("UPDATE shards SET name = ?", (name,))
    with bounded(), pytest.raises(CheckpointError, match="no place inside the zoo"):
        zoo.load(zoo.records())
    assert any("no place inside the zoo" in problem for problem in zoo.verify())
    repair(tmp_path / "zoo")
    assert zoo.records() == [] and zoo.verify() == []
    assert all(file.is_file() for file in outside), "repair has removed what is not its own"


@pytest.mark.parametrize("inside", [True, False])
def test_links_in_a_folder_move_and_remove_nothing_outside(tmp_path, inside):
    """A folder with staged files is settled when it is read: what they name must not be elsewhere."""
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.mkdir()
    folder.mkdir()
    (outside / "precious").write_text("mine")
    entry = {"sha256": "0" * 64, "bytes": 4}
    if inside:
        (folder / STAGED).mkdir()
        (folder / "sub").symlink_to(outside)
        (folder / COMMIT_FILE).write_text(json.dumps({"files": {"sub/precious": entry}}))
        (folder / STAGED / COMMIT_FILE).write_text(json.dumps({"files": {"other": entry}}))
    else:
        (outside / COMMIT_FILE).write_text(json.dumps({"files": {"precious": entry}}))
        (folder / STAGED).symlink_to(outside)
    with pytest.raises(CheckpointError, match="has a link"):
        settle(folder)
    assert (outside / "precious").read_text() == "mine"


def test_settling_a_folder_goes_on_where_it_stopped(tmp_path):
    entry = {"sha256": "0" * 64, "bytes": 1}
    (tmp_path / STAGED / "deep").mkdir(parents=True)
    (tmp_path / "old").mkdir()
    for name in ("old/gone", "moved", STAGED + "/deep/waits"):
        (tmp_path / name).write_text(Path(name).name)
    (tmp_path / COMMIT_FILE).write_text(json.dumps({"files": {"old/gone": entry, "moved": entry}}))
    (tmp_path / STAGED / COMMIT_FILE).write_text(json.dumps({"files": {"moved": entry, "deep/waits": entry}}))
    settle(tmp_path)
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")) == [
        COMMIT_FILE, "deep", "deep/waits", "moved",
    ]  # fmt: skip
    (tmp_path / STAGED).mkdir()  # whoever was killed last had only the empty folder left to remove
    settle(tmp_path)
    assert not (tmp_path / STAGED).exists()
