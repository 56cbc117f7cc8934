"""Layers whose weights are generated, and modules turned into such layers and back.

A layer owns embeddings and a scale; what turns embeddings into weights is a weight generator
(:mod:`weightloom.nn.weight_generators`), shared between layers or its own. Of several layers that share a
generator, the first one holds it: in its state dict, in its parameters, once. The others only refer to it.

Shapes: K embeddings of one weight, Z width of an embedding, B batch, C channels, H and W height and width.
Source: Ha, Dai and Le, "HyperNetworks" (arXiv 1609.09106), section 3.1. The scale is not in the paper: it
gives every layer the size of weights that it would have without a generator (for one generator and many
layers, see Chang, Flokas and Lipson, "Principled weight initialization for hypernetworks", ICLR 2020).
"""

from __future__ import annotations

import fnmatch
import inspect
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from weightloom.architectures.copying import copy_module, made_from
from weightloom.errors import InputError, UnknownNameError
from weightloom.nn.weight_generators import (
    BlockGenerator,
    CoordinateGenerator,
    SeparableGenerator,
    WeightGenerator,
)

GeneratorKind = Literal["blocks", "separable", "coordinates"]
KINDS: dict[str, Callable[..., WeightGenerator]] = {
    "blocks": BlockGenerator,
    "separable": SeparableGenerator,
    "coordinates": CoordinateGenerator,
}


class HyperLayer(nn.Module):
    """What all generated layers share: ``embedding`` (K, Z), the constant ``scale``, and the generator."""

    weight_shape: tuple[int, ...]
    embedding: nn.Parameter
    scale: Tensor

    def _generate_from(self, generator: WeightGenerator | None, options: dict[str, Any]) -> None:
        """Take the place of the weight that torch's constructor has made."""
        weight = self._parameters.pop("weight")
        assert weight is not None
        self.weight_shape = tuple(weight.shape)
        if 0 in self.weight_shape:
            raise InputError(
                f"a layer of no channels has nothing to generate: its weight is {self.weight_shape}"
            )
        if generator is None:
            generator = _new_generator("blocks", weight, options)
            self.generator = generator
        elif not isinstance(generator, WeightGenerator):
            raise InputError(f"generator must be a WeightGenerator, not {type(generator).__name__}")
        elif options:
            raise InputError(f"{', '.join(options)}: the generator that was given has these already")
        # In a tuple, torch does not see a module, so that a shared generator has one owner only.
        self._shared = (generator,)
        count = generator.num_embeddings(self.weight_shape)
        self.embedding = nn.Parameter(weight.new_empty(count, generator.embedding_size))
        nn.init.normal_(self.embedding)
        self.register_buffer("scale", weight.new_tensor(math.sqrt(2 / math.prod(self.weight_shape[1:]))))

    @property
    def weight_generator(self) -> WeightGenerator:
        """The generator, whoever owns it."""
        return self._shared[0]

    def generate(self) -> Tensor:
        """The weight, made anew; gradients go into the embedding and the generator."""
        return self.scale * self.weight_generator(self.embedding, self.weight_shape)

    def check_input(self, input: Tensor) -> None:
        """Raise :class:`InputError` unless ``input`` has the channels that the layer reads."""
        features = self.weight_shape[1] * getattr(self, "groups", 1)
        axis = -len(self.weight_shape) + 1 if len(self.weight_shape) > 2 else -1
        if not isinstance(input, Tensor) or input.dim() < -axis or input.shape[axis] != features:
            shape = tuple(input.shape) if isinstance(input, Tensor) else type(input).__name__
            raise InputError(
                f"input must have {features} channels for a weight of shape {self.weight_shape}, not {shape}"
            )

    def reset_parameters(self) -> None:
        """New embeddings and bias; a new generator too where this layer holds it. The scale stays."""
        if "embedding" not in self._parameters:  # torch's constructor asks before there is one
            super().reset_parameters()  # type: ignore[misc]
            return
        nn.init.normal_(self.embedding)
        if "generator" in self._modules:
            self.weight_generator.reset_parameters()
        bias = self._parameters["bias"]
        if bias is not None:
            bound = math.prod(self.weight_shape[1:]) ** -0.5  # as torch's own layers do
            nn.init.uniform_(bias, -bound, bound)

    def __getattr__(self, name: str) -> Any:
        # Code around a layer may read its weight; torch asks here for whatever is not registered.
        if name == "weight" and "embedding" in self.__dict__.get("_parameters", {}):
            return self.generate()
        return super().__getattr__(name)

    def _take_over(self, layer: nn.Module) -> None:
        """The bias, the mode and the size of the weights of ``layer``, which this layer replaces."""
        weight = layer.weight
        assert isinstance(weight, Tensor)
        self.register_parameter("bias", layer._parameters["bias"])
        self.train(layer.training)
        size = weight.detach().double().square().mean().sqrt()
        # Layers that start at zero would never leave it: they get the scale of a new layer.
        if bool(torch.isfinite(size)) and float(size) > 0:
            self.scale.copy_(size)


