"""``weightloom stream``: the files are the network, and nothing is left of a refused request."""

from __future__ import annotations

import pytest

import weightloom as wl
from weightloom.io import read_shards

WIDE = "cnn(depth=4,width=100)"


@pytest.mark.slow
def test_a_wide_network_goes_into_shards(call, tmp_path):
    out = tmp_path / "wide"
    request = ("stream", "--arch", WIDE, "--task", "digits", "--out", out, "--shard-mb", "1")
    answer = call(*request, "--json").json
    assert answer["folder"] == str(out) and answer["support_accuracy"] > 0.5
    spec = wl.parse_architecture(WIDE).resolve(classes=10, input=(3, 16, 16))
    held = {name: tensor.shape for name, tensor in read_shards(out)}
    assert held == {name: tensor.shape for name, tensor in spec.build().state_dict().items()}
    assert len(list(out.glob("model-*.safetensors"))) == len(answer["files"])
    assert "not empty" in call(*request).sentence(2)
    shown = call(*request, "--overwrite")
    assert shown.code == 0 and "layerwise-tiny generated" in shown.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--arch", WIDE), "classes"),
        (("--arch", "vgg(depth=8,classes=10)"), "layer-wise"),
        (("--arch", WIDE, "--task", "digits", "--shots", "0"), "--shots"),
        (("--arch", WIDE, "--task", "digits", "--shard-mb", "0"), "--shard-mb"),
    ],
)
def test_bad_input(call, tmp_path, arguments, words):
    assert words in call("stream", *arguments, "--out", tmp_path / "wide").sentence(2)
    assert not (tmp_path / "wide").exists()
