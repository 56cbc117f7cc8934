"""Recurrent cells whose weights are scaled at every step by a smaller cell of their own. One layer, one way.

Knows nothing of stacks of layers, of directions, or of sequences of several lengths: those are in
:mod:`weightloom.nn.hyper_recurrent`. How an LSTM goes along a sequence fast is in
:mod:`weightloom.nn.hyper_scan`.

The smaller ("hyper") cell reads the input and the main state, and its state gives one embedding z for each
gate y and for each of three uses: rows of the recurrent matrix, rows of the input matrix, the bias.

    z_h = W_zh h^ + b_zh     z_x = W_zx h^ + b_zx     z_b = W_zb h^            h^ the hyper cell's state
    d_h = D_h z_h            d_x = D_x z_x            b   = D_b z_b + b_0
    y_t = d_h * (W_h h_{t-1}) + d_x * (W_x x_t) + b,   layer-normalised on request

Shapes: T steps, B batch, I inputs, N units, H units of the hyper cell, Z width of an embedding, G gates
(LSTM 4, in torch's order i, f, g, o; RNN 1).
Source: Ha, Dai and Le, "HyperNetworks" (arXiv 1609.09106), section 3.2, equations 6 to 13, and its appendix
on initialisation. Its equations 6 and 11 print the hyper state of the step before; its author's code uses
that of the step itself, and so do these cells. The constant that is added to forget gates
(``forget_bias``) is the author's code's too. Recurrent dropout: Semeniuta et al. (arXiv 1603.05118).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightloom.errors import InputError
from weightloom.nn.hyper_scan import Sequence, lstm_scan
from weightloom.nn.weight_generators import require_size

States = tuple[Tensor, ...]
"""Main states first, hyper states after them; each (B, N) or (B, H)."""

Scales = tuple[Tensor, Tensor, Tensor]
"""d_h, d_x and b of one step, each (G, B, N)."""


def _whole_precision(like: Tensor) -> torch.dtype:
    """The dtype of ``like``, or float32 for half precision."""
    return torch.float32 if like.dtype in (torch.float16, torch.bfloat16) else like.dtype


class Scan(NamedTuple):
    """What a cell makes of a sequence: outputs (T, B, N), the last states, and on request scalings.

    ``scales`` (T, 3G, B, N): d_h of every gate, then d_x, then b.
    """

    outputs: Tensor
    states: States
    scales: Tensor | None


class HyperCell(nn.Module, ABC):
    """The parameters that all cells here have, their initialisation, and what a step has in common."""

    gates: int
    main_states: int
    """How many states the main cell has; the hyper cell is of the same kind and has as many."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        hyper_size: int = 128,
        embedding_size: int = 4,
        layer_norm: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for what, value in (
            ("input_size", input_size),
            ("hidden_size", hidden_size),
            ("hyper_size", hyper_size),
            ("embedding_size", embedding_size),
        ):
            require_size(what, value)
        self.input_size, self.hidden_size, self.hyper_size = input_size, hidden_size, hyper_size
        self.embedding_size, self.layer_norm = embedding_size, layer_norm
        i, n, h, z, g = input_size, hidden_size, hyper_size, embedding_size, self.gates

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.weight_ih, self.weight_hh, self.bias = parameter(g * n, i), parameter(g * n, n), parameter(g * n)
        # The hyper cell reads (h, x) in this order.
        self.hyper_weight_ih, self.hyper_weight_hh = parameter(g * h, n + i), parameter(g * h, h)
        self.hyper_bias = parameter(g * h)
        # W_zh, W_zx, W_zb of all gates in rows; z_b has no bias.
        self.embed_weight, self.embed_bias = parameter(3 * g * z, h), parameter(2 * g * z)
        # D_h, D_x, D_b of all gates.
        self.spread = parameter(3 * g, z, n)
        if layer_norm:
            # One norm for each gate and, for cells that have one, one for the memory.
            self.norm_weight, self.norm_bias = parameter(g, n), parameter(g, n)
            self.hyper_norm_weight, self.hyper_norm_bias = parameter(g, h), parameter(g, h)
            if self.main_states > 1:
                self.memory_norm = nn.LayerNorm(n, device=device, dtype=dtype)
                self.hyper_memory_norm = nn.LayerNorm(h, device=device, dtype=dtype)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The paper's initialisation: every scaling starts at 0.1, whatever the input."""
        for weight in (self.weight_ih, self.weight_hh, self.hyper_weight_ih, self.hyper_weight_hh):
            for gate in weight.chunk(self.gates):
                # Made apart: orthogonal_ cannot write into a part of a tensor, nor make half precision.
                gate.copy_(nn.init.orthogonal_(torch.empty_like(gate, dtype=_whole_precision(gate))))
        split = 2 * self.gates
        nn.init.zeros_(self.bias)
        nn.init.zeros_(self.hyper_bias)
        self.embed_weight[: split * self.embedding_size] = 0
        self.embed_weight[split * self.embedding_size :].normal_(std=0.01)
        nn.init.ones_(self.embed_bias)
        self.spread[:split] = 0.1 / self.embedding_size
        self.spread[split:] = 0
        if self.layer_norm:
            for part in (self.norm_weight, self.hyper_norm_weight):
                nn.init.ones_(part)
            for part in (self.norm_bias, self.hyper_norm_bias):
                nn.init.zeros_(part)
            if self.main_states > 1:
                self.memory_norm.reset_parameters()
                self.hyper_memory_norm.reset_parameters()

    @property
    def state_sizes(self) -> tuple[int, ...]:
        """Width of each of the states."""
        return (self.hidden_size,) * self.main_states + (self.hyper_size,) * self.main_states

    def begin(self, inputs: Tensor) -> States:
        """States of zeros for ``inputs`` (T, B, I)."""
        return tuple(inputs.new_zeros(inputs.shape[1], size) for size in self.state_sizes)

    @abstractmethod
    def step(self, fixed: _Fixed, t: int, states: States, drop: Tensor | None) -> tuple[States, Scales]:
        """States after step ``t``, and the scalings."""

    def dropout_mask(self, inputs: Tensor) -> Tensor | None:
        """(T, B, N) factors for what is written into the memory; None where nothing is dropped."""
        return None

    def scan(
        self, inputs: Tensor, states: States, *, live: Tensor | None = None, want_scales: bool = False
    ) -> Scan:
        """Go along ``inputs`` (T, B, I) from ``states``.

        Where ``live`` (T, B) is False, a step leaves the states of that sequence as they are.
        """
        fixed = _Fixed(self, inputs)
        drop = self.dropout_mask(inputs)
        outputs, scales = [], []
        for t in range(inputs.shape[0]):
            after, scale = self.step(fixed, t, states, drop)
            if live is not None:
                going = live[t, :, None]  # (B,) -> (B, 1)
                after = tuple(torch.where(going, new, old) for new, old in zip(after, states, strict=True))
            states = after
            outputs.append(states[0])
            if want_scales:
                scales.append(torch.cat(scale))
        return Scan(torch.stack(outputs), states, torch.stack(scales) if want_scales else None)

    def extra_repr(self) -> str:
        """What a print of the module shows."""
        return (
            f"{self.input_size}, {self.hidden_size}, hyper_size={self.hyper_size}, "
            f"embedding_size={self.embedding_size}, layer_norm={self.layer_norm}"
        )


