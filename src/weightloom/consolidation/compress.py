"""From a published checkpoint to parts: the coarsest steps with which its outputs stay near enough.

Where a forward pass and real inputs are at hand, steps follow from what the output can bear, one constant
for the whole network sets all of them, and it is chosen on inputs that are used for nothing else. Where they
are not, every row gets the same relative error of its weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from weightloom.consolidation.catalogue import Published
from weightloom.consolidation.inputs import inputs
from weightloom.consolidation.networks import Forward, networks
from weightloom.consolidation.packing import Part, Parts, duplicates
from weightloom.consolidation.rounding import Codes, Rounding, round_layer, round_plain
from weightloom.consolidation.sensitivity import Layer, measure

SMALL = 64
"""Tensors with fewer values, and all vectors, keep 24 bits a value."""
SMALL_ERROR = 0.005
"""Relative error of matrices that the forward pass does not read."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How near a copy has to be.

    ``target`` is the relative error of outputs on tuning inputs; ``weight_error`` that of weights where there
    is no forward pass; ``calibration`` and ``tuning`` count inputs; ``shrink`` see
    :class:`weightloom.consolidation.rounding.Rounding`.
    """

    target: float = 0.009
    weight_error: float = 0.02
    calibration: int = 512
    tuning: int = 192
    shrink: float = 0.2
    tries: int = 5


def is_matrix(tensor: Tensor) -> bool:
    """Whether a tensor is coded."""
    return tensor.is_floating_point() and tensor.dim() > 1 and tensor.numel() >= SMALL


def relative_error(made: Tensor, true: Tensor) -> float:
    """``|made - true| / |true|`` over everything."""
    return float((made.double() - true.double()).norm() / true.double().norm().clamp(min=1e-30))


@torch.no_grad()
def outputs(forward: Forward, weights: Mapping[str, Tensor], x: Tensor, batch: int = 64) -> Tensor:
    """The network's outputs, batch by batch."""
    return torch.cat([forward(weights, x[i : i + batch]) for i in range(0, len(x), batch)])


def make_parts(
    state: Mapping[str, Tensor],
    layers: Mapping[str, Layer],
    constant: float,
    *,
    error: float = SMALL_ERROR,
    how: Rounding | None = None,
    base: tuple[str, Mapping[str, Tensor]] | None = None,
) -> Parts:
    """Parts of a state dict: matrices in ``layers`` by what the output bears, others by ``error``."""
    twice = duplicates(state)
    parts: dict[str, Part] = {}
    for name, tensor in state.items():
        if name in twice:
            parts[name] = twice[name]
        elif not is_matrix(tensor):
            parts[name] = tensor
        else:
            parts[name] = _codes(name, tensor, layers.get(name), constant, error, how, base)
    return Parts(
        parts, {name: tuple(t.shape) for name, t in state.items()}, None if base is None else base[0]
    )


def _codes(
    name: str,
    tensor: Tensor,
    layer: Layer | None,
    constant: float,
    error: float,
    how: Rounding | None,
    base: tuple[str, Mapping[str, Tensor]] | None,
) -> Codes:
    weight = tensor.flatten(1)  # shape -> (m, n)
    if layer is not None and layer.moments and layer.energy > 0:
        return round_layer(weight, layer, constant, how)
    rms = weight.square().mean(1).sqrt()
    steps = error * math.sqrt(12) * rms.clamp(min=1e-3 * float(rms.max()) + 1e-12)
    if base is not None and name in base[1] and base[1][name].shape == tensor.shape:
        weight = weight - base[1][name].flatten(1)
    return round_plain(weight, steps)


def consolidate(
    entry: Published,
    state: Mapping[str, Tensor],
    settings: Settings,
    *,
    speech: Path | None = None,
    base: Mapping[str, Tensor] | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> tuple[Parts, dict[str, float | int | None]]:
    """Parts of a published checkpoint, and how near they are on tuning inputs.

    Raises:
        DataUnavailableError: the real inputs are not on this machine.
    """
    under = None if entry.base is None or base is None else (entry.base, base)
    if entry.network is None or entry.inputs is None:
        parts = make_parts(state, {}, 0.0, error=settings.weight_error, base=under)
        return parts, {"tuning_error": None, "constant": None, "tries": 0}
    forward, read = networks.get(entry.network), inputs.get(entry.inputs)
    seen = read("calibration", round(settings.calibration * entry.calibration), speech, state)
    tune = read("tuning", settings.tuning, speech, state)
    layers, size = measure(forward, state, seen)
    true = outputs(forward, state, tune)
    coded = sum(state[name].numel() for name in layers)
    constant = math.sqrt(12 * size * settings.target**2 / coded)
    best: tuple[float, Parts, float] | None = None
    power, tries = 1.0, 0  # errors grow like this power of the constant
    for tries in range(1, settings.tries + 1):
        progress(tries, settings.tries)
        how = Rounding(shrink=settings.shrink)
        parts = make_parts(state, layers, constant, error=settings.weight_error, how=how)
        reached = relative_error(outputs(forward, parts.state(), tune), true)
        if best is not None and reached != best[0] and constant != best[2]:
            power = min(2.0, max(0.5, math.log(reached / best[0]) / math.log(constant / best[2])))
        if best is None or _better(reached, best[0], settings.target):
            best = (reached, parts, constant)
        if 0.95 * settings.target <= best[0] <= settings.target:
            break
        constant = best[2] * min(8.0, max(0.05, (0.98 * settings.target / max(best[0], 1e-9)) ** (1 / power)))
    return best[1], {"tuning_error": best[0], "constant": best[2], "tries": tries}  # type: ignore[index]


def _better(error: float, best: float, target: float) -> bool:
    """Whether an error is nearer to the target, above none that is below."""
    if (error <= target) != (best <= target):
        return error <= target
    return error > best if error <= target else error < best
