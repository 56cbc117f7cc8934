"""A network for turned pictures, from the one for pictures as they are: exact, without an image.

A network on a turned picture answers as the first one on the picture itself if every kernel is turned alike,
the first layer's weights change their sign for negatives, and weights on a flattened map are turned with the
map. It is exact where all of a network's steps are symmetric: convolutions with odd kernels and stride 1,
poolings that divide the side. A convolution with stride 2 on an even side looks at other places after a
turn: a resnet loses by it.

Shapes: P values of a network.
Source: equivariance of convolutions to turns, Cohen and Welling, "Group equivariant convolutional networks"
(arXiv 1602.07576), section 4.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from weightloom.architectures import ArchitectureSpec
from weightloom.errors import UnsupportedRequestError
from weightloom.weights.layout import layout_of

FAMILIES = ("cnn", "mlp", "resnet")
EXACT = ("cnn", "mlp")
"""Of these, those whose networks answer alike after a turn of any kind."""


def turned(spec: ArchitectureSpec, flat: Tensor, transform: str) -> Tensor:
    """(P,): the network that answers to pictures under ``transform`` as ``flat`` (P,) answers to the
    pictures.

    Raises:
        UnsupportedRequestError: a family other than :data:`FAMILIES`.

    Example:
        >>> from weightloom.architectures import parse_architecture
        >>> from weightloom.fitting import initial_flats, run_networks
        >>> spec = parse_architecture("cnn(depth=1,width=4)").resolve(classes=3, input=(1, 8, 8))
        >>> flat, images = initial_flats(spec, [0])[0], torch.randn(5, 1, 8, 8)
        >>> other = turned(spec, flat, "rot90+invert")
        >>> before = run_networks(spec, flat[None], images)
        >>> after = run_networks(spec, other[None], -torch.rot90(images, 1, (-2, -1)))
        >>> torch.allclose(before, after, atol=1e-5)
        True
    """
    if spec.family not in FAMILIES:
        raise UnsupportedRequestError(f"networks of family {spec.family!r} cannot be turned exactly")
    if transform == "id":
        return flat.clone()
    layout = layout_of(spec)
    return layout.flatten(turned_tensors(spec, layout.unflatten(flat), transform))


def turned_tensors(spec: ArchitectureSpec, state: Mapping[str, Tensor], transform: str) -> dict[str, Tensor]:
    """The same of tensors by name, all of a network's or only some."""
    if transform == "id":
        return dict(state)
    layout = layout_of(spec)
    assert spec.input is not None
    channels, high, wide = spec.input
    found = dict(state)
    weights = [
        s for s in layout.slots if not s.is_buffer and len(s.shape) in (2, 4) and s.name.endswith("weight")
    ]
    first = weights[0]
    for slot in weights:
        if slot.name not in found:
            continue
        value = found[slot.name]
        maps = None
        if len(slot.shape) == 4:
            maps = value
        elif slot is first:  # a linear layer on the pixels
            maps = value.view(-1, channels, high, wide)
        elif slot is weights[-1] and spec.family == "cnn":  # the head, on a map of 2 x 2 places or fewer
            width = next(s.shape[0] for s in reversed(weights) if len(s.shape) == 4)
            side = round((value.shape[1] // width) ** 0.5)
            maps = value.view(-1, width, side, side)
        if maps is not None:
            value = _turn(maps, transform).reshape(slot.shape)
        if slot is first and "invert" in transform:
            value = -value
        found[slot.name] = value
    return found


def undone(images: Tensor, transform: str) -> Tensor:
    """Pictures (..., H, W) of floats in [-1, 1] as they were before ``transform``.

    Example:
        >>> from weightloom.tasks.transforms import apply_transform
        >>> pixels = torch.arange(4, dtype=torch.uint8).view(1, 2, 2)
        >>> there = apply_transform(pixels, "rot90+flip").float() / 255
        >>> torch.equal(undone(there, "rot90+flip"), pixels.float() / 255)
        True
    """
    parts = transform.split("+")
    if "invert" in parts:
        images = -images
    if "flip" in parts:
        images = images.flip(-1)
    if parts[0].startswith("rot"):
        images = torch.rot90(images, -(int(parts[0][3:]) // 90), dims=(-2, -1))
    return images


def _turn(maps: Tensor, transform: str) -> Tensor:
    parts = transform.split("+")
    if parts[0].startswith("rot"):
        maps = torch.rot90(maps, int(parts[0][3:]) // 90, dims=(-2, -1))
    return maps.flip(-1) if "flip" in parts else maps
