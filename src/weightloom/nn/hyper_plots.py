"""Pictures of what the hyper cells did to the weights along a text. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from weightloom.errors import InputError
from weightloom.nn.hyper_recurrent import HyperScales
from weightloom.whole import whole_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GATES = {4: "ifgo", 1: "h"}
"""Names by their number: of an LSTM, of a simple cell."""


def draw_scales(scales: HyperScales, text: Sequence[str], *, layer: int = 0, sequence: int = 0) -> Figure:
    """How the rows of the recurrent weights are scaled while a text is read, one column a symbol.

    Above, one panel a gate: a row for each unit, the scaling less its mean over the text. Below, how much all
    of them change at each symbol (:meth:`HyperScales.change`). Source: the paper's figures of weight changes
    (Ha, Dai and Le, arXiv 1609.09106), which show the last part alone.

    Args:
        scales: what ``HyperLSTM(...)(x, return_scales=True)`` returns, (L*R, T, B, G, N).
        text: a symbol for each of the T steps, or of the first of them where the sequence is shorter.
        layer: which layer; with two directions, the second of layer n is number 2 n + 1.
        sequence: which one of the batch.

    Returns:
        A matplotlib figure; ``figure.savefig(path)`` writes it.

    Raises:
        InputError: an empty text or one longer than the T steps, a layer or a sequence that is not there.

    Example:
        >>> import torch
        >>> from weightloom.nn import HyperLSTM
        >>> _, _, scales = HyperLSTM(3, 8, hyper_size=4)(torch.randn(5, 1, 3), return_scales=True)
        >>> [axes.get_ylabel() for axes in draw_scales(scales, "hello").axes[:5]]
        ['i', 'f', 'g', 'o', 'change']
    """
    if not isinstance(scales, HyperScales):
        raise InputError(f"scales are what return_scales=True gives, not {type(scales).__name__}")
    layers, steps, batch, gates, _ = scales.recurrent.shape
    layer = whole_number(layer, "layer", 0, layers - 1)
    sequence = whole_number(sequence, "sequence", 0, batch - 1)
    if not 0 < len(text) <= steps:
        raise InputError(f"text must have from 1 to {steps} symbols, one for each step, not {len(text)}")
    from matplotlib.figure import Figure

    own = scales.recurrent[layer, : len(text), sequence].detach().float().cpu()  # (T, G, N)
    own = own - own.mean(0)
    change = scales.change()[layer, : len(text), sequence].detach().float().cpu()  # (T,)
    figure = Figure(figsize=(max(4.0, 0.16 * len(text)), 1.1 * gates + 1.4), layout="constrained")
    *panels, below = figure.subplots(gates + 1, 1, sharex=True)
    # One scale for all panels, so that gates compare; never empty.
    most = max(float(own.abs().max()), 1e-12)
    image: Any = None
    for number, (panel, name) in enumerate(zip(panels, _GATES[gates], strict=True)):
        image = panel.imshow(
            own[:, number].t().numpy(), aspect="auto", cmap="RdBu_r", vmin=-most, vmax=most,
            interpolation="nearest",
        )  # fmt: skip
        panel.set_ylabel(name, rotation=0)
        panel.set_yticks([])
    below.bar(range(len(text)), change.tolist(), color="#0b6e4f")
    below.set_ylabel("change")
    below.set_xticks(range(len(text)), [_visible(symbol) for symbol in text], fontsize=8)
    below.tick_params(axis="x", length=0)
    figure.colorbar(image, ax=panels, label="scaling less its mean", shrink=0.8)
    return figure


def _visible(symbol: str) -> str:
    """Spaces and line ends as signs; no dollar begins a formula."""
    return {" ": "·", "\n": "¶", "\t": "→", "$": r"\$"}.get(symbol, symbol)
