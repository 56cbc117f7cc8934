"""A whole sequence of a HyperLSTM's steps as one function, its gradient written out by hand.

The equations and the shapes' letters are those of :mod:`weightloom.nn.hyper_cells`, whose cells know when to
come here. What is gained over letting autograd follow every step:

- the gradients of the weights are one product for the whole sequence, not a sum of T small ones;
- a step is a few operations on memory that is there already, forwards and backwards;
- the scalings, three times as large as the gates, are not kept but made again from their embeddings.

Embeddings are one wider here than Z: the last entry is always 1, and its row of ``spread`` is the bias b_0.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from weightloom.errors import InputError
from weightloom.nn.products import product, repeated_product

EPSILON = 1e-5
"""Of the layer norms: torch's default."""
_aten = torch.ops.aten
_SLOPES = (
    (slice(0, 2), _aten.sigmoid_backward.grad_input),
    (2, _aten.tanh_backward.grad_input),
    (3, _aten.sigmoid_backward.grad_input),
)
"""How the gates i and f, g, and o were squashed, on the way back."""


class Sequence(NamedTuple):
    """What the steps of a sequence read; Y = Z + 1, gates in the order i, f, g, o.

    Forget biases are in ``spread`` and ``hyper_bias`` or, with layer norms, in the shifts.
    """

    x: Tensor
    """(T, B, I)"""
    weight: Tensor
    """(4N, I): W_x."""
    hyper_weight: Tensor
    """(4H, I): the hyper cell's weights for x."""
    hyper_bias: Tensor
    """(4H,)"""
    recurrent: Tensor
    """(4N, N): W_h."""
    hyper_recurrent: Tensor
    """(4H, N + H): the hyper cell's weights for the main state and its own."""
    embed: Tensor
    """(12 Y, H): of z_h, z_x and z_b, four gates each."""
    embed_bias: Tensor
    """(12 Y,)"""
    spread: Tensor
    """(12, Y, N)"""
    h: Tensor
    c: Tensor
    hyper_h: Tensor
    hyper_c: Tensor
    drop: Tensor | None = None
    """(T, B, N): factors for what is written into the memory."""
    gain: Tensor | None = None
    """(5, N): of the layer norms of the four gates and of the memory; None for no norms."""
    shift: Tensor | None = None
    hyper_gain: Tensor | None = None
    """(5, H)"""
    hyper_shift: Tensor | None = None


