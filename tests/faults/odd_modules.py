"""Small networks that are odd in one way each: in their norms, their names, what they keep, hook or give.

Every one is made with a ``norm`` of one's choice, so that the same network can be made with norms that are
computed by hand.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

IMAGE, SIGNAL, VOLUME = (3, 16, 16), (12, 40), (3, 4, 8, 8)
CLASSES = 10


class ByHand(nn.Module):
    """A norm that uses its batch and keeps the mean of the statistics over calls, all in plain arithmetic."""

    instance = False

    def __init__(self, channels, affine=True):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.zeros(channels))
        self.calls = 0

    def forward(self, x):
        axes = [axis for axis in range(x.ndim) if axis not in ((0, 1) if self.instance else (1,))]
        mean = x.mean(axes, keepdim=True)
        square = (x - mean).square()
        count = square[:, 0].numel() // (len(x) if self.instance else 1)
        self.calls += 1
        for kept, new in (
            (self.running_mean, mean),
            (self.running_var, square.sum(axes, keepdim=True) / (count - 1)),
        ):
            new = new.transpose(0, 1).reshape(len(kept), -1).mean(1)
            kept += (new.detach() - kept) / self.calls
        normed = (x - mean) / (square.mean(axes, keepdim=True) + 1e-5).sqrt()
        shape = [1, -1] + [1] * (x.ndim - 2)
        if self.weight is None:
            return normed
        return normed * self.weight.view(shape) + self.bias.view(shape)


class InstanceByHand(ByHand):
    instance = True


# ------------------------------------------------------------------------------------- norms of one's own


class Own(nn.Module):
    """Over ``F.batch_norm``, as in many repositories."""

    names = ("running_mean", "running_var")

    def __init__(self, channels):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        for name, value in zip(self.names, (torch.zeros(channels), torch.ones(channels)), strict=True):
            self.register_buffer(name, value)

    def forward(self, x):
        mean, variance = (getattr(self, name) for name in self.names)
        return F.batch_norm(x, mean, variance, self.weight, self.bias, self.training)


class Renamed(Own):
    names = ("moving_mean", "moving_variance")


class Always(Own):
    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True, 0.01)


class Aliased(Own):
    def forward(self, x):
        kept = self.running_mean.detach(), self.running_var.detach()
        return F.batch_norm(x, *kept, self.weight, self.bias, self.training)


class Aten(Own):
    def forward(self, x):
        mean, variance = self.running_mean, self.running_var
        return torch.ops.aten.batch_norm(
            x, self.weight, self.bias, mean, variance, self.training, 0.1, 1e-5, True
        )


class Native(Own):
    def forward(self, x):
        mean, variance = self.running_mean, self.running_var
        return torch.native_batch_norm(x, self.weight, self.bias, mean, variance, self.training, 0.1, 1e-5)[0]


class Arithmetic(Own):
    """Its statistics are read by ordinary operations, so nothing says what they are."""

    def forward(self, x):
        shape = (1, -1, *[1] * (x.ndim - 2))
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale.view(shape) + (self.bias - self.running_mean * scale).view(shape)


class Frozen(nn.Module):
    """As torchvision's FrozenBatchNorm2d: everything is a buffer."""

    def __init__(self, channels):
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    forward = Arithmetic.forward


class Stacked(nn.Module):
    """Two statistics in one buffer."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("running_both", torch.stack([torch.zeros(channels), torch.ones(channels)]))

    def forward(self, x):
        return F.batch_norm(x, self.running_both[0], self.running_both[1], None, None, self.training)


class Range(nn.Module):
    """A moving average of what passes through, which the output depends on; ``always`` also in eval mode."""

    def __init__(self, channels, always=False):
        super().__init__()
        self.always = always
        self.register_buffer("running_peak", torch.full((channels,), 3.0))

    def forward(self, x):
        if self.training or self.always:
            self.running_peak.mul_(0.9).add_(0.1 * x.detach().abs().amax([0, 2, 3]))
        return x / self.running_peak.view(1, -1, 1, 1)


class Overridden(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x * 1.0)


class Stubborn(nn.BatchNorm2d):
    """Refuses to leave eval mode."""

    def train(self, mode=True):
        return super().train(False)


# ------------------------------------------------------------------------------------- networks


class Net(nn.Module):
    """Named parts and a function of them."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


def body(norm, wrap=lambda conv: conv, classes=CLASSES):
    return nn.Sequential(
        wrap(nn.Conv2d(3, 12, 3, padding=1, bias=False)), norm(12), nn.ReLU(), nn.Dropout(0.3),
        wrap(nn.Conv2d(12, 8, 3, stride=2)), norm(8), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, classes),
    )  # fmt: skip


def around(function, **kept):
    """A network of a body whose output ``function(network, y)`` changes; what it keeps beside is ``kept``."""

    def make(norm):
        net = Net(lambda m, x: function(m, m.body(x)), body=body(norm))
        for name, value in kept.items():
            setattr(net, name, value())
        return net

    return make


