"""Networks larger than memory: written to sharded files layer by layer, as they are made.

A layer wider than a dictionary has learned is the widest that it has, its channels repeated so that the
function is the same (:mod:`weightloom.tokenizers.layers`). So a request is answered with the narrow network,
which is small: its head and batch norms are measured on the examples; the wide one is written from it, some
rows at a time. Knows one method, layer-wise generation, and nothing of training.

Shapes: P values of a network, C classes, H features of the trunk.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightloom import __version__
from weightloom.architectures import ArchitectureSpec, parse_architecture
from weightloom.defaults import with_plain_defaults
from weightloom.errors import InputError, UnsupportedRequestError
from weightloom.generators.base import Generator, Sampling, sample_generators, support_scores
from weightloom.generators.layerwise import Layerwise
from weightloom.generators.layerwise_set import LayerwiseSet
from weightloom.io import dump_json, write_shards
from weightloom.io.shards import SHARD_BYTES
from weightloom.tasks import SupportSet
from weightloom.tokenizers.layers import places, widen
from weightloom.weights import layout_of, require_finite

PIECE_BYTES = 8 << 20
"""Bytes of a layer that are made at once. What is held beside it does not grow with the network."""


def layerwise_of(generator: Generator, spec: ArchitectureSpec) -> Layerwise:
    """The layer-wise generator for networks like ``spec`` that ``generator`` is or holds.

    Raises:
        InputError: there is none.
    """
    found = generator.part_for(spec) if isinstance(generator, LayerwiseSet) else generator
    if not isinstance(found, Layerwise):
        raise InputError(
            f"{generator.name} has no layer-wise part for {spec}; only what such a part makes can be "
            "written layer by layer (layerwise-tiny has them)"
        )
    return found


@with_plain_defaults
def stream_network(
    generator: Generator,
    architecture: str | ArchitectureSpec,
    folder: str | Path,
    *,
    instruction: str | None = None,
    support: SupportSet | None = None,
    seed: int = 0,
    sampling: Sampling | None = None,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Generate one network straight into sharded files, in memory that does not grow with its width.

    Args:
        generator: a layer-wise one, or a set of such.
        architecture: any depth and width that it makes.
        folder: where to: ``model.safetensors``, or ``model-00001-of-0000N.safetensors`` and an index.
        instruction: words, as for :meth:`~weightloom.generators.Generator.generate`.
        support: examples; without them the head is that of a random initialisation.
        seed: of the codes and of how repeated channels share their inputs.
        sampling: how codes are drawn.
        shard_bytes: size of a file at most, unless one tensor is larger.
        overwrite: replace a folder that this function wrote before.

    Returns:
        A report: architecture, parameters, files, the scores on the examples, the seconds that it took and
        the processor's of the writing alone.

    Raises:
        UnsupportedRequestError: the generator does not make such networks.
        InputError: the generator has no layer-wise part, the class count is not known, the place is taken.
        WeightloomError: the disk is full.
    """
    start = time.perf_counter()
    spec = architecture if isinstance(architecture, ArchitectureSpec) else parse_architecture(architecture)
    if spec.input is None:
        spec = spec.resolve(input=generator.validity.input)
    if spec.classes is None and support is not None:
        spec = spec.resolve(classes=support.num_classes)
    if spec.classes is None:
        raise InputError(
            "the number of classes is not known; give examples, or classes=N in the architecture"
        )
    part = layerwise_of(generator, spec)
    part.validity.check(spec)
    part.dictionary.check(spec)
    narrow = narrow_of(part, spec)
    request = part.check(narrow, instruction, support, 1, seed, sampling)
    noise = sample_generators(request)
    with torch.no_grad():
        # The layers are told how wide they will be: tokens and codes are as many for any width.
        codes = part.sample_codes(part.describe(replace(request, architecture=spec)), noise, request.sampling)
        flats = part.make(request, codes, noise)
    require_finite({"the network": flats[0]}, f"generator {part.name}")
    layout = layout_of(spec)
    report: dict[str, Any] = {
        "generator": generator.name,
        "kind": part.kind,
        "architecture": spec.full_text(),
        "parameters": layout.num_parameters,
        "made_from": str(narrow),
        "head": "random" if support is None else "closed form",
        "instruction": request.instruction,
        "seed": request.seed,
        **support_scores(narrow, flats, support)[0],
    }
    plan = {slot.name: (slot.shape, torch.int64) for slot in layout.counters}
    plan |= {slot.name: (slot.shape, torch.float32) for slot in layout.slots}
    metadata = {
        "format": "pt",
        "weightloom": __version__,
        "architecture": spec.full_text(),
        "report": dump_json(report),
        **generator.card(replace(request, architecture=spec), report).to_metadata(),
    }
    pieces = wide_pieces(narrow, spec, flats[0], request.seed)
    writing = time.process_time()
    files = write_shards(
        folder, plan, pieces, metadata=metadata, shard_bytes=shard_bytes, overwrite=overwrite
    )
    return {
        **report,
        "files": files,
        "seconds": time.perf_counter() - start,
        "cpu_seconds_writing": time.process_time() - writing,
    }


def narrow_of(part: Layerwise, spec: ArchitectureSpec) -> ArchitectureSpec:
    """The network as deep as ``spec`` that computes the same function: as wide as the dictionary at most."""
    widest: Any = part.dictionary.largest[spec.family]
    asked: Any = spec
    return replace(asked, width=min(asked.width, widest.width))  # type: ignore[no-any-return]


def wide_pieces(
    narrow: ArchitectureSpec, wide: ArchitectureSpec, flat: Tensor, seed: int
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of ``wide``, some rows at a time, from the network ``flat`` (P,) of ``narrow``: counters
    first, then the slots in layout order.

    Raises:
        UnsupportedRequestError: a head whose features are not whole channels.
    """
    layout, state = layout_of(wide), layout_of(narrow).unflatten(flat)
    layers = places(wide)
    roles = {place.weighted.slots[0].name: place.role for place in layers}
    head = layout.layers[-1].slots[0].name
    for slot in layout.counters:
        yield slot.name, torch.zeros(slot.shape, dtype=torch.int64)
    for slot in layout.slots:
        held = state[slot.name]
        if held.shape == slot.shape:
            yield slot.name, held
        elif slot.name in roles:
            for piece in _widened(held, slot.shape, (roles[slot.name], seed)):
                yield slot.name, piece
        elif slot.name == head:
            channels = places(narrow)[-1].shape[0]
            each, rest = divmod(held.shape[1], channels)
            if rest:
                raise UnsupportedRequestError(f"the head of {wide} does not read whole channels")
            shape = (held.shape[0], layers[-1].shape[0], each)
            parts = held.unflatten(1, (channels, each))  # (C, H) -> (C, channels, each)
            yield slot.name, widen(parts[None], shape, ("head", seed))[0].flatten(1)
        else:
            yield slot.name, held.repeat(-(-slot.shape[0] // len(held)))[: slot.shape[0]]


def _widened(held: Tensor, shape: tuple[int, ...], address: tuple[str, int]) -> Iterator[Tensor]:
    """A wider weight in pieces of ``PIECE_BYTES``.

    Its rows are those of ``held`` (rows, columns, ...) in turns: a turn that is small enough is made once.
    """
    step = max(1, PIECE_BYTES // (4 * math.prod(shape[1:])))
    if step >= len(held):
        turn = widen(held[None], shape, address, range(len(held)))[0]
        for first in range(0, shape[0], len(held)):
            yield turn[: shape[0] - first]
        return
    for first in range(0, shape[0], step):
        yield widen(held[None], shape, address, range(first, min(first + step, shape[0])))[0]
