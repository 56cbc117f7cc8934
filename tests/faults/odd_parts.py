"""Norms, networks, hooks and wrappings of which the odd modules are made.

A network is made with a ``norm`` of one's choice, so that the same one can be made with norms that are
computed by hand.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

GATHERED: list[list[Any]] = []
"""What the hooks of networks that were made since it was emptied have gathered."""

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


def in_parts(norm):
    """The norm sees half a batch at a time."""
    return Net(
        lambda m, x: m.body[2:](torch.cat([m.body[1](part) for part in m.body[0](x).chunk(2)])),
        body=body(norm),
    )


def hidden(norm):
    """A layer with a hook that is in a list only, and so no part of the network."""
    net = around(lambda m, y: m.beside[0](y), beside=lambda: [nn.Identity()])(norm)
    GATHERED.append([])
    net.beside[0].register_forward_hook(lambda m, i, y, got=GATHERED[-1]: got.append(y))
    return net


def checkpointed(norm):
    return Net(lambda m, x: checkpoint(m.body, x, use_reentrant=False), body=body(norm))


def two_names(norm):
    net = Net(
        lambda m, x: m.fc(m.features(x)), conv1=nn.Conv2d(3, 8, 3), bn1=norm(8), fc=nn.Linear(8, CLASSES)
    )
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


def ruled(net):
    net.register_buffer("ruler", torch.ones(1), persistent=False)
    return net


def linked(net):
    net.body[0].owner = (net,)
    return net


def cache(m, y):
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


def all_kinds(net, gathered):
    net[1].register_forward_pre_hook(lambda layer, args: gathered.append(args[0].numpy()))
    net[1].register_forward_pre_hook(lambda layer, args, kwargs: gathered.append(kwargs), with_kwargs=True)
    net[2].register_forward_hook(lambda layer, args, y: gathered.append(y.detach().numpy()), always_call=True)
    net[4].register_full_backward_hook(lambda layer, before, after: gathered.append(after))
    net[4].register_full_backward_pre_hook(lambda layer, after: gathered.append(after))


# ------------------------------------------------------------------------------------- wrappings


def exported(net, batch=16, dynamic=False, train=False):
    """As ``torch.export`` gives it, with its norms' training baked in."""
    shapes = ({0: torch.export.Dim("B", min=2, max=512)},) if dynamic else None
    given = (torch.zeros(batch, *IMAGE),)
    return torch.export.export(net.train(train), given, dynamic_shapes=shapes).module()


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
