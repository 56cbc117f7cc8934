"""HyperLSTM and HyperRNN, called as their namesakes in torch: layers, directions, packed sequences, states.

The equations, and the shapes' letters, are in :mod:`weightloom.nn.hyper_cells`. Further: L layers, R
directions (1 or 2).

States carry the hyper cell along, so that a sequence may be cut anywhere and gone on with. Where the
namesake has (h, c), h is the same here, and c holds the memory c, the hyper cell's h and the hyper cell's c
side by side: (L*R, B, N + 2 H). The RNN's h holds h and the hyper cell's h: (L*R, B, N + H). An initial
state may also have the namesake's own shape; the hyper cell then starts from zeros.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from weightloom.errors import InputError
from weightloom.nn.hyper_cells import (
    HyperCell,
    LSTMHyperCell,
    RNNHyperCell,
    States,
    check_rate,
    is_autocast,
    is_traced,
)
from weightloom.nn.weight_generators import require_size

State = Tensor | tuple[Tensor, Tensor]


class HyperScales(NamedTuple):
    """What the hyper cells did to the main weights, step by step; each (L*R, T, B, G, N), zero in padding.

    ``recurrent`` multiplies the rows of W_h, ``input`` those of W_x, ``shift`` is added to the bias.
    """

    recurrent: Tensor
    input: Tensor
    shift: Tensor

    def change(self) -> Tensor:
        """(L*R, T, B): root mean square change of the recurrent scaling in this step; 0 in the first."""
        moved = (self.recurrent[:, 1:] - self.recurrent[:, :-1]).square().mean((-2, -1)).sqrt()
        return F.pad(moved, (0, 0, 1, 0))


class _HyperRecurrent(nn.Module):
    cell_type: ClassVar[type[HyperCell]]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        **options: Any,
    ) -> None:
        super().__init__()
        require_size("num_layers", num_layers)
        if not bias:
            raise InputError(
                f"bias=False: a {type(self).__name__} makes its biases and cannot leave them out"
            )
        self.dropout = check_rate("dropout", dropout)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.batch_first, self.bidirectional = batch_first, bidirectional
        # What code written for the namesake may ask for.
        self.bias, self.proj_size = True, 0
        self.directions = 2 if bidirectional else 1
        sizes = [input_size] + [hidden_size * self.directions] * (num_layers - 1)
        self.cells = nn.ModuleList(
            self.cell_type(size, hidden_size, **options) for size in sizes for _ in range(self.directions)
        )
        self.hyper_size = self._cell(0).hyper_size

    def _cell(self, number: int) -> HyperCell:
        cell = self.cells[number]
        assert isinstance(cell, HyperCell)
        return cell

    def reset_parameters(self) -> None:
        """The paper's initialisation, of every cell."""
        for number in range(len(self.cells)):
            self._cell(number).reset_parameters()

    def flatten_parameters(self) -> None:
        """Nothing to do; here so that code written for the namesake runs."""

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """The parameters of each layer and direction, in the order of the cells."""
        return [list(cell.parameters()) for cell in self.cells]

    def _run(self, input: Tensor | PackedSequence, hx: State | None, return_scales: bool) -> tuple[Any, ...]:
        """Whatever is handed in to time-major tensors and back."""
        packed = input if isinstance(input, PackedSequence) else None
        lengths: Tensor | None = None
        if packed is not None:
            check_packed(packed)
            x, lengths = pad_packed_sequence(packed)  # (T, B, I) in the caller's order
        elif isinstance(input, Tensor):
            x = input
        else:
            raise InputError(f"input must be a tensor or a packed sequence, not {type(input).__name__}")
        batched = x.dim() == 3
        if x.dim() not in (2, 3) or x.shape[-1] != self.input_size:
            order = "(batch, steps, features)" if self.batch_first else "(steps, batch, features)"
            raise InputError(
                f"input must end in {self.input_size} features, {order} or (steps, features), "
                f"not {tuple(x.shape)}"
            )
        check_kind(x, self._cell(0))
        if not batched:
            x = x[:, None]  # (T, I) -> (T, 1, I)
        elif self.batch_first and packed is None:
            x = x.transpose(0, 1)  # (B, T, I) -> (T, B, I)
        if x.shape[0] == 0:
            raise InputError(f"input must have at least one step, not {tuple(x.shape[:2])}")
        check_finite(x)
        states = self._states(hx, x, batched)
        outputs, last, scales = self._layers(x, states, lengths, return_scales)
        final = self._pack(last)
        if not batched:
            outputs = outputs[:, 0]
            final = tuple(state[:, 0] for state in final)
        result: Any = outputs
        if packed is not None:
            result = _repack(outputs, packed)
        elif batched and self.batch_first:
            result = outputs.transpose(0, 1)
        state: Any = final if len(final) > 1 else final[0]
        return (result, state, scales) if return_scales else (result, state)

    def _layers(
        self, x: Tensor, states: list[States], lengths: Tensor | None, want_scales: bool
    ) -> tuple[Tensor, list[States], HyperScales | None]:
        live, backward = None, None
        if lengths is not None:
            steps = torch.arange(len(x), device=x.device)[:, None]  # (T, 1)
            lengths = lengths.to(x.device)
            live = steps < lengths  # (T, B)
            backward = torch.where(live, lengths - 1 - steps, steps)  # step t of the reversed sequence

        def reverse(y: Tensor) -> Tensor:
            if backward is None:
                return y.flip(0)
            return y.gather(0, backward.view(*backward.shape, *[1] * (y.dim() - 2)).expand_as(y))

        last, scales = [], []
        for layer in range(self.num_layers):
            if layer and self.dropout and self.training:
                x = F.dropout(x, self.dropout)
            found = []
            for direction in range(self.directions):
                number = layer * self.directions + direction
                scan = self._cell(number).scan(
                    reverse(x) if direction else x, states[number], live=live, want_scales=want_scales
                )
                found.append(reverse(scan.outputs) if direction else scan.outputs)
                last.append(scan.states)
                if scan.scales is not None:
                    own = scan.scales.transpose(1, 2)  # (T, 3G, B, N) -> (T, B, 3G, N)
                    scales.append(reverse(own) if direction else own)
            x = torch.cat(found, dim=-1) if len(found) > 1 else found[0]
        if live is not None:
            x = x * live[..., None]
        if not want_scales:
            return x, last, None
        together = torch.stack(scales)  # (L*R, T, B, 3G, N)
        if live is not None:
            together = together * live[..., None, None]
        return x, last, HyperScales(*together.chunk(3, dim=3))

    # ------------------------------------------------------------------ states

    def _widths(self) -> list[list[int]]:
        """Of each state tensor that the caller sees, the widths of what is in it."""
        main, hyper = self.hidden_size, self.hyper_size
        return [[main], [main, hyper, hyper]] if self._cell(0).main_states == 2 else [[main, hyper]]

    def _states(self, hx: State | None, x: Tensor, batched: bool) -> list[States]:
        count = len(self.cells)
        if hx is None:
            return [self._cell(number).begin(x) for number in range(count)]
        given = hx if isinstance(hx, tuple | list) else (hx,)
        widths = self._widths()
        if len(given) != len(widths):
            raise InputError(f"hx must be {len(widths)} tensors, not {len(given)}")
        parts: list[Tensor] = []
        for name, state, inside in zip(("h", "c"), given, widths, strict=False):
            lead = (count, x.shape[1]) if batched else (count,)
            full, plain = (*lead, sum(inside)), (*lead, inside[0])
            if not isinstance(state, Tensor):
                raise InputError(f"hx: {name} must be a tensor of shape {full}, not {type(state).__name__}")
            if tuple(state.shape) not in (full, plain):
                raise InputError(
                    f"hx: {name} must have the shape {full}"
                    + ("" if full == plain else f" or, without a hyper state, {plain}")
                    + f", not {tuple(state.shape)}"
                )
            check_kind(state, self._cell(0), f"hx: {name}")
            check_finite(state, f"hx: {name}")
            state = state if batched else state[:, None]
            if state.shape[-1] < sum(inside):
                state = F.pad(state, (0, sum(inside) - inside[0]))
            parts += state.split(inside, dim=-1)
        return [tuple(part[number] for part in parts) for number in range(count)]

    def _pack(self, states: list[States]) -> tuple[Tensor, ...]:
        """The states of all cells as the caller sees them."""
        parts = [torch.stack(part) for part in zip(*states, strict=True)]  # each (L*R, B, width)
        final = []
        for inside in self._widths():
            final.append(torch.cat(parts[: len(inside)], dim=-1) if len(inside) > 1 else parts[0])
            parts = parts[len(inside) :]
        return tuple(final)

    def extra_repr(self) -> str:
        """What a print of the module shows beside its cells."""
        return (
            f"num_layers={self.num_layers}, batch_first={self.batch_first}, dropout={self.dropout}, "
            f"bidirectional={self.bidirectional}"
        )