class HyperConv2d(HyperLayer, nn.Conv2d):
    """A 2-d convolution whose kernel is generated: K = scale * generator(embedding).

    Takes the arguments of :class:`torch.nn.Conv2d`, and after them

    Args:
        generator: of another layer (``other.weight_generator``), which keeps it; None makes one of its own.
        options: without a generator, those of :class:`BlockGenerator`: ``embedding_size``, ``block``,
            ``hidden_size``, ``activation``.

    Raises:
        InputError: a size below 1; a generator for another kernel size; options beside a generator.

    Example:
        >>> first = HyperConv2d(16, 16, 3, padding=1, embedding_size=8)
        >>> second = HyperConv2d(16, 32, 3, padding=1, generator=first.weight_generator)
        >>> net = nn.Sequential(first, nn.ReLU(), second)
        >>> net(torch.zeros(1, 16, 8, 8)).shape, second.embedding.shape
        (torch.Size([1, 32, 8, 8]), torch.Size([2, 8]))
        >>> materialize(net)[2]
        Conv2d(16, 32, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """

    def __init__(self, *args: Any, generator: WeightGenerator | None = None, **options: Any) -> None:
        own = _split_options(options)
        super().__init__(*args, **options)
        self._generate_from(generator, own)

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) as :class:`torch.nn.Conv2d`."""
        self.check_input(input)
        return self._conv_forward(input, self.generate(), self.bias)


class HyperConv1d(HyperLayer, nn.Conv1d):
    """A 1-d convolution whose kernel is generated; arguments as :class:`HyperConv2d`."""

    def __init__(self, *args: Any, generator: WeightGenerator | None = None, **options: Any) -> None:
        own = _split_options(options)
        super().__init__(*args, **options)
        self._generate_from(generator, own)

    def forward(self, input: Tensor) -> Tensor:
        """As :class:`torch.nn.Conv1d`."""
        self.check_input(input)
        return self._conv_forward(input, self.generate(), self.bias)


class HyperConv3d(HyperLayer, nn.Conv3d):
    """A 3-d convolution whose kernel is generated; arguments as :class:`HyperConv2d`."""

    def __init__(self, *args: Any, generator: WeightGenerator | None = None, **options: Any) -> None:
        own = _split_options(options)
        super().__init__(*args, **options)
        self._generate_from(generator, own)

    def forward(self, input: Tensor) -> Tensor:
        """As :class:`torch.nn.Conv3d`."""
        self.check_input(input)
        return self._conv_forward(input, self.generate(), self.bias)


class HyperLinear(HyperLayer, nn.Linear):
    """A linear layer whose matrix is generated; the arguments of :class:`torch.nn.Linear`, then as above.

    Example:
        >>> layer = HyperLinear(20, 10, embedding_size=4, activation="tanh")
        >>> layer(torch.zeros(3, 20)).shape, layer.embedding.shape
        (torch.Size([3, 10]), torch.Size([2, 4]))
    """

    def __init__(self, *args: Any, generator: WeightGenerator | None = None, **options: Any) -> None:
        own = _split_options(options)
        super().__init__(*args, **options)
        self._generate_from(generator, own)

    def forward(self, input: Tensor) -> Tensor:
        """As :class:`torch.nn.Linear`."""
        self.check_input(input)
        return F.linear(input, self.generate(), self.bias)


# The plain layer that each replaces. A subclass may compute something else, so only these very types are.
REPLACED: dict[type[nn.Module], type[HyperLayer]] = {
    nn.Conv1d: HyperConv1d,
    nn.Conv2d: HyperConv2d,
    nn.Conv3d: HyperConv3d,
    nn.Linear: HyperLinear,
}
PLAIN: dict[type[HyperLayer], type[nn.Module]] = {hyper: plain for plain, hyper in REPLACED.items()}


def hyperize(
    module: nn.Module,
    *,
    kind: GeneratorKind = "blocks",
    linear: bool = False,
    skip: Collection[str] = (),
    **options: Any,
) -> nn.Module:
    """A copy of ``module`` whose convolutions have generated kernels; ``module`` stays as it is.

    Everything else is as it was: the class and its methods, biases, norms, other layers, among them those
    whose weight is made of other tensors already (weight or spectral norm, pruning). Layers with kernels
    of one size share a generator (with ``kind="coordinates"`` all layers do). Weights start at random, at
    the size (root mean square) of those that they replace. What the paper leaves plain, such as a first
    layer of 3 channels or 1 x 1 shortcuts, is named in ``skip``.

    Args:
        module: any module; or one layer.
        kind: ``"blocks"`` for :class:`BlockGenerator`, ``"separable"`` for :class:`SeparableGenerator`,
            ``"coordinates"`` for :class:`CoordinateGenerator`.
        linear: also the linear layers.
        skip: names of layers that stay plain, patterns allowed (``"*.shortcut"``), ``""`` is the module.
        options: of the generators: ``embedding_size``, ``block``, ``hidden_size``, ``activation`` for blocks;
            ``block``, ``pattern_size`` for separable kernels, which leave layers plain that would grow;
            ``embedding_size``, ``hidden_size``, ``depth``, ``frequency`` for coordinates.

    Raises:
        InputError: no layer to replace; a pattern in ``skip`` that no layer has; layers that share one
            weight, are frozen, or have no shape yet; something in the module that cannot be copied; an option
            that the generator does not have or that makes no sense.
        UnknownNameError: no such kind of generator.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3))
        >>> hyper = hyperize(net, skip=["0"], embedding_size=8)
        >>> sum(p.numel() for p in net[2].parameters()), sum(p.numel() for p in hyper[2].parameters())
        (9248, 2512)
        >>> plain = materialize(hyper)
        >>> x = torch.randn(2, 3, 8, 8)
        >>> type(plain[2]).__name__, torch.equal(plain(x), hyper(x))
        ('Conv2d', True)
    """
    return _hyperize({"": module}, kind, linear, skip, options)[""]


def hyperize_together(
    modules: Mapping[str, nn.Module],
    *,
    kind: GeneratorKind = "blocks",
    linear: bool = False,
    skip: Collection[str] = (),
    **options: Any,
) -> nn.ModuleDict:
    """Copies of several modules, of whatever architectures, whose weights come from the same generators.

    The arguments, and what is raised, as in :func:`hyperize`; ``skip`` matches names within each module.
    The state dict of the result holds every generator once, with the layer that was first to need it.

    Example:
        >>> nets = hyperize_together(
        ...     {"thin": nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU()), "wide": nn.Conv2d(3, 64, 3)}
        ... )
        >>> nets["wide"].weight_generator is nets["thin"][0].weight_generator
        True
        >>> nets["wide"](torch.zeros(1, 3, 8, 8)).shape
        torch.Size([1, 64, 6, 6])
    """
    if not isinstance(modules, Mapping) or not modules:
        raise InputError("modules must hold at least one module, by name: {'thin': ..., 'wide': ...}")
    if any(not isinstance(name, str) or not name or "." in name for name in modules):
        raise InputError("names of modules are texts without dots")
    return nn.ModuleDict(_hyperize(dict(modules), kind, linear, skip, options))


def materialize(module: nn.Module) -> nn.Module:
    """A copy of ``module`` in which every generated weight is an ordinary parameter.

    Its outputs are those of ``module``, bit for bit, and it needs nothing of this package.

    Raises:
        InputError: ``module`` has no generated layer.
    """
    _require_module(module)
    plain = copy_module(module)
    made: dict[nn.Module, nn.Module] = {
        layer: _plain_layer(layer) for layer in plain.modules() if isinstance(layer, HyperLayer)
    }
    if not made:
        raise InputError("the module has no generated layer to materialize")
    return _replace(plain, made)


# ------------------------------------------------------------------------------------ the pieces


def _require_module(module: object) -> None:
    if not isinstance(module, nn.Module):
        raise InputError(f"a module is needed, not {type(module).__name__}")


def _split_options(options: dict[str, Any]) -> dict[str, Any]:
    """Take out of ``options`` those that are the generator's."""
    names = ("embedding_size", "block", "hidden_size", "activation")
    return {name: options.pop(name) for name in names if name in options}