def signal(norm):
    return nn.Sequential(
        nn.Conv1d(12, 8, 5), norm(8), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, CLASSES)
    )


def volume(norm):
    return nn.Sequential(
        nn.Conv3d(3, 4, 3, padding=1), norm(4), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(),
        nn.Linear(4, CLASSES),
    )  # fmt: skip


def perceptron(norm):
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 16), norm(16), nn.ReLU(), nn.Linear(16, CLASSES))


def tokens(norm):
    def forward(m, x):
        y = m.patch(x).flatten(2)  # (B, 8, 16)
        return m.head(m.norm(y).mean(2))

    return Net(forward, patch=nn.Conv2d(3, 8, 4, 4), norm=norm(8), head=nn.Linear(8, CLASSES))


def lifted(norm):
    def forward(m, x):
        y = m.norm(m.conv(x).unflatten(1, (4, 2)))  # (B, 8, H, W) -> (B, 4, 2, H, W)
        return m.head(y.mean((2, 3, 4)))

    return Net(forward, conv=nn.Conv2d(3, 8, 3), norm=norm(4), head=nn.Linear(4, CLASSES))


def pixels_first(norm):
    return nn.Sequential(norm(3), *body(norm))


def twice(norm):
    return Net(
        lambda m, x: m.head(m.norm(m.two(m.norm(m.one(x)).relu())).mean((2, 3))), one=nn.Conv2d(3, 8, 3),
        two=nn.Conv2d(8, 8, 3), norm=norm(8), head=nn.Linear(8, CLASSES),
    )  # fmt: skip


def looped(norm):
    def forward(m, x):
        y = m.stem(x)
        for _ in range(3):
            y = y + m.norm(m.step(y)).relu()
        return m.head(y.mean((2, 3)))

    return Net(
        forward, stem=nn.Conv2d(3, 6, 3), step=nn.Conv2d(6, 6, 3, padding=1), norm=norm(6),
        head=nn.Linear(6, CLASSES),
    )  # fmt: skip


def branched(norm):
    """The other norm is for large images, of which there are none."""
    return Net(
        lambda m, x: m.body[1:]((m.norm if x.shape[-1] > 20 else nn.Identity())(m.body[0](x))),
        body=body(norm), norm=norm(12),
    )  # fmt: skip


def idle(norm):
    """What the other norm makes is thrown away."""

    def forward(m, x):
        m.norm(x)
        return m.body(x)

    return Net(forward, body=body(norm), norm=norm(3))


def domains(norm):
    return Net(
        lambda m, x: m.body[1:](m.norms["photo"](m.body[0](x))), body=body(norm),
        norms=nn.ModuleDict({"photo": norm(12), "sketch": norm(12)}),
    )  # fmt: skip


def checkpointed(norm):
    return Net(lambda m, x: checkpoint(m.body, x, use_reentrant=False), body=body(norm))


def two_names(norm):
    net = Net(lambda m, x: m.fc(m.features(x)), conv1=nn.Conv2d(3, 8, 3), bn1=norm(8), fc=nn.Linear(8, CLASSES))
    net.features = nn.Sequential(net.conv1, net.bn1, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return net


def head_of_backbone(norm):
    net = Net(lambda m, x: m.backbone(x), backbone=body(norm))
    net.head, net.norms = net.backbone[-1], nn.ModuleList([net.backbone[1], net.backbone[5]])
    return net


def same_layer_again(norm):
    conv = nn.Conv2d(3, 3, 3, padding=1)
    return nn.Sequential(conv, norm(3), nn.ReLU(), conv, *body(norm))


def named_by_the_block(norm):
    net = Net(lambda m, x: m.body(x), body=body(norm))
    net.first_weight = net.body[0].weight
    return net


# ------------------------------------------------------------------------------------- what is kept


class Point:
    def __init__(self):
        self.shift, self.more = torch.zeros(1, 1), {"all": [torch.ones(1)]}


class Copier(nn.Conv2d):
    """Copies itself by its constructor, as some quantised layers do."""

    def __deepcopy__(self, memo):
        new = Copier(self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding)
        new.load_state_dict(self.state_dict())
        return new


class Forgetful(nn.Sequential):
    """Leaves out what cannot be pickled."""

    def __init__(self, *parts):
        super().__init__(*parts)
        self.lock = threading.Lock()

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "lock"}


def copying_itself(norm):
    return nn.Sequential(Copier(3, 12, 3), *body(norm)[1:])


def linked(net):
    net.body[0].owner = (net,)
    return net


def _cache(m, y):
    m.cache["last"] = y
    m.recent.append(y)
    m.last = y
    return y


# ------------------------------------------------------------------------------------- weights that are made


def standardised(norm):
    """A hook of its own makes the weight before every call."""

    def make(conv):
        conv.weight_orig = nn.Parameter(conv.weight.detach().clone())
        del conv._parameters["weight"]
        conv.weight = conv.weight_orig.detach() * 1.0

        def hook(layer, _):
            layer.weight = layer.weight_orig - layer.weight_orig.mean((1, 2, 3), keepdim=True)

        if norm is not ByHand:  # statistics are those without hooks
            conv.register_forward_pre_hook(hook)
        return conv

    return nn.Sequential(make(nn.Conv2d(3, 12, 3)), *body(norm)[1:])


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