class HyperLSTM(_HyperRecurrent):
    """An LSTM whose weights are scaled at every step by a smaller LSTM; change one word in ``nn.LSTM(...)``.

    The arguments of :class:`torch.nn.LSTM` in its order, and after them

    Args:
        hyper_size: units H of the hyper cell (paper: 128 for 1,000 units, 256 for 1,800).
        embedding_size: Z (paper: 4 to 64).
        layer_norm: normalise the gates and the memory of both cells, each gate by itself.
        recurrent_dropout: share of what is written into the main memory that is dropped (paper: 0.1).
        forget_bias: added to the forget gates of both cells.

    Parameters are those of the paper: one bias a gate, where torch has two.

    Raises:
        InputError: a size below 1, a rate outside [0, 1), ``proj_size`` or ``bias=False``; in a call an input
            or a state of the wrong shape, no step, or numbers that are not finite.

    Example:
        >>> lstm = HyperLSTM(10, 20, num_layers=2, batch_first=True, hyper_size=8)
        >>> x = torch.randn(3, 7, 10)
        >>> output, (h, c) = lstm(x)
        >>> output.shape, h.shape, c.shape
        (torch.Size([3, 7, 20]), torch.Size([2, 3, 20]), torch.Size([2, 3, 36]))
        >>> first, state = lstm(x[:, :4])
        >>> rest, _ = lstm(x[:, 4:], state)
        >>> torch.allclose(torch.cat([first, rest], 1), output, atol=1e-6)
        True
        >>> _, _, scales = lstm(x, return_scales=True)
        >>> scales.recurrent.shape, round(float(scales.recurrent.detach().mean()), 6)
        (torch.Size([2, 7, 3, 4, 20]), 0.1)
    """

    cell_type = LSTMHyperCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        hyper_size: int = 128,
        embedding_size: int = 4,
        layer_norm: bool = False,
        recurrent_dropout: float = 0.0,
        forget_bias: float = 1.0,
    ) -> None:
        if proj_size:
            raise InputError(f"proj_size={proj_size}: a HyperLSTM has no projection; put a Linear after it")
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            hyper_size=hyper_size, embedding_size=embedding_size, layer_norm=layer_norm,
            recurrent_dropout=recurrent_dropout, forget_bias=forget_bias, device=device, dtype=dtype,
        )  # fmt: skip

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        return_scales: bool = False,
    ) -> Any:
        """``(output, (h, c))``, and with ``return_scales`` a third: :class:`HyperScales`.

        Args:
            input: (T, B, I), with ``batch_first`` (B, T, I), unbatched (T, I), or packed.
            hx: (h, c), see the top of this file; zeros by default.
            return_scales: the scalings of every step too, always (L*R, T, B, 4, N).
        """
        return self._run(input, hx, return_scales)