def _layers(module: nn.Module, linear: bool) -> Iterator[tuple[str, nn.Module]]:
    for name, layer in module.named_modules():
        kind = _kind(layer)
        if kind in REPLACED and (linear or kind is not nn.Linear):
            yield name, layer


def _kind(layer: nn.Module) -> type[nn.Module]:
    """The class of a layer; of one without a shape, what it becomes; of a parametrised one, what it was."""
    kind: type[nn.Module] = getattr(type(layer), "cls_to_become", None) or type_before_parametrizations(layer)
    return kind


def _separates(layer: nn.Module, options: dict[str, Any]) -> bool:
    """Whether separable kernels would be fewer numbers than the weight: not with one value or few inputs."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if math.prod(weight.shape[2:]) < 2:
        return False
    # On the meta device: the count alone is wanted, and no random stream moves.
    generator = _new_generator("separable", torch.empty_like(weight, device="meta"), options)
    return generator.num_embeddings(weight.shape) * generator.embedding_size < weight.numel()


def _hyperize(
    modules: dict[str, nn.Module],
    kind: GeneratorKind,
    linear: bool,
    skip: Collection[str],
    options: dict[str, Any],
) -> dict[str, nn.Module]:
    if not isinstance(kind, str) or kind not in KINDS:
        raise UnknownNameError("kind of weight generator", str(kind), KINDS)
    listed = isinstance(skip, Collection) and not isinstance(skip, str)
    if not listed or any(not isinstance(name, str) for name in skip):
        raise InputError(f"skip is a list of names, not {skip!r}")
    for module in modules.values():
        _require_module(module)
    names = list(modules)
    if len(names) == 1:
        copies = {names[0]: copy_module(modules[names[0]])}
    else:  # at once, so that what they share stays shared
        copies = dict(zip(names, copy_module(nn.ModuleList(modules.values())).children(), strict=True))
    found = [(name, layer) for module in copies.values() for name, layer in _layers(module, linear)]
    for pattern in skip:
        if not any(fnmatch.fnmatchcase(name, pattern) for name, _ in found):
            raise InputError(f"skip: no layer is called {pattern!r}; layers: {_listed(found)}")
    chosen = dict.fromkeys(
        layer for name, layer in found if not any(fnmatch.fnmatchcase(name, p) for p in skip)
    )
    for name, layer in found:
        if layer in chosen and type(layer) is not _kind(layer) and not is_parametrized(layer):
            raise InputError(
                f"layer {name!r} ({type(layer).__name__}) has no shape yet; run the module once on an input "
                "first, or skip it"
            )
    free = [layer for layer in chosen if not made_from(layer) and not is_parametrized(layer)]
    kept = [layer for layer in free if kind != "separable" or _separates(layer, options)]
    still = next((name for name, layer in found if layer in kept and not layer.weight.requires_grad), None)
    if still is not None:
        raise InputError(f"layer {still!r} is frozen, and a generated weight is not: skip it or unfreeze it")
    parts = [part for module in copies.values() for part in module.modules()]
    if not found and any(isinstance(part, HyperLayer) for part in parts):
        raise InputError("the module's layers are generated already; materialize makes them plain")
    if chosen and not free:
        raise InputError(
            "every layer to replace has a weight that is made of other tensors already (weight or spectral "
            "norm, pruning); take that off first (torch.nn.utils.remove_weight_norm, prune.remove, "
            "parametrize.remove_parametrizations)"
        )
    if chosen and not kept:
        raise InputError(f"no layer would be smaller with separable kernels; layers it has: {_listed(found)}")
    if not kept:
        what = "convolution or linear layer" if linear else "convolution"
        hint = "" if linear else " (linear=True takes linear layers too)"
        raise InputError(f"the module has no {what} to generate{hint}; layers it has: {_listed(found)}")
    owners = Counter(id(parameter) for layer in set(parts) for parameter in layer._parameters.values())
    if any(owners[id(layer.weight)] > 1 for layer in kept):
        raise InputError("two layers share one weight; skip them, a generated weight belongs to one layer")
    generators: dict[tuple[int, ...], WeightGenerator] = {}
    made: dict[nn.Module, nn.Module] = {}
    for layer in kept:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        key = () if kind == "coordinates" else tuple(weight.shape[2:])
        first = key not in generators
        if first:
            generators[key] = _new_generator(kind, weight, options)
        made[layer] = _hyper_layer(layer, generators[key])
        if first:
            made[layer].generator = generators[key]
    return {name: _replace(module, made) for name, module in copies.items()}


def _new_generator(kind: GeneratorKind, like: Tensor, options: dict[str, Any]) -> WeightGenerator:
    factory: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
    arguments = () if kind == "coordinates" else (tuple(like.shape[2:]),)
    known = [
        name for name in inspect.signature(KINDS[kind]).parameters if name not in ("kernel_size", *factory)
    ]
    foreign = [name for name in options if name not in known]
    if foreign:
        raise InputError(f"kind={kind!r} takes {', '.join(known)}; it has no option {', '.join(foreign)}")
    try:
        return KINDS[kind](*arguments, **options, **factory)
    except TypeError as error:
        raise InputError(f"options of kind={kind!r}: {error}") from None


def _settings(layer: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments that make another layer like ``layer``."""
    if isinstance(layer, nn.Linear):
        return (layer.in_features, layer.out_features), {"bias": layer.bias is not None}
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    names = ("stride", "padding", "dilation", "groups", "padding_mode")
    settings = {name: getattr(layer, name) for name in names}
    return (layer.in_channels, layer.out_channels, layer.kernel_size), {
        **settings,
        "bias": layer.bias is not None,
    }


