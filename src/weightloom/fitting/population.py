"""N networks of one architecture, held as one (N, P) matrix and run on their own images.

On a CPU the networks run one after another (dense kernels beat grouped ones there: measured 4 times
faster for 32 small convolutional networks); on other devices they run as one under
:func:`torch.func.vmap`. Both give the same function. Knows nothing of zoos or generators.

Shapes: N networks, P values of a network, B images a network, C classes.
"""

from __future__ import annotations

import math
from functools import lru_cache
from threading import get_ident

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from weightloom.architectures import ArchitectureSpec
from weightloom.architectures.statistics import StatisticsRecorder
from weightloom.defaults import with_plain_defaults
from weightloom.errors import InputError
from weightloom.finite import all_finite, layout_fault
from weightloom.fitting.precision import full_precision
from weightloom.tasks.data import TaskData, checked_images, checked_labels
from weightloom.weights import checked_flats, layout_of


def _template(spec: ArchitectureSpec, training: bool) -> nn.Module:
    """The module's structure on the meta device; its tensors are never read.

    Each thread has its own: while it is called, the weights of the call are in it.
    """
    return _made_template(spec, training, get_ident())


@lru_cache(maxsize=64)
@with_plain_defaults
def _made_template(spec: ArchitectureSpec, training: bool, thread: int) -> nn.Module:
    with torch.device("meta"):
        return spec.build().train(training)


@with_plain_defaults
def initial_flats(spec: ArchitectureSpec, seeds: list[int]) -> Tensor:
    """(N, P) freshly initialised networks, one for each seed; the global random state is left alone."""
    layout = layout_of(spec)
    return torch.stack([layout.flatten(spec.initialise(seed).state_dict()).detach() for seed in seeds])


@full_precision
@with_plain_defaults
def run_networks(spec: ArchitectureSpec, flats: Tensor, images: Tensor, *, training: bool = False) -> Tensor:
    """Logits of N networks, differentiable in their weights.

    Args:
        spec: resolved architecture.
        flats: (N, P) weights.
        images: (N, B, channels, height, width), or (B, channels, height, width) seen by all.
        training: batch norms use the statistics of the batch instead of those in ``flats``.

    Returns:
        (N, B, C) logits.

    Raises:
        InputError: networks or images of another type or shape. Pixels are taken as they are.

    Source: weights as arguments, HyperNetworks (arXiv 1609.09106), section 3.
    """
    flats = checked_flats(spec, flats, (torch.float32, torch.float64))
    if (fault := layout_fault(images)) is not None:
        raise InputError(f"images must be a plain tensor, but this {fault}")
    batch = images.dim() == 4 or (images.dim() == 5 and len(images) == len(flats))
    if images.dtype != flats.dtype or not batch or images.shape[-3:] != spec.input or not images.numel():
        raise InputError(
            f"{spec} reads {flats.dtype} images (B, {', '.join(map(str, spec.input or ()))}), "
            f"not {images.dtype} of {tuple(images.shape)}"
        )
    return _run(spec, "", flats, images.resolve_neg().contiguous(), training)


@full_precision
def trunk_features(
    spec: ArchitectureSpec, flats: Tensor, images: Tensor, *, training: bool = False
) -> Tensor:
    """(N, B, H) what the heads of N networks (N, P) see; arguments and gradients as
    :func:`run_networks`'s.
    """
    return _run(spec, "body", flats, images, training)


def _run(spec: ArchitectureSpec, part: str, flats: Tensor, images: Tensor, training: bool) -> Tensor:
    layout = layout_of(spec)
    module = _template(spec, training).get_submodule(part)
    prefix = f"{part}." if part else ""
    fold = not training and flats.requires_grad and torch.is_grad_enabled()
    shared = images.dim() == 4
    if flats.device.type == "cpu" and shared:  # channels last: measured 1.5 times faster on CPUs
        images = images.contiguous(memory_format=torch.channels_last)

    def one(flat: Tensor, batch: Tensor) -> Tensor:
        state = layout.unflatten(flat)
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if fold:
            fold_batch_norms(module, state)
        if training and flat.device.type == "cpu":
            # Batch norm writes into its running statistics: give it copies to write to.
            buffers = {slot.name.removeprefix(prefix) for slot in layout.slots if slot.is_buffer}
            for name in buffers & state.keys():
                state[name] = state[name].detach().clone()
        found = functional_call(module, state, (batch,))
        assert isinstance(found, Tensor)
        return found

    if flats.device.type == "cpu":
        results = []
        for n, flat in enumerate(flats.unbind(0)):
            batch = images if shared else images[n].contiguous(memory_format=torch.channels_last)
            results.append(one(flat, batch))
        return torch.stack(results)
    return vmap(one, in_dims=(0, None if shared else 0))(flats, images)


