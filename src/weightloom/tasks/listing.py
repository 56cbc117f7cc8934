"""What lies in a folder of pictures by class, and what of it is passed over.

Reads names, and the first bytes of files whose name says nothing; decodes no picture.
"""

from __future__ import annotations

import filecmp
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightloom.errors import InputError, printable
from weightloom.tasks.pictures import promises_a_picture
from weightloom.tasks.store import SPLITS

SYSTEM = frozenset(
    name.casefold()
    for name in (
        "__MACOSX", "@eaDir", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot", "$RECYCLE.BIN",
        "RECYCLER", "System Volume Information", "lost+found", ".ipynb_checkpoints", ".DS_Store",
        ".AppleDouble", ".Spotlight-V100", ".Trashes", ".fseventsd", ".git", ".svn", ".thumbnails",
        "__pycache__", "Thumbs.db", "ehthumbs.db", "desktop.ini", "Icon\r",
    )
)  # fmt: skip
"""Folders and files that systems and programs make by themselves."""

TRAIN = ("train", "training")
TEST = ("test", "testing")
HELD_BACK = ("val", "valid", "validation")  # what serves for testing where nothing is called test

_DEEPEST = 32


@dataclass(kw_only=True)
class PassedOver:
    """What is not read of a folder, counted by kind and by name.

    Attributes:
        suffixes: files that are no pictures by their name and first bytes, by the end of their names.
        system: folders and files that systems make, by name.
        hidden: folders and files whose names begin with a dot.
        folders: pictures in sub-folders that are not used, by the sub-folder.
        beside: pictures that lie beside the folders of the classes, in none of them.
        not_files: links that lead nowhere or in a circle, pipes and the like.
    """

    suffixes: Counter[str] = field(default_factory=Counter)
    system: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    folders: Counter[str] = field(default_factory=Counter)
    beside: int = 0
    not_files: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values, without what there is none of."""
        return {
            name: dict(sorted(value.items())) if isinstance(value, Counter) else value
            for name, value in vars(self).items()
            if value
        }


@dataclass(kw_only=True)
class Listing:
    """The pictures of a folder.

    Attributes:
        parts: folders of the ``"train"`` and ``"test"`` part, empty where a folder has no parts.
        files: for each part (the only one is ``"train"`` without parts), files by class.
        nested: pictures that lie in sub-folders of their class, by class.
        passed_over: the rest.
    """

    parts: dict[str, Path]
    files: dict[str, dict[str, list[Path]]]
    nested: Counter[str]
    passed_over: PassedOver

    @property
    def class_names(self) -> list[str]:
        """Names of the classes as they can be shown, in the order of the folders' names."""
        return list(self.files["train"])

    def pictures(self) -> Iterator[tuple[str, int, Path]]:
        """Part, label and file of every picture."""
        for part in SPLITS:
            for label, files in enumerate(self.files.get(part, {}).values()):
                for file in files:
                    yield part, label, file


def list_folder(root: Path) -> Listing:
    """The pictures in ``root`` by class, those in sub-folders of a class among them.

    Its folders are the classes, or a part for training and one for testing with a folder for each class.

    Raises:
        InputError: no such folder, fewer than two classes, a class without pictures, parts that differ.
    """
    try:
        if not root.is_dir():
            raise InputError(f"{root}: no such folder of images")
        return _Lister(root).listing()
    except OSError as error:
        raise InputError(f"{error.filename or root}: cannot be read ({error.strerror or error})") from error


def list_test_folder(root: Path) -> Listing:
    """The pictures in ``root`` by class, all of them to measure on; one class is enough.

    Raises:
        InputError: no such folder, no class, a class without pictures, or a folder that is divided into one
            part for training and one for testing.
    """
    try:
        if not root.is_dir():
            raise InputError(f"{root}: no such folder of images")
        return _Lister(root).all_for_testing()
    except OSError as error:
        raise InputError(f"{error.filename or root}: cannot be read ({error.strerror or error})") from error


