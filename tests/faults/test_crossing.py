"""Writers and readers of one zoo, their system calls in many orders: each ends well, and nothing is lost.

One goes on to its call M, another one to its call N, then the first ends and the other one; or the first is
killed there, and a third one does all it does while the second stands at its call N.
"""

from __future__ import annotations

import shutil
from itertools import product
from typing import NamedTuple

import pytest
from tests.faults import tracer
from tests.faults.test_kill import litter, some
from tests.zoo.old import old_zoo

from weightloom.zoo import Zoo

pytestmark = pytest.mark.skipif(not tracer.works(), reason="a process cannot be traced here")


class Case(NamedTuple):
    start: str
    """What is written first."""
    kinds: str
    versions: str
    kept: set[str]
    """The shards that are there in the end, whoever is killed."""
    kill: bool = False


CASES = {
    "reader": Case("zoo", "zoo|read-crowd", "2|1", {"s1", "s2"}),
    "writer": Case("zoo", "zoo|zoo", "2|3", {"s1", "s2", "s3"}),
    "maker": Case("", "zoo|zoo", "1|2", {"s1", "s2"}),
    "maker of the same shard": Case("", "same-shard|same-shard", "1|2", {"same"}),
    "writer of the same shard": Case("same-shard", "same-shard|same-shard", "2|3", {"same"}),
    "repair": Case("same-shard", "repair|same-shard", "1|2", {"same"}),
    "maker that gives up": Case("", "discard|planned", "0|1", {"s1"}),
    "maker that gives up but keeps the folder": Case("", "discard|planned", "1|1", {"s1"}),
    "reader of what is given up": Case("", "discard|read-crowd", "0|0", set()),
    "first writer of an old zoo": Case("old", "note|read-crowd", "1|1", {"s1"}),
    "killed, reader": Case("zoo", "zoo|read-crowd|zoo", "2|1|3", {"s1", "s3"}, True),
    "killed, readers": Case("zoo", "zoo|read-crowd|read-crowd", "2|1|1", {"s1"}, True),
    "killed, writer": Case("zoo", "zoo|zoo|zoo", "2|3|4", {"s1", "s3", "s4"}, True),
    "killed, maker": Case("", "zoo|zoo|zoo", "1|2|3", {"s2", "s3"}, True),
    "killed, writer of the same shard": Case("", "same-shard|same-shard|same-shard", "2|3|4", {"same"}, True),
    "killed, old zoo": Case("old", "note|read-crowd|note", "1|1|2", {"s1"}, True),
}


@pytest.mark.parametrize("name", CASES)
def test_whatever_the_order(ask, tmp_path, name, full, record_property):
    case = CASES[name]
    start = tmp_path / "start"
    start.mkdir()
    if case.start:
        assert ask(start, case.start.replace("old", "zoo"), 1) == "done"
    if case.start == "old":
        (start / "zoo").rename(tmp_path / "new")
        old_zoo(tmp_path / "new", start / "zoo", "sealed", log=True)
    first, second = 0, 0
    for part in (0.0, 0.5, 0.75):  # how far the first one is when the other one does all it does
        place = shutil.copytree(start, tmp_path / str(part))
        done, *calls = ask(place, case.kinds, case.versions, f"cross:{int(part * first)}:9999").split()
        assert done == "done", calls
        first, second = int(calls[0]), max(second, int(calls[1]))
    assert first > 100 and second > 50
    stops, parts = some(first, False, 18 if full else 3), 18 if full else 1
    orders = list(product(stops, range(parts)))
    for number, (stop, part) in enumerate(orders):
        other = round((part + number / len(orders)) * second / parts)  # all of its calls in turn
        place = shutil.copytree(start, tmp_path / f"{stop}-{part}")
        instant = f"cross-kill:{stop}:{other}" if case.kill else f"cross:{stop}:{other}"
        answer = ask(place, case.kinds, case.versions, instant)
        assert answer.startswith("done"), (instant, answer)
        if (place / "zoo").exists() or case.kept:
            zoo = Zoo(place / "zoo")
            records = zoo.records()
            assert case.kept <= zoo.shards() == {record.shard for record in records}, instant
            assert all(bool((zoo.load([r]) == r.provenance["version"]).all()) for r in records), instant
            assert zoo.verify() == [], instant
            assert case.kill or litter(place) == [], instant
        shutil.rmtree(place)
    record_property("orders", len(orders))