def fold_batch_norms(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Move running statistics into weight and bias, where torch can differentiate them; the same function.

    torch's batch norm has no gradient for its running mean and variance.
    """
    for name, child in module.named_modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm) and f"{name}.running_var" in state:
            mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
            gain = state[f"{name}.weight"] * (variance + child.eps).rsqrt()
            state[f"{name}.bias"] = state[f"{name}.bias"] - mean * gain
            state[f"{name}.weight"] = gain * (1 + child.eps) ** 0.5  # the module divides by sqrt(1 + eps)
            state[f"{name}.running_mean"] = torch.zeros_like(mean.detach())
            state[f"{name}.running_var"] = torch.ones_like(variance.detach())


def images_at_once(spec: ArchitectureSpec) -> int:
    """How many images a network looks at together where nothing is learned: fewer of large ones.

    Example:
        >>> from weightloom.architectures import parse_architecture
        >>> [images_at_once(parse_architecture(f"cnn(input=3x{s}x{s})")) for s in (16, 224)]
        [1000, 27]
    """
    return max(1, min(1000, (1 << 22) // math.prod(spec.input or (1,))))


@torch.no_grad()
@with_plain_defaults
def accuracy(
    spec: ArchitectureSpec, flats: Tensor, images: Tensor, labels: Tensor, batch_size: int | None = None
) -> Tensor:
    """(N,) share of right answers of N networks on images that all of them see.

    images (M, channels, height, width) in [-1, 1], labels (M,).

    Raises:
        InputError: networks that are not of ``spec`` or not finite; images or labels that it cannot read.
    """
    flats = checked_flats(spec, flats)
    if not all_finite(flats):
        raise InputError("the networks hold values that are not finite")
    images = checked_images(images, "the images", spec.input)
    labels = checked_labels(labels, len(images), spec.classes).to(images.device)
    right = torch.zeros(len(flats))
    batch_size = batch_size or images_at_once(spec)
    for start in range(0, len(images), batch_size):
        logits = run_networks(spec, flats, images[start : start + batch_size])
        right += (logits.argmax(-1) == labels[start : start + batch_size]).sum(-1).cpu()
    return right / len(images)


def accuracy_on(spec: ArchitectureSpec, flats: Tensor, data: TaskData) -> Tensor:
    """(N,) as :func:`accuracy`, on all pictures of ``data``, of which a batch at a time is made."""
    right = torch.zeros(len(flats))
    size = images_at_once(spec)
    for start in range(0, len(data), size):
        images, labels = data.batch(torch.arange(start, min(start + size, len(data))))
        right += accuracy(spec, flats, images, labels) * len(images)
    return right / len(data)


@torch.no_grad()
@with_plain_defaults
def recalibrate(spec: ArchitectureSpec, flats: Tensor, images: Tensor) -> Tensor:
    """(N, P) with running statistics measured anew on unlabelled images (N, B, ...) or (B, ...), one batch.

    Other buffers, and networks without any, come back unchanged.

    Raises:
        InputError: the networks are not of ``spec``, or it cannot read the images.
    """
    flats = checked_flats(spec, flats).detach()
    images = checked_images(images, "the images", spec.input)
    if images.dim() > 5 or (images.dim() == 5 and len(images) != len(flats)):
        raise InputError(
            f"{len(flats)} networks have images (N, B, ...) or (B, ...), not {images.dim()}-fold"
        )
    layout = layout_of(spec)
    if not any(slot.is_buffer for slot in layout.slots):
        return flats.clone()
    module = _template(spec, False)
    result = []
    for n, flat in enumerate(flats):
        state = {name: value.clone() for name, value in layout.unflatten(flat).items()}
        recorder = StatisticsRecorder({s.name: state[s.name] for s in layout.slots if s.is_buffer})
        with torch.inference_mode(), recorder:
            functional_call(module, state, (images if images.dim() == 4 else images[n],))
        result.append(layout.flatten({**state, **recorder.measured().values}))
    return torch.stack(result)