class _Fixed:
    """What is the same for all steps of a sequence, made once: products with the inputs, joined matrices."""

    def __init__(self, cell: HyperCell, inputs: Tensor) -> None:
        g, n = cell.gates, cell.hidden_size
        steps, batch, _ = inputs.shape
        weight = torch.cat([cell.weight_ih, cell.hyper_weight_ih[:, n:]])  # (GN + GH, I)
        bias = torch.cat([torch.zeros_like(cell.bias), cell.hyper_bias])
        projected = F.linear(inputs, weight, bias)  # (T, B, GN + GH)
        main, hyper = projected.split([g * n, g * cell.hyper_size], dim=-1)
        # unbind, for the gradient of picking a step by its number is as long as the whole sequence.
        self.hyper_inputs = hyper.unbind(0)  # T of (B, GH)
        # (T, B, GN) -> (T, B, G, N) -> T of (G, B, N)
        self.inputs = main.view(steps, batch, g, n).transpose(1, 2).contiguous().unbind(0)
        self.recurrent = cell.weight_hh.t()  # (N, GN)
        self.hyper_main = cell.hyper_weight_ih[:, :n].t()  # (N, GH)
        self.hyper_recurrent = cell.hyper_weight_hh.t()
        self.embed = cell.embed_weight.t()
        self.embed_bias = F.pad(cell.embed_bias, (0, g * cell.embedding_size))
        self.spread = cell.spread.split(g)
        self.bias = cell.bias.view(g, 1, n)
        self.cell = cell

    def hyper_gates(self, t: int, h: Tensor, hyper_h: Tensor) -> tuple[Tensor, Tensor]:
        """W_h h as (G, B, N), and the hyper cell's gates (B, GH)."""
        g, n = self.cell.gates, self.cell.hidden_size
        main = h @ self.recurrent
        hyper = torch.addmm(self.hyper_inputs[t], h, self.hyper_main)
        hyper = torch.addmm(hyper, hyper_h, self.hyper_recurrent)
        if self.cell.layer_norm:
            split = hyper.view(-1, g, self.cell.hyper_size)  # (B, GH) -> (B, G, H)
            normed = F.layer_norm(split, split.shape[-1:])
            hyper = torch.addcmul(self.cell.hyper_norm_bias, normed, self.cell.hyper_norm_weight).flatten(1)
        return main.view(-1, g, n).transpose(0, 1), hyper  # (B, GN) -> (B, G, N) -> (G, B, N)

    def gates(self, t: int, recurrent: Tensor, hyper_h: Tensor) -> tuple[Tensor, Scales]:
        """The main gates (G, B, N) before their squashing, and the scalings."""
        g = self.cell.gates
        z = torch.addmm(self.embed_bias, hyper_h, self.embed)  # (B, 3GZ)
        z = z.unflatten(1, (3 * g, -1)).transpose(0, 1)  # (B, 3GZ) -> (B, 3G, Z) -> (3G, B, Z)
        # Three products and not one: each (G, B, N), and no gradient has to be put together again.
        d_h, d_x, shift = (torch.bmm(own, each) for own, each in zip(z.split(g), self.spread, strict=True))
        gates = torch.addcmul(torch.addcmul(shift + self.bias, d_x, self.inputs[t]), d_h, recurrent)
        if self.cell.layer_norm:
            normed = F.layer_norm(gates, gates.shape[-1:])
            gates = torch.addcmul(self.cell.norm_bias[:, None], normed, self.cell.norm_weight[:, None])
        return gates, (d_h, d_x, shift)


