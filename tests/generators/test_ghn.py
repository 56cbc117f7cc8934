"""GHN: any module in, a copy with predicted weights out; exact, refused in a sentence, or listed as kept."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from weightloom.architectures.capture import capture_graph, graph_of
from weightloom.architectures.deepnet import DeepNetSpec
from weightloom.errors import (
    CheckpointError,
    InputError,
    SpecError,
    UnsupportedLayerError,
    UnsupportedRequestError,
)
from weightloom.generators.ghn import GHN, GHNConfig, fan_in_scale, make_validity
from weightloom.generators.load import load_generator
from weightloom.io import load_tensors
from weightloom.nn.graph import GraphBatch
from weightloom.tasks import SupportSet

CONFIGS = {
    "ghn-2": {"backbone": "gated", "decoder": "tiling", "block": 8},
    "ghn-3": {"backbone": "transformer", "depth": 2, "heads": 2, "decoder": "tiling", "block": 8},
    "coordinate": {"backbone": "gated", "decoder": "coordinate", "rank": 4},
    "mlp": {"backbone": "mlp", "decoder": "coordinate", "rank": 4},
}


def make(name="coordinate", classes=3, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = GHNConfig(**{"classes": classes, "width": 8, "kernel": 3, **CONFIGS[name], **changes})
        return GHN(config, make_validity((3, 16, 16), ("cifar10",)), name="tiny").eval()


def convnet(width=20, classes=3):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(width, classes),
    )  # fmt: skip


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_module_of_any_width_gets_all_its_weights(name):
    model = make(name)
    for width in (1, 5, 7, 10, 19, 31, 33, 100):
        net = convnet(width)
        sample = model.generate(net)
        assert sample.module(torch.zeros(2, 3, 16, 16)).shape == (2, 3) and not sample.module.training
        assert sample.report["predicted"] == sum(p.numel() for p in net.parameters())
        for a, b in zip(net.parameters(), sample.module.parameters(), strict=True):
            assert a.shape == b.shape and b.requires_grad and not torch.equal(a, b)


def test_the_callers_module_is_untouched_and_shares_nothing():
    net = convnet().train()
    before, tensors = copy.deepcopy(net.state_dict()), [id(p) for p in net.parameters()]
    sample = make().generate(net, images=torch.randn(8, 3, 16, 16))
    for value in sample.module.state_dict().values():
        value.zero_()
    assert net.training and all(m.training for m in net.modules())
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert tensors == [id(p) for p in net.parameters()]


def test_predictions_are_deterministic_and_do_not_depend_on_old_weights_or_company():
    model, a, b = make("ghn-2"), convnet(), convnet()
    first, second = (model.generate(net).state_dict for net in (a, b))
    assert all(torch.equal(first[k], v) for k, v in second.items())
    graphs = [capture_graph(net, (3, 16, 16)) for net in (convnet(6), a, convnet(9))]
    with torch.no_grad():
        together = model(graphs)[1]
    assert all(torch.allclose(first[k], v, atol=1e-5) for k, v in together.items())


def test_each_kind_of_tensor_keeps_to_its_range():
    weights = make("ghn-2").generate(convnet(30)).state_dict
    assert float(weights["1.weight"].min()) > 0 and float(weights["1.weight"].max()) < 2
    assert float(weights["5.bias"].abs().max()) < 1
    assert 0.3 < float(weights["0.weight"].std()) / (2 / 27) ** 0.5 < 3
    assert fan_in_scale((8, 1, 3, 3)) == pytest.approx(1 / 3) and fan_in_scale((8, 4, 1, 1)) == pytest.approx(
        0.5**0.5
    )
    assert fan_in_scale((8, 4, 1, 7)) == pytest.approx(28**-0.5)
    free = make("ghn-2", normalise=False).generate(convnet(30)).state_dict
    assert float(free["0.weight"].std()) > 2 * float(weights["0.weight"].std())


def test_batch_norms_are_fresh_measured_or_of_the_batch():
    model, net, images = make(), convnet(), 3 + 2 * torch.randn(300, 3, 16, 16)
    nn.init.constant_(net[1].running_mean, 7.0)
    fresh, measured = model.generate(net), model.generate(net, images=images)
    assert fresh.report["batch_norm"] == "generated" and not bool(fresh.module[1].running_mean.any())
    assert measured.report["batch_norm"] == "re-estimated on images"
    seen = measured.module[0](images)
    assert torch.allclose(measured.module[1].running_mean, seen.mean((0, 2, 3)), atol=1e-3)
    assert measured.module[1].momentum == net[1].momentum
    batch = model.generate(net, images=images, batch_norm="batch").module
    alone = measured.module
    assert torch.allclose(batch(images), alone(images), atol=1e-2)
    assert not torch.allclose(batch(images[:4]), alone(images[:4]), atol=1e-3)
    with pytest.raises(InputError, match="batch_norm is"):
        model.generate(net, batch_norm="support")
    with pytest.raises(InputError, match="at least 2 images"):
        model.generate(net, images=images[0])
    with pytest.raises(InputError, match="from about -1 to 1"):
        model.generate(net, images=255 * images.abs())
    with pytest.raises(InputError, match="do not fit"):
        model.generate(net, images=images[:, :2])


def test_layers_that_cannot_be_predicted_are_named_or_kept():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU(), nn.Flatten(), nn.Linear(4 * 196, 3))
    net[3].bias.requires_grad_(False)
    with pytest.raises(UnsupportedLayerError, match=r"1 \(PReLU.*3 \(Linear, frozen"):
        make().generate(net)
    sample = make().generate(net, partial=True)
    assert sample.report["kept"].keys() == {"1.weight", "3.bias"}
    assert torch.equal(sample.module[1].weight, net[1].weight) and torch.equal(
        sample.module[3].bias, net[3].bias
    )
    assert sample.module[1].weight is not net[1].weight and not sample.module[3].bias.requires_grad
    assert not torch.equal(sample.module[0].weight, net[0].weight)


def test_shared_weights_stay_shared():
    conv, tied = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1, bias=False)
    tied.weight = conv.weight
    net = nn.Sequential(conv, nn.ReLU(), tied, nn.Flatten(), nn.Linear(768, 3))
    with pytest.raises(UnsupportedLayerError, match="shared with"):
        make().generate(net)
    made = make().generate(net, partial=True).module
    assert made[0].weight is made[2].weight and torch.equal(made[0].weight, conv.weight)


def test_one_layer_under_two_names_is_predicted_once():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk = convnet()
            self.head, self.norms = self.trunk[-1], nn.ModuleList([self.trunk[1]])

        def forward(self, x):
            return self.trunk(x)

    net, images = Named(), torch.randn(8, 3, 16, 16)
    sample = make().generate(net, images=images)
    made, state = sample.module, sample.state_dict
    assert sample.report["predicted"] == sum(p.numel() for p in net.parameters())
    assert made.head is made.trunk[-1] and made.norms[0] is made.trunk[1]
    alone = make().generate(net.trunk, images=images).state_dict
    for first, second, plain in (
        ("trunk.5.weight", "head.weight", "5.weight"),
        ("trunk.1.running_var", "norms.0.running_var", "1.running_var"),
    ):
        assert torch.equal(state[first], state[second]) and torch.equal(state[first], alone[plain])


def test_heads_for_other_classes_and_trunks_are_kept_or_predicted_on_request():
    model, trunk = make(), convnet()[:2]
    for net in (convnet(classes=7), trunk, convnet()[:1]):
        with pytest.raises(UnsupportedRequestError, match="partial=True"):
            model.generate(net)
    other = convnet(classes=7)
    sample = model.generate(other, partial=True)
    assert sample.report["kept"].keys() == {"5.weight", "5.bias"}
    assert "7 rows" in sample.report["kept"]["5.weight"]
    assert torch.equal(sample.module[5].weight, other[5].weight)
    assert not torch.equal(sample.module[0].weight, other[0].weight)
    whole = model.generate(trunk, partial=True)
    assert not whole.report["kept"] and not torch.equal(whole.module[0].weight, trunk[0].weight)
    with pytest.raises(InputError, match="what it has is kept"):
        model.generate(convnet()[:1], partial=True)


def test_of_a_kept_trunk_no_statistic_is_reset():
    net = convnet()
    for part in net[:2]:
        part.requires_grad_(False)
    nn.init.constant_(net[1].running_mean, 7.0)
    sample = make().generate(net, partial=True)
    assert sample.report["batch_norm"] == "left as they were"
    assert torch.equal(sample.module[1].running_mean, net[1].running_mean)
    images = torch.randn(8, 3, 16, 16)
    assert make().generate(net, partial=True, images=images).report["batch_norm"] == "re-estimated on images"


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_what_is_saved_of_a_compiled_module_loads_into_the_plain_one(tmp_path):
    net, images = convnet(), torch.randn(8, 3, 16, 16)
    wanted = make().generate(net, images=images)
    for given in (torch.compile(net), nn.Sequential(torch.compile(net[:3]), *net[3:])):
        sample = make().generate(given, images=images)
        assert not [name for name in sample.state_dict if "_orig_mod" in name]
        assert all(
            torch.equal(a, b)
            for a, b in zip(*(one.state_dict.values() for one in (sample, wanted)), strict=True)
        )
    path = make().generate(torch.compile(net), images=images).save(tmp_path / "net.safetensors")
    again = convnet()
    again.load_state_dict(load_tensors(path)[0])
    assert torch.equal(again.eval()(images), wanted.module(images))


def test_more_than_tensors_in_a_state_dict_is_not_saved(tmp_path):
    class Extra(nn.Sequential):
        def get_extra_state(self):
            return {"version": 1}

        def set_extra_state(self, state):
            pass

    sample = make().generate(Extra(*convnet()))
    with pytest.raises(CheckpointError, match="'_extra_state' is no tensor"):
        sample.save(tmp_path / "net.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_the_report_names_every_statistic():
    class Own(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.register_buffer("running_mean", torch.full((channels,), 7.0))
            self.register_buffer("running_var", torch.ones(channels))

        def forward(self, x):
            return nn.functional.batch_norm(x, self.running_mean, self.running_var, None, None, self.training)

    net, images = convnet(), torch.randn(8, 3, 16, 16)
    net[1] = Own(20)
    net.register_buffer("ruler", torch.ones(2))
    names = ["1.running_mean", "1.running_var"]
    report = make().generate(net, images=images).report
    assert report["statistics"] == {"left as they were": ["ruler"], "re-estimated on images": names}
    sample = make().generate(net)
    assert sample.report["batch_norm"] == "generated" and sample.report["statistics"]["generated"] == names
    assert not sample.module[1].running_mean.any()
    with pytest.raises(InputError, match="layer '1' is of Own"):
        make().generate(net, images=images, batch_norm="batch")

    class Derived(nn.BatchNorm2d):
        def forward(self, x):
            own = self.running_mean, self.running_var, self.weight, self.bias
            return nn.functional.batch_norm(x, *own, self.training)

    net[1] = Derived(20)
    with pytest.raises(InputError, match="layer '1' is of Derived"):
        make().generate(net, batch_norm="batch")
    tracked = nn.InstanceNorm2d(20, track_running_stats=True)
    net[1] = tracked
    sample = make().generate(net, batch_norm="batch")
    assert sample.report["statistics"]["of each batch"] == names and sample.module[1].running_mean is None
    frozen = make().generate(convnet()[3:], input=(20, 16, 16)).report
    assert frozen["batch_norm"] == "none" and frozen["statistics"] == {}


def test_statistics_that_are_not_finite_are_refused():
    class Huge(nn.Module):
        def forward(self, x):
            return x * 1e30

    with pytest.raises(InputError, match=r"'1.running_var' measured on these images is not finite"):
        make().generate(nn.Sequential(Huge(), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(768, 3)),
                        images=torch.randn(8, 3, 16, 16))  # fmt: skip


def test_other_class_counts_and_other_graphs_are_refused():
    model = make()
    with pytest.raises(UnsupportedRequestError, match=r"3 classes, but layer '5' has 10"):
        model.generate(convnet(classes=10))
    with pytest.raises(InputError, match="another module"):
        model.generate(convnet(4), graph=capture_graph(convnet(5), (3, 16, 16)))
    with pytest.raises(InputError, match="cannot be traced"):
        model.generate(nn.Linear(5, 3))
    with pytest.raises(SpecError, match="backbone"):
        GHNConfig(classes=3, backbone="rnn")
    with pytest.raises(SpecError, match="width"):
        GHNConfig(classes=3, width=0)


def test_specs_and_their_modules_get_the_same_weights():
    model = make("ghn-3")
    spec = DeepNetSpec(split="test", index=2, classes=3, input=(3, 16, 16))
    sample = model.generate(spec)
    other = model.generate(spec.initialise(0), graph=graph_of(spec))
    assert all(torch.allclose(sample.state_dict[k], v, atol=1e-5) for k, v in other.state_dict.items())


def test_modules_without_memory_are_filled():
    with torch.device("meta"):
        net = convnet()
    sample = make().generate(net)
    assert {str(value.device) for value in sample.state_dict.values()} == {"cpu"}
    assert sample.module(torch.zeros(1, 3, 16, 16)).shape == (1, 3)


def test_half_precision_modules_stay_so():
    sample = make().generate(convnet().to(torch.bfloat16))
    assert {p.dtype for p in sample.module.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_it_comes_back_from_its_files(name, tmp_path):
    model, net = make(name), convnet()
    model.save_pretrained(tmp_path)
    again = load_generator(tmp_path)
    assert again.config == model.config and again.validity == model.validity
    first, second = model.generate(net).state_dict, again.generate(net).state_dict
    assert all(torch.equal(first[k], v) for k, v in second.items())
    saved = model.generate(net).save(tmp_path / "net.safetensors")
    assert saved.stat().st_size > 0
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError):
        load_generator(tmp_path)


def test_a_convolutional_head_is_that_of_the_averaged_map():
    model, pictures = make(), torch.randn(4, 3, 16, 16)
    net = nn.Sequential(
        nn.Conv2d(3, 20, 3), nn.ReLU(), nn.Conv2d(20, 3, 7, padding=3, padding_mode="circular"),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    made = model.generate(net).module
    window = made[2].weight.detach()
    assert torch.equal(window, window[..., :1, :1].expand_as(window)) and bool(window.any())
    averaged = made[1](made[0](pictures)).mean((2, 3))
    wanted = averaged @ window.sum((2, 3)).T + made[2].bias
    assert torch.allclose(made(pictures), wanted, atol=1e-5)


def test_what_is_no_graph_and_what_is_kept_whole_is_said():
    net = convnet()
    with pytest.raises(InputError, match="capture_graph gives"):
        make().generate(net, graph=5)
    net.requires_grad_(False)
    with pytest.raises(InputError, match="what it has is kept"):
        make().generate(net, partial=True)


def test_an_embedding_is_the_mean_of_the_nodes_and_the_networks_size():
    model = make("ghn-2")
    graph = capture_graph(convnet(), (3, 16, 16))
    embedding, count = model.embed_graph(graph), sum(p.numel() for p in convnet().parameters())
    assert torch.allclose(embedding[:-1], model.encode(GraphBatch([graph])).mean(0))
    assert float(embedding[-1].detach().exp()) == pytest.approx(count, rel=1e-4)
    wider = capture_graph(convnet(21), (3, 16, 16))
    assert not torch.allclose(model.embed_graph(graph), model.embed_graph(wider))


def examples(classes, shots=8, seed=0):
    """Classes that differ in brightness alone."""
    generator = torch.Generator().manual_seed(seed)
    shades = torch.linspace(-1, 1, classes)[:, None, None, None, None]
    noise = 0.05 * torch.randn(classes, shots, 3, 16, 16, generator=generator)
    names = tuple(f"shade {c}" for c in range(classes))
    return SupportSet(images=(shades + noise).clamp(-1, 1), class_names=names)


@pytest.mark.parametrize("classes", [2, 10, 13])
def test_examples_make_a_head_for_any_number_of_classes(classes):
    """An untrained hypernetwork predicts heads of chance; the closed form tells such classes apart."""
    model = make("ghn-2", classes=10)
    sample = model.generate("cnn(depth=2,width=8)", support=examples(classes))
    assert sample.report["head"] == "closed form of the examples"
    images, labels = examples(classes, seed=1).flat()
    right = float((sample.module(images).argmax(1) == labels).float().mean())
    assert right > 1.5 / classes and right >= 0.5
    assert ("predicted_accuracy" in sample.report) == (classes == 10)


def test_without_examples_only_the_trained_classes_are_made():
    model = make("ghn-2", classes=10)
    assert model.generate("cnn(depth=2,width=8,classes=10)").report["head"] == "predicted"
    with pytest.raises(UnsupportedRequestError, match="give examples"):
        model.generate("cnn(depth=2,width=8,classes=3)")


@pytest.mark.parametrize("name", ["ghn-3", "coordinate"])
def test_a_head_over_a_flattened_map_weighs_all_places_of_a_channel_alike(name):
    body = nn.Conv2d(3, 12, 3, stride=4, padding=1), nn.ReLU(), nn.Flatten()
    net = nn.Sequential(*body, nn.Linear(12 * 16, 3))
    assert capture_graph(net, (3, 16, 16)).channels == (0, 12, 12, 3, 3)
    head = make(name).generate(net).module[-1].weight.unflatten(1, (12, 16))  # (3, 192) -> (3, 12, 16)
    assert torch.equal(head, head[:, :, :1].expand_as(head)) and head[:, :, 0].unique().numel() >= 24


def test_a_bias_before_a_batch_norm_changes_nothing():
    def net(bias):
        body = nn.Conv2d(3, 12, 3, bias=bias), nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        return nn.Sequential(*body, nn.Flatten(), nn.Linear(12, 3))

    model, images = make("ghn-3"), torch.randn(16, 3, 16, 16)
    with_bias, without = (model.generate(net(bias), images=images).module for bias in (True, False))
    assert with_bias[0].bias.abs().max() == 0
    assert torch.allclose(with_bias(images), without(images), atol=1e-6)
    lone = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3)
    )
    assert model.generate(lone).module[0].bias.abs().max() > 0


def test_a_spec_takes_images_for_its_batch_norms_too():
    model, images = make("ghn-3"), torch.randn(16, 3, 16, 16).clamp(-1, 1)
    sample = model.generate("resnet(depth=8,width=4,classes=3)", images=images)
    assert sample.report["batch_norm"] == "re-estimated on images"
    fresh = model.generate("resnet(depth=8,width=4,classes=3)")
    assert torch.equal(fresh.module.head.weight, sample.module.head.weight)
    assert not torch.equal(fresh.flat, sample.flat)
    with pytest.raises(InputError, match="does not read images"):
        model.generate("resnet(depth=8,width=4,classes=3)", images=torch.zeros(4, 3, 8, 8))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"images": torch.full((4, 3, 16, 16), float("nan"))}, "not finite"),
        ({"images": [1, 2]}, "images are a tensor"),
        ({"images": torch.zeros(4, 3, 16, 16, dtype=torch.uint8)}, "uint8"),
        ({"input": 32}, "whole numbers"),
        ({"support": None, "seed": 1}, "without seed, support"),
    ],
)
def test_what_a_module_cannot_be_made_with_is_a_sentence(options, said):
    with pytest.raises(InputError, match=said):
        make().generate(convnet(), **options)


def test_the_layer_that_cannot_be_traced_is_named(capfd):
    odd = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(5, 3)))
    with pytest.raises(InputError, match=r"in layer '1.0'.*input=\(channels, height, width\)"):
        make().generate(odd)
    with pytest.raises(InputError, match="no weights"):
        make().generate(nn.Sequential(nn.Flatten()))
    assert capfd.readouterr() == ("", ""), "torch's own tracebacks stay inside"
