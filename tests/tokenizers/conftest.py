"""Tiny tokenizers of every family over a tiny family of real networks."""

from __future__ import annotations

import pytest
import torch

from weightloom.architectures import parse_architecture
from weightloom.fitting import initial_flats
from weightloom.tokenizers import architecture_key, tokenizers
from weightloom.weights import WeightStatistics, layout_of

TINY = {
    "fsq": {"chunk": 16, "codes": 4, "vocabulary": 5, "width": 16, "depth": 1},
    "gumbel": {"chunk": 16, "codes": 2, "vocabulary": 8, "code_width": 4, "width": 16, "depth": 1},
}


def resolve(text="cnn(depth=1,width=4)", classes=3):
    return parse_architecture(text).resolve(classes=classes, input=(1, 8, 8))


def make_networks(spec, count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return initial_flats(spec, [0]) + 0.3 * torch.rand(count, layout_of(spec).size, generator=generator)


@pytest.fixture(scope="session")
def resolved():
    return resolve


@pytest.fixture(scope="session")
def networks():
    return make_networks


@pytest.fixture
def tiny():
    """Make a tiny tokenizer of a kind, with every parameter away from its start."""

    def make(kind, moved=True, **changes):
        family = tokenizers.get(kind)
        statistics = {}
        for text in ("cnn(depth=1,width=4)", "mlp(depth=1,width=4)"):
            groups = [(layout_of(resolve(text, c)), make_networks(resolve(text, c))) for c in (3, 4)]
            statistics[architecture_key(resolve(text))] = WeightStatistics.measure(groups)
        tokenizer = family(family.config_type(**{**TINY[kind], **changes}), statistics)
        if moved:
            with torch.no_grad():
                for parameter in tokenizer.parameters():
                    parameter.add_(0.2 * torch.randn_like(parameter))
        return tokenizer.eval()

    return make


@pytest.fixture(params=sorted(TINY))
def kind(request):
    return request.param