class LSTMHyperCell(HyperCell):
    """An LSTM scaled by an LSTM (equations 10 to 13); states h, c, hyper h, hyper c.

    A sequence is one function with a gradient of its own (:func:`weightloom.nn.hyper_scan.lstm_scan`), faster
    than :meth:`step` by step. The steps are gone one by one where torch has to see inside or more
    is asked for: in graphs that are compiled, exported or traced, under ``torch.func``, in mixed or half
    precision, without memory, for no sequence at all or for several lengths, and for scalings (so
    ``want_scales`` is the way to second derivatives).
    """

    gates = 4
    main_states = 2

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        recurrent_dropout: float = 0.0,
        forget_bias: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(input_size, hidden_size, **options)
        self.recurrent_dropout, self.forget_bias = (
            check_rate("recurrent_dropout", recurrent_dropout),
            forget_bias,
        )

    def dropout_mask(self, inputs: Tensor) -> Tensor | None:
        """Of the tanh(g) that is written, never of the memory itself."""
        if not self.training or self.recurrent_dropout == 0:
            return None
        keep = 1 - self.recurrent_dropout
        return inputs.new_empty(*inputs.shape[:2], self.hidden_size).bernoulli_(keep).div_(keep)

    def scan(
        self, inputs: Tensor, states: States, *, live: Tensor | None = None, want_scales: bool = False
    ) -> Scan:
        """As one function where that can be, else step by step."""
        if live is not None or want_scales or not _is_plain(inputs):
            return super().scan(inputs, states, live=live, want_scales=want_scales)
        outputs, after = lstm_scan(self._sequence(inputs, states))
        return Scan(outputs, after, None)

    def _sequence(self, inputs: Tensor, states: States) -> Sequence:
        """Joined matrices, and constants put where something is added anyway."""
        n, z = self.hidden_size, self.embedding_size
        h, c, hyper_h, hyper_c = states
        forget = F.pad(self.bias.new_full((1, 1), self.forget_bias), (0, 0, 1, 2))  # (4, 1)
        bias = self.bias.view(4, n)
        hyper_bias = self.hyper_bias.view(4, self.hyper_size)
        norms: tuple[Tensor, ...] = ()
        if self.layer_norm:
            own, hyper = self.memory_norm, self.hyper_memory_norm
            norms = (
                torch.cat([self.norm_weight, own.weight[None]]),
                torch.cat([self.norm_bias + forget, own.bias[None]]),
                torch.cat([self.hyper_norm_weight, hyper.weight[None]]),
                torch.cat([self.hyper_norm_bias + forget, hyper.bias[None]]),
            )
        else:
            bias, hyper_bias = bias + forget, hyper_bias + forget
        embed = self.embed_weight.view(12, z, self.hyper_size)
        embed_bias = F.pad(self.embed_bias.view(8, z), (0, 0, 0, 4))  # z_b has none
        return Sequence(
            inputs,
            self.weight_ih,
            self.hyper_weight_ih[:, n:],
            hyper_bias.flatten(),
            self.weight_hh,
            torch.cat([self.hyper_weight_ih[:, :n], self.hyper_weight_hh], dim=1),
            F.pad(embed, (0, 0, 0, 1)).flatten(0, 1),  # (12, Z, H) -> (12, Z + 1, H) -> (12 (Z + 1), H)
            F.pad(embed_bias, (0, 1), value=1.0).flatten(),
            torch.cat([self.spread, F.pad(bias[:, None], (0, 0, 0, 0, 8, 0))], dim=1),
            h,
            c,
            hyper_h,
            hyper_c,
            self.dropout_mask(inputs),
            *norms,
        )

    def step(self, fixed: _Fixed, t: int, states: States, drop: Tensor | None) -> tuple[States, Scales]:
        """One step of both cells."""
        h, c, hyper_h, hyper_c = states
        recurrent, hyper_gates = fixed.hyper_gates(t, h, hyper_h)
        i, f, g, o = hyper_gates.chunk(4, dim=1)
        hyper_norm = self.hyper_memory_norm if self.layer_norm else None
        hyper_h, hyper_c = self._remember(i, f, torch.tanh(g), o, hyper_c, hyper_norm)
        gates, scales = fixed.gates(t, recurrent, hyper_h)
        i, f, g, o = gates.unbind(0)
        written = torch.tanh(g) if drop is None else torch.tanh(g) * drop[t]
        h, c = self._remember(i, f, written, o, c, self.memory_norm if self.layer_norm else None)
        return (h, c, hyper_h, hyper_c), scales

    def _remember(
        self, i: Tensor, f: Tensor, written: Tensor, o: Tensor, memory: Tensor, norm: nn.LayerNorm | None
    ) -> tuple[Tensor, Tensor]:
        forget = torch.sigmoid(f + self.forget_bias if self.forget_bias else f)
        memory = torch.addcmul(forget * memory, torch.sigmoid(i), written)
        return torch.sigmoid(o) * torch.tanh(memory if norm is None else norm(memory)), memory


