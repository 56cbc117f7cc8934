"""The sentence encoder gives the same vectors whatever torch's defaults are."""

from __future__ import annotations

import torch

from weightloom.conditioning import encode_text


def test_defaults_of_the_caller_change_nothing(text_encoder):
    plain = encode_text(["a small cat"])
    assert not plain.requires_grad
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(encode_text(["a small cat"]), plain)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert torch.equal(encode_text(["a small cat"]), plain)
