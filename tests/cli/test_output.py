"""What people are shown."""

from __future__ import annotations

import torch

from weightloom.io import save_tensors


def test_a_strangers_control_characters_are_spelt_out(call, tmp_path):
    file = tmp_path / "red.safetensors"
    save_tensors(file, {"w": torch.ones(2)}, {"note": "\x1b[31mRED\x07\u009b"})
    answer = call("info", file)
    assert answer.code == 0 and "RED" in answer.out
    assert not {"\x1b", "\x07", "\u009b"} & set(answer.out), answer.out
