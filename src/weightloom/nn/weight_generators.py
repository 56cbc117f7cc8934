"""Networks that make the weights of a layer from learned embeddings. They know nothing of layers.

Three of them: :class:`BlockGenerator`, the two-layer generator of the paper, :class:`SeparableGenerator`,
which makes a kernel as a pattern times a number for each input, and :class:`CoordinateGenerator`, which says
each weight from where it stands. All give weights of unit variance at the start; a layer multiplies them by
its own scale. Layers are in :mod:`weightloom.nn.hyper_layers`.

Shapes: K embeddings of one weight, Z width of an embedding, D hidden width, O and I outputs and inputs of a
block, F values of a kernel (9 for 3 x 3, 1 for a linear layer). A weight is (outputs, inputs, *kernel).
Source: Ha, Dai and Le, "HyperNetworks" (arXiv 1609.09106), section 3.1, equations 1 to 3, and section 2 for
coordinates; patterns from coordinates, Stanley, "Compositional pattern producing networks" (2007); kernels
of one output alike but for a factor, Haase and Amthor, "Rethinking depthwise separable convolutions" (arXiv
2003.13549).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightloom.errors import InputError, UnknownNameError
from weightloom.whole import whole_number

# Each with the factor that gives its output a mean square of 1 for a standard normal input.
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "gelu": (F.gelu, 1.5337),
    "relu": (torch.relu, math.sqrt(2)),
    "silu": (F.silu, 1.6765),
    "tanh": (torch.tanh, 1.5927),
}


class WeightGenerator(nn.Module, ABC):
    """Embeddings (K, Z) to a weight of any shape that the generator is for."""

    embedding_size: int

    @abstractmethod
    def num_embeddings(self, shape: Sequence[int]) -> int:
        """How many embeddings K a weight of ``shape`` is made from. Raises InputError where it cannot be."""

    @abstractmethod
    def reset_parameters(self) -> None:
        """Start anew: weights of unit variance for embeddings of unit variance."""

    @abstractmethod
    def forward(self, embeddings: Tensor, shape: Sequence[int]) -> Tensor:
        """(K, Z) embeddings to a weight of ``shape``, contiguous."""

    def check_embeddings(self, embeddings: Tensor, shape: Sequence[int]) -> None:
        """Raise :class:`InputError` unless ``embeddings`` are those of a weight of ``shape``."""
        wanted = (self.num_embeddings(shape), self.embedding_size)
        if tuple(embeddings.shape) != wanted:
            raise InputError(
                f"a weight of shape {tuple(shape)} is made from embeddings of shape {wanted}, "
                f"not {tuple(embeddings.shape)}"
            )


class TiledGenerator(WeightGenerator):
    """What makes weights of any size from blocks: one embedding a block, those at the edge are cut."""

    kernel_size: tuple[int, ...]
    block: tuple[int, int]

    def set_block(self, kernel_size: Sequence[int], block: tuple[int, int], **sizes: int) -> None:
        """Take kernel and block over, after a look at them and at other ``sizes`` by name."""
        if not isinstance(kernel_size, Sequence):
            raise InputError(f"kernel_size is a list of sides, not {kernel_size!r}")
        if not isinstance(block, Sequence) or len(block) != 2:
            raise InputError(f"block is (outputs, inputs), not {block!r}")
        for what, value in (
            *(("kernel_size", size) for size in kernel_size),
            *(("block", size) for size in block),
            *sizes.items(),
        ):
            require_size(what, value)
        self.kernel_size, self.block = tuple(kernel_size), (block[0], block[1])

    def tiles(self, shape: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of the blocks that cover a weight of ``shape``."""
        if len(shape) < 2 or tuple(shape[2:]) != self.kernel_size:
            raise InputError(
                f"this generator makes weights with kernels of shape {self.kernel_size}, "
                f"not {tuple(shape[2:])} (weight {tuple(shape)})"
            )
        return math.ceil(shape[0] / self.block[0]), math.ceil(shape[1] / self.block[1])

    def num_embeddings(self, shape: Sequence[int]) -> int:
        """One a block."""
        return math.prod(self.tiles(shape))

    def lay(self, blocks: Tensor, shape: Sequence[int]) -> Tensor:
        """(K, O, I, F) blocks side by side, cut to ``shape``."""
        rows, columns = self.tiles(shape)
        outputs, inputs = self.block
        # (K, O, I, F) -> (rows, columns, O, I, F) -> (rows, O, columns, I, F) -> (outputs, inputs, F)
        laid = blocks.reshape(rows, columns, outputs, inputs, -1).transpose(1, 2)
        weight = laid.reshape(rows * outputs, columns * inputs, -1)
        return weight[: shape[0], : shape[1]].reshape(tuple(shape)).contiguous()

    def extra_repr(self) -> str:
        """What a print of the module shows beside its parts."""
        return f"kernel_size={self.kernel_size}, block={self.block}"