def halved(conv):
    parametrize.register_parametrization(conv, "weight", Halved())
    return conv


# ------------------------------------------------------------------------------------- outputs


@dataclasses.dataclass
class Out:
    logits: Any


Pair = collections.namedtuple("Pair", ["logits", "extra"])


class Slotted:
    __slots__ = ("logits",)

    def __init__(self, logits):
        self.logits = logits


class Plain:
    def __init__(self, logits):
        self.nested = {"out": [Slotted(logits)]}


# ------------------------------------------------------------------------------------- hooks

GATHERED: list[list[Any]] = []
"""What the hooks of networks that were made since it was emptied have gathered."""


def hooked(register):
    """What puts hooks on a network: ``register(network, gathered)``."""

    def wrap(net):
        GATHERED.append([])
        register(net, GATHERED[-1])
        return net

    return wrap


class Gatherer:
    """A hook that is a method, of something that cannot be copied."""

    def __init__(self, gathered):
        self.gathered, self.lock = gathered, threading.Lock()

    def hook(self, layer, given, output):
        self.gathered.append(output)


def _all_kinds(net, gathered):
    net[1].register_forward_pre_hook(lambda layer, args: gathered.append(args[0].numpy()))
    net[1].register_forward_pre_hook(lambda layer, args, kwargs: gathered.append(kwargs), with_kwargs=True)
    net[2].register_forward_hook(lambda layer, args, y: gathered.append(y.detach().numpy()), always_call=True)
    net[4].register_full_backward_hook(lambda layer, before, after: gathered.append(after))
    net[4].register_full_backward_pre_hook(lambda layer, after: gathered.append(after))


# ------------------------------------------------------------------------------------- wrappings


def exported(net, batch=16, dynamic=False, train=False):
    """As ``torch.export`` gives it, with its norms' training baked in."""
    shapes = ({0: torch.export.Dim("B", min=2, max=512)},) if dynamic else None
    program = torch.export.export(net.train(train), (torch.zeros(batch, *IMAGE),), dynamic_shapes=shapes)
    return program.module()


def compiled_inside(net):
    net[0], net[1] = torch.compile(net[0]), torch.compile(net[1])
    return net


def compiled_in_place(net):
    net.compile()
    return net


def dry_run(net):
    """Lazy layers get their shapes from one batch of pictures."""
    net.eval()(torch.zeros(2, *IMAGE))
    return net.train()


def lazy(norm):
    if norm is ByHand:
        return body(ByHand)
    return dry_run(
        nn.Sequential(
            nn.LazyConv2d(12, 3, padding=1, bias=False), nn.LazyBatchNorm2d(), *list(body(norm))[2:5],
            nn.LazyBatchNorm2d(), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(CLASSES),
        )
    )  # fmt: skip


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
        make=signal, norm=lambda c: nn.InstanceNorm1d(c, affine=True, track_running_stats=True),
        by_hand=InstanceByHand, input=SIGNAL,
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
        make=around(_cache, cache=dict, recent=collections.deque, last=lambda: None),
        wrap=lambda net: (net(torch.zeros(2, *IMAGE)), net)[1], quick=True,
    ),
    "constants in a list": Odd(make=around(lambda m, y: y * m.all[0], all=lambda: [torch.ones(1)]), quick=True),
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
    "a buffer that is not saved": Odd(
        make=around(lambda m, y: y), wrap=lambda net: (net.register_buffer("b", torch.ones(1), False), net)[1]
    ),
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
    "all kinds of hooks, with numpy": Odd(wrap=hooked(_all_kinds), quick=True),
    "a hook that is a method": Odd(
        wrap=hooked(lambda net, got: net[2].register_forward_hook(Gatherer(got).hook))
    ),
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
        wrap=lambda net: exported(net, train=True), batch=16, train=True,
    ),
    "exported own class": Odd(norm=Own, wrap=exported, batch=16),
    "fx": Odd(wrap=torch.fx.symbolic_trace),
    "compiled": Odd(wrap=torch.compile, quick=True),
    "compiled inside": Odd(wrap=compiled_inside),
    "compiled in place": Odd(wrap=compiled_in_place),
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
        make=lambda norm: body(norm, lambda conv: conv.requires_grad_(False) if conv.bias is None else conv), kept=1
    ),
}

OUTPUTS = {
    "dataclass": Odd(make=around(lambda m, y: Out(y)), quick=True),
    "named tuple": Odd(make=around(lambda m, y: Pair(y, None))),
    "objects in lists in dicts in an object": Odd(make=around(lambda m, y: Plain(y)), quick=True),
    "slots": Odd(make=around(lambda m, y: Slotted(y))),
    "dict": Odd(make=around(lambda m, y: {"logits": y, "more": [y.argmax(1)]})),
    "distribution": Odd(make=around(lambda m, y: torch.distributions.Categorical(logits=y, validate_args=False))),
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
