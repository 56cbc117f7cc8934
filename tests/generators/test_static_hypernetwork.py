"""One hypernetwork for all architectures and tasks: what moves with the task, and its files."""

from __future__ import annotations

import json

import pytest
import torch

from weightloom.errors import CheckpointError, InputError, SpecError
from weightloom.fitting import closed_form_network, run_networks
from weightloom.generators import Validity
from weightloom.generators.load import load_generator
from weightloom.generators.static_hypernetwork import (
    StaticHypernetwork,
    StaticHypernetworkConfig,
    architecture_keys,
)
from weightloom.io import load_tensors, save_tensors
from weightloom.tasks import parse_task
from weightloom.weights import layout_of

TEXTS = ("cnn(depth=2,width=4)", "mlp(depth=1,width=8)", "resnet(depth=8,width=2)", "vit(depth=1,width=8)")
SMALL = {"embedding_size": 4, "block": 4, "task_size": 4, "image_features": 8, "image_width": 8}


def limits(texts=TEXTS):
    keys = architecture_keys(texts, (1, 8, 8))
    return Validity(architectures=keys, input=(1, 8, 8), min_classes=2, max_classes=5)


def moved(model):
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture
def model():
    return moved(StaticHypernetwork(StaticHypernetworkConfig(**SMALL), limits())).eval()


@pytest.fixture
def supports():
    return [parse_task(text).support(6) for text in ("digits[3,1,7]@8c1", "digits[0,2,4]+invert@8c1")]


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_made_is_what_was_trained(model, supports, text):
    """The episode's network and the generated one give the same answers (but for batch norms)."""
    spec = model.check(text, None, supports[0], 1, 0, None).architecture
    flat = model.make(spec, supports[0].images)
    images, labels = supports[0].flat()
    assert torch.equal(flat, closed_form_network(spec, flat, supports[0].images)), "its head fits its body"
    if text.startswith(("resnet", "cnn")):
        return
    loss, _ = model.episode_loss(spec, supports[0].images, images, labels)
    logits = run_networks(spec, flat[None], images)[0]
    assert torch.allclose(torch.nn.functional.cross_entropy(logits, labels), loss, rtol=1e-3)


def test_another_task_gets_another_body_and_the_order_of_classes_only_another_head(model, supports):
    for text in TEXTS:
        spec = model.check(text, None, supports[0], 1, 0, None).architecture
        layout = layout_of(spec)
        turned = supports[0].images[[2, 0, 1]]
        a, b, c = (
            layout.unflatten(model.make(spec, images))
            for images in (supports[0].images, supports[1].images, turned)
        )
        weights = [s.name for s in layout.slots if s.name.startswith("body") and len(s.shape) > 1]
        assert any(not torch.equal(a[name], b[name]) for name in weights)
        assert all(torch.allclose(a[name], c[name], atol=1e-5) for name in weights)
        assert torch.allclose(a["head.weight"][[2, 0, 1]], c["head.weight"], rtol=1e-2, atol=1e-3)


def test_at_the_start_all_tasks_share_a_body(supports):
    model = StaticHypernetwork(StaticHypernetworkConfig(**SMALL), limits(TEXTS[1:2]))
    spec = model.check(TEXTS[1], None, supports[0], 1, 0, None).architecture
    a, b = (layout_of(spec).unflatten(model.make(spec, s.images)) for s in supports)
    assert torch.equal(a["body.1.weight"], b["body.1.weight"])


def test_one_hypernetwork_makes_all_architectures(model):
    """Layers of one kernel size come from one generator, whose size does not grow with the networks."""

    def generators(made):
        return sum(v.numel() for k, v in made.state_dict().items() if ".generator." in k)

    one = StaticHypernetwork(StaticHypernetworkConfig(**SMALL), limits(TEXTS[:1]))
    three = StaticHypernetwork(
        StaticHypernetworkConfig(**SMALL),
        limits((*TEXTS[:1], "cnn(depth=4,width=32)", "vgg(depth=2,width=8)")),
    )
    assert generators(one) == generators(three) > 0


def test_the_seed_is_of_the_start_and_no_stream_moves(rng_untouched):
    a, b, c = (
        StaticHypernetwork(StaticHypernetworkConfig(**SMALL), limits(TEXTS[:1]), seed=seed).state_dict()
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)


def test_broken_files_are_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    tensors, _ = load_tensors(tmp_path / "model.safetensors")
    name = next(iter(tensors))
    for changed, words in [
        ({k: v for k, v in tensors.items() if k != name}, "in the file or in the config"),
        ({**tensors, "more": torch.zeros(1)}, "'more'"),
        ({**tensors, name: torch.zeros(1, 2, 3)}, "not what fits"),
    ]:
        save_tensors(tmp_path / "model.safetensors", changed, {})
        with pytest.raises(CheckpointError, match=words):
            load_generator(tmp_path)
    for changed in (
        {"config": {"block": 0}},
        {"config": {"nonsense": 1}},
        {"config": []},
        {"validity": {}},
        {"validity": {**config["validity"], "architectures": ["cnnn(depth=1)"]}},
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **changed}))
        with pytest.raises(CheckpointError, match="no static hypernetwork"):
            load_generator(tmp_path)


@pytest.mark.parametrize("options", [{"block": 0}, {"embedding_size": 1.5}, {"task_size": 0}])
def test_bad_sizes_are_refused(options):
    with pytest.raises(SpecError, match=next(iter(options))):
        StaticHypernetworkConfig(**options)


def test_what_it_cannot_do_is_refused(model):
    with pytest.raises(InputError, match="give examples"):
        model.generate("cnn(depth=2,width=4)", instruction="digits")
    with pytest.raises(InputError, match="activation"):
        StaticHypernetwork(StaticHypernetworkConfig(activation="loud"), limits(TEXTS[:1]))
