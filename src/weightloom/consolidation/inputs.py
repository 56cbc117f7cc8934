"""Real inputs for published networks: pictures, sentences, words and speech, in three separate parts.

``calibration`` is what codes are made with, ``tuning`` what steps are chosen on, ``evaluation`` what errors
are reported on. Pictures come from CIFAR-10 (training images, other training images, test images), sentences
and words from the instructions of tasks, speech from a folder of ``.wav`` files. Knows nothing of codes.

Shapes: B inputs.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from weightloom.consolidation.networks import LETTERS, Weights, _gru_step
from weightloom.errors import DataUnavailableError, InputError
from weightloom.registry import Registry
from weightloom.seeding import numpy_generator
from weightloom.tasks import parse_task

PARTS = ("calibration", "tuning", "evaluation")
RATE = 16_000

Inputs = Callable[[str, int, Path | None, Weights], Tensor]
"""From a part, how many, a folder of speech and the original's weights to inputs (B, ...)."""
inputs: Registry[Inputs] = Registry("kind of input")


def part_of(name: str) -> str:
    """The part that a sentence, word or file belongs to, for ever: 3 of 5, 1 of 5, 1 of 5."""
    return ("calibration", "calibration", "calibration", "tuning", "evaluation")[
        zlib.crc32(name.encode()) % 5
    ]


# ------------------------------------------------------------------------------------------ pictures


def _pictures(part: str, count: int, side: int) -> Tensor:
    """(B, 3, side, side) of CIFAR-10 in [-1, 1]."""
    data = parse_task("cifar10").data("test" if part == "evaluation" else "train")
    images = data.all()[0]
    first, last = {"calibration": (0, 0.8), "tuning": (0.9, 1), "evaluation": (0, 1)}[part]
    rows = torch.linspace(first * len(images), last * len(images) - 1, count).long()
    return F.interpolate(images[rows].float(), size=side, mode="bilinear", antialias=side < images.shape[-1])


@inputs.register("pictures-imagenet-96")
def pictures_imagenet(part: str, count: int, speech: Path | None, weights: Weights) -> Tensor:
    """Normalised as torchvision's ImageNet networks want it, 96x96."""
    mean, spread = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((_pictures(part, count, 96) + 1) / 2 - mean[:, None, None]) / spread[:, None, None]


@inputs.register("pictures-half-96")
def pictures_half(part: str, count: int, speech: Path | None, weights: Weights) -> Tensor:
    """From -1 to 1 and a little off zero, as EfficientNet-Lite wants it ((pixel - 127) / 128), 96x96."""
    return ((_pictures(part, count, 96) + 1) * 127.5 - 127) / 128


def _for_faces(part: str, count: int, side: int) -> Tensor:
    return ((_pictures(part, count, side) + 1) * 127.5 - 127.5) / 128


@inputs.register("pictures-12")
def pictures_12(part: str, count: int, speech: Path | None, weights: Weights) -> Tensor:
    """For a face proposal network, 12x12."""
    return _for_faces(part, count, 12)


@inputs.register("pictures-24")
def pictures_24(part: str, count: int, speech: Path | None, weights: Weights) -> Tensor:
    """For a face refinement network, 24x24."""
    return _for_faces(part, count, 24)


@inputs.register("pictures-48")
def pictures_48(part: str, count: int, speech: Path | None, weights: Weights) -> Tensor:
    """For a face output network, 48x48."""
    return _for_faces(part, count, 48)


# ------------------------------------------------------------------------------------------ words


@lru_cache(maxsize=4)
def sentences(part: str) -> tuple[str, ...]:
    """Instructions of tasks over many class subsets, each in one part only."""
    found: dict[str, None] = {}
    generator = numpy_generator("consolidation sentences")
    for name in ("cifar10", "fashion-mnist", "mnist", "digits", "quickdraw"):
        for _ in range(120):
            classes = 10 if name != "quickdraw" else 345
            chosen = generator.choice(classes, size=int(generator.integers(2, 8)), replace=False)
            try:
                task = parse_task(f"{name}[{','.join(map(str, chosen))}]")
                lines = task.instructions(4, seed=int(generator.integers(1 << 30)))
            except (InputError, DataUnavailableError):
                continue
            found |= dict.fromkeys(line for line in lines if part_of(line) == part)
    order = np.random.Generator(np.random.PCG64(1)).permutation(len(found))
    listed = list(found)
    return tuple(listed[i] for i in order)


@inputs.register("sentences")
def sentence_pieces(part: str, count: int, speech: Path | None, weights: Weights) -> Tensor:
    """(B, S) word pieces, 0 fills up; at most 64 a sentence."""
    from weightloom.conditioning.text import word_pieces

    pieces = [p[:64] for p in word_pieces(sentences(part)[:count])]
    width = max(map(len, pieces))
    return torch.tensor([p + [0] * (width - len(p)) for p in pieces])


