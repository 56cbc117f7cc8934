"""A caller's module with predicted weights, and the running statistics of such modules.

Shapes: B images (B, C, H, W).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from weightloom import __version__
from weightloom.architectures.copying import copy_module
from weightloom.architectures.graph import ModuleGraph
from weightloom.architectures.statistics import STATISTICS, Measured, measure_statistics
from weightloom.architectures.tracing import dtype_of, fixed_batch
from weightloom.errors import CheckpointError, InputError
from weightloom.finite import all_finite, layout_fault
from weightloom.fitting.predicting import Predict, Prediction
from weightloom.io import dump_json, save_tensors
from weightloom.tasks import NetworkCard
from weightloom.weights import require_finite

StatisticsChoice = Literal["images", "generated", "batch"]
MEASURED, OF_BATCH, GENERATED, LEFT = (
    "re-estimated on images", "of each batch", "generated", "left as they were",
)  # fmt: skip
OUTCOMES = (MEASURED, OF_BATCH, GENERATED, LEFT)
"""What may become of running statistics; generated ones have mean 0 and variance 1."""

MOST_RECALIBRATION = 4096
_BATCH = 256
_FRESH = {"mean": 0, "variance": 1, "counter": 0}
_FURTHEST = 16.0
"""Whatever pixels are divided by, they do not reach so far; those from 0 to 255 do."""


@dataclass(frozen=True)
class ModuleSample:
    """A copy of a caller's module with predicted weights, in eval mode.

    Attributes:
        module: the new module; it shares nothing with the one that was handed in.
        graph: the computation graph that was read.
        report: generator, seconds, what became of running statistics, and which parameters were kept or
            never used. Names are those of the module without ``torch.compile``.
        card: class names, input and what else a user of the network needs.
    """

    module: nn.Module
    graph: ModuleGraph
    report: dict[str, Any]
    card: NetworkCard = field(default_factory=NetworkCard)

    @cached_property
    def state_dict(self) -> dict[str, Tensor]:
        """The weights by name, buffers included."""
        state = self.module.state_dict().items()
        return {name: v.detach().clone() if isinstance(v, Tensor) else v for name, v in state}

    def predict(
        self, pictures: Any, top: int = 3, reject: float | None = None, *, skip_broken: bool = False
    ) -> list[Prediction]:
        """What the module answers to pictures: see :func:`weightloom.fitting.predict`."""
        return Predict(self.module, self.card)(pictures, top, reject, skip_broken=skip_broken)

    def save(self, path: str | Path) -> Path:
        """Write the state dict as safetensors, with its card and its report in the header.

        Raises:
            CheckpointError: the file cannot be written, tensors are not finite, or the state dict holds more
                than tensors.
        """
        other = next((name for name, v in self.state_dict.items() if not isinstance(v, Tensor)), None)
        if other is not None:
            raise CheckpointError(path, f"{other!r} is no tensor, and safetensors holds nothing else")
        require_finite(self.state_dict, "this sample")
        metadata = {"weightloom": __version__, "report": dump_json(self.report), **self.card.to_metadata()}
        save_tensors(path, {k: v.contiguous() for k, v in self.state_dict.items()}, metadata)
        return Path(path)


def keep_other_heads(graph: ModuleGraph, classes: int) -> ModuleGraph:
    """``graph`` without the tensors of heads of another number of classes; they are in its ``kept``.

    The last layers of a trunk, after which a norm comes, are no heads and stay.
    """
    others = {
        index
        for index in set(graph.heads) - graph.normed_ends
        if (shape := graph.nodes[index].shape) is not None and shape[0] != classes
    }
    biases = {i for i in graph.head_biases if others.intersection(graph.predecessors[i])}
    kept = dict(graph.kept)
    nodes = list(graph.nodes)
    for index in others | biases:
        node = nodes[index]
        rows = 0 if node.shape is None else node.shape[0]
        kept |= {t.name: f"a last layer of {rows} rows, where {classes} are predicted" for t in node.tensors}
        nodes[index] = replace(node, tensors=())
    return replace(graph, nodes=tuple(nodes), kept=tuple(sorted(kept.items())))


def filled(
    module: nn.Module, graph: ModuleGraph, predicted: Mapping[str, Tensor], device: torch.device
) -> nn.Module:
    """A copy of ``module`` in eval mode with the predicted tensors; all others are as they were.

    What has no memory gets it on ``device``, statistics those of a fresh norm.
    """
    roles = {tensor.name: tensor.role for node in graph.nodes for tensor in node.tensors}

    def tensor_of(name: str, old: Tensor, is_buffer: bool) -> Tensor | None:
        where = device if old.is_meta else old.device
        if name in predicted:  # a copy: tensors of one shape were decoded as one
            return predicted[name].to(device=where, dtype=old.dtype, copy=True).contiguous()
        if old.is_meta and name in roles:
            return torch.full_like(old, _FRESH[roles[name]], device=where)
        return None

    return copy_module(module, tensor_of).eval()


@torch.no_grad()
def set_statistics(
    sample: nn.Module,
    graph: ModuleGraph,
    how: StatisticsChoice,
    images: Tensor | None,
    fresh: Collection[str] = (),
) -> dict[str, list[str]]:
    """Set the running statistics of a module with predicted weights, in place.

    Args:
        sample: the module, a copy of ours.
        graph: its graph, which says what is a statistic.
        how: ``images``, ``generated`` or ``batch``.
        images: what they are measured on; without any, ``images`` is ``generated``.
        fresh: buffers that had no memory: those that are statistics have mean 0 and variance 1 already.

    Returns:
        The names of all buffers of floats by what became of them; the keys are :data:`OUTCOMES`.

    Raises:
        InputError: the images do not fit the module, or give statistics that are not finite; a norm that
            cannot use the batch it sees.
    """
    roles = {t.name: t.role for node in graph.nodes for t in node.tensors if t.role in STATISTICS}
    buffers = dict(sample.named_buffers())
    done: dict[str, str] = {}
    if how == "batch":
        _use_batches(sample, roles)
        done = dict.fromkeys(roles, OF_BATCH)
    elif how == "images" and images is not None and roles:
        measured = _measured(sample, roles, images)
        for name, value in measured.values.items():
            buffers[name].copy_(value)
            _count(buffers, name, measured.batches[name])
        done = {name: GENERATED for name in roles if name in fresh}
        done |= dict.fromkeys(measured.values, MEASURED)
    else:
        for name in roles.keys() - (_of_kept_layers(graph) - set(fresh)):
            buffers[name].fill_(_FRESH[roles[name]])
            _count(buffers, name, 0)
            done[name] = GENERATED
    by_outcome: dict[str, list[str]] = {}
    for name, buffer in buffers.items():
        if buffer.is_floating_point() or name in done:
            by_outcome.setdefault(done.get(name, LEFT), []).append(name)
    return by_outcome


def outcome(statistics: Mapping[str, Sequence[str]]) -> str:
    """What became of the running statistics in a few words; ``none`` where the module has none."""
    for words in (MEASURED, OF_BATCH, GENERATED):
        if words in statistics:
            return words
    running = any(
        name.rpartition(".")[2].startswith(("running_", "moving_")) for name in statistics.get(LEFT, ())
    )
    return LEFT if running else "none"


def _measured(module: nn.Module, names: Iterable[str], images: Tensor) -> Measured:
    parameter = next(module.parameters())
    images = images[:MOST_RECALIBRATION].to(device=parameter.device, dtype=dtype_of(module))
    size = fixed_batch(module)
    if size is not None and len(images) < size:
        raise InputError(f"the module takes batches of {size} images, and there are {len(images)}")
    parts = images.tensor_split(-(-len(images) // _BATCH)) if size is None else images.split(size)
    try:
        measured = measure_statistics(module, names, (part for part in parts if size in (None, len(part))))
    except Exception as error:  # of the caller's own forward pass
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"the images do not fit the module: {reason}") from None
    broken = [name for name, value in measured.values.items() if not all_finite(value)]
    if broken:
        raise InputError(
            f"{broken[0]!r} measured on these images is not finite; hand over more images, or others"
        )
    return measured


def _count(buffers: Mapping[str, Tensor], name: str, batches: int) -> None:
    """Tell the counter beside a statistic, where there is one."""
    counter = buffers.get(f"{name.rpartition('.')[0]}.num_batches_tracked".removeprefix("."))
    if counter is not None:
        counter.fill_(batches)


def _use_batches(module: nn.Module, names: Iterable[str]) -> None:
    """Norms forget their statistics, so that they use those of the batch that they see."""
    for path in dict.fromkeys(name.rpartition(".")[0] for name in names):
        norm = module.get_submodule(path)
        own = not type(norm).forward.__module__.startswith("torch.")
        if own or not isinstance(norm, nn.modules.batchnorm._NormBase):
            raise InputError(
                f"batch_norm='batch' is for torch's own norms; layer {path!r} is of {type(norm).__name__}, "
                "whose running statistics can be measured ('images')"
            )
        norm.track_running_stats = False
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None


def _of_kept_layers(graph: ModuleGraph) -> set[str]:
    """Statistics of what nothing predicted has changed: norms all of whose layers before them were kept."""
    kept = {name for name, _ in graph.kept}
    statistics = set[str]()
    for index, node in enumerate(graph.nodes):
        before = [index, *np.flatnonzero(graph.distances[:, index])]
        tensors = [t for i in before for t in graph.nodes[i].tensors]
        if not any(t.role in ("weight", "bias") for t in tensors) and any(
            graph.nodes[i].name in kept for i in before
        ):
            statistics |= {t.name for t in node.tensors if t.role in STATISTICS}
    return statistics


def check_images(images: Any, dims: int | None = None) -> Tensor:
    """Images (B, C, H, W), or signals (B, C, L), that batch norms can be measured on.

    ``dims`` is how many dimensions one of them has; None for any.

    Raises:
        InputError: no tensor, fewer than two, no floats, or not finite.
    """
    shown = {None: "(B, C, H, W)", 2: "(B, C, L)", 3: "(B, C, H, W)"}.get(dims, "(B, ...)")
    if (fault := layout_fault(images)) is not None:
        raise InputError(f"images are a tensor {shown} of floats, but this {fault}")
    fits = images.ndim > 1 if dims is None else images.ndim == dims + 1
    if not fits or len(images) < 2 or not images.numel() or not images.is_floating_point():
        raise InputError(
            f"batch norms need at least 2 images {shown} of floats, not {tuple(images.shape)} of "
            f"{images.dtype}"
        )
    if images.element_size() == 1:
        raise InputError(f"images are floats of at least 16 bits, not {images.dtype}")
    checked: Tensor = images.detach()
    if not all_finite(checked):
        raise InputError("images hold values that are not finite")
    furthest = float(checked.abs().max())
    if furthest > _FURTHEST:
        raise InputError(f"images reach {furthest:g}; pixels are expected from about -1 to 1")
    return checked
