"""Repositories of networks on a hub: ``hf://owner/name@revision``, safetensors and nothing else.

What is downloaded lies in the hub client's own cache. Knows nothing of what the files hold.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from weightloom.errors import DataUnavailableError, InputError

PREFIX = "hf://"
PATTERNS = ["*.safetensors", "*.safetensors.index.json"]

_ADDRESS = re.compile(r"hf://([A-Za-z0-9_.-]{1,96}/[A-Za-z0-9_.-]{1,96})(?:@([A-Za-z0-9_.-]{1,96}))?")


@dataclass(frozen=True)
class Repository:
    """A downloaded state of a repository.

    Attributes:
        name: ``owner/name``.
        revision: the commit.
        folder: where its files are; they may be links into ``cache`` and nowhere else.
    """

    name: str
    revision: str
    folder: Path
    cache: Path


def parse_address(text: str) -> tuple[str, str | None]:
    """Repository and revision (None: the newest).

    Raises:
        InputError: it is no address.

    Example:
        >>> parse_address("hf://someone/some-networks@v2")
        ('someone/some-networks', 'v2')
    """
    found = _ADDRESS.fullmatch(text)
    if found is None or ".." in text or any(part.startswith(".") for part in found[1].split("/")):
        raise InputError(
            f"{text[:120]!r} is no address on a hub; one is hf://owner/name or hf://owner/name@revision"
        )
    return found[1], found[2]


def fetch(address: str) -> Repository:
    """Download a repository's safetensors, or find them in the cache.

    Raises:
        InputError: it is no address.
        DataUnavailableError: the hub does not answer, or does not have it.
    """
    name, revision = parse_address(address)
    try:
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(name, revision=revision, allow_patterns=PATTERNS))
    except Exception as error:  # the client has a dozen kinds, and hands through those of its own client
        reason = (str(error).strip().splitlines() or [""])[0][:160]
        raise DataUnavailableError(
            f"{name!r} cannot be had from the hub ({type(error).__name__}: {reason})"
        ) from None
    # CACHE/models--owner--name/snapshots/COMMIT, whose files are links to CACHE/models--owner--name/blobs
    return Repository(name, folder.name, folder, folder.parent.parent)
