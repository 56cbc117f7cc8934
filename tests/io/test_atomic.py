from __future__ import annotations

import json
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from weightloom.errors import CheckpointError, InputError, WeightloomError
from weightloom.io import (
    COMMIT_FILE,
    alone,
    atomic,
    atomic_file,
    atomic_folder,
    load_tensors,
    sweep,
    verify_folder,
    write_bytes,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def make_folder(place: Path, text: str = "one", overwrite: bool = False) -> None:
    with atomic_folder(place, overwrite=overwrite) as folder:
        (folder / "config.json").write_text(text)
        (folder / "deep").mkdir()
        (folder / "deep" / "weights.bin").write_bytes(text.encode() * 100)


# -- files -------------------------------------------------------------------------------------


def test_writes_the_bytes_and_makes_the_parents(tmp_path: Path) -> None:
    write_bytes(tmp_path / "new" / "deep" / "file.bin", b"abc")
    write_text(tmp_path / "new" / "deep" / "file.bin", "gr\u00fc\u00dfe")
    assert (tmp_path / "new" / "deep" / "file.bin").read_text("utf-8") == "gr\u00fc\u00dfe"
    assert names(tmp_path / "new" / "deep") == ["file.bin"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_mode_follows_the_umask(tmp_path: Path, mask: int) -> None:
    old = os.umask(mask)
    try:
        write_bytes(tmp_path / "file", b"")
        make_folder(tmp_path / "folder")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~mask


def test_an_exception_or_an_interrupt_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error):
            with atomic_file(path) as handle:
                handle.write(b"half of the n")
                raise error
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_the_disk_has_the_bytes_before_the_rename_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def log_fsync(descriptor: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", log_fsync)
    monkeypatch.setattr(os, "replace", lambda *a: (calls.append("rename"), replace(*a)))
    monkeypatch.setattr(os, "rename", lambda *a: (calls.append("rename"), rename(*a)))
    write_bytes(tmp_path / "file", b"x")
    assert calls == ["file", "rename", "folder"]
    calls.clear()
    make_folder(tmp_path / "model")
    # two files and the commit, then the two folders, then the name
    assert calls == ["file", "file", "file", "folder", "folder", "rename", "folder"]
    calls.clear()
    write_bytes(tmp_path / "quick", b"x", durable=False)
    assert calls == ["rename"]


@pytest.mark.parametrize("place", ["a_file/below", "a_folder", "", "nul\0inside", "x" * 300])
def test_a_place_that_cannot_be_is_bad_input(tmp_path: Path, place: str) -> None:
    (tmp_path / "a_file").touch()
    (tmp_path / "a_folder" / "full").mkdir(parents=True)
    path = tmp_path / place if place else Path("")
    with pytest.raises(InputError, match="cannot write"):
        write_bytes(path, b"x")
    with pytest.raises(InputError, match="cannot write"):
        with atomic_folder(path):
            pass
    assert names(tmp_path) == ["a_file", "a_folder"]


def test_an_error_about_another_file_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        with atomic_file(tmp_path / "file"):
            (tmp_path / "another").read_bytes()
    assert names(tmp_path) == []


def test_a_full_disk_is_a_failure_and_costs_nothing(tmp_path: Path) -> None:
    write_bytes(tmp_path / "file", b"old")
    make_folder(tmp_path / "model")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        for write in (
            lambda: write_bytes(tmp_path / "file", bytes(1 << 20)),
            lambda: make_folder(tmp_path / "model", "x" * (1 << 20), overwrite=True),
        ):
            with pytest.raises(WeightloomError, match="cannot write") as caught:
                write()
            assert caught.value.exit_code == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert verify_folder(tmp_path / "model")
    assert names(tmp_path) == ["file", "model"]


# -- folders -----------------------------------------------------------------------------------


def test_a_folder_is_there_completely_or_not_at_all(tmp_path: Path) -> None:
    place = tmp_path / "model"
    with pytest.raises(RuntimeError):
        with atomic_folder(place) as folder:
            (folder / "config.json").write_text("{}")
            raise RuntimeError
    assert names(tmp_path) == []
    make_folder(place)
    assert set(verify_folder(place, required=["config.json"])) == {"config.json", "deep/weights.bin"}
    assert names(place) == [COMMIT_FILE, "config.json", "deep"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_overwriting_replaces_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    place = tmp_path / "model"
    make_folder(place, "one")
    make_folder(place, "two", overwrite=True)
    assert (place / "config.json").read_text() == "two"
    assert names(tmp_path) == ["model"]
    assert names(place) == [COMMIT_FILE, "config.json", "deep"]


def test_only_our_own_folders_are_replaced(tmp_path: Path) -> None:
    place = tmp_path / "thesis"
    place.mkdir()
    (place / "chapter").touch()
    with pytest.raises(InputError, match="exists and is not empty"):
        make_folder(place)
    with pytest.raises(InputError, match="Weightloom did not write it"):
        make_folder(place, overwrite=True)
    assert names(place) == ["chapter"]
    make_folder(tmp_path / "model", "one")
    (tmp_path / "model" / "deep" / "note").touch()
    with pytest.raises(InputError, match="'deep/note' in it is not Weightloom's"):
        make_folder(tmp_path / "model", "two", overwrite=True)
    assert (tmp_path / "model" / "config.json").read_text() == "one"
    (tmp_path / "link").symlink_to(place)
    with pytest.raises(InputError, match="something else"):
        make_folder(tmp_path / "link", overwrite=True)
    (tmp_path / "empty").mkdir()
    make_folder(tmp_path / "empty")


def test_what_killed_writers_of_a_folder_left_goes_when_it_is_written_again(tmp_path: Path) -> None:
    for name in ("model.tmp-0123abcd", "other.tmp-0123abcd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").touch()
    make_folder(tmp_path / "model")
    assert names(tmp_path) == ["model", "other.tmp-0123abcd"]


def test_a_link_in_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a file nor a folder"):
        with atomic_folder(tmp_path / "model") as folder:
            (folder / "secret").symlink_to("/etc/passwd")
    assert names(tmp_path) == []


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    place = tmp_path / "model"
    make_folder(place)
    data = (place / "deep" / "weights.bin").read_bytes()
    for position in range(0, len(data), 17):
        changed = bytearray(data)
        changed[position] ^= 1
        (place / "deep" / "weights.bin").write_bytes(changed)
        with pytest.raises(CheckpointError, match="has changed since"):
            verify_folder(place)
    (place / "deep" / "weights.bin").write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match="has 299 bytes where 300 were written"):
        verify_folder(place)
    (place / "deep" / "weights.bin").unlink()
    with pytest.raises(CheckpointError, match="does not exist"):
        verify_folder(place)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        verify_folder(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is not a folder"):
        verify_folder(tmp_path / "file")
    with pytest.raises(CheckpointError, match="not written to the end"):
        verify_folder(tmp_path)
    make_folder(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"lacks 'model\.safetensors'"):
        verify_folder(tmp_path / "model", required=["model.safetensors"])


@pytest.mark.parametrize(
    "name",
    ["../up", "/etc/passwd", "a/../../up", "a//b", "./a", "", "..", "C:/x", "a\\..\\b", "a\0b", "a\nb"],
)
def test_a_commit_cannot_lead_out_of_its_folder(tmp_path: Path, name: str) -> None:
    place = tmp_path / "model"
    make_folder(place)
    note = json.loads((place / COMMIT_FILE).read_text())
    note["files"][name] = note["files"]["config.json"]
    (place / COMMIT_FILE).write_text(json.dumps(note))
    with pytest.raises(CheckpointError, match="no place inside the folder"):
        verify_folder(place)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"files": 3}', '{"files": {"a": 1}}', '{"files": {"a": {"sha256": 1, "bytes": 1}}}',
     '{"files": {"a": {"sha256": "00", "bytes": 1}}}', "[" * 100_000, "\udcff"],
)  # fmt: skip
def test_a_broken_commit_is_a_checkpoint_error(tmp_path: Path, text: str) -> None:
    make_folder(tmp_path / "model")
    (tmp_path / "model" / COMMIT_FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError):
        verify_folder(tmp_path / "model")


