"""Centre and scale kept apart from the direction: what a tokenizer sees is near zero mean, unit spread.

Values of one architecture are centred on a reference network (the mean of its zoo) and divided by
one scale for each tensor (the root mean square of the deviation). The head is centred on one mean row
for all of its classes, so that statistics hold for any class order and any number of classes.
Variances of batch norms live in the log domain: whatever comes back is positive. Knows nothing of
tokens.

Shapes: N networks, P values of a network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from weightloom.errors import UnsupportedRequestError
from weightloom.weights.layout import Layer, Layout

_FLOOR = 1e-8  # keeps the logarithm of a dead channel's variance finite


@dataclass(frozen=True)
class BoundStatistics:
    """Statistics laid out for one layout: centre (P,), scale (P,), is_variance (P,) bool."""

    centre: Tensor
    scale: Tensor
    is_variance: Tensor

    def normalise(self, flats: Tensor) -> Tensor:
        """Raw (..., P) to centred and scaled (..., P)."""
        return (_to_log(flats, self.is_variance) - self.centre) / self.scale

    def denormalise(self, values: Tensor) -> Tensor:
        """The inverse of :meth:`normalise`; differentiable."""
        return _from_log(values * self.scale + self.centre, self.is_variance)

    def mean_network(self) -> Tensor:
        """(P,) the network that the measured ones spread around."""
        return self.denormalise(torch.zeros_like(self.centre))


@dataclass(frozen=True)
class WeightStatistics:
    """Centre of every layer and scale of every tensor of one architecture, for any number of classes.

    centres: layer name to (rows, cols), the head's to (1, cols); scales: slot name to a number.
    """

    centres: Mapping[str, Tensor]
    scales: Mapping[str, float]

    @classmethod
    def measure(cls, groups: Iterable[tuple[Layout, Tensor]]) -> WeightStatistics:
        """Mean network and RMS deviation of raw (N, P) vectors; groups differ in their class count."""
        totals: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        groups = list(groups)
        for layout, flats in groups:
            for layer, matrix in _matrices(layout, _to_log(flats, layout.is_variance)):
                rows = matrix.flatten(0, 1)[:, None] if layer.kind == "head" else matrix
                total = rows.sum(0)  # head: (1, cols) over networks and classes; else (rows, cols)
                totals[layer.name] = totals.get(layer.name, 0) + total
                counts[layer.name] = counts.get(layer.name, 0) + len(rows)
        centres = {name: total / counts[name] for name, total in totals.items()}
        squares: dict[str, float] = {}
        numbers: dict[str, int] = {}
        for layout, flats in groups:
            for layer, matrix in _matrices(layout, _to_log(flats, layout.is_variance)):
                deviation = (matrix - centres[layer.name]).square()
                widths = [slot.numel // layer.rows for slot in layer.slots]
                for slot, part in zip(layer.slots, deviation.split(widths, dim=-1), strict=True):
                    squares[slot.name] = squares.get(slot.name, 0.0) + float(part.sum())
                    numbers[slot.name] = numbers.get(slot.name, 0) + part.numel()
        # A tensor that never varies (one network, a frozen bias) keeps a scale that divides safely.
        scales = {name: max((squares[name] / numbers[name]) ** 0.5, 1e-4) for name in squares}
        return cls(centres, scales)

    def bind(self, layout: Layout) -> BoundStatistics:
        """Lay the statistics out for ``layout``.

        Raises:
            UnsupportedRequestError: a layer is unknown or has another size.
        """
        centre, scale = [], []
        for layer in layout.layers:
            known = self.centres.get(layer.name)
            rows = 1 if layer.kind == "head" else layer.rows
            if known is None or known.shape != (rows, layer.cols):
                raise UnsupportedRequestError(f"no weight statistics fit layer {layer.name!r}")
            centre.append(known.expand(layer.rows, layer.cols).reshape(-1))
            widths = [slot.numel // layer.rows for slot in layer.slots]
            row = torch.cat(
                [torch.full((w,), self.scales[s.name]) for s, w in zip(layer.slots, widths, strict=True)]
            )
            scale.append(row.expand(layer.rows, layer.cols).reshape(-1))
        return BoundStatistics(torch.cat(centre), torch.cat(scale), layout.is_variance)

    def head_rms(self, layout: Layout) -> float:
        """Root mean square of the head's weights around their mean row."""
        head = next(layer for layer in layout.layers if layer.kind == "head")
        return float(self.scales[head.slots[0].name])

    def to_tensors(self) -> dict[str, Tensor]:
        """Tensors for a file: one centre a layer, one scale a slot."""
        tensors = {f"centre.{name}": value.contiguous() for name, value in self.centres.items()}
        tensors |= {f"scale.{name}": torch.tensor([value]) for name, value in self.scales.items()}
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> WeightStatistics:
        """The inverse of :meth:`to_tensors`."""
        centres = {
            k.removeprefix("centre."): v.float() for k, v in tensors.items() if k.startswith("centre.")
        }
        scales = {k.removeprefix("scale."): float(v) for k, v in tensors.items() if k.startswith("scale.")}
        return cls(centres, scales)


def _matrices(layout: Layout, flats: Tensor) -> Iterable[tuple[Layer, Tensor]]:
    """Every layer with its (N, rows, cols) values."""
    sizes = [layer.rows * layer.cols for layer in layout.layers]
    for layer, part in zip(layout.layers, flats.split(sizes, dim=-1), strict=True):
        yield layer, part.reshape(len(flats), layer.rows, layer.cols)


def _to_log(flats: Tensor, is_variance: Tensor) -> Tensor:
    if not bool(is_variance.any()):
        return flats
    return torch.where(is_variance, flats.clamp_min(_FLOOR).log(), flats)


def _from_log(values: Tensor, is_variance: Tensor) -> Tensor:
    if not bool(is_variance.any()):
        return values
    # The inner mask keeps exp from overflowing, and its gradient from turning NaN, where it is unused.
    return torch.where(is_variance, torch.where(is_variance, values, 0.0).clamp(-18.0, 18.0).exp(), values)