def _hyper_layer(layer: nn.Module, generator: WeightGenerator) -> HyperLayer:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    arguments, options = _settings(layer)
    # torch's constructor fills a weight that is thrown away: without memory, without moving random streams.
    made = REPLACED[type(layer)](
        *arguments, **options, device="meta", dtype=weight.dtype, generator=generator
    )
    made.register_parameter("bias", None)  # the layer's own comes next
    made.to_empty(device=weight.device)
    nn.init.normal_(made.embedding)
    made.scale.fill_(math.sqrt(2 / math.prod(made.weight_shape[1:])))
    made._take_over(layer)
    return made


@torch.no_grad()
def _plain_layer(layer: HyperLayer) -> nn.Module:
    arguments, options = _settings(layer)
    plain = PLAIN[type(layer)](*arguments, **options, device="meta")
    weight = nn.Parameter(layer.generate(), requires_grad=layer.embedding.requires_grad)
    plain.register_parameter("weight", weight)
    plain.register_parameter("bias", layer._parameters["bias"])
    return plain.train(layer.training)


def _replace(module: nn.Module, made: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """``module`` with the layers of ``made`` in the places of the old ones, wherever they are used."""
    if module in made:
        return made[module]
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in made:
                parent._modules[name] = made[child]
    return module


def _listed(layers: list[tuple[str, nn.Module]], most: int = 8) -> str:
    names = [repr(name) for name, _ in layers]
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "") or "none"
