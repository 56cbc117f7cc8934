"""The picture of the scalings shows those of the text, gate by gate."""

from __future__ import annotations

import pytest
import torch

from weightloom.errors import InputError
from weightloom.nn import HyperLSTM, HyperRNN
from weightloom.plots import draw_scales


def scales_of(kind, steps=6, **options):
    torch.manual_seed(0)
    model = kind(4, 5, hyper_size=3, embedding_size=2, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        return model(torch.randn(steps, 2, 4), return_scales=True)[2]


def test_panels_hold_the_scalings_and_bars_their_changes(tmp_path):
    scales = scales_of(HyperLSTM, num_layers=2)
    figure = draw_scales(scales, "a $\n\tb", layer=1, sequence=1)
    figure.savefig(tmp_path / "scales.png")  # a symbol that cannot be drawn would warn here
    panels, below = figure.axes[:4], figure.axes[4]
    own = scales.recurrent[1, :, 1]  # (T, G, N)
    for number, panel in enumerate(panels):
        assert panel.get_ylabel() == "ifgo"[number]
        shown = torch.as_tensor(panel.images[0].get_array()).float()
        assert torch.allclose(shown, (own[:, number] - own[:, number].mean(0)).t(), atol=1e-6)
        assert panel.images[0].get_clim() == panels[0].images[0].get_clim()
    bars = torch.tensor([float(bar.get_height()) for bar in below.patches])
    assert torch.allclose(bars, scales.change()[1, :, 1], atol=1e-6)
    assert [label.get_text() for label in below.get_xticklabels()] == ["a", "·", r"\$", "¶", "→", "b"]


def test_the_first_symbols_alone_and_a_simple_cell():
    figure = draw_scales(scales_of(HyperRNN), "abc")
    assert [axes.get_ylabel() for axes in figure.axes[:2]] == ["h", "change"]
    assert figure.axes[0].images[0].get_array().shape == (5, 3)


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("", {}, "from 1 to 6 symbols, one for each step, not 0"),
        ("abcdefg", {}, "from 1 to 6 symbols, one for each step, not 7"),
        ("abc", {"layer": 1}, "layer must be a whole number from 0 to 0, not 1"),
        ("abc", {"sequence": -1}, "sequence must be a whole number from 0 to 1, not -1"),
    ],
)
def test_what_is_not_there_is_refused(text, options, words):
    with pytest.raises(InputError, match=words):
        draw_scales(scales_of(HyperLSTM), text, **options)
