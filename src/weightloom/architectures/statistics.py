"""Running statistics of normalisations, measured on images whatever class, rank or export holds them.

A statistic is known by what is done with it: an operation of ATen whose arguments are called ``running_mean``
and ``running_var`` reads it. While images are run, each such operation uses the statistics of its batch, as
in training, and the mean over all batches is kept beside; nothing else of the module is in training mode and
nothing is written. What no such operation reads has no result here, so it stays as it is. Knows nothing of
graphs and of predicted weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from weightloom.architectures.copying import copy_module

STATISTICS = {"mean": "running_mean", "variance": "running_var"}
"""The role of a tensor in its node, and the argument of the operation that reads it."""

_FLAGS = ("training", "use_input_stats")
_SHARES = ("momentum", "exponential_average_factor")
_OTHER_FORMS = {"_native_batch_norm_legit_no_training": "_native_batch_norm_legit",
                "_batch_norm_no_update": "_batch_norm_with_update"}  # fmt: skip
"""Operations that know no training, and those that do."""


@dataclass(frozen=True)
class Measured:
    """What images gave: the statistics by the buffers' names, and how many batches each is the mean of."""

    values: Mapping[str, Tensor]
    batches: Mapping[str, int]


def measure_statistics(module: nn.Module, names: Iterable[str], batches: Iterable[Tensor]) -> Measured:
    """The statistics ``names`` of ``module`` on ``batches`` of images, each the plain mean over the batches.

    ``module`` stays as it is: a copy is run, in eval mode and without hooks other than those of torch that
    make weights. A statistic that no batch has met is not in the result.

    Args:
        module: a module of ours, such as a copy of a caller's.
        names: buffers in the module's state dict.
        batches: images of the module's own device and dtype.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm2d(1), nn.ReLU())
        >>> images = torch.tensor([2.0, 4.0]).reshape(2, 1, 1, 1)
        >>> found = measure_statistics(net, ["0.running_mean", "0.running_var"], [images])
        >>> [round(float(value), 3) for value in found.values.values()], found.batches["0.running_mean"]
        ([3.0, 2.0], 1)
    """
    # Parameters are the module's own memory; whatever a forward pass changes in buffers stays in the copy.
    twin = copy_module(module, lambda _, old, is_buffer: None if is_buffer else old.detach(), running=[])
    twin.eval()
    buffers = dict(twin.named_buffers())
    recorder = StatisticsRecorder({name: buffers[name] for name in names})
    # In inference mode composite operations such as batch norm arrive whole.
    with torch.inference_mode(), recorder:
        for images in batches:
            twin(images)
    return recorder.measured()


class StatisticsRecorder(TorchDispatchMode):
    """While it is active, operations that read one of ``buffers`` as a running statistic use their batch's.

    Only :meth:`measured` knows what came of it: the buffers themselves are not written.
    """

    def __init__(self, buffers: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.names = {_place(buffer): name for name, buffer in buffers.items()}
        self.means: dict[str, Tensor] = {}
        self.calls: dict[str, int] = {}

    def measured(self) -> Measured:
        """What the operations that have run give."""
        return Measured(
            {name: mean.clone() for name, mean in self.means.items()},
            dict(self.calls),
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        arguments = _by_name(func, args, kwargs or {})
        read = {argument: arguments.get(argument) for argument in STATISTICS.values()}
        names = {
            argument: self.names[_place(tensor)]
            for argument, tensor in read.items()
            if isinstance(tensor, Tensor) and _place(tensor) in self.names
        }
        run = _in_training(func) if len(names) == len(read) else None
        if run is None:
            return func(*args, **(kwargs or {}))
        call = max(self.calls.get(name, 0) for name in names.values()) + 1
        for argument, name in names.items():
            if name not in self.means:
                self.means[name] = torch.zeros_like(arguments[argument])
            arguments[argument] = self.means[name]
            self.calls[name] = call
        for schema in run._schema.arguments:
            if schema.name in _FLAGS:
                arguments[schema.name] = True
            elif schema.name in _SHARES:
                arguments[schema.name] = 1 / call  # what torch takes for a plain mean over batches
        return run(*(arguments[schema.name] for schema in run._schema.arguments))


def _in_training(func: Any) -> Any:
    """The operation that uses the batch's statistics in place of ``func``; None where there is none."""
    name = func._schema.name.split("::")[-1]
    if name in _OTHER_FORMS:
        other = getattr(torch.ops.aten, _OTHER_FORMS[name], None)
        return None if other is None else other.default
    known = {argument.name for argument in func._schema.arguments}
    return func if known.intersection(_FLAGS) else None


def _by_name(func: Any, args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a call by their names in the schema, left-out ones by their defaults."""
    schema = func._schema.arguments
    defaults = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    given = {argument.name: value for argument, value in zip(schema, args, strict=False)}
    return {**defaults, **given, **kwargs}


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """What a tensor and a plain alias of it have in common."""
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape)