def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path: Path) -> None:
    make_folder(tmp_path / "model")
    (tmp_path / "model" / "config.json").unlink()
    os.mkfifo(tmp_path / "model" / "config.json")
    with pytest.raises(CheckpointError, match="not a regular file"):
        verify_folder(tmp_path / "model")


# -- killed writers ----------------------------------------------------------------------------


def test_sweep_takes_the_dead_and_spares_the_living(tmp_path: Path) -> None:
    (tmp_path / "file.tmp-0123abcd").touch()
    (tmp_path / "gone.tmp-0123abcd").mkdir()
    (tmp_path / "gone.tmp-0123abcd" / "part").touch()
    (tmp_path / "mine.tmp").touch()
    (tmp_path / "mine.tmp-01").touch()
    with atomic_file(tmp_path / "file") as handle, atomic_folder(tmp_path / "model") as folder:
        handle.write(b"new")
        (folder / "part").touch()
        removed = sweep(tmp_path)
        assert sorted(entry.name for entry in removed) == ["file.tmp-0123abcd", "gone.tmp-0123abcd"]
    assert names(tmp_path) == ["file", "mine.tmp", "mine.tmp-01", "model"]
    assert sweep(tmp_path) == []
    assert sweep(tmp_path / "nothing") == []


def test_sweep_puts_back_what_was_only_moved_aside(tmp_path: Path) -> None:
    make_folder(tmp_path / "model")
    os.rename(tmp_path / "model", tmp_path / "model.old-0123abcd")
    sweep(tmp_path)
    assert verify_folder(tmp_path / "model")
    os.rename(tmp_path / "model", tmp_path / "model.old-0123abcd")
    with pytest.raises(InputError, match="exists and is not empty"):
        make_folder(tmp_path / "model", "two")
    make_folder(tmp_path / "model", "two", overwrite=True)
    assert names(tmp_path) == ["model"]
    assert (tmp_path / "model" / "config.json").read_text() == "two"


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_a_killed_writer_never_costs_the_last_good_artefact(tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed_writer.py")
    writer = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdin is not None and writer.stdout is not None
    last, litter = 0.0, 0
    with writer:
        for delay in [0.3, *np.random.default_rng(0).uniform(0.0, 0.06, size=24)]:
            writer.stdin.write(f"{delay}\n")
            writer.stdin.flush()
            assert writer.stdout.readline() == "dead\n"
            litter += sum(".tmp-" in name or ".old-" in name for name in names(tmp_path))
            sweep(tmp_path)
            assert names(tmp_path) == ["model", "one.safetensors"]
            for path in (tmp_path / "one.safetensors", tmp_path / "model" / "model.safetensors"):
                tensors, _ = load_tensors(path)
                written = float(tensors["b"][0])
                assert all(bool((tensor == written).all()) for tensor in tensors.values()), "torn"
            verify_folder(tmp_path / "model", required=["model.safetensors", "config.json"])
            assert float((tmp_path / "model" / "config.json").read_text()) == written
            assert written >= last, "an older one has come back"
            last = written
        writer.stdin.close()
    assert litter > 0, "no kill came in the middle of a write: the test has tested nothing"


# -- other processes at the same time ----------------------------------------------------------


def is_locked(path: Path) -> bool:
    fcntl = pytest.importorskip("fcntl")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def test_of_two_that_make_a_folder_one_is_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, refuse = tmp_path / "model", atomic._refuse_taken
    looks = []

    def look(*arguments: object) -> None:
        refuse(*arguments)  # type: ignore[arg-type]
        looks.append(arguments)
        if len(looks) == 2:  # the last look before the folder gets its name
            place.mkdir()
            (place / "another").touch()

    monkeypatch.setattr(atomic, "_refuse_taken", look)
    with pytest.raises(InputError, match=r"cannot write .*not empty"):
        make_folder(place)
    assert names(place) == ["another"] and names(tmp_path) == ["model"]


def test_sweep_holds_what_it_removes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A writer that has made its file or folder and not locked it yet sees that it is not its own.
    (tmp_path / "file.tmp-0123abcd").touch()
    (tmp_path / "folder.tmp-0123abcd").mkdir()
    unlink, rmtree, seen = Path.unlink, atomic.shutil.rmtree, []
    monkeypatch.setattr(Path, "unlink", lambda self: (seen.append(is_locked(self)), unlink(self)))
    monkeypatch.setattr(atomic.shutil, "rmtree", lambda path: (seen.append(is_locked(path)), rmtree(path)))
    assert len(sweep(tmp_path)) == 2 and seen == [True, True] and names(tmp_path) == []


@pytest.mark.parametrize("moment", ["before it is opened", "before it is locked"])
def test_a_folder_that_is_swept_as_soon_as_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    fcntl = pytest.importorskip("fcntl")
    mkdir, flock, swept = os.mkdir, fcntl.flock, []

    def make(path: Path, *arguments: int) -> None:
        mkdir(path, *arguments)
        if ".tmp-" in str(path) and not swept:
            swept.append(path)
            if moment == "before it is opened":
                os.rmdir(path)

    def lock(descriptor: int, operation: int) -> None:
        if moment == "before it is locked" and len(swept) == 1:
            os.rmdir(swept[0])
            swept.append(None)
            raise BlockingIOError
        flock(descriptor, operation)

    monkeypatch.setattr(os, "mkdir", make)
    monkeypatch.setattr(fcntl, "flock", lock)
    make_folder(tmp_path / "model")
    assert swept and names(tmp_path) == ["model"] and verify_folder(tmp_path / "model")


def test_whoever_waited_for_a_folder_that_was_replaced_locks_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    place, flock = tmp_path / "place", fcntl.flock
    place.mkdir()

    def wait(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        os.rename(place, tmp_path / "old")
        place.mkdir()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", wait)
    with alone(place) as in_place:
        assert is_locked(place) and not is_locked(tmp_path / "old") and in_place()
        os.rename(place, tmp_path / "away")
        assert not in_place()
