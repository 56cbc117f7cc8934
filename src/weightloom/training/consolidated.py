"""Building consolidated checkpoints: each made to codes and kept, then one prior counted over all of them.

What is finished stays in ``work/`` with what it was made from; the same command goes on from there.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from weightloom.consolidation.catalogue import Published, published
from weightloom.consolidation.coding import CONTEXTS, SYMBOLS, library, prior_from
from weightloom.consolidation.compress import Settings, consolidate
from weightloom.consolidation.inputs import PARTS, recordings
from weightloom.consolidation.packing import Parts, pack, size_of, unpack
from weightloom.errors import CheckpointError, SpecError
from weightloom.generators.consolidated import Consolidated
from weightloom.generators.load import save_generator
from weightloom.io import cache_dir, dump_json, load_tensors, parse_json, read_yaml, save_tensors
from weightloom.training.loop import Progress
from weightloom.training.recipe import ConsolidatedRecipe
from weightloom.training.trainers import trainers

LISTENING = ("frames", "windows", "mel")


@trainers.register(Consolidated.kind)
def train_from_recipe(recipe_path: Path, zoo: Path | None, out: Path, progress: Progress) -> Consolidated:
    """See :data:`weightloom.training.trainers.Trainer`; no zoo is read."""
    return build(read_yaml(recipe_path, ConsolidatedRecipe), out, progress)


def build(recipe: ConsolidatedRecipe, out: Path, progress: Progress) -> Consolidated:
    """Consolidate every checkpoint of the recipe that ``out`` does not hold yet, and save all in ``out``.

    Raises:
        DataUnavailableError: a package, the range coder or the recordings are not on this machine;
            said before anything is computed, and what ``out`` holds already stays.
        CheckpointError: a package's file is not the published one.
        SpecError: settings that make no sense.
    """
    library()
    entries = _in_order([published(name) for name in recipe.checkpoints])
    for entry in entries:
        entry.locate()
    try:
        settings = Settings(**recipe.settings)
    except TypeError as error:
        raise SpecError(f"the recipe's settings: {error}") from None
    speech = Path(recipe.speech).expanduser() if recipe.speech else cache_dir("speech")
    if any(entry.inputs in LISTENING for entry in entries):
        for part in PARTS:
            recordings(speech, part)

    (out / "work").mkdir(parents=True, exist_ok=True)
    made: dict[str, Parts] = {}
    figures: dict[str, dict[str, Any]] = {}
    for number, entry in enumerate(entries):
        file = out / "work" / f"{entry.name}.safetensors"
        digest = _digest(entry, settings)
        held = _held(file, digest)
        if held is None:
            state = entry.read()
            base = None if entry.base is None else made[entry.base].state()
            parts, found = consolidate(entry, state, settings, speech=speech, base=base)
            save_tensors(file, pack(parts, _flat_prior()), {"made from": digest, "figures": dump_json(found)})
            held = parts, dict(found)
        made[entry.name], figures[entry.name] = held
        progress(entry.name, number + 1, len(entries))

    counts = np.zeros((CONTEXTS, SYMBOLS))
    for parts in made.values():
        parts.add_counts(counts)
    prior = prior_from(counts)
    packed = {name: pack(parts, prior) for name, parts in made.items()}
    about = {entry.name: _about(entry, made[entry.name], packed[entry.name], figures) for entry in entries}
    model = Consolidated(recipe.name, about, packed, prior)
    save_generator(model, out)
    return model


def _about(
    entry: Published, parts: Parts, packed: dict[str, Tensor], figures: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    return {
        "package": entry.package,
        "file": entry.file,
        "licence": entry.licence,
        "wordings": list(entry.wordings),
        "num_parameters": parts.values,
        "bits_per_weight": 8 * sum(size_of(packed).values()) / parts.values,
        "tuning_error": figures[entry.name].get("tuning_error"),
    }


def _in_order(entries: list[Published]) -> list[Published]:
    """Each once, those that others rest on first."""
    ordered: dict[str, Published] = {}
    for entry in entries:
        if entry.base is not None:
            ordered.setdefault(entry.base, published(entry.base))
        ordered.setdefault(entry.name, entry)
    return list(ordered.values())


def _digest(entry: Published, settings: Settings) -> str:
    made_from = {
        "sha256": entry.sha256,
        "network": entry.network,
        "inputs": entry.inputs,
        "calibration": entry.calibration,
        "settings": asdict(settings),
    }
    text = dump_json(made_from)
    return hashlib.sha256(text.encode()).hexdigest()


def _held(file: Path, digest: str) -> tuple[Parts, dict[str, Any]] | None:
    """What an earlier run finished, if it was made from the same things."""
    if not file.is_file():
        return None
    packed, metadata = load_tensors(file)
    if metadata.get("made from") != digest:
        return None
    try:
        return unpack(packed, _flat_prior()), dict(
            parse_json(file, metadata["figures"].encode(), what="figures")
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(file, f"is not what an earlier run finished ({error})") from None


def _flat_prior() -> np.ndarray:
    """What finished checkpoints are kept with, before there is a prior: every code as likely as any."""
    return np.full((CONTEXTS, SYMBOLS), -np.log(SYMBOLS), dtype=np.float16)