class BlockGenerator(TiledGenerator):
    """The two-layer generator of the paper; a weight larger than one block is tiled, one embedding a block.

    For an embedding z, every input channel i of the block has its own hidden vector, and all share the
    second layer (equations 2 and 3; ``activation`` is not in the paper, whose generator is linear):

        a_i = W_i z + B_i                 W_i (D, Z)
        K_i = <W_out, phi(a_i)> + B_out   K_i (O, *kernel)

    That is Z D I + D I + D O F + O F values for any number of layers. A weight that no whole number of
    blocks fits is cut from the blocks that cover it.

    Args:
        kernel_size: of the weights, () for linear layers.
        block: outputs O and inputs I of a block.
        embedding_size: Z.
        hidden_size: D; Z by default, as in the paper.
        activation: phi: gelu, relu, silu, tanh, or None for the linear generator.
        device, dtype: of the parameters.

    Raises:
        InputError: a size below 1.
        UnknownNameError: no such activation.

    Example:
        >>> generator = BlockGenerator((7, 7), block=(16, 16), embedding_size=4)
        >>> sum(p.numel() for p in generator.parameters())  # the paper's MNIST network: 4,240
        4240
        >>> generator(torch.randn(2, 4), (32, 16, 7, 7)).shape
        torch.Size([32, 16, 7, 7])
    """

    def __init__(
        self,
        kernel_size: Sequence[int],
        *,
        block: tuple[int, int] = (16, 16),
        embedding_size: int = 64,
        hidden_size: int | None = None,
        activation: str | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden = embedding_size if hidden_size is None else hidden_size
        self.set_block(kernel_size, block, embedding_size=embedding_size, hidden_size=hidden)
        if activation is not None and activation not in ACTIVATIONS:
            raise UnknownNameError("activation", str(activation), ACTIVATIONS)
        self.embedding_size, self.hidden_size, self.activation = embedding_size, hidden, activation
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.project = nn.Linear(embedding_size, block[1] * hidden, **factory)
        self.out = nn.Linear(hidden, block[0] * math.prod(kernel_size), **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights of unit variance for embeddings of unit variance."""
        gain = 1.0 if self.activation is None else ACTIVATIONS[self.activation][1]
        nn.init.normal_(self.project.weight, std=self.embedding_size**-0.5)
        nn.init.normal_(self.out.weight, std=gain * self.hidden_size**-0.5)
        nn.init.zeros_(self.project.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, embeddings: Tensor, shape: Sequence[int]) -> Tensor:
        """Blocks side by side, cut to ``shape``."""
        self.check_embeddings(embeddings, shape)
        outputs, inputs = self.block
        hidden = self.project(embeddings).view(-1, inputs, self.hidden_size)  # (K, I*D) -> (K, I, D)
        if self.activation is not None:
            hidden = ACTIVATIONS[self.activation][0](hidden)
        blocks = self.out(hidden).view(-1, inputs, outputs, math.prod(self.kernel_size))  # (K, I, O, F)
        return self.lay(blocks.transpose(1, 2), shape)

    def extra_repr(self) -> str:
        """What a print of the module shows beside its parts."""
        return f"{super().extra_repr()}, activation={self.activation}"


class SeparableGenerator(TiledGenerator):
    """A kernel is one pattern for all inputs of a block, times a number for each of them.

    An embedding is z = (c, s), the numbers c (O, I) and what the pattern is made from, s (S,):

        K_{oi} = c_{oi} (W s + b)         W (F, S), shared by all layers

    So a kernel of F values costs little more than one value for each pair of output and input, as separable
    convolutions do; within one output, kernels of trained networks are alike but for such a factor (Haase
    and Amthor, arXiv 2003.13549). Where the paper's generator is linear, this one is bilinear.

    Args:
        kernel_size: of the weights, of at least two values.
        block: outputs O and inputs I of a block.
        pattern_size: S.
        device, dtype: of the parameters.

    Raises:
        InputError: a size below 1, or a kernel of one value, in which there is nothing to separate.

    Example:
        >>> generator = SeparableGenerator((3, 3), block=(1, 32), pattern_size=8)
        >>> generator.embedding_size, sum(p.numel() for p in generator.parameters())
        (40, 81)
        >>> generator(torch.randn(128, 40), (64, 64, 3, 3)).shape
        torch.Size([64, 64, 3, 3])
    """

    def __init__(
        self,
        kernel_size: Sequence[int],
        *,
        block: tuple[int, int] = (1, 32),
        pattern_size: int = 8,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.set_block(kernel_size, block, pattern_size=pattern_size)
        values = math.prod(kernel_size)
        if values < 2:
            raise InputError("a kernel of one value has nothing to separate; skip such layers")
        self.pattern_size = pattern_size
        self.embedding_size = block[0] * block[1] + pattern_size
        self.pattern = nn.Linear(pattern_size, values, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights of unit variance for embeddings of unit variance."""
        nn.init.normal_(self.pattern.weight, std=self.pattern_size**-0.5)
        nn.init.zeros_(self.pattern.bias)

    def forward(self, embeddings: Tensor, shape: Sequence[int]) -> Tensor:
        """Blocks side by side, cut to ``shape``."""
        self.check_embeddings(embeddings, shape)
        factors, seeds = embeddings.split([self.embedding_size - self.pattern_size, self.pattern_size], dim=1)
        blocks = factors[..., None] * self.pattern(seeds)[:, None]  # (K, O*I, 1) (K, 1, F) -> (K, O*I, F)
        return self.lay(blocks, shape)


class CoordinateGenerator(WeightGenerator):
    """Each weight is a function of where it stands: its output, input and kernel position, all in [-1, 1].

    A pattern producing network: a layer of sines, then layers with tanh, then one number a weight. The
    layer's embedding is added to the first layer's phases, so that one network makes many layers:

        w(o, i, k_1 ... k_n) = v . tanh(... sin(A (o, i, k) + B z + b))

    The generator's size does not depend on that of the weights. In the paper's comparison such a network does
    clearly worse than embeddings (93.5 against 98.5 per cent on MNIST): weights are smooth only where
    neighbouring inputs are, and channels have no neighbours.

    Args:
        embedding_size: Z.
        hidden_size: width D of the layers.
        depth: layers between the sines and the output.
        frequency: standard deviation of the first sines' frequencies, in radians for half a side.
        max_dims: dimensions that a kernel may have; shorter kernels have zeros there.
        device, dtype: of the parameters.

    Raises:
        InputError: a size below 1 or a frequency that is not above 0.

    Example:
        >>> generator = CoordinateGenerator(embedding_size=2, hidden_size=8)
        >>> generator(torch.zeros(1, 2), (5, 3, 4, 4)).shape
        torch.Size([5, 3, 4, 4])
    """

    def __init__(
        self,
        *,
        embedding_size: int = 8,
        hidden_size: int = 32,
        depth: int = 1,
        frequency: float = 6.0,
        max_dims: int = 3,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for what, value in (
            ("embedding_size", embedding_size),
            ("hidden_size", hidden_size),
            ("max_dims", max_dims),
        ):
            require_size(what, value)
        require_size("depth", depth, 0)
        if not isinstance(frequency, int | float) or not frequency > 0:
            raise InputError(f"frequency must be above 0, not {frequency}")
        self.embedding_size, self.hidden_size, self.max_dims = embedding_size, hidden_size, max_dims
        self.frequency = frequency
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.place = nn.Linear(2 + max_dims, hidden_size, **factory)
        self.shift = nn.Linear(embedding_size, hidden_size, bias=False, **factory)
        self.layers = nn.ModuleList(nn.Linear(hidden_size, hidden_size, **factory) for _ in range(depth))
        self.out = nn.Linear(hidden_size, 1, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights of about unit variance."""
        width = self.hidden_size
        nn.init.normal_(self.place.weight, std=self.frequency)
        nn.init.uniform_(self.place.bias, -math.pi, math.pi)
        nn.init.normal_(self.shift.weight, std=math.pi * self.embedding_size**-0.5)
        gain = math.sqrt(2)  # a sine of a random phase has a mean square of 1/2
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=gain * width**-0.5)
            nn.init.zeros_(layer.bias)
            gain = ACTIVATIONS["tanh"][1]
        nn.init.normal_(self.out.weight, std=gain * width**-0.5)
        nn.init.zeros_(self.out.bias)

    def num_embeddings(self, shape: Sequence[int]) -> int:
        """One a weight."""
        if not 2 <= len(shape) <= 2 + self.max_dims:
            raise InputError(
                f"this generator makes weights of 2 to {2 + self.max_dims} dimensions, not {tuple(shape)}"
            )
        return 1

    def forward(self, embeddings: Tensor, shape: Sequence[int]) -> Tensor:
        """Every weight from its own coordinates."""
        self.check_embeddings(embeddings, shape)
        # The first layer is linear in the coordinates: one small product for each, added by broadcasting.
        phase = self.place.bias + self.shift(embeddings[0])  # (D,)
        for number, size in enumerate(shape):
            along = torch.linspace(-1, 1, size, device=phase.device, dtype=phase.dtype)
            if size == 1:
                along = torch.zeros_like(along)
            part = along[:, None] * self.place.weight[:, number]  # (size, D)
            phase = phase[..., None, :] + part  # (*shape so far, size, D)
        hidden = torch.sin(phase)
        for layer in self.layers:
            hidden = torch.tanh(layer(hidden))
        return self.out(hidden).squeeze(-1).contiguous()  # (*shape, 1) -> shape

    def extra_repr(self) -> str:
        """What a print of the module shows beside its parts."""
        return f"embedding_size={self.embedding_size}, frequency={self.frequency}"


def require_size(what: str, value: int, least: int = 1) -> int:
    """``value``, or :class:`InputError` where it is not a whole number of at least ``least``."""
    return whole_number(value, what, least)
