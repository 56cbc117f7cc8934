"""One flipped bit in a zoo: `zoo verify` finds it, or every reader is told what it was told before.

What SQLite answers to each of the readers' own statements is compared first, flip by flip: a reader that is
told the same says the same. Where it is not, verifying has to find the flip.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, nullcontext
from multiprocessing import get_context

import pytest
import torch
from tests.faults.writers import SPEC, record_of
from tests.zoo.old import old_zoo

from weightloom.errors import WeightloomError
from weightloom.fitting import initial_flats
from weightloom.zoo import Zoo
from weightloom.zoo.integrity import find_problems
from weightloom.zoo.opening import opened

QUICK = 150


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A small zoo: two shards, a recipe, a note."""
    root = tmp_path_factory.mktemp("flips")
    zoo = Zoo(root / "zoo", create=True)
    zoo.add("s", SPEC, initial_flats(SPEC, [0, 1]), [record_of(SPEC, "s", n, row=n) for n in range(2)])
    zoo.add("t", SPEC, initial_flats(SPEC, [2]), [record_of(SPEC, "t", 5)])
    zoo.set_about("recipe", {"name": "x", "datasets": ["digits"], "salt": "s", "size": 8, "channels": 1})
    zoo.set_about("note", [1, 2.5, None])
    old_zoo(root / "zoo", root / "old", "sealed")
    return root


def statements(root):
    """Every statement of every reader, as it is put to SQLite."""
    zoo = Zoo.__new__(Zoo)
    zoo.path, zoo._index = root, root / "zoo.sqlite3"
    kept = []
    with opened(root / "zoo.sqlite3") as db:
        db.set_trace_callback(kept.append)
        zoo._opened = lambda whole=True: nullcontext(db)
        zoo.about(), zoo.recipe(), zoo.summary(), zoo.imported(), zoo.shards(), zoo.records()
        zoo.records(task="digits[3,1,7]@8c1")
        zoo.records(dataset="digits", split="train", min_accuracy=0.1)
        zoo.records(architecture="mlp(depth=1,width=4)", dataset="digits", split="train", final=True)
        for shard in ("s", "t", "u"):
            zoo.has_shard(shard)
        for row in range(2):
            zoo.record(f"s-{row}")
        db.set_trace_callback(None)
    assert len(kept) >= 15 and all("?" not in statement for statement in kept)
    return list(dict.fromkeys(kept))


def answers(index, asked):
    """What SQLite says to them, without any check of ours; None where it refuses one."""
    try:
        with closing(sqlite3.connect(f"{index.as_uri()}?immutable=1", uri=True)) as db:
            return [db.execute(statement).fetchall() for statement in asked]
    except (sqlite3.Error, UnicodeDecodeError):
        return None


def bits(data: bytes, size: str) -> list[int]:
    """All bits, or those of bytes that are not zero, or some of these; and some of all."""
    if size == "all":
        return list(range(8 * len(data)))
    draw = random.Random(0)
    used = [8 * place + bit for place, byte in enumerate(data) if byte for bit in range(8)]
    if size == "some":
        used = draw.sample(used, QUICK)
    return sorted({*used, *draw.sample(range(8 * len(data)), QUICK // 3)})


def tried(root, name, chosen):
    """How many flips were found, and how many change no answer; fails for one that is neither."""
    file = root / name
    data = file.read_bytes()
    asked = statements(root)
    wanted = answers(root / "zoo.sqlite3", asked)
    assert wanted is not None
    counts = Counter()
    with file.open("r+b", buffering=0) as handle:
        for bit in chosen:
            place, byte = bit // 8, data[bit // 8]
            os.pwrite(handle.fileno(), bytes([byte ^ 1 << bit % 8]), place)
            if file.suffix == ".sqlite3" and answers(file, asked) == wanted:
                counts["no answer changes"] += 1
            else:
                try:
                    found = bool(find_problems(root))
                except WeightloomError:
                    found = True
                assert found, f"bit {bit % 8} of byte {place} of {file.name}"
                counts["found"] += 1
            os.pwrite(handle.fileno(), bytes([byte]), place)
    assert file.read_bytes() == data and find_problems(root) == []
    return dict(counts)


def flipped(root, name, size, copies):
    """:func:`tried` in a process for each processor, each with a copy of the zoo."""
    chosen = bits((root / name).read_bytes(), size)
    count = (os.cpu_count() or 1) if len(chosen) > 10_000 else 1
    if count == 1:
        return Counter(tried(root, name, chosen))
    places = [shutil.copytree(root, copies / str(number)) for number in range(count)]
    parts = [chosen[number::count] for number in range(count)]
    with ProcessPoolExecutor(count, mp_context=get_context("fork")) as pool:
        return sum(map(Counter, pool.map(tried, places, [name] * count, parts)), Counter())


@pytest.mark.parametrize(("version", "size"), [("zoo", "all"), ("old", "used")])
def test_every_flipped_bit_of_an_index_that_changes_an_answer_is_found(
    good, version, size, full, record_property, tmp_path
):
    counts = flipped(good / version, "zoo.sqlite3", size if full else "some", tmp_path)
    for name, count in counts.items():
        record_property(name, count)
    assert counts["found"] > QUICK // 2


def test_every_flipped_bit_of_a_shard_is_found(good, full, record_property, tmp_path):
    counts = flipped(good / "zoo", "shards/s.safetensors", "all" if full else "some", tmp_path)
    assert set(counts) == {"found"}
    record_property("found", counts["found"])


def test_the_row_that_names_the_seals(good):
    """The old finding: one bit here, and a zoo had never had any seals."""
    root = good / "zoo"
    index = root / "zoo.sqlite3"
    data = index.read_bytes()
    start = data.index(b"tablesealsseals")
    for place in range(start, start + 15):
        for bit in range(8):
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            index.write_bytes(changed)
            with pytest.raises(WeightloomError):
                Zoo(root)
    index.write_bytes(data)
    assert torch.equal(Zoo(root).load(Zoo(root).records()), initial_flats(SPEC, [0, 1, 2]))
