"""A caller's module with predicted weights, and the batch norms of such modules.

Shapes: B images (B, C, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightloom import __version__
from weightloom.architectures.graph import ModuleGraph
from weightloom.errors import InputError
from weightloom.finite import all_finite, layout_fault
from weightloom.io import dump_json, save_tensors
from weightloom.weights import require_finite

MOST_RECALIBRATION = 4096
_FURTHEST = 16.0
"""Whatever pixels are divided by, they do not reach so far; those from 0 to 255 do."""


@dataclass(frozen=True)
class ModuleSample:
    """A copy of a caller's module with predicted weights, in eval mode.

    Attributes:
        module: the new module; it shares nothing with the one that was handed in.
        graph: the computation graph that was read.
        report: generator, seconds, how batch norms were set, and which parameters were kept or never used.
    """

    module: nn.Module
    graph: ModuleGraph
    report: dict[str, Any]

    @cached_property
    def state_dict(self) -> dict[str, Tensor]:
        """The weights by name, buffers included."""
        return {name: value.detach().clone() for name, value in self.module.state_dict().items()}

    def save(self, path: str | Path) -> Path:
        """Write the state dict as safetensors with its report in the header.

        Raises:
            CheckpointError: the file cannot be written, or tensors are not finite.
        """
        require_finite(self.state_dict, "this sample")
        metadata = {"weightloom": __version__, "report": dump_json(self.report)}
        save_tensors(path, {k: v.contiguous() for k, v in self.state_dict.items()}, metadata)
        return Path(path)


def predicted_norms(module: nn.Module, graph: ModuleGraph) -> list[nn.modules.batchnorm._BatchNorm]:
    """The batch norms that the graph holds, with running statistics."""
    held = {t.name for node in graph.nodes for t in node.tensors if t.role == "mean"}
    return [
        child
        for name, child in module.named_modules()
        if isinstance(child, nn.modules.batchnorm._BatchNorm)
        and f"{name}.running_mean".removeprefix(".") in held
    ]


@torch.no_grad()
def measure_norms(
    module: nn.Module, norms: Sequence[nn.modules.batchnorm._BatchNorm], images: Tensor, batch: int = 256
) -> None:
    """Set the running statistics of ``norms`` to their mean over batches of unlabelled images, in place.

    Raises:
        InputError: the images are none, too few, or do not fit the module.
    """
    images = check_images(images)
    kept = [norm.momentum for norm in norms]
    parameter = next(module.parameters())
    try:
        for norm in norms:
            norm.momentum = None  # a plain mean over the batches
            norm.train()
        for part in images[:MOST_RECALIBRATION].tensor_split(
            -(-min(len(images), MOST_RECALIBRATION) // batch)
        ):
            module(part.to(device=parameter.device, dtype=parameter.dtype))
    except RuntimeError as error:
        raise InputError(f"the images do not fit the module: {str(error).splitlines()[0][:200]}") from None
    finally:
        for norm, momentum in zip(norms, kept, strict=True):
            norm.momentum = momentum
            norm.eval()


def check_images(images: Any) -> Tensor:
    """Images (B, C, H, W) that batch norms can be measured on.

    Raises:
        InputError: no tensor, fewer than two, no floats, or not finite.
    """
    if (fault := layout_fault(images)) is not None:
        raise InputError(f"images are a tensor (B, C, H, W) of floats, but this {fault}")
    if images.ndim != 4 or len(images) < 2 or not images.numel() or not images.is_floating_point():
        raise InputError(
            f"batch norms need at least 2 images (B, C, H, W) of floats, not {tuple(images.shape)} of "
            f"{images.dtype}"
        )
    if images.element_size() == 1:
        raise InputError(f"images are floats of at least 16 bits, not {images.dtype}")
    images = images.detach()
    if not all_finite(images):
        raise InputError("images hold values that are not finite")
    furthest = float(images.abs().max())
    if furthest > _FURTHEST:
        raise InputError(f"images reach {furthest:g}; pixels are expected from about -1 to 1")
    checked: Tensor = images.detach()
    return checked
