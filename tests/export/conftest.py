"""Small networks with weights and statistics that differ from where they began."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from weightloom.architectures import parse_architecture
from weightloom.generators import Sample
from weightloom.weights import layout_of


@pytest.fixture(scope="session")
def sample_of() -> Callable[..., Sample]:
    """``sample_of("cnn(depth=2,width=4)")``: a network whose batch norms have seen pictures."""

    def made(
        text: str, input: tuple[int, int, int] = (3, 8, 8), classes: int = 5, **report: object
    ) -> Sample:
        spec = parse_architecture(text)
        spec = spec.resolve(classes=spec.classes or classes, input=spec.input or input)
        module = spec.initialise(0).train()
        assert spec.input is not None
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(1)
            for _ in range(5):
                module(torch.randn(8, *spec.input))
            for values in module.parameters():
                values.add_(0.1 * torch.randn_like(values))
        flat = layout_of(spec).flatten(module.state_dict()).detach()
        return Sample(spec, flat, report)

    return made
