from __future__ import annotations

import os
from pathlib import Path

import pytest

from weightloom.io import settle, staged_files, verify_folder
from weightloom.io import staged as staged_module
from weightloom.io.staged import STAGED


def write(folder: Path, text: str) -> None:
    with staged_files(folder) as place:
        (place / "config.json").write_text(text)


def test_another_process_stages_files_while_the_last_ones_are_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, other = tmp_path / "model", tmp_path / "other"
    with staged_module.atomic_folder(other) as place:
        (place / "config.json").write_text("of another process")
    sync, moved = staged_module.sync_folder, []

    def late(path: Path) -> None:
        sync(path)
        if not moved and (folder / STAGED).is_dir() and not any((folder / STAGED).iterdir()):
            os.rename(other, folder / STAGED)  # as atomic_folder does
            moved.append(path)

    monkeypatch.setattr(staged_module, "sync_folder", late)
    write(folder, "first")
    assert moved and (folder / STAGED / "config.json").exists()
    settle(folder)
    assert (folder / "config.json").read_text() == "of another process"
    assert list(verify_folder(folder)) == ["config.json"] and not (folder / STAGED).exists()


def test_whoever_finds_the_files_in_place_leaves_the_next_ones(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write(folder, "first")
    (folder / STAGED / "deep" / "deeper").mkdir(parents=True)
    settle(folder)
    assert not (folder / STAGED).exists() and (folder / "config.json").read_text() == "first"
