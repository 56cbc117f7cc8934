"""A linear layer whose weights follow its input: a low-rank update made from a summary of the sequence.

The step from recurrent hypernetworks to transformers: there a small network scales the weights at every
step; here it makes an update of a frozen or trained weight, for each sequence or for each position.

    y_t = W x_t + b + U M(s_t) V x_t        M(s) = reshape(G phi(E s)), rank by rank

U and V are shared by all inputs, only the core M is generated, so an update costs r (I + O + r) products a
position instead of the I O of a whole generated matrix.

Shapes: ... any leading dimensions, T positions, I inputs, O outputs, r rank, S width of a summary, H hidden.
Sources: weights from an input by a second network, Schmidhuber, "Learning to control fast-weight memories"
(1992), and Ha, Dai and Le (arXiv 1609.09106), section 3.2; low-rank updates, Hu et al., "LoRA" (arXiv
2106.09685), equation 3, with the zero start of one factor.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightloom.errors import InputError, UnknownNameError
from weightloom.nn.weight_generators import require_size

Summary = Literal["causal", "mean", "position", "given"]
SUMMARIES: tuple[Summary, ...] = ("causal", "mean", "position", "given")


class DynamicLinear(nn.Module):
    """A linear layer plus an update that depends on its input; at the start it is the linear layer alone.

    Args:
        in_features: I.
        out_features: O.
        bias: whether W x + b or W x.
        rank: r of the update.
        hidden_size: H, between a summary and the core.
        summary: what the update is made from. ``"causal"``: the mean of the inputs up to each position, so
            that no position sees a later one; ``"mean"``: the mean over all positions (``lengths`` leaves
            padding out); ``"position"``: each position's own input; ``"given"``: the caller's ``condition``.
        condition_size: S where the summary is given; otherwise I.
        device, dtype: of the parameters.

    Raises:
        InputError: a size below 1; ``condition_size`` without ``summary="given"`` or the other way round; in
            a call, an input, a condition or lengths of the wrong shape.
        UnknownNameError: no such summary.

    Example:
        >>> layer = DynamicLinear(16, 32, rank=4)
        >>> x = torch.randn(2, 10, 16)
        >>> torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
        True
        >>> linear = nn.Linear(16, 32)
        >>> DynamicLinear.from_linear(linear, rank=4)(x).shape
        torch.Size([2, 10, 32])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        rank: int = 8,
        hidden_size: int = 32,
        summary: Summary = "causal",
        condition_size: int | None = None,
    ) -> None:
        super().__init__()
        if summary not in SUMMARIES:
            raise UnknownNameError("summary", str(summary), SUMMARIES)
        if (summary == "given") != (condition_size is not None):
            raise InputError("condition_size belongs to summary='given', and that needs it")
        width = in_features if condition_size is None else condition_size
        for what, value in (
            ("in_features", in_features), ("out_features", out_features), ("rank", rank),
            ("hidden_size", hidden_size), ("condition_size", width),
        ):  # fmt: skip
            require_size(what, value)
        self.in_features, self.out_features, self.rank, self.summary = (
            in_features,
            out_features,
            rank,
            summary,
        )
        self.condition_size = width
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        plain = nn.Linear(in_features, out_features, bias, **factory)
        self.weight = plain.weight
        self.bias: nn.Parameter | None
        self.register_parameter("bias", plain.bias)
        self.down = nn.Parameter(torch.empty(rank, in_features, **factory))
        self.up = nn.Parameter(torch.empty(out_features, rank, **factory))
        self.read = nn.Linear(width, hidden_size, **factory)
        self.core = nn.Linear(hidden_size, rank * rank, **factory)
        self.reset_update()

    def reset_update(self) -> None:
        """The update's own initialisation: V keeps sizes, the core is near the identity, U is zero."""
        nn.init.normal_(self.down, std=self.in_features**-0.5)
        nn.init.zeros_(self.up)
        self.read.reset_parameters()
        nn.init.normal_(self.core.weight, std=0.1 * self.core.in_features**-0.5)
        with torch.no_grad():
            self.core.bias.copy_(torch.eye(self.rank).flatten())

    @classmethod
    def from_linear(cls, linear: nn.Linear, **options: Any) -> DynamicLinear:
        """The layer with a copy of the weights of ``linear``, which stays as it is; ``options`` as above."""
        if not isinstance(linear, nn.Linear):
            raise InputError(f"linear must be a torch.nn.Linear, not {type(linear).__name__}")
        made = cls(
            linear.in_features, linear.out_features, linear.bias is not None,
            linear.weight.device, linear.weight.dtype, **options,
        )  # fmt: skip
        with torch.no_grad():
            made.weight.copy_(linear.weight)
            if made.bias is not None:
                made.bias.copy_(linear.bias)
        return made.train(linear.training)

    def forward(
        self, input: Tensor, condition: Tensor | None = None, *, lengths: Tensor | None = None
    ) -> Tensor:
        """(..., T, I) to (..., T, O).

        Args:
            input: the sequences; (I,) alone or (B, I) are single positions where the summary allows it.
            condition: (..., S), one a sequence, or (..., T, S), one a position; with ``summary="given"``.
            lengths: positions of each sequence that count, (...); with ``summary="mean"``.
        """
        if input.dim() < 1 or input.shape[-1] != self.in_features:
            raise InputError(f"input must end in {self.in_features} features, not {tuple(input.shape)}")
        core = self.make_core(self.summarise(input, condition, lengths))  # (..., T or 1, r, r)
        low = F.linear(input, self.down)  # (..., T, r)
        low = (core @ low[..., None]).squeeze(-1)
        return F.linear(input, self.weight, self.bias) + F.linear(low, self.up)

    def summarise(self, input: Tensor, condition: Tensor | None, lengths: Tensor | None) -> Tensor:
        """(..., T, S), or (..., 1, S) where all positions of a sequence have the same update."""
        if (condition is not None) != (self.summary == "given"):
            raise InputError(f"condition is for summary='given', and needed there; this is {self.summary!r}")
        if lengths is not None and self.summary != "mean":
            raise InputError(f"lengths are for summary='mean'; this is {self.summary!r}")
        if condition is not None:
            if condition.shape[-1] != self.condition_size:
                raise InputError(
                    f"condition must end in {self.condition_size} features, not {tuple(condition.shape)}"
                )
            if condition.dim() == input.dim() - 1:
                condition = condition[..., None, :]  # (..., S) -> (..., 1, S)
            if condition.dim() != input.dim() or condition.shape[:-2] != input.shape[:-2]:
                raise InputError(
                    f"condition {tuple(condition.shape)} does not fit the input {tuple(input.shape)}"
                )
            return condition
        if self.summary == "position":
            return input
        if input.dim() < 2 or input.shape[-2] < 1:
            raise InputError(
                f"summary={self.summary!r} needs sequences (..., T, I), not {tuple(input.shape)}"
            )
        steps = torch.arange(1, input.shape[-2] + 1, device=input.device)
        if self.summary == "causal":
            return input.cumsum(-2) / steps[:, None].to(input.dtype)
        if lengths is None:
            return input.mean(-2, keepdim=True)
        if lengths.shape != input.shape[:-2]:
            raise InputError(
                f"lengths must have the shape {tuple(input.shape[:-2])}, not {tuple(lengths.shape)}"
            )
        counts = lengths[..., None] >= steps  # (..., T)
        total = torch.where(counts[..., None], input, 0).sum(-2, keepdim=True)
        return total / lengths.clamp(min=1)[..., None, None].to(input.dtype)

    def make_core(self, summary: Tensor) -> Tensor:
        """M(s): (..., S) to (..., r, r)."""
        return self.core(torch.tanh(self.read(summary))).unflatten(-1, (self.rank, self.rank))

    def weight_for(self, summary: Tensor) -> Tensor:
        """The whole weight for one summary, (..., S) to (..., O, I): what a fixed condition would deploy."""
        return self.weight + self.up @ self.make_core(summary) @ self.down

    def extra_repr(self) -> str:
        """What a print of the module shows beside its parts."""
        return f"{self.in_features}, {self.out_features}, rank={self.rank}, summary={self.summary!r}"