def find_pictures(folder: Path) -> tuple[list[Path], PassedOver]:
    """All pictures in ``folder`` and below, whatever the folders mean, and what is passed over.

    Raises:
        InputError: no such folder, or one that cannot be read.
    """
    try:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder of images")
        lister = _Lister(folder)
        return [file for file, _ in lister.below(folder)], lister.passed_over
    except OSError as error:
        raise InputError(f"{error.filename or folder}: cannot be read ({error.strerror or error})") from error


class _Lister:
    def __init__(self, root: Path) -> None:
        self.root, self.passed_over = root, PassedOver()

    def listing(self) -> Listing:
        folders, beside = self._inside(self.root)
        self.passed_over.beside += len(beside)
        parts = self._parts(folders)
        if not parts:
            files, nested = self._classes(self.root, folders)
            return Listing(parts={}, files={"train": files}, nested=nested, passed_over=self.passed_over)
        for folder in folders:
            if folder not in parts.values():
                name = printable(folder.name, one_line=True)
                self.passed_over.folders[name] = sum(1 for _ in _Lister(folder).below(folder))
        found, nested = {}, Counter[str]()
        for part, folder in parts.items():
            inside, beside = self._inside(folder)
            self.passed_over.beside += len(beside)
            found[part], more = self._classes(folder, inside)
            nested += more
        found["test"] = _in_order_of(found["train"], found["test"], parts)
        return Listing(parts=parts, files=found, nested=nested, passed_over=self.passed_over)

    def all_for_testing(self) -> Listing:
        folders, beside = self._inside(self.root)
        self.passed_over.beside += len(beside)
        parts = self._parts(folders)
        if parts:
            raise InputError(
                f"{self.root}: is divided into {parts['train'].name} and {parts['test'].name}; give "
                f"{parts['test']}, or the whole with --data"
            )
        files, nested = self._classes(self.root, folders, least=1)
        return Listing(parts={}, files={"train": files}, nested=nested, passed_over=self.passed_over)

    def _parts(self, folders: list[Path]) -> dict[str, Path]:
        """Which folders are for training and for testing, {} where the folders are classes."""
        train, test, held_back = (
            [folder for folder in folders if folder.name.casefold() in names]
            for names in (TRAIN, TEST, HELD_BACK)
        )
        if not train or not (test or held_back):
            return {}
        quiet = _Lister(self.root)
        divided = {folder for folder in (*train, *test, *held_back) if quiet._inside(folder)[0]}
        if not divided & set(train):  # pictures alone: classes that happen to be called so, or no classes
            if len(folders) > len(train) + len(test) + len(held_back):
                return {}
            raise InputError(
                f"{self.root}: {train[0].name} has no sub-folders; a folder for training and one for testing "
                "have a sub-folder of pictures for each class"
            )
        test = [folder for folder in test if folder in divided] or held_back
        if len(train) > 1 or len(test) > 1:
            names = " and ".join(folder.name for folder in (train if len(train) > 1 else test))
            raise InputError(f"{self.root}: {names} could both be meant; keep one of them")
        alone = f"give {train[0]} alone, of which a part is kept for testing"
        if not test or test[0] not in divided:
            raise InputError(
                f"{self.root}: its folder for testing has no sub-folder for each class, so that nothing can "
                f"be measured on it; {alone}"
            )
        parts = {"train": train[0], "test": test[0]}
        if test == held_back and _only_copies(*(list(quiet.below(parts[part])) for part in SPLITS)):
            raise InputError(
                f"{self.root}: all pictures in its sub-folder {test[0].name} are in {train[0].name} too, so "
                f"that nothing is left to measure on; {alone}, or put other pictures into {test[0].name}"
            )
        return parts

    def _classes(
        self, root: Path, folders: list[Path], least: int = 2
    ) -> tuple[dict[str, list[Path]], Counter[str]]:
        """Pictures by class, and how many of them lie in sub-folders."""
        if len(folders) < least and least == 1:
            lie = self.passed_over.beside
            hint = f"; the {lie:,} pictures that lie in it directly have no class" if lie else ""
            raise InputError(f"{root}: there is no sub-folder of pictures in it, one for each class{hint}")
        if len(folders) < least:
            hint = "; the pictures that lie in it directly have no class" if self.passed_over.beside else ""
            if len(folders) == 1 and len(inner := _Lister(root)._inside(folders[0])[0]) > 1:
                hint = f"; {folders[0]}, with its {len(inner)} sub-folders, may be meant"
            raise InputError(
                f"{root}: a task needs at least two classes, one sub-folder of images each, "
                f"but this folder has {len(folders)}{hint}"
            )
        found: dict[str, list[Path]] = {}
        nested: Counter[str] = Counter()
        for folder in folders:
            name = printable(folder.name, one_line=True)
            before = sum(self.passed_over.suffixes.values())
            files = list(self.below(folder))
            if not files:
                others = sum(self.passed_over.suffixes.values()) - before
                why = f" (none of its {others:,} files is a picture)" if others else ""
                raise InputError(
                    f"{root / folder.name}: this class has no images{why}; remove its folder, or put some in"
                )
            found[name] = [file for file, _ in files]
            nested[name] = sum(deep for _, deep in files)
        if len(found) < len(folders):
            raise InputError(
                f"{root}: two of its folders have names that cannot be told apart when they are shown"
            )
        return found, +nested

    def below(self, folder: Path, above: tuple[tuple[int, int], ...] = ()) -> Iterator[tuple[Path, bool]]:
        """Pictures in ``folder`` and below, each with whether it lies in a sub-folder."""
        status = folder.stat()
        here = (status.st_dev, status.st_ino)
        if here in above or len(above) == _DEEPEST:
            self.passed_over.not_files += 1
            return
        folders, files = self._inside(folder)
        yield from ((file, bool(above)) for file in files)
        for inner in folders:
            yield from self.below(inner, (*above, here))

    def _inside(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Sub-folders and pictures of one folder, in the order of their names; the rest is counted."""
        folders, files = [], []
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            path, name = folder / entry.name, entry.name
            if name.casefold() in SYSTEM or name.startswith("._"):
                shown = "._*" if name.startswith("._") else printable(name, one_line=True)
                self.passed_over.system[shown] += 1
            elif name.startswith("."):
                self.passed_over.hidden += 1
            elif entry.is_dir():
                folders.append(path)
            elif not entry.is_file():
                self.passed_over.not_files += 1
            elif promises_a_picture(path):
                files.append(path)
            else:
                self.passed_over.suffixes[printable(path.suffix.lower(), one_line=True) or "no suffix"] += 1
        return folders, files


def _in_order_of(
    train: dict[str, list[Path]], test: dict[str, list[Path]], parts: dict[str, Path]
) -> dict[str, list[Path]]:
    """The test part with its classes named and ordered as those of the training part.

    Raises:
        InputError: one has classes that the other lacks.
    """
    # Systems write the same letter with an accent in two ways.
    same = {unicodedata.normalize("NFC", name): files for name, files in test.items()}
    wanted = {unicodedata.normalize("NFC", name): name for name in train}
    lacking = {
        parts["test"].name: sorted(set(wanted) - set(same)),
        parts["train"].name: sorted(set(same) - set(wanted)),
    }
    if any(lacking.values()):
        texts = [f"{part} lacks {', '.join(names[:10])}" for part, names in lacking.items() if names]
        raise InputError(
            f"{parts['train'].parent}: {parts['train'].name} and {parts['test'].name} must have the same "
            f"classes, but {' and '.join(texts)}"
        )
    return {name: same[key] for key, name in wanted.items()}


def _only_copies(train: list[tuple[Path, bool]], test: list[tuple[Path, bool]]) -> bool:
    """Whether every test file has the very bytes of a training file; ends at the first that has not."""
    by_size: dict[int, list[Path]] = {}
    for file, _ in train:
        by_size.setdefault(file.stat().st_size, []).append(file)
    starts: dict[int, dict[bytes, list[Path]]] = {}
    for file, _ in test:
        size = file.stat().st_size
        if size not in starts:
            starts[size] = {}
            for other in by_size.get(size, ()):
                starts[size].setdefault(_start(other), []).append(other)
        if not any(filecmp.cmp(file, other, shallow=False) for other in starts[size].get(_start(file), ())):
            return False
    return bool(test)


def _start(file: Path) -> bytes:
    with file.open("rb") as handle:
        return handle.read(1 << 12)
