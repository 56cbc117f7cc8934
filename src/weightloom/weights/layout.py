"""The ordered slots of a network's state dict, and the exact way from a state dict to one vector and back.

A layout is made from a module (on the meta device is enough) and holds no weights. Slots are
grouped into layers; a layer is a matrix of ``rows`` output units by ``cols`` values for each unit
(its incoming weights, then its bias), so that later a row is one neuron or filter. Knows nothing
of tokens, zoos or generators.

Shapes: N networks, P floating-point values of one network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor, nn

from weightloom.architectures import ArchitectureSpec
from weightloom.defaults import with_plain_defaults
from weightloom.errors import InputError

KINDS = ("conv", "depthwise", "linear", "head", "norm", "table")
"""What a layer is to its network; ``table`` is anything else (position embeddings, class tokens)."""

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True)
class Slot:
    """One tensor of the state dict."""

    name: str
    shape: tuple[int, ...]
    is_buffer: bool

    @property
    def numel(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def is_variance(self) -> bool:
        """Whether the values are variances, which must stay positive."""
        return self.name.endswith("running_var")


@dataclass(frozen=True)
class Layer:
    """Slots that one module owns, seen as a matrix of ``rows`` units by ``cols`` values."""

    name: str
    kind: str
    slots: tuple[Slot, ...]
    rows: int
    cols: int


@dataclass(frozen=True)
class Layout:
    """Ordered layers of one architecture; maps a state dict to a vector of P values and back.

    Example:
        >>> from weightloom.architectures import parse_architecture
        >>> spec = parse_architecture("mlp(depth=1,width=4)").resolve(classes=3, input=(1, 2, 2))
        >>> layout = layout_of(spec)
        >>> state = spec.build().state_dict()
        >>> flat = layout.flatten(state)
        >>> all(torch.equal(state[name], value) for name, value in layout.unflatten(flat).items())
        True
    """

    layers: tuple[Layer, ...]
    counters: tuple[Slot, ...]
    """Integer buffers (``num_batches_tracked``): not generated, restored as zero."""

    @classmethod
    def from_module(cls, module: nn.Module, head_name: str = "head") -> Layout:
        """Read the layers of ``module`` in the order of its state dict."""
        names = set(module.state_dict().keys())
        layers: list[Layer] = []
        counters: list[Slot] = []
        for prefix, child in module.named_modules():
            slots = []
            tensors = [(n, p, False) for n, p in child.named_parameters(recurse=False)]
            tensors += [(n, b, True) for n, b in child.named_buffers(recurse=False)]
            for local, tensor, is_buffer in tensors:
                name = f"{prefix}.{local}" if prefix else local
                if name not in names:
                    continue
                slot = Slot(name, tuple(tensor.shape), is_buffer)
                if tensor.is_floating_point():
                    slots.append(slot)
                else:
                    counters.append(slot)
            if slots:
                layers.extend(_layers_of(prefix, child, tuple(slots), prefix == head_name))
        return cls(tuple(layers), tuple(counters))

    @cached_property
    def trunk_size(self) -> int:
        """Values of a network before those of its head, which come last."""
        head = self.layers[-1]
        assert head.kind == "head"
        return self.size - head.rows * head.cols

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """All floating-point slots, layer by layer."""
        return tuple(slot for layer in self.layers for slot in layer.slots)

    @cached_property
    def size(self) -> int:
        """P: floating-point values, buffers included."""
        return sum(layer.rows * layer.cols for layer in self.layers)

    @cached_property
    def num_parameters(self) -> int:
        """Trainable values only."""
        return sum(slot.numel for slot in self.slots if not slot.is_buffer)

    @cached_property
    @with_plain_defaults
    def slot_of_value(self) -> Tensor:
        """(P,) int64: the index of the slot that each value of the vector belongs to."""
        parts = []
        first = 0
        for layer in self.layers:
            ids = [
                torch.full((layer.rows, slot.numel // layer.rows), first + i)
                for i, slot in enumerate(layer.slots)
            ]
            parts.append(torch.cat(ids, dim=1).reshape(-1))  # (rows, cols) -> (rows*cols,)
            first += len(layer.slots)
        return torch.cat(parts)

    @cached_property
    @with_plain_defaults
    def is_variance(self) -> Tensor:
        """(P,) bool: values that are variances."""
        flags = torch.tensor([slot.is_variance for slot in self.slots])
        return flags[self.slot_of_value]

    def check(self, state: Mapping[str, Tensor], what: str = "state dict") -> None:
        """Raise :class:`InputError` unless ``state`` has exactly this layout's tensors and shapes."""
        wanted = {slot.name: slot.shape for slot in (*self.slots, *self.counters)}
        optional = {slot.name for slot in self.counters}
        for name, shape in wanted.items():
            if name not in state:
                if name not in optional:
                    raise InputError(f"{what}: tensor {name!r} is missing")
            elif tuple(state[name].shape) != shape:
                raise InputError(
                    f"{what}: tensor {name!r} has shape {tuple(state[name].shape)}, wanted {shape}"
                )
        for name in state:
            if name not in wanted:
                raise InputError(f"{what}: tensor {name!r} does not belong to this architecture")

    def flatten(self, state: Mapping[str, Tensor]) -> Tensor:
        """State dict to a (..., P) vector; tensors may carry the same leading batch dimensions."""
        first = self.slots[0]
        lead = state[first.name].shape[: state[first.name].dim() - len(first.shape)]
        parts = []
        for layer in self.layers:
            columns = [state[s.name].reshape(*lead, layer.rows, -1) for s in layer.slots]
            matrix = torch.cat(columns, dim=-1)  # (..., rows, cols)
            parts.append(matrix.reshape(*lead, layer.rows * layer.cols))
        return torch.cat(parts, dim=-1)

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """(..., P) vector to a state dict whose tensors keep the leading dimensions."""
        lead = flat.shape[:-1]
        state: dict[str, Tensor] = {}
        # split, not slicing: its backward pass is one concatenation instead of a sum of padded copies.
        sizes = [layer.rows * layer.cols for layer in self.layers]
        for layer, part in zip(self.layers, flat.split(sizes, dim=-1), strict=True):
            matrix = part.reshape(*lead, layer.rows, layer.cols)
            widths = [slot.numel // layer.rows for slot in layer.slots]
            for slot, columns in zip(layer.slots, matrix.split(widths, dim=-1), strict=True):
                state[slot.name] = columns.reshape((*lead, *slot.shape))  # a tuple: a scalar's is empty
        for counter in self.counters:
            state[counter.name] = torch.zeros((*lead, *counter.shape), dtype=torch.long, device=flat.device)
        return state


def _layers_of(prefix: str, module: nn.Module, slots: tuple[Slot, ...], is_head: bool) -> list[Layer]:
    """One layer when all slots share their first dimension, else one layer a slot."""
    if isinstance(module, nn.modules.conv._ConvNd):
        kind = "depthwise" if module.groups > 1 and module.groups == module.in_channels else "conv"
    elif isinstance(module, nn.Linear):
        kind = "head" if is_head else "linear"
    elif isinstance(module, _NORMS):
        kind = "norm"
    else:
        # A table of vectors: its last dimension is the vector, whatever stands before counts rows.
        return [
            Layer(
                s.name,
                "table",
                (s,),
                max(1, s.numel // max(1, s.shape[-1] if s.shape else 1)),
                s.shape[-1] if s.shape else 1,
            )
            for s in slots
        ]
    rows = slots[0].shape[0]
    assert all(slot.shape[0] == rows for slot in slots)
    return [Layer(prefix, kind, slots, rows, sum(slot.numel // rows for slot in slots))]


@lru_cache(maxsize=512)
@with_plain_defaults
def layout_of(spec: ArchitectureSpec) -> Layout:
    """The layout of a resolved architecture spec, built on the meta device (nothing is allocated)."""
    with torch.device("meta"):
        return Layout.from_module(spec.build())
