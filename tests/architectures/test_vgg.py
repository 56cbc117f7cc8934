"""``vgg``: widths that double at each stage, up to eight times the first."""

from __future__ import annotations

import torch
from torch import nn

from weightloom.architectures import parse_architecture


def test_widths_double_up_to_eight_times() -> None:
    spec = parse_architecture("vgg(depth=6,width=2,stage=1)").resolve(classes=3, input=(3, 16, 16))
    module = spec.build()
    widths = [part.out_channels for part in module.modules() if isinstance(part, nn.Conv2d)]
    assert widths == [2, 4, 8, 16, 16, 16]
    assert module(torch.zeros(2, 3, 16, 16)).shape == (2, 3)


def test_default_count() -> None:
    assert parse_architecture("vgg").resolve(classes=10, input=(3, 16, 16)).num_parameters() == 72_954
