"""Find a generator by name (bundled, a local directory, a repository on a hub), and keep one."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from weightloom.defaults import with_plain_defaults
from weightloom.errors import CheckpointError, DataUnavailableError, UnknownNameError
from weightloom.generators.base import Generator, generators
from weightloom.io import COMMIT_FILE, allocation_limit, read_json, settle, staged_files, verify_folder

BUNDLED = Path(__file__).parent / "bundled"


def bundled_names() -> list[str]:
    """Names of the generators that come with the package."""
    return (
        sorted(p.name for p in BUNDLED.iterdir() if (p / "config.json").is_file()) if BUNDLED.is_dir() else []
    )


@with_plain_defaults
def load_generator(name: str | Path) -> Generator:
    """A generator by bundled name, local directory, or hub id (``owner/name``, where there is internet).

    Files that :func:`save_generator` wrote are compared with their checksums. No config makes more than its
    weights can fill.

    Raises:
        UnknownNameError: nothing is called so; the message offers the nearest bundled names.
        CheckpointError: the directory is not a whole generator.
        DataUnavailableError: the hub does not answer.
    """
    text = str(name)
    if len(text) > 1000:  # longer than any path, and than a file system answers about
        raise UnknownNameError("generator", text, bundled_names())
    folder = BUNDLED / text if text in bundled_names() else Path(name)
    if not folder.is_dir():
        if text.count("/") == 1 and not text.startswith((".", "/", "~")) and not isinstance(name, Path):
            folder = _from_hub(text)
        else:
            raise UnknownNameError("generator", text, bundled_names())
    settle(folder)
    if (folder / COMMIT_FILE).is_file():
        verify_folder(folder, required=["config.json"])
    held = read_json(folder / "config.json")
    kind = held.get("kind") if isinstance(held, dict) else None
    if not isinstance(kind, str) or kind not in generators:
        raise CheckpointError(folder / "config.json", f"says kind {kind!r}, which is no generator")
    family = generators.get(kind)
    if not hasattr(family, "from_pretrained"):
        raise CheckpointError(folder / "config.json", f"a {kind!r} generator is made, not loaded")
    with allocation_limit(folder / "config.json", sorted(folder.rglob("*.safetensors"))):
        return family.from_pretrained(folder)  # type: ignore[no-any-return]


class Kept(Protocol):
    """A generator that can be written to a directory."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config, weights and whatever else belongs to it."""


@with_plain_defaults
def save_generator(model: Kept, folder: str | Path) -> None:
    """Write a generator to a directory, all of its files or none; what else is there stays.

    Raises:
        InputError: nothing can be written at this place.
        WeightloomError: the write failed (a full disk); what was there before is untouched.
    """
    with staged_files(folder) as place:
        model.save_pretrained(place)


def _from_hub(repository: str) -> Path:
    try:
        from huggingface_hub import snapshot_download

        patterns = ["*.json", "*.safetensors", "*/*.json", "*/*.safetensors"]
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except Exception as error:
        raise DataUnavailableError(
            f"{repository!r} is neither bundled nor a local directory, and the hub gave no answer "
            f"({type(error).__name__})"
        ) from None
