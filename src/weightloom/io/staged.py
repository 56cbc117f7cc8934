"""Several files of one folder that are replaced together, in a folder that holds other files too.

The new files are built in ``.staged`` inside the folder, which gets its name in one step when it is whole:
from then on the new files count. :func:`settle` moves them to their places and the commit last; whoever is
killed on the way leaves ``.staged``, and the next one that reads or writes the folder settles it. So a reader
sees the old files or the new ones. Knows nothing of what is in them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from weightloom.errors import CheckpointError
from weightloom.io.atomic import COMMIT_FILE, atomic_folder, committed_files, sweep, sync_folder
from weightloom.io.locks import alone

STAGED = ".staged"


@contextmanager
def staged_files(folder: str | Path, *, durable: bool = True) -> Iterator[Path]:
    """A temporary folder whose files replace those of ``folder``, all together, when the block ends well.

    Files that the last call wrote and this one does not are removed; what others put there stays.

    Raises:
        InputError: nothing can be written at this place, or another process is replacing the files.
        WeightloomError: the write failed (a full disk); the old files are untouched.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "notes.txt").write_text("mine")
        >>> with staged_files(folder) as place:
        ...     _ = (place / "config.json").write_text("{}")
        >>> sorted(file.name for file in folder.iterdir())
        ['COMMIT.json', 'config.json', 'notes.txt']
    """
    folder = Path(folder)
    settle(folder)
    sweep(folder, name=STAGED)
    with atomic_folder(folder / STAGED, durable=durable) as place:
        yield place
    settle(folder)


def settle(folder: str | Path) -> None:
    """Finish a replacement of files that was killed on the way; a folder without one is left as it is.

    Raises:
        CheckpointError: it cannot be finished: the folder cannot be written, or a name leads out of it.
    """
    folder = Path(folder)
    if not (folder / STAGED).is_dir():
        return
    try:
        with alone(folder):
            _settle(folder)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CheckpointError(
            folder, f"its files were being replaced, and that cannot be finished here ({reason})"
        ) from error


def _settle(folder: Path) -> None:
    staged = folder / STAGED
    if not (staged / COMMIT_FILE).is_file():  # all is in its place but the empty folders
        _remove_empty(staged)
        return
    new = committed_files(staged / COMMIT_FILE)
    old: dict[str, tuple[str, int]] = {}
    with suppress(CheckpointError):  # there is none, or it is broken: then nothing is known of the old files
        old = committed_files(folder / COMMIT_FILE)
    for name in (*new, *old):
        _refuse_links(folder, name)
    changed = {folder}
    for name in new:
        if (staged / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged / name, folder / name)
            changed.add((folder / name).parent)
    for name in old.keys() - new.keys():
        (folder / name).unlink(missing_ok=True)
        with suppress(OSError):
            for parent in (folder / name).relative_to(folder).parents[:-1]:
                (folder / parent).rmdir()
    for place in changed:
        sync_folder(place)
    os.replace(staged / COMMIT_FILE, folder / COMMIT_FILE)
    sync_folder(folder)
    _remove_empty(staged)


def _remove_empty(folder: Path) -> None:
    """Remove a folder in which there are only folders.

    As soon as it is empty another process may put a new one in its place: files in it are not ours.
    """
    for place, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):
            os.rmdir(place)


def _refuse_links(folder: Path, name: str) -> None:
    """A folder from a stranger is settled too: nothing outside it may be moved or removed."""
    for part in (Path(name), *Path(name).parents):  # the last of which is the folder itself
        inside = part != Path() and (folder / part).is_symlink()
        if inside or (folder / STAGED / part).is_symlink():
            raise CheckpointError(folder, f"has a link where {name!r} should be")