def lstm_scan(sequence: Sequence) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Outputs (T, B, N) and the last h, c, hyper h, hyper c. Differentiable once.

    Raises:
        InputError: in the backward pass, if it is to be differentiated again.
    """
    outputs, *states = _LSTMScan.apply(*sequence)  # type: ignore[no-untyped-call]
    return outputs, tuple(states)


class _Half:
    """One of the two LSTMs of a scan, with what it keeps of every step; W is its width, N or H."""

    def __init__(
        self,
        raw: Tensor,
        kept: tuple[Tensor, Tensor, Tensor, Tensor],
        gain: Tensor | None,
        shift: Tensor | None,
    ) -> None:
        self.raw = raw  # (T, 4, B, W): the gates before their norms and their squashing
        self.gates, self.memory, self.squashed, self.statistics = kept
        self.gain, self.shift = gain, shift
        self.width = raw.shape[-1]

    @classmethod
    def new(cls, raw: Tensor, start: Tensor, gain: Tensor | None, shift: Tensor | None) -> _Half:
        """With room for all steps, and the memory that the first one finds."""
        steps, batch, width = raw.shape[0], *start.shape
        gates = raw if gain is None else torch.empty_like(raw)  # without norms they are squashed in place
        memory = start.new_empty(steps + 1, batch, width)
        memory[0] = start
        # Mean and inverse deviation of every norm.
        statistics = start.new_empty(0 if gain is None else steps, 5, 2, batch, 1)
        return cls(raw, (gates, memory, start.new_empty(steps, batch, width), statistics), gain, shift)

    @property
    def kept(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """For the way back."""
        return self.gates, self.memory, self.squashed, self.statistics

    def remember(self, t: int, drop: Tensor | None, shown: Tensor) -> None:
        """From the gates of step ``t`` to its memory, and to its state in ``shown`` (B, W)."""
        gates = self.gates[t]
        if self.gain is not None:
            for number in range(4):
                gates[number] = self._normed(self.raw[t, number], t, number)
        gates[:2].sigmoid_()
        gates[2].tanh_()
        gates[3].sigmoid_()
        i, f, g, o = gates.unbind(0)
        memory = torch.mul(f, self.memory[t], out=self.memory[t + 1])
        memory.addcmul_(i, g if drop is None else g * drop)
        torch.tanh(memory if self.gain is None else self._normed(memory, t, 4), out=self.squashed[t])
        torch.mul(o, self.squashed[t], out=shown)

    def _normed(self, x: Tensor, t: int, number: int) -> Tensor:
        assert self.gain is not None and self.shift is not None
        normed, mean, deviation = torch.native_layer_norm(
            x, (self.width,), self.gain[number], self.shift[number], EPSILON
        )
        self.statistics[t, number, 0], self.statistics[t, number, 1] = mean, deviation
        return normed

    # ------------------------------------------------------------------ the way back

    def turn(self, d_memory: Tensor) -> None:
        """Begin the way back, with the gradient of the last memory."""
        self.d_memory = d_memory
        self.d_gain = None if self.gain is None else torch.zeros_like(self.gain)
        self.d_shift = None if self.shift is None else torch.zeros_like(self.shift)

    def forget(self, t: int, d_shown: Tensor, drop: Tensor | None, into: Tensor) -> None:
        """From the gradient of the state after step ``t`` to that of its gates, ``into`` (4, B, W)."""
        gates, squashed = self.gates[t], self.squashed[t]
        i, f, g, o = gates.unbind(0)
        d_memory = _aten.tanh_backward.default(d_shown * o, squashed)
        if self.gain is not None:
            d_memory = self._unnormed(d_memory, self.memory[t + 1], t, 4)
        d_memory = d_memory + self.d_memory
        torch.mul(d_memory, g if drop is None else g * drop, out=into[0])
        torch.mul(d_memory, self.memory[t], out=into[1])
        torch.mul(d_memory, i if drop is None else i * drop, out=into[2])
        torch.mul(d_shown, squashed, out=into[3])
        for part, slope in _SLOPES:
            slope(into[part], gates[part], grad_input=into[part])
        if self.gain is not None:
            for number in range(4):
                into[number] = self._unnormed(into[number], self.raw[t, number], t, number)
        self.d_memory = d_memory * f

    def _unnormed(self, gradient: Tensor, x: Tensor, t: int, number: int) -> Tensor:
        assert self.gain is not None and self.shift is not None
        assert self.d_gain is not None and self.d_shift is not None
        mean, deviation = self.statistics[t, number].unbind(0)
        d_x, d_gain, d_shift = _aten.native_layer_norm_backward.default(
            gradient, x, (self.width,), mean, deviation, self.gain[number], self.shift[number], [True] * 3
        )
        self.d_gain[number] += d_gain
        self.d_shift[number] += d_shift
        return d_x


class _LSTMScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        own = Sequence(*tensors)  # type: ignore[arg-type]
        (steps, batch, _), n = own.x.shape, own.h.shape[1]
        new = own.x.new_empty
        rows = own.x.flatten(0, 1)  # (T B, I)
        inputs = product(rows, own.weight).view(steps, batch, -1)  # W_x x
        # What the hyper cell's gates are before its states are added.
        hyper_gates = product(rows, own.hyper_weight).add_(own.hyper_bias).view(steps, batch, -1)
        recurrent = repeated_product(own.recurrent, batch, steps)
        hyper_recurrent = repeated_product(own.hyper_recurrent, batch, steps)
        # Both states side by side, as the hyper cell reads them.
        states = new(steps + 1, batch, own.hyper_recurrent.shape[1])
        states[0, :, :n], states[0, :, n:] = own.h, own.hyper_h
        products = []  # T of (B, 4N): W_h h
        embeddings = new(steps, batch, len(own.embed))
        main = _Half.new(new(steps, 4, batch, n), own.c, own.gain, own.shift)
        hyper = _Half.new(_by_gate(hyper_gates), own.hyper_c, own.hyper_gain, own.hyper_shift)
        scales, embed = new(12, batch, n), own.embed.t()
        for t in range(steps):
            before, after = states[t], states[t + 1]
            hyper_gates[t].add_(hyper_recurrent(before))
            hyper.remember(t, None, after[:, n:])
            torch.addmm(own.embed_bias, after[:, n:], embed, out=embeddings[t])
            torch.bmm(_by_gate(embeddings[t], 12), own.spread, out=scales)
            products.append(recurrent(before[:, :n]))
            # y = b + d_x * (W_x x) + d_h * (W_h h)
            gates = torch.addcmul(scales[8:], scales[4:8], _by_gate(inputs[t]), out=main.raw[t])
            gates.addcmul_(scales[:4], _by_gate(products[t]))
            main.remember(t, None if own.drop is None else own.drop[t], after[:, :n])
        ctx.save_for_backward(
            *own, states, inputs, embeddings, main.raw, *main.kept, hyper.raw, *hyper.kept, *products
        )
        last = (states[-1, :, :n], main.memory[-1], states[-1, :, n:], hyper.memory[-1])
        return states[1:, :, :n].clone(), *(state.clone() for state in last)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # torch's once_differentiable would leave terms out without a word
            raise InputError(
                "create_graph=True: a sequence run as one function has first derivatives only; "
                "return_scales=True runs it step by step, which has all"
            )
        saved = ctx.saved_tensors
        own, rest = Sequence(*saved[: len(Sequence._fields)]), saved[len(Sequence._fields) :]
        states, inputs, embeddings = rest[:3]
        main = _Half(rest[3], rest[4:8], own.gain, own.shift)
        hyper = _Half(rest[8], rest[9:13], own.hyper_gain, own.hyper_shift)
        products = rest[13:]
        d_outputs, d_h, d_c, d_hyper_h, d_hyper_c = gradients
        main.turn(d_c)
        hyper.turn(d_hyper_c)
        steps, batch, n = d_outputs.shape
        new = own.x.new_empty
        d_inputs, d_products = new(inputs.shape), new(inputs.shape)
        d_embeddings, d_hyper_gates = new(embeddings.shape), new(steps, batch, len(own.hyper_weight))
        recurrent = repeated_product(own.recurrent.t(), batch, steps)
        hyper_recurrent = repeated_product(own.hyper_recurrent.t(), batch, steps)
        d_spread = torch.zeros_like(own.spread)
        back = own.spread.transpose(1, 2)
        scales, d_scales = (new(count, batch, n) for count in (8, 12))
        d_gates = d_scales[8:]  # the bias is added: its gradient is that of the gates
        d_state = torch.cat([d_h, d_hyper_h], dim=1)
        for t in reversed(range(steps)):
            d_shown, d_hyper_shown = d_state[:, :n], d_state[:, n:]
            d_shown += d_outputs[t]
            main.forget(t, d_shown, None if own.drop is None else own.drop[t], d_gates)
            embedding = _by_gate(embeddings[t], 12)
            torch.bmm(embedding[:8], own.spread[:8], out=scales)
            torch.mul(d_gates, scales[:4], out=_by_gate(d_products[t]))
            torch.mul(d_gates, scales[4:], out=_by_gate(d_inputs[t]))
            torch.mul(d_gates, _by_gate(products[t]), out=d_scales[:4])
            torch.mul(d_gates, _by_gate(inputs[t]), out=d_scales[4:8])
            d_spread.baddbmm_(embedding.transpose(1, 2), d_scales)
            _by_gate(d_embeddings[t], 12).copy_(torch.bmm(d_scales, back))
            d_hyper_shown.addmm_(d_embeddings[t], own.embed)
            hyper.forget(t, d_hyper_shown, None, _by_gate(d_hyper_gates[t]))
            d_state = hyper_recurrent(d_hyper_gates[t])
            d_state[:, :n].add_(recurrent(d_products[t]))
        # Steps and batch in one: (T, B, width) -> (T B, width).
        before, after, rows = states[:-1].flatten(0, 1), states[1:].flatten(0, 1), own.x.flatten(0, 1)
        d_inputs, d_products, d_embeddings, d_hyper_gates = (
            part.flatten(0, 1) for part in (d_inputs, d_products, d_embeddings, d_hyper_gates)
        )
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = product(d_inputs, own.weight.t()) + product(d_hyper_gates, own.hyper_weight.t())
            d_x = d_x.view_as(own.x)
        found = Sequence(
            x=d_x,  # type: ignore[arg-type]
            weight=_of_weight(d_inputs, rows),
            hyper_weight=_of_weight(d_hyper_gates, rows),
            hyper_bias=d_hyper_gates.sum(0),
            recurrent=_of_weight(d_products, before[:, :n]),
            hyper_recurrent=_of_weight(d_hyper_gates, before),
            embed=_of_weight(d_embeddings, after[:, n:]),
            embed_bias=d_embeddings.sum(0),
            spread=d_spread,
            h=d_state[:, :n],
            c=main.d_memory,
            hyper_h=d_state[:, n:],
            hyper_c=hyper.d_memory,
            gain=main.d_gain,
            shift=main.d_shift,
            hyper_gain=hyper.d_gain,
            hyper_shift=hyper.d_shift,
        )
        return tuple(found)


def _of_weight(gradient: Tensor, x: Tensor) -> Tensor:
    """Of W (C, K), from the gradient (R, C) of x W^T, and x (R, K)."""
    return product(x.t(), gradient.t()).t()


def _by_gate(x: Tensor, parts: int = 4) -> Tensor:
    """A view (..., B, parts W) -> (..., parts, B, W)."""
    return x.unflatten(-1, (parts, -1)).transpose(-3, -2)