class HyperRNN(_HyperRecurrent):
    """A simple recurrent network scaled at every step by a smaller one.

    The arguments of :class:`torch.nn.RNN` in its order, then those of :class:`HyperLSTM` that concern it.

    Example:
        >>> rnn = HyperRNN(10, 20, hyper_size=8, nonlinearity="relu")
        >>> output, h = rnn(torch.randn(7, 3, 10))
        >>> output.shape, h.shape
        (torch.Size([7, 3, 20]), torch.Size([1, 3, 28]))
    """

    cell_type = RNNHyperCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        hyper_size: int = 128,
        embedding_size: int = 4,
        layer_norm: bool = False,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            hyper_size=hyper_size, embedding_size=embedding_size, layer_norm=layer_norm,
            nonlinearity=nonlinearity, device=device, dtype=dtype,
        )  # fmt: skip

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | None = None, *, return_scales: bool = False
    ) -> Any:
        """``(output, h)``, and with ``return_scales`` a third, as in :class:`HyperLSTM` with one gate."""
        return self._run(input, hx, return_scales)


class HyperLSTMCell(LSTMHyperCell):
    """One step of :class:`HyperLSTM`, called as :class:`torch.nn.LSTMCell`.

    ``(h, c) = cell(input, (h, c))`` with h (B, N) and c (B, N + 2 H): memory, hyper h, hyper c. A c of
    (B, N) is taken too; the hyper cell then starts from zeros.

    Example:
        >>> cell = HyperLSTMCell(10, 20, hyper_size=8)
        >>> state = None
        >>> for x in torch.randn(5, 3, 10):
        ...     state = cell(x, state)
        >>> state[0].shape, state[1].shape
        (torch.Size([3, 20]), torch.Size([3, 36]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        if not bias:
            raise InputError("bias=False: a HyperLSTMCell makes its biases and cannot leave them out")
        super().__init__(input_size, hidden_size, device=device, dtype=dtype, **options)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """The next (h, c) for ``input`` (B, I) or (I,)."""
        if not isinstance(input, Tensor):
            raise InputError(f"input must be a tensor, not {type(input).__name__}")
        if input.dim() not in (1, 2) or input.shape[-1] != self.input_size:
            raise InputError(
                f"input must have the shape (batch, {self.input_size}) or ({self.input_size},), "
                f"not {tuple(input.shape)}"
            )
        check_kind(input, self)
        check_finite(input)
        lead = input.shape[:-1]
        x = input.reshape(1, -1, self.input_size)  # (B, I) or (I,) -> (1, B, I)
        states = self.begin(x)
        if hx is not None:
            n, inside = self.hidden_size, list(self.state_sizes[1:])
            if not isinstance(hx, tuple | list) or len(hx) != 2 or not all(isinstance(s, Tensor) for s in hx):
                raise InputError("hx must be two tensors, h and c")
            for name, state in zip(("h", "c"), hx, strict=True):
                check_kind(state, self, f"hx: {name}")
                check_finite(state, f"hx: {name}")
            h, c = hx
            if tuple(h.shape) != (*lead, n):
                raise InputError(f"hx: h must have the shape {(*lead, n)}, not {tuple(h.shape)}")
            if tuple(c.shape) not in ((*lead, n), (*lead, sum(inside))):
                raise InputError(
                    f"hx: c must have the shape {(*lead, sum(inside))} or, without a hyper state, "
                    f"{(*lead, n)}, not {tuple(c.shape)}"
                )
            c = F.pad(c, (0, sum(inside) - c.shape[-1]))
            states = (h.reshape(-1, n), *c.reshape(-1, sum(inside)).split(inside, dim=-1))
        after = self.scan(x, states).states
        memory = torch.cat(after[1:], dim=-1)
        return after[0].view(*lead, self.hidden_size), memory.view(*lead, sum(self.state_sizes[1:]))


def check_packed(packed: PackedSequence) -> None:
    """Raise :class:`InputError` for a packed sequence that torch's own functions would not have made."""
    sizes = packed.batch_sizes
    if len(sizes) == 0 or bool((sizes[1:] > sizes[:-1]).any()) or int(sizes.sum()) != len(packed.data):
        raise InputError(
            f"a packed sequence has its longest first: batch_sizes {sizes[:8].tolist()} must not grow "
            f"and must add up to the {len(packed.data)} rows of data"
        )
    if int(sizes[-1]) < 1:
        raise InputError(
            "every step of a packed sequence has at least one sequence: batch_sizes end in "
            f"{sizes[-8:].tolist()}"
        )
    count = int(sizes[0])
    for order in (packed.sorted_indices, packed.unsorted_indices):
        if order is None:
            continue
        if len(order) != count:
            raise InputError(
                f"a packed sequence has no empty sequences: {len(order)} are put in order, and batch_sizes "
                f"begin with {count}"
            )
        if not is_traced() and not torch.equal(order.sort().values.cpu(), torch.arange(count)):
            raise InputError(f"the order of a packed sequence has each of 0 to {count - 1} once")