class RNNHyperCell(HyperCell):
    """A simple recurrent cell scaled by another (equations 6 to 9); states h, hyper h."""

    gates = 1
    main_states = 1

    def __init__(
        self, input_size: int, hidden_size: int, *, nonlinearity: str = "tanh", **options: Any
    ) -> None:
        super().__init__(input_size, hidden_size, **options)
        if nonlinearity not in ("tanh", "relu"):
            raise InputError(f"nonlinearity must be 'tanh' or 'relu', not {nonlinearity!r}")
        self.nonlinearity = nonlinearity

    def step(self, fixed: _Fixed, t: int, states: States, drop: Tensor | None) -> tuple[States, Scales]:
        """One step of both cells."""
        squash = torch.tanh if self.nonlinearity == "tanh" else torch.relu
        h, hyper_h = states
        recurrent, hyper_gates = fixed.hyper_gates(t, h, hyper_h)
        hyper_h = squash(hyper_gates)
        gates, scales = fixed.gates(t, recurrent, hyper_h)
        return (squash(gates[0]), hyper_h), scales


def _is_plain(inputs: Tensor) -> bool:
    """Whether nothing but autograd looks at what is done, and all of it is of one precision and in memory."""
    return (
        inputs.dtype in (torch.float32, torch.float64)
        and not is_traced()
        and not inputs.is_meta
        and inputs.numel() > 0
        and not is_autocast(inputs)
        # Not public, but what torch itself asks before it lets a function with its own gradient run.
        and not torch._C._are_functorch_transforms_active()
    )


def is_traced() -> bool:
    """Whether torch writes down what is done: values cannot be looked at then."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]


def is_autocast(x: Tensor) -> bool:
    """Whether mixed precision is on where ``x`` is; not every device has it."""
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def check_rate(what: str, value: float) -> float:
    """``value``, or :class:`InputError` unless it is a probability below 1."""
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise InputError(f"{what} must be at least 0 and below 1, not {value!r}")
    return value
