"""Folders of the moment: gone after the block, also those of processes that were killed; others' are left."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from weightloom.io import staged_files, sweep_temporary, temporary_folder
from weightloom.unfinished import Undoing, WholeStep, nothing_yet, undo_all, what_was_written, written


def test_it_is_gone_however_the_block_ends(tmp_path):
    for error in (None, RuntimeError, KeyboardInterrupt):
        try:
            with temporary_folder(tmp_path) as folder:
                (folder / "deep").mkdir()
                (folder / "deep" / "file").write_text("x")
                assert os.stat(folder).st_mode & 0o777 == 0o700
                if error is not None:
                    raise error
        except (RuntimeError, KeyboardInterrupt):
            pass
        assert list(tmp_path.iterdir()) == []


def test_it_is_undone_where_the_process_ends_inside(tmp_path):
    with temporary_folder(tmp_path) as folder:
        (folder / "file").write_text("x")
        undo_all()
        assert list(tmp_path.iterdir()) == []
    undo_all()


KILLED = """
import os, signal, sys
from weightloom.io import temporary_folder
with temporary_folder(sys.argv[1]) as folder:
    (folder / "half").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_what_a_killed_process_left_is_swept_and_what_a_living_one_has_is_not(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    (left,) = tmp_path.iterdir()
    (tmp_path / "somebody.tmp-0123abcd").mkdir()
    with temporary_folder(tmp_path) as living:
        assert not left.exists() and living.is_dir()
        with staged_files(living) as staged:  # which locks the folder
            (staged / "a.txt").write_text("x")
        assert (living / "a.txt").is_file()
        assert sweep_temporary(tmp_path) == [] and living.is_dir()
        with temporary_folder(tmp_path) as second:
            assert living.is_dir() and second != living
    assert [entry.name for entry in tmp_path.iterdir()] == ["somebody.tmp-0123abcd"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs to give a folder away")
def test_another_user_s_folder_is_left(tmp_path):
    theirs = tmp_path / "weightloom.tmp-0123abcd"
    theirs.mkdir()
    os.chown(theirs, 12345, 12345)
    assert sweep_temporary(tmp_path) == [] and theirs.is_dir()


def test_undoing_goes_backwards_and_forgets():
    done = []
    with Undoing(lambda: done.append("first")), Undoing(lambda: 1 / 0):
        with Undoing(lambda: done.append("forgotten")):
            pass
        with Undoing(lambda: done.append("last")):
            undo_all()
    assert done == ["last", "first"], "the newest first, and a failure stops nothing"
    undo_all()
    assert done == ["last", "first"]


def test_a_whole_step_ends_before_what_waits_for_it():
    done = []
    try:
        with WholeStep():
            WholeStep.then = lambda: done.append("after")
            with WholeStep():
                pass
            assert done == []
        assert done == ["after"] and WholeStep.depth == 0
    finally:
        WholeStep.then = None


def test_what_was_written_is_told():
    nothing_yet()
    assert what_was_written() == "nothing was written"
    for name in ("a", "b", "a"):
        written(name)
    assert what_was_written() == "written before: a, b"
    for number in range(5):
        written(str(number))
    assert what_was_written() == "written before: a, b, 0 and more"
    nothing_yet()