def check_kind(x: Tensor, cell: HyperCell, name: str = "input") -> None:
    """Raise :class:`InputError` unless ``x`` has the cell's type of numbers and is where its weights are."""
    own = cell.weight_ih
    if x.dtype != own.dtype and not is_autocast(x):
        raise InputError(f"{name} is of {x.dtype}, the weights are of {own.dtype}")
    if x.device != own.device:
        raise InputError(f"{name} is on {x.device}, the weights are on {own.device}")


def check_finite(x: Tensor, name: str = "input") -> None:
    """Raise :class:`InputError` where ``x`` holds numbers that are not finite.

    Not asked where numbers cannot be looked at: while torch compiles, exports or traces, and inside ``vmap``.
    """
    if is_traced():
        return
    try:
        finite = bool(torch.isfinite(x.detach()).all())
    except RuntimeError:  # of vmap, about control flow that depends on data, and of tensors without memory
        return
    if not finite:
        raise InputError(f"{name} holds numbers that are not finite")


def _repack(outputs: Tensor, packed: PackedSequence) -> PackedSequence:
    """(T, B, width) in the caller's order to the order and lengths of ``packed``."""
    if packed.sorted_indices is not None:
        outputs = outputs.index_select(1, packed.sorted_indices)
    data = torch.cat([outputs[t, :size] for t, size in enumerate(packed.batch_sizes.tolist())])
    return PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
