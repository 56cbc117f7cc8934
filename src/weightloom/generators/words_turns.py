"""Which of the sixteen turns of pictures a sentence speaks of.

Two things are added up: what the sentence means (its vector from the sentence encoder), and how it is
written (its runs of three to five letters, hashed). Meaning knows other words for the same, but hardly tells
left from right; letters do, also where a few are mistyped. Knows no files and no training.

Shapes: B sentences, E width of their vectors, N places that runs of letters are hashed to.
Source: hashed character n-grams, Bojanowski et al. (arXiv 1607.04606), section 3.2.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from weightloom.conditioning.text import TEXT_WIDTH
from weightloom.seeding import seed_for

PARTS = (4, 2, 2)
"""Rotations, mirrored or not, inverted or not."""
PLACES = 4096
SURE = 0.9
"""Probability from which a sentence is taken to speak of a turn."""


def letters(texts: Sequence[str]) -> Tensor:
    """(B, N) bool: which runs of three to five letters each text has, in lower case, spaces included.

    Example:
        >>> letters(["upside down", "Upside  down", "on their side"]).sum(1).tolist()[0] > 20
        True
    """
    found = torch.zeros(len(texts), PLACES, dtype=torch.bool)
    for row, text in enumerate(texts):
        plain = f" {' '.join(text.lower().split())} "
        runs = {plain[i : i + n] for n in (3, 4, 5) for i in range(len(plain) - n + 1)}
        found[row, [zlib.crc32(run.encode()) % PLACES for run in runs]] = True
    return found


def without_names(text: str, names: Sequence[str]) -> str:
    """A sentence without the names of its classes: a mirror among them is no turn.

    Example:
        >>> without_names("Tell a mirror from a window, upside down", ["window", "mirror"])
        'Tell a from a , upside down'
    """
    for name in sorted(names, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "", text, flags=re.IGNORECASE)
    return " ".join(text.split())


class TurnReader(nn.Module):
    """Log-probabilities of the turns, in the order of :func:`weightloom.tasks.transforms.transform_names`."""

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for("turns", seed))
            self.meaning = nn.Sequential(nn.Linear(TEXT_WIDTH, 64), nn.GELU(), nn.Linear(64, sum(PARTS)))
        self.writing = nn.Linear(PLACES, sum(PARTS), bias=False)
        nn.init.zeros_(self.writing.weight)

    def parts(self, vectors: Tensor, written: Tensor) -> tuple[Tensor, ...]:
        """Logits of rotation (B, 4), mirroring (B, 2) and inversion (B, 2) from vectors (B, E) and
        letters (B, N).
        """
        return (self.meaning(vectors) + self.writing(written.to(vectors.dtype))).split(PARTS, -1)

    def forward(self, vectors: Tensor, texts: Sequence[str]) -> Tensor:
        """(B, 16) log-probabilities from sentences and their vectors (B, E)."""
        return _together(self.parts(vectors, letters(texts).to(vectors.device)))

    def read(self, vectors: Tensor, texts: Sequence[str]) -> list[int]:
        """Which turn each sentence speaks of, 0 for none: where both together are sure and the letters agree.

        Meaning alone is not enough: "tell a mirror from a window" is about mirrors.
        """
        written = letters(texts).to(vectors.device)
        both, alone = (
            self(vectors, texts),
            _together(self.writing(written.to(vectors.dtype)).split(PARTS, -1)),
        )
        chosen = both.argmax(1)
        clear = (both.max(1).values.exp() >= SURE) & (alone.argmax(1) == chosen)
        return [int(turn) if sure else 0 for turn, sure in zip(chosen, clear, strict=True)]


def _together(logits: Sequence[Tensor]) -> Tensor:
    """(B, 16) log-probabilities from those of rotation, mirroring and inversion."""
    turns, flips, inverts = (part.log_softmax(-1) for part in logits)
    both = inverts[:, :, None, None] + flips[:, None, :, None] + turns[:, None, None, :]
    return both.flatten(1)  # (B, 2, 2, 4) -> (B, 16)
