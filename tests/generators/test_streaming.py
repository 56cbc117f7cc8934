"""Networks written layer by layer are those that would be made in memory, in pieces of one size."""

from __future__ import annotations

import pytest
import torch

from weightloom.architectures import parse_architecture
from weightloom.errors import InputError, UnsupportedRequestError
from weightloom.fitting import run_networks
from weightloom.generators import streaming
from weightloom.generators.base import sample_generators
from weightloom.generators.layerwise import Layerwise, LayerwiseConfig, validity_of
from weightloom.generators.random_init import RandomInit
from weightloom.generators.streaming import stream_network, wide_pieces
from weightloom.io import read_shards, verify_folder
from weightloom.tasks import parse_task
from weightloom.weights import layout_of

LARGEST = ("cnn(depth=4,width=8)", "mlp(depth=3,width=16)", "resnet(depth=8,width=4)")
WIDE = ["cnn(depth=5,width=20)", "mlp(depth=2,width=40)", "resnet(depth=8,width=6)", "cnn(depth=3,width=6)"]


@pytest.fixture(scope="module")
def model():
    sizes = {"codes": 3, "width": 16, "depth": 1, "heads": 2, "image_features": 8, "image_width": 8}
    config = LayerwiseConfig(largest=LARGEST, channels=1, **sizes)
    made = Layerwise(config, validity_of(config, (1, 8, 8), (2, 10), ("digits",)), name="tiny")
    with torch.no_grad():
        for parameter in made.out.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    return made.eval()


@pytest.fixture(scope="module")
def support():
    return parse_task("digits[3,1,7]@8c1").support(8)


def network(folder, report):
    """The architecture and (P,) weights of what is in a folder."""
    spec = parse_architecture(report["architecture"])
    return spec, layout_of(spec).flatten(dict(read_shards(folder)))


@pytest.mark.parametrize("piece", [300, 1 << 20])  # a row or two at a time, a turn of rows again and again
@pytest.mark.parametrize("text", WIDE)
def test_the_trunk_is_that_of_the_network_made_in_memory(model, support, tmp_path, text, piece, monkeypatch):
    monkeypatch.setattr(streaming, "PIECE_BYTES", piece)
    report = stream_network(model, text, tmp_path / "x", support=support, seed=3, shard_bytes=4000)
    spec, flat = network(tmp_path / "x", report)
    request = model.check(spec, None, support, 1, 3, None)
    noise = sample_generators(request)
    codes = model.sample_codes(model.describe(request), noise, request.sampling)
    whole = model.dictionary.decode(spec, model.latents(codes), seed=3)[0]
    layout = layout_of(spec)
    wanted, found = layout.unflatten(whole), layout.unflatten(flat)
    for slot in layout.slots:
        if not slot.is_buffer and not slot.name.startswith("head"):
            assert torch.equal(found[slot.name], wanted[slot.name]), slot.name
    verify_folder(tmp_path / "x", required=report["files"])


@pytest.mark.parametrize("text", WIDE)
def test_the_function_is_that_of_the_narrow_network(model, support, tmp_path, text):
    report = stream_network(model, text, tmp_path / "x", support=support)
    spec, flat = network(tmp_path / "x", report)
    images, labels = support.flat()
    answers = run_networks(spec, flat[None], images)[0]
    loss = float(torch.nn.functional.cross_entropy(answers, labels))
    assert loss == pytest.approx(report["support_loss"], rel=1e-3, abs=1e-4)
    assert float((answers.argmax(1) == labels).float().mean()) == pytest.approx(
        report["support_accuracy"], abs=1 / len(labels)
    )
    assert report["support_accuracy"] > 0.45  # untrained; chance is 0.33


def test_pieces_are_small_and_all_of_it(model, monkeypatch):
    monkeypatch.setattr(streaming, "PIECE_BYTES", 1000)
    wide = parse_architecture("cnn(depth=3,width=64,classes=3,input=1x8x8)")
    narrow = streaming.narrow_of(model, wide)
    assert narrow.to_json()["width"] == 8 and narrow.to_json()["depth"] == 3
    flat = torch.randn(layout_of(narrow).size)
    sizes = [piece.nbytes for _, piece in wide_pieces(narrow, wide, flat, 0)]
    assert max(sizes) <= 4 * 64 * 9 * 2
    layout = layout_of(wide)
    assert sum(sizes) == 4 * layout.size + 8 * len(layout.counters)


def test_without_examples_and_twice_the_same(model, tmp_path):
    one, two = (
        stream_network(model, "cnn(depth=2,width=20,classes=5)", tmp_path / name, seed=1) for name in "ab"
    )
    assert one["head"] == "random" and one["files"] == two["files"] and one["parameters"] > 1000
    assert torch.equal(network(tmp_path / "a", one)[1], network(tmp_path / "b", two)[1])


def test_what_is_refused_before_anything_is_written(model, tmp_path):
    with pytest.raises(InputError, match="number of classes is not known"):
        stream_network(model, "cnn(depth=2,width=20)", tmp_path / "x")
    with pytest.raises(UnsupportedRequestError):
        stream_network(model, "vit(classes=3)", tmp_path / "x")
    with pytest.raises(InputError, match="no layer-wise part"):
        stream_network(RandomInit(model.validity), "cnn(depth=2,width=20,classes=3)", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
    stream_network(model, "cnn(depth=2,width=20,classes=3)", tmp_path / "x")
    with pytest.raises(InputError, match="exists and is not empty"):
        stream_network(model, "cnn(depth=2,width=20,classes=3)", tmp_path / "x")
    stream_network(model, "cnn(depth=2,width=20,classes=3)", tmp_path / "x", overwrite=True)
