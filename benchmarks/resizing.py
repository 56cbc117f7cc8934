"""Copy and resize: the weights of one architecture in another's shapes, the plain way to a new size.

A layer takes the weights of the layer with its role (the nearest one along the depth); its tensors are
cropped or tiled, or interpolated as if rows and columns were pixels. Batch norms and the head are made anew
by whoever asks.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from weightloom.architectures import ArchitectureSpec
from weightloom.architectures.graph import ModuleGraph, Shape4
from weightloom.tokenizers.layers import LayerPlace, places
from weightloom.weights import layout_of

RESIZINGS = ("crop", "interpolate")


def _fit(tensor: Tensor, shape: tuple[int, ...], how: str) -> Tensor:
    """One tensor in another shape, scaled so that sums over more inputs stay as large."""
    if tuple(tensor.shape) == shape:
        return tensor
    gain = 1.0
    if tensor.dim() > 1:
        gain = tensor[0].numel() / (tensor[0].numel() / tensor.shape[1] * shape[1])
    if how == "crop":
        for axis in range(min(2, tensor.dim())):
            index = torch.arange(shape[axis]) % tensor.shape[axis]
            tensor = tensor.index_select(axis, index)
        return tensor * min(gain, 1.0)
    columns = 1 if tensor.dim() == 1 else tensor.shape[1]
    rows = tensor.reshape(tensor.shape[0], columns, -1)  # (out, in, places)
    wanted = (shape[0], 1 if tensor.dim() == 1 else shape[1])
    image = rows.permute(2, 0, 1)[:, None]  # (places, 1, out, in)
    image = F.interpolate(image, size=wanted, mode="bilinear", align_corners=True)
    return (image[:, 0].permute(1, 2, 0) * min(gain, 1.0)).reshape(shape)  # (out, in, places) -> shape


def resized(source: ArchitectureSpec, flat: Tensor, target: ArchitectureSpec, how: str) -> Tensor:
    """(P',) a network like ``target`` whose trunk is made of that of ``flat`` (P,); its head is zero."""
    state = layout_of(source).unflatten(flat)
    layout = layout_of(target)
    made = {
        slot.name: torch.ones(slot.shape) if slot.is_variance else torch.zeros(slot.shape)
        for slot in layout.slots
    }
    held = places(source)

    def like(place: LayerPlace) -> LayerPlace:
        same = [p for p in held if p.role == place.role]
        if not same:  # a deeper network: the layer nearest in shape, counted from the end
            same = [p for p in held if p.shape[2:] == place.shape[2:]][-1:]
        return min(same, key=lambda p: abs(p.position - place.position))

    for place in places(target):
        near = like(place)
        pairs = [(near.weighted, place.weighted)]
        if near.norm is not None and place.norm is not None:
            pairs.append((near.norm, place.norm))
        for old, new in pairs:
            for a, b in zip(old.slots, new.slots, strict=True):
                if not b.is_buffer:
                    made[b.name] = _fit(state[a.name], b.shape, how)
    return layout.flatten(made)


def resized_by_graph(
    source: ModuleGraph, state: dict[str, Tensor], target: ModuleGraph, how: str
) -> dict[str, Tensor]:
    """Parameters for ``target``'s network by name, each from the layer of ``source``'s that is most like it.

    That is the one of the same kind whose kernel is nearest in size, then the nearest along the depth.
    Parameters of a kind that the source has not are left out.
    """
    depths = {id(graph): _depths(graph) for graph in (source, target)}
    made: dict[str, Tensor] = {}
    for place, node in enumerate(target.nodes):
        for tensor in node.tensors:
            if tensor.role not in ("weight", "bias"):
                continue
            found = [
                (_unlike(node.shape, other.shape), abs(depths[id(source)][i] - depths[id(target)][place]), t)
                for i, other in enumerate(source.nodes)
                for t in other.tensors
                if (other.kind, i in source.heads, t.role, len(t.shape))
                == (node.kind, place in target.heads, tensor.role, len(tensor.shape))
            ]
            if found:
                nearest = min(found, key=lambda row: row[:2])[2]
                made[tensor.name] = _fit_sides(state[nearest.name], tensor.shape, how)
    return made


def _depths(graph: ModuleGraph) -> np.ndarray:
    """(N,) share of the way from the input to the end."""
    before, after = graph.distances[0], graph.distances.max(1)
    found: np.ndarray = before / np.maximum(before + after, 1)
    return found


def _unlike(a: Shape4 | None, b: Shape4 | None) -> int:
    """How far apart two kernels are; depthwise and full ones farthest."""
    if a is None or b is None:
        return 0 if a is b else 100
    return abs(a[2] - b[2]) + abs(a[3] - b[3]) + 50 * ((a[1] == 1) != (b[1] == 1))


def _fit_sides(tensor: Tensor, shape: tuple[int, ...], how: str) -> Tensor:
    """As :func:`_fit`, kernels of another size bilinearly and with the same sum of squares."""
    if tensor.dim() == 4 and tensor.shape[2:] != shape[2:]:
        sides = F.interpolate(tensor, size=shape[2:], mode="bilinear", align_corners=False)
        tensor = sides * (tensor.square().sum() / sides.square().sum().clamp(min=1e-12)).sqrt()
    return _fit(tensor, shape, how)
