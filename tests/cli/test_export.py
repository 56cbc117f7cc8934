"""``weightloom export`` from the command line, on scikit-learn's digits."""

from __future__ import annotations

import pytest
import torch

from weightloom.architectures import parse_architecture
from weightloom.export.compilers import found_compiler
from weightloom.fitting import FitSettings, finetune
from weightloom.generators import Sample
from weightloom.tasks import parse_task
from weightloom.weights import layout_of

NEEDS_C = pytest.mark.skipif(found_compiler() is None, reason="there is no C compiler")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A small network that reads digits, and knows their names from its task."""
    spec = parse_architecture("cnn(depth=2,width=8)").resolve(classes=10, input=(1, 8, 8))
    flat = layout_of(spec).flatten(spec.initialise(0).state_dict()).detach()
    curve = finetune(spec, flat[None], parse_task("digits@8c1"), FitSettings(steps=150, learning_rate=1e-2))
    file = tmp_path_factory.mktemp("export") / "digits.safetensors"
    return Sample(spec, curve.flats[0].detach(), {"task": "digits"}).save(file)


@NEEDS_C
def test_int8_in_c_keeps_the_accuracy(call, digits, tmp_path):
    out = tmp_path / "digits.c"
    answer = call("export", digits, "--to", "c", "--int8", "--task", "digits", "--out", out, "--json").json
    assert answer["checked"] and answer["accuracy_before"] > 0.9
    assert answer["accuracy"] >= answer["accuracy_before"] - 0.01 and answer["num_images"] == 500
    assert answer["class_names"][7] == "7" and answer["footprint"] is not None and out.exists()
    said = call("export", digits, "--out", tmp_path / "float.c")
    assert said.code == 0 and "checked by" in said.out and "unknown" in said.out


def test_int8_in_onnx_is_calibrated(call, digits, tmp_path):
    pytest.importorskip("onnxruntime")
    out = tmp_path / "digits.onnx"
    answer = call("export", digits, "--int8", "--task", "digits", "--out", out, "--json").json
    assert answer["accuracy"] >= answer["accuracy_before"] - 0.01 and answer["to"] == "onnx"
    assert out.exists() and torch.isfinite(torch.tensor(answer["difference"]))


def test_bad_input_is_one_sentence(call, digits, tmp_path):
    out = tmp_path / "digits.onnx"
    assert "calibrated" in call("export", digits, "--int8", "--out", out).sentence(2)
    assert "must end in" in call("export", digits, "--out", tmp_path / "digits.txt").sentence(2)
    assert "--max-loss" in call("export", digits, "--out", out, "--max-loss", "-1").sentence(2)
    assert "classes" in call("export", digits, "--out", out, "--task", "digits[1,2]").sentence(2)
    assert not out.exists()