@inputs.register("spelling")
def spelling(part: str, count: int, speech: Path | None, weights: Weights) -> Tensor:
    """(B, 16 + 12) letters of words, and the phonemes before each that the original says; see ``g2p``."""
    words = {
        w
        for p in PARTS
        for s in sentences(p)
        for w in "".join(c if c.isalpha() else " " for c in s.lower()).split()
    }
    words = {w for w in words if w.isascii() and 2 < len(w) < LETTERS and part_of(w) == part}
    chosen = sorted(words, key=lambda w: zlib.crc32(w[::-1].encode()))[:count]
    letters = torch.zeros(len(chosen), LETTERS, dtype=torch.long)
    for row, word in enumerate(chosen):
        letters[row, : len(word) + 1] = torch.tensor([ord(c) - 94 for c in word] + [2])
    with torch.no_grad():
        h = torch.zeros(len(chosen), weights["enc_w_hh"].shape[1])
        for t in range(LETTERS):
            stepped = _gru_step(weights["enc_emb"][letters[:, t]], h, weights, "enc")
            h = torch.where((letters[:, t] != 0)[:, None], stepped, h)
        said, over = torch.full((len(chosen),), 2), torch.zeros(len(chosen), dtype=torch.bool)
        spoken = []
        for _ in range(12):
            spoken.append(torch.where(over, -1, said))
            h = _gru_step(weights["dec_emb"][said], h, weights, "dec")
            said = F.linear(h, weights["fc_w"], weights["fc_b"]).argmax(1)
            over = over | (said == 3)
    return torch.cat([letters, torch.stack(spoken, 1)], 1)


# ------------------------------------------------------------------------------------------ speech


@lru_cache(maxsize=4)
def recordings(folder: Path, part: str) -> tuple[np.ndarray, ...]:
    """Recordings of one part at 16 kHz, one channel, loud enough to be heard."""
    from scipy.io import wavfile
    from scipy.signal import resample_poly

    found: list[np.ndarray] = []
    for path in sorted(folder.rglob("*.wav")):
        if part_of(path.name) != part:
            continue
        rate, sound = wavfile.read(path)
        sound = np.asarray(sound, dtype=np.float64)
        sound = (sound.mean(1) if sound.ndim > 1 else sound) / 32768
        if len(sound) < rate // 2 or np.abs(sound).max() < 0.05:
            continue
        found.append(resample_poly(sound, RATE, rate).astype(np.float32))
    if not found:
        raise DataUnavailableError(f"{folder} holds no recordings for the part {part!r}: .wav files, 16 bits")
    return tuple(found)


def _sounds(part: str, speech: Path | None) -> tuple[np.ndarray, ...]:
    if speech is None:
        raise DataUnavailableError("a network that listens needs real speech: a folder of .wav files")
    return recordings(Path(speech), part)


@inputs.register("frames")
def frames(part: str, count: int, speech: Path | None, weights: Weights) -> Tensor:
    """(B, 1024) stretches of speech, each with mean 0 and spread 1, as CREPE wants it."""
    generator = numpy_generator("frames", part)
    sounds = _sounds(part, speech)
    found: list[Tensor] = []
    while len(found) < count:
        sound = sounds[int(generator.integers(len(sounds)))]
        start = int(generator.integers(len(sound) - 1024))
        frame = torch.from_numpy(sound[start : start + 1024].copy())
        if float(frame.std()) > 0.01:
            found.append((frame - frame.mean()) / frame.std())
    return torch.stack(found)


@inputs.register("windows")
def windows(part: str, count: int, speech: Path | None, weights: Weights) -> Tensor:
    """(B, 24, 576) consecutive windows of 512 samples with the 64 before, as Silero's network wants it."""
    found: list[Tensor] = []
    for sound in _sounds(part, speech):
        if len(sound) >= 24 * 512 and len(found) < count:
            whole = np.concatenate([np.zeros(64, np.float32), sound[: 24 * 512]])
            found.append(torch.from_numpy(whole).unfold(0, 576, 512))
    return torch.stack(found)


@lru_cache(maxsize=1)
def _mel() -> Tensor:
    """(40, 201) triangles on Slaney's scale with equal areas, for 400-sample spectra at 16 kHz."""

    def hertz(mel: np.ndarray) -> np.ndarray:
        return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))

    top = 15 + np.log(8000 / 1000) / (np.log(6.4) / 27)
    edges = hertz(np.linspace(0, top, 42))
    at = np.linspace(0, 8000, 201)
    slopes = (edges[:, None] - at[None]) / 1.0
    width = np.diff(edges)
    rise, fall = -slopes[:-2] / width[:-1, None], slopes[2:] / width[1:, None]
    triangles = np.maximum(0, np.minimum(rise, fall)) * (2 / (edges[2:] - edges[:-2]))[:, None]
    return torch.from_numpy(triangles).float()


@inputs.register("mel")
def mel(part: str, count: int, speech: Path | None, weights: Weights) -> Tensor:
    """(B, 160, 40) mel spectrograms of 1.6 s of speech at -30 dB, as Resemblyzer wants it."""
    generator = numpy_generator("mel", part)
    sounds = [s for s in _sounds(part, speech) if len(s) > RATE * 17 // 10]
    found: list[Tensor] = []
    for index in range(count):
        sound = sounds[index % len(sounds)]
        start = int(generator.integers(len(sound) - 159 * 160))
        piece = torch.from_numpy(sound[start : start + 159 * 160].copy())
        piece = piece * (10 ** (-30 / 20) / piece.square().mean().sqrt().clamp(min=1e-5))
        window = torch.hann_window(400)
        power = torch.stft(piece, 400, 160, window=window, return_complex=True).abs().square()  # (201, 160)
        found.append((_mel() @ power).T)
    return torch.stack(found)
