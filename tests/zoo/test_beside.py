"""A zoo beside other processes and threads: what another one does at the worst instant is put there."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from threading import Thread

import pytest
from tests.zoo.old import old_zoo

from weightloom.errors import WeightloomError
from weightloom.zoo import Zoo, admission, integrity, opening, repair, repairing, store
from weightloom.zoo.opening import locked, opened, transact

MANY = 20_000


@pytest.fixture
def copy(built, tmp_path):
    shutil.copytree(built.path, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def once(monkeypatch):
    """``once(module, name, before)``: ``before`` is called when the function is called for the first time."""

    def put(module, name, before):
        function, calls = getattr(module, name), []

        def wrapped(*arguments, **options):
            if not calls:
                calls.append(1)
                before(*arguments)
            return function(*arguments, **options)

        monkeypatch.setattr(module, name, wrapped)
        return calls

    return put


def add_again(zoo, shard, change=0.0):
    """The networks of a shard of ``zoo``, changed."""
    records = [record for record in zoo.records() if record.shard == shard]
    records.sort(key=lambda record: record.row)
    zoo.add(shard, records[0].spec(), zoo.load(records) + change, records)


# -- readers -----------------------------------------------------------------------------------


def test_a_writer_removes_its_journal_between_two_looks(copy, built, monkeypatch):
    journal = copy / "zoo.sqlite3-journal"
    look = admission.require_plain

    def removed(path):
        if str(path) == str(journal):
            journal.unlink(missing_ok=True)
        return look(path)

    monkeypatch.setattr(admission, "require_plain", removed)
    for attempt in (
        lambda: Zoo(copy), lambda: Zoo(copy).records(), lambda: Zoo(copy, create=True),
        lambda: Zoo(copy).set_about("note", 1), lambda: repair(copy),
    ):  # fmt: skip
        journal.write_bytes(bytes(512))
        attempt()
    assert Zoo(copy).records() == built.records()


def test_a_reader_removes_the_log_between_two_looks(built, tmp_path, monkeypatch):
    old = old_zoo(built.path, tmp_path / "old", "sealed")
    read = admission.open_regular
    log = old / "zoo.sqlite3-wal"

    def removed(path):
        if str(path) == str(log):
            log.unlink()
        return read(path)

    monkeypatch.setattr(admission, "open_regular", removed)
    log.write_bytes(b"")
    assert Zoo(old).records() == built.records() and not log.exists()


def test_writers_are_killed_faster_than_a_reader_reads(copy, built, monkeypatch):
    look, left = opening.admit, [1, 2, 3]

    def killed(path, db):
        if left:
            left.pop()
            error = sqlite3.OperationalError("attempt to write a readonly database")
            error.sqlite_errorcode = sqlite3.SQLITE_READONLY_ROLLBACK
            raise error
        return look(path, db)

    monkeypatch.setattr(opening, "admit", killed)
    with opened(copy / "zoo.sqlite3") as db:
        assert db.execute("SELECT count(*) FROM checkpoints").fetchone()[0] == len(built.records())
    assert left == []


def test_an_index_grows_while_its_reader_waits(copy, built, once):
    first = built.records()[0]
    records = [replace(first, id=f"many-{row}", shard="many", row=row) for row in range(MANY)]
    flats = built.load([first]).expand(MANY, -1)
    zoo, writer = Zoo(copy), Zoo(copy)
    calls = once(opening, "admit", lambda *_: writer.add("many", first.spec(), flats, records))
    assert len(zoo.records()) == len(built.records()) + MANY and calls
    assert os.path.getsize(copy / "zoo.sqlite3") > 30 * os.path.getsize(built.path / "zoo.sqlite3")


def test_a_zoo_without_a_shard_is_removed_below_its_reader(tmp_path, once):
    zoo = Zoo.planned(tmp_path / "zoo")
    zoo.set_about("note", 1)
    calls = once(opening, "keeps_a_log", lambda *_: shutil.rmtree(zoo.path))
    assert zoo.records() == [] and calls


def test_a_shard_is_replaced_while_it_is_verified(copy, once):
    zoo = Zoo(copy)
    records = zoo.records()
    calls = once(integrity, "_problem_of_shard", lambda _, name, *__: add_again(zoo, name, 1.0))
    assert zoo.verify() == [] and calls
    assert zoo.records() == records


def test_a_shard_of_a_killed_writer_is_taken_back_while_the_zoo_is_verified(copy, once):
    zoo = Zoo(copy)
    (copy / "shards" / "killed.safetensors").touch()
    (copy / "zoo.adding").write_text("killed")
    calls = once(integrity, "being_added", lambda *_: transact(copy, lambda *_: None))
    assert zoo.verify() == [] and calls


def test_a_broken_shard_is_made_again_before_it_is_dropped(copy, once):
    zoo = Zoo(copy)
    records = zoo.records()
    shard, flats = records[0].shard, zoo.load([r for r in records if r.shard == records[0].shard])
    file = copy / "shards" / f"{shard}.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    def build(*_):
        file.write_bytes(data)

    assert len(zoo.verify()) == 1
    calls = once(repairing, "confirmed", build)
    assert not [line for line in repair(copy) if "dropped" in line] and calls
    assert zoo.records() == records and zoo.verify() == []
    assert zoo.load([r for r in records if r.shard == shard]).equal(flats)


# -- writers -----------------------------------------------------------------------------------


def test_a_shard_that_another_writer_has_added_meanwhile(zoo, built, monkeypatch):
    first = built.records()[0]
    spec, flat = first.spec(), built.load([first])
    zoo.add("same", spec, flat, [first])
    # Asked before the other one added it:
    monkeypatch.setattr(Zoo, "has_shard", lambda *_: monkeypatch.undo() is not None)
    zoo.add("same", spec, flat + 1, [first])
    assert zoo.verify() == [] and zoo.load(zoo.records()).equal(flat + 1)


def test_a_writer_fails_after_another_one_has_added_a_shard_of_the_same_name(zoo, built, monkeypatch):
    first = built.records()[0]
    spec, flat = first.spec(), built.load([first])
    zoo.add("same", spec, flat, [first])
    asked, fail = [], store.seal_shard

    def has_shard(self, name):
        asked.append(name)
        return len(asked) > 1 and bool(zoo.records())

    def full(db, name):
        monkeypatch.setattr(store, "seal_shard", fail)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Zoo, "has_shard", has_shard)
    monkeypatch.setattr(store, "seal_shard", full)
    with pytest.raises(OSError):
        zoo.add("same", spec, flat + 1, [first])
    assert zoo.verify() == [], "rows beside a file that is another one"


def test_a_shard_of_another_name_where_somebody_took_the_one_of_an_import(zoo, built):
    first = built.records()[0]
    spec, flat = first.spec(), built.load([first])
    imported = replace(first, provenance={"sha256": "0" * 64})
    (name,) = [record.shard for record in zoo.add_new(spec, flat, [imported])]
    other = Zoo(zoo.path.parent / "other", create=True)
    other.add(name, spec, flat + 1, [first])
    (added,) = other.add_new(spec, flat, [imported])
    assert added.shard != name and len(other.records()) == 2 and other.verify() == []
    assert other.load([added]).equal(flat)


@pytest.mark.skipif(sys.platform == "win32", reason="needs the locks of POSIX")
def test_a_zoo_is_removed_and_made_again_while_a_writer_waits(copy, tmp_path, once):
    import fcntl

    os.rename(copy, tmp_path / "new")
    Zoo(copy, create=True)

    def replace_it(*_):
        os.rename(copy, tmp_path / "old")
        os.rename(tmp_path / "new", copy)

    calls = once(fcntl, "flock", replace_it)

    def is_locked(*_):
        descriptor = os.open(copy, os.O_RDONLY)
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)

    transact(copy, is_locked)
    assert calls


@pytest.mark.skipif(sys.platform == "win32", reason="a folder does not replace another one there")
def test_an_empty_folder_is_replaced_by_a_zoo_while_another_is_made_in_it(copy, built, tmp_path, monkeypatch):
    place = tmp_path / "place"
    place.mkdir()
    look, calls = opening._is_absent, []

    def late(path):
        absent = look(path)
        if not calls:
            calls.append(1)
            os.rename(copy, place)  # as atomic_folder does
        return absent

    monkeypatch.setattr(opening, "_is_absent", late)
    zoo = Zoo(place, create=True)
    assert zoo.records() == built.records() and zoo.verify() == [] and calls


def test_a_zoo_without_a_shard_is_removed_while_a_writer_waits(tmp_path, once):
    zoo = Zoo.planned(tmp_path / "zoo")
    zoo.set_about("note", 1)
    calls = once(opening, "alone", lambda *_: shutil.rmtree(zoo.path))
    zoo.set_about("name", "mine")
    assert zoo.about() == {"name": "mine"} and calls


def test_an_old_zoo_is_read_when_it_is_first_written(built, tmp_path, monkeypatch):
    old = old_zoo(built.path, tmp_path / "old", "sealed")
    reader = sqlite3.connect(old / "zoo.sqlite3")
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM shards").fetchone()[0]
    monkeypatch.setattr("weightloom.zoo.opening.time.sleep", lambda _: reader.close())
    Zoo(old).set_about("note", 1)
    assert Zoo(old).records() == built.records() and Zoo(old).about()["note"] == 1


def test_an_old_zoo_that_is_read_for_long(built, tmp_path, monkeypatch):
    old = old_zoo(built.path, tmp_path / "old", "sealed")
    monkeypatch.setattr("weightloom.zoo.opening.SECONDS", 0.01)
    with closing(sqlite3.connect(old / "zoo.sqlite3")) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM shards").fetchone()[0]
        with pytest.raises(WeightloomError, match="another process has it open"):
            Zoo(old).set_about("note", 1)
    assert Zoo(old).records() == built.records()


# -- threads -----------------------------------------------------------------------------------

WRITE = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('BEGIN EXCLUSIVE')"


def test_a_thread_costs_no_other_thread_its_lock(copy, built):
    seen = []
    thread = Thread(target=lambda: seen.append(Zoo(copy).records()))
    with opened(copy / "zoo.sqlite3"):
        thread.start()
        thread.join(0.3)
        write = [sys.executable, "-c", WRITE, str(copy / "zoo.sqlite3")]
        assert b"database is locked" in subprocess.run(write, stderr=subprocess.PIPE, check=False).stderr
    thread.join()
    assert seen == [built.records()]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_does_not_wait_for_a_thread_that_it_does_not_have(copy):
    with opened(copy / "zoo.sqlite3"):
        pids = []

        def fork():
            pid = os.fork()
            if pid == 0:
                os._exit(0 if Zoo(copy).records() else 1)
            pids.append(pid)

        thread = Thread(target=fork)
        thread.start()
        thread.join()
        assert os.waitpid(pids[0], 0)[1] == 0


def test_a_zoo_is_verified_while_it_is_locked(copy):
    with locked(copy), opened(copy / "zoo.sqlite3", writing=True) as db:
        assert integrity.confirmed(copy, db, []) == []
