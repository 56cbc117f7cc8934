"""Small networks that are odd in one way each: in their norms, their names, what they keep, hook or give."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from tests.faults.odd_parts import (
    IMAGE,
    SIGNAL,
    VOLUME,
    Aliased,
    Always,
    Arithmetic,
    Aten,
    ByHand,
    Forgetful,
    Frozen,
    Gatherer,
    InstanceByHand,
    Native,
    Out,
    Overridden,
    Own,
    Pair,
    Plain,
    Point,
    Range,
    Renamed,
    Slotted,
    Stacked,
    Stubborn,
    all_kinds,
    around,
    body,
    branched,
    cache,
    checkpointed,
    compiled_in_place,
    compiled_inside,
    copying_itself,
    domains,
    exported,
    halved,
    head_of_backbone,
    hidden,
    hooked,
    idle,
    in_parts,
    lazy,
    lifted,
    linked,
    looped,
    named_by_the_block,
    perceptron,
    pixels_first,
    ruled,
    same_layer_again,
    signal,
    standardised,
    tokens,
    twice,
    two_names,
    volume,
)
from torch import nn
from torch.nn.utils import parametrizations, prune

# ------------------------------------------------------------------------------------- the list


@dataclasses.dataclass(frozen=True, kw_only=True)
class Odd:
    """One network.

    Attributes:
        make: the network with some kind of norm.
        norm: the kind that it has.
        by_hand: the kind that the reference has.
        wrap: what is done with the network that is not done with the reference.
        input: the shape of a picture.
        images: how many there are.
        batch: how many it takes at once.
        left: beginnings of names of statistics that nothing can know, or that no picture meets; "" is all.
        renamed: what the reference calls a statistic, and what the network calls it.
        kept: how many parameters cannot be predicted.
        train: what is handed in uses its batch whatever its mode.
        quick: in the quick size too.
    """

    make: Callable[[Any], nn.Module] = body
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d
    by_hand: Callable[[int], nn.Module] = ByHand
    wrap: Callable[[nn.Module], nn.Module] = lambda net: net
    input: tuple[int, ...] = IMAGE
    images: int = 64
    batch: int = 256
    left: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    kept: int = 0
    train: bool = False
    quick: bool = False


def _bare(channels):
    return ByHand(channels, affine=False)


def _instance(channels):
    return nn.InstanceNorm2d(channels, affine=True, track_running_stats=True)


NORMS = {
    "BatchNorm2d": Odd(quick=True),
    "many batches": Odd(images=600, quick=True),
    "BatchNorm2d, momentum None": Odd(norm=lambda c: nn.BatchNorm2d(c, momentum=None)),
    "BatchNorm2d, momentum 0": Odd(norm=lambda c: nn.BatchNorm2d(c, momentum=0.0)),
    "BatchNorm2d without gain and shift": Odd(norm=lambda c: nn.BatchNorm2d(c, affine=False), by_hand=_bare),
    "a subclass with a forward of its own": Odd(norm=Overridden),
    "a subclass that stays in eval mode": Odd(norm=Stubborn),
    "SyncBatchNorm": Odd(norm=nn.SyncBatchNorm, quick=True),
    "LazyBatchNorm2d after a run": Odd(make=lazy),
    "own class": Odd(norm=Own, quick=True),
    "own class, other names": Odd(
        norm=Renamed, renamed=(("running_mean", "moving_mean"), ("running_var", "moving_variance"))
    ),
    "own class, always in training": Odd(norm=Always, quick=True),
    "own class, aliases of its buffers": Odd(norm=Aliased),
    "own class over torch.ops": Odd(norm=Aten),
    "own class over the native operation": Odd(norm=Native),
    "own class in arithmetic": Odd(norm=Arithmetic, left=("",), quick=True),
    "frozen batch norm, all buffers": Odd(norm=Frozen, left=("",), quick=True),
    "own class, two statistics in one buffer": Odd(norm=Stacked, left=("",)),
    "own moving average": Odd(norm=Range, left=("",)),
    "own moving average, in eval mode too": Odd(norm=lambda c: Range(c, always=True), left=("",), quick=True),
    "InstanceNorm2d": Odd(norm=_instance, by_hand=InstanceByHand, quick=True),
    "InstanceNorm1d on signals": Odd(
        make=signal,
        norm=lambda c: nn.InstanceNorm1d(c, affine=True, track_running_stats=True),
        by_hand=InstanceByHand,
        input=SIGNAL,
    ),
    "BatchNorm1d on signals": Odd(make=signal, norm=nn.BatchNorm1d, input=SIGNAL, quick=True),
    "own class on signals": Odd(make=signal, norm=Own, input=SIGNAL),
    "BatchNorm1d on features": Odd(make=perceptron, norm=nn.BatchNorm1d),
    "BatchNorm1d on tokens": Odd(make=tokens, norm=nn.BatchNorm1d),
    "BatchNorm3d on a map": Odd(make=lifted, norm=nn.BatchNorm3d),
    "BatchNorm3d on volumes": Odd(make=volume, norm=nn.BatchNorm3d, input=VOLUME, kept=2, quick=True),
    "a norm of pixels": Odd(make=pixels_first),
    "a norm used twice": Odd(make=twice, quick=True),
    "a norm in a loop": Odd(make=looped),
    "a norm for larger images": Odd(make=branched, left=("norm.",), quick=True),
    "a norm whose output is thrown away": Odd(make=idle, left=("norm.",)),
    "norms for several domains": Odd(make=domains, left=("norms.sketch.",)),
    "a norm that sees halves": Odd(make=in_parts),
    "norms in a checkpointed block": Odd(make=checkpointed),
    "double precision": Odd(make=lambda norm: body(norm).double()),
}

NAMES = {
    "a layer under two names": Odd(make=two_names, quick=True),
    "own class under two names": Odd(make=two_names, norm=Own),
    "head = backbone[-1]": Odd(make=head_of_backbone, quick=True),
    "one layer twice in a row": Odd(make=same_layer_again),
    "a block's own name for a weight": Odd(make=named_by_the_block),
}

KEPT = {
    "features of the last pass": Odd(
        make=around(cache, cache=dict, recent=collections.deque, last=lambda: None),
        wrap=lambda net: (net(torch.zeros(2, *IMAGE)), net)[1],
        quick=True,
    ),
    "constants in a list": Odd(
        make=around(lambda m, y: y * m.all[0], all=lambda: [torch.ones(1)]), quick=True
    ),
    "constants in objects": Odd(make=around(lambda m, y: y + m.at.shift * m.at.more["all"][0], at=Point)),
    "a parameter in a dict": Odd(
        make=around(lambda m, y: y + m.all["shift"], all=lambda: {"shift": nn.Parameter(torch.zeros(1))})
    ),
    "a constant that is read": Odd(
        make=around(lambda m, y: y * m.on[0].item(), on=lambda: [torch.ones(1)]), quick=True
    ),
    "an array of numpy": Odd(
        make=around(lambda m, y: y * torch.from_numpy(m.scale), scale=lambda: torch.ones(1).numpy())
    ),
    "a buffer that is not saved": Odd(make=lambda norm: ruled(around(lambda m, y: y)(norm))),
    "a stream of random numbers": Odd(make=around(lambda m, y: y, stream=torch.Generator)),
    "a link to its owner": Odd(
        make=lambda norm: linked(around(lambda m, y: m.body[0].owner[0].same(y), same=nn.Identity)(norm))
    ),
    "a layer that copies itself": Odd(make=copying_itself, quick=True),
    "a class that leaves its lock out": Odd(make=lambda norm: Forgetful(*body(norm))),
}

HOOKS = {
    "a hook that gathers features": Odd(
        wrap=hooked(lambda net, got: net[2].register_forward_hook(lambda m, i, y: got.append(y))), quick=True
    ),
    "all kinds of hooks, with numpy": Odd(wrap=hooked(all_kinds), quick=True),
    "a hook that is a method": Odd(
        wrap=hooked(lambda net, got: net[2].register_forward_hook(Gatherer(got).hook))
    ),
    "a hook of a layer in a list": Odd(make=hidden, quick=True),
    "hooks on parameters": Odd(wrap=hooked(lambda net, got: net[0].weight.register_hook(got.append))),
    "hooks of the state dict": Odd(
        wrap=hooked(lambda net, got: net.register_load_state_dict_post_hook(lambda m, keys: got.append(keys)))
    ),
    "hooks that return nothing new": Odd(
        wrap=hooked(lambda net, got: net[0].register_forward_hook(lambda m, i, y: (got.append(y), y)[1]))
    ),
}

WRAPPED = {
    "exported": Odd(wrap=exported, batch=16, quick=True),
    "exported for any batch": Odd(wrap=lambda net: exported(net, dynamic=True)),
    "exported in training": Odd(
        make=lambda norm: nn.Sequential(*(part for part in body(norm) if not isinstance(part, nn.Dropout))),
        wrap=lambda net: exported(net, train=True),
        batch=16,
        train=True,
    ),
    "exported own class": Odd(norm=Own, wrap=exported, batch=16),
    "fx": Odd(wrap=torch.fx.symbolic_trace),
    "compiled": Odd(wrap=torch.compile, quick=True),
    "compiled inside": Odd(wrap=compiled_inside),
    "compiled in place": Odd(wrap=compiled_in_place),
    "parallel": Odd(make=lambda norm: nn.DataParallel(body(norm))),
    "averaged": Odd(make=lambda norm: torch.optim.swa_utils.AveragedModel(body(norm)), quick=True),
    "without memory": Odd(wrap=lambda net: net.to("meta")),
}

MADE = {
    "weight norm": Odd(make=lambda norm: body(norm, nn.utils.weight_norm), kept=4, quick=True),
    "spectral norm": Odd(make=lambda norm: body(norm, nn.utils.spectral_norm), kept=2),
    "weight norm, parametrised": Odd(make=lambda norm: body(norm, parametrizations.weight_norm), kept=4),
    "spectral norm, parametrised": Odd(make=lambda norm: body(norm, parametrizations.spectral_norm), kept=2),
    "own parametrisation": Odd(make=lambda norm: body(norm, halved), kept=2),
    "pruned": Odd(
        make=lambda norm: body(norm, lambda c: prune.l1_unstructured(c, "weight", 0.5)), kept=2, quick=True
    ),
    "weights standardised by a hook": Odd(make=standardised, kept=2, quick=True),
    "frozen layer": Odd(
        make=lambda norm: body(norm, lambda conv: conv.requires_grad_(False) if conv.bias is None else conv),
        kept=1,
    ),
}

OUTPUTS = {
    "dataclass": Odd(make=around(lambda m, y: Out(y)), quick=True),
    "named tuple": Odd(make=around(lambda m, y: Pair(y, None))),
    "objects in lists in dicts in an object": Odd(make=around(lambda m, y: Plain(y)), quick=True),
    "slots": Odd(make=around(lambda m, y: Slotted(y))),
    "dict": Odd(make=around(lambda m, y: {"logits": y, "more": [y.argmax(1)]})),
    "distribution": Odd(
        make=around(lambda m, y: torch.distributions.Categorical(logits=y, validate_args=False))
    ),
}

HEADS = {
    "a head of 100 classes": Odd(make=lambda norm: body(norm, classes=100), kept=2, quick=True),
    "a trunk that a norm ends": Odd(make=lambda norm: body(norm)[:6], quick=True),
    "a trunk that a convolution ends": Odd(make=lambda norm: body(norm)[:5], kept=2),
}

ODD = {
    f"{group}: {name}": odd
    for group, odds in (
        ("norms", NORMS), ("names", NAMES), ("kept", KEPT), ("hooks", HOOKS), ("wrapped", WRAPPED),
        ("made", MADE), ("outputs", OUTPUTS), ("heads", HEADS),
    )
    for name, odd in odds.items()
}  # fmt: skip
