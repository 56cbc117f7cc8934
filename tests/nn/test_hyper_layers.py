"""Generated layers: turned into and back, bit for bit; one generator, one owner; inputs stay."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from weightloom.architectures import parse_architecture
from weightloom.errors import InputError, UnknownNameError
from weightloom.io import load_tensors, save_tensors
from weightloom.nn import (
    BlockGenerator,
    HyperConv1d,
    HyperConv2d,
    HyperConv3d,
    HyperLinear,
    hyperize,
    hyperize_together,
    materialize,
)

FAMILIES = [
    "cnn(depth=2,width=6)",
    "resnet(depth=8,width=4)",
    "mobilenet(depth=3,width=4)",
    "vit(depth=1,width=8)",
]
SMALL = {"embedding_size": 4, "block": (8, 8)}


def build(text="resnet(depth=8,width=4)"):
    return parse_architecture(text).resolve(classes=5, input=(3, 16, 16)).initialise(0).eval()


def count(module):
    return sum(p.numel() for p in module.parameters())


class Odd(nn.Module):
    """Kernels of all sizes, groups, strides, a padding mode, one layer used twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 12, (3, 5), stride=2, padding=1, padding_mode="reflect")
        self.depthwise = nn.Conv2d(12, 12, 3, padding="same", groups=12, bias=False)
        self.twice = nn.Conv2d(12, 12, 1, dilation=1)
        self.again = self.twice
        self.line = nn.Conv1d(12, 6, 3)
        self.cube = nn.Conv3d(1, 2, 2)
        self.head = nn.Linear(2 * 5 * 27, 4)

    def forward(self, x):
        x = self.again(self.twice(self.depthwise(self.first(x))).relu())
        x = self.line(x.flatten(2)).relu()  # (B, 12, H, W) -> (B, 6, H*W - 2)
        x = self.cube(x[:, None, :, :28, None].expand(-1, -1, -1, -1, 2)).flatten(1)
        return self.head(x)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("kind", ["blocks", "separable", "coordinates"])
@pytest.mark.parametrize("text", FAMILIES)
def test_materialize_gives_the_same_outputs_bit_for_bit(text, kind, linear):
    linear = linear or text.startswith("vit")  # which has no convolution
    module, x = build(text), torch.randn(3, 3, 16, 16)
    if kind == "separable" and text.startswith("vit"):
        with pytest.raises(InputError, match=r"no convolution|no layer would be smaller"):
            hyperize(module, kind=kind, linear=linear)
        return
    options = {"blocks": SMALL, "separable": {"block": (2, 4)}, "coordinates": {"hidden_size": 8}}[kind]
    hyper = hyperize(module, kind=kind, linear=linear, **options)
    plain = materialize(hyper)
    assert torch.equal(plain(x), hyper(x))
    assert not torch.equal(plain(x), module(x)), "weights are generated, not kept"
    assert type(plain) is type(module) and type(hyper) is type(module)
    assert [(n, type(m)) for n, m in plain.named_modules()] == [
        (n, type(m)) for n, m in module.named_modules()
    ]
    assert {k: v.shape for k, v in plain.state_dict().items()} == {
        k: v.shape for k, v in module.state_dict().items()
    }
    module.load_state_dict(plain.state_dict())
    assert torch.equal(module(x), plain(x))


def test_odd_layers_too():
    module, x = Odd(), torch.randn(2, 3, 16, 16)
    module(x)
    hyper = hyperize(module, linear=True, **SMALL)
    assert hyper.twice is hyper.again and isinstance(hyper.twice, HyperConv2d)
    assert isinstance(hyper.line, HyperConv1d) and isinstance(hyper.cube, HyperConv3d)
    assert isinstance(hyper.head, HyperLinear)
    plain = materialize(hyper)
    assert torch.equal(plain(x), hyper(x)) and plain.twice is plain.again
    for name, layer in module.named_children():
        assert repr(getattr(plain, name)) == repr(layer)


def test_what_is_handed_in_stays_as_it_is():
    module = build().train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    hyper = hyperize(module, **SMALL)
    kept = {k: v.clone() for k, v in hyper.state_dict().items()}
    materialize(hyper)(torch.randn(2, 3, 16, 16))
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    assert all(torch.equal(kept[k], v) for k, v in hyper.state_dict().items())
    assert hyper.training and all(m.training for m in hyper.modules())


def test_gradients_reach_every_parameter_and_a_step_lowers_the_loss():
    torch.manual_seed(0)
    hyper = hyperize(build().train(), linear=True, activation="gelu", **SMALL)
    x, y = torch.randn(16, 3, 16, 16), torch.randint(5, (16,))
    optimiser = torch.optim.Adam(hyper.parameters(), lr=1e-2)
    losses = []
    for step in range(40):
        loss = nn.functional.cross_entropy(hyper(x), y)
        optimiser.zero_grad()
        loss.backward()
        if step == 0:
            for name, parameter in hyper.named_parameters():
                assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_generators_are_shared_by_kernel_size_and_held_once():
    hyper = hyperize(build(), **SMALL)
    layers = [m for m in hyper.modules() if isinstance(m, HyperConv2d)]
    sizes = {m.kernel_size for m in layers}
    assert len({id(m.weight_generator) for m in layers}) == len(sizes)
    owners = [m for m in layers if "generator" in m._modules]
    assert len(owners) == len(sizes)
    values = [v for k, v in hyper.state_dict().items() if ".generator." in k]
    assert len(values) == 4 * len(sizes)


def test_weights_start_at_the_size_of_those_they_replace():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(16, 64, 3), nn.Conv2d(64, 16, 3), nn.Conv2d(16, 16, 3))
    with torch.no_grad():
        module[1].weight.mul_(10)
        module[2].weight.zero_()
    hyper = hyperize(module)
    for plain, made in zip(module[:2], hyper[:2], strict=True):
        assert 0.6 < float(made.weight.detach().std() / plain.weight.detach().std()) < 1.6
    # A layer that starts at zero gets the scale of a new one: it could never leave it otherwise.
    assert 0.6 < float(hyper[2].weight.detach().std() / (2 / 144) ** 0.5) < 1.6


def test_paper_counts_of_the_small_network():
    net = nn.Sequential(nn.Conv2d(1, 16, 7, padding=3), nn.Conv2d(16, 16, 7, padding=3, bias=False))
    hyper = hyperize(net, skip=["0"], embedding_size=4)
    assert count(net[1]) == 12_544 and count(hyper[1]) == 4_244


def test_wide_residual_network_40_1_has_the_papers_count():
    """36 kernels of conv2 to conv4 in 242 blocks: 91,408 values (paper: 0.097 M with the plain layers)."""
    widths = [(16, 16)] * 12 + [(16, 32)] + [(32, 32)] * 11 + [(32, 64)] + [(64, 64)] * 11
    net = nn.Sequential(*(nn.Conv2d(a, b, 3, bias=False) for a, b in widths))
    assert len(widths) == 36
    assert count(hyperize(net)) == 75_920 + 242 * 64 == 91_408


def test_state_dict_round_trip_through_safetensors(tmp_path):
    hyper, x = hyperize(build(), linear=True, **SMALL), torch.randn(2, 3, 16, 16)
    save_tensors(tmp_path / "net.safetensors", dict(hyper.state_dict()), {})
    other = hyperize(build(), linear=True, **SMALL)
    assert not torch.equal(other(x), hyper(x))
    other.load_state_dict(load_tensors(tmp_path / "net.safetensors")[0])
    assert torch.equal(other(x), hyper(x))


def test_copies_are_whole_and_apart():
    hyper, x = hyperize(build(), **SMALL), torch.randn(2, 3, 16, 16)
    for other in (copy.deepcopy(hyper), pickle.loads(pickle.dumps(hyper))):
        assert torch.equal(other(x), hyper(x))
        mine, theirs = ([m for m in n.modules() if isinstance(m, HyperConv2d)] for n in (hyper, other))
        assert len({id(m.weight_generator) for m in mine}) == len({id(m.weight_generator) for m in theirs})
        assert not {id(p) for p in hyper.parameters()} & {id(p) for p in other.parameters()}
        before = hyper(x)
        with torch.no_grad():
            theirs[0].weight_generator.out.weight.zero_()
        assert float(theirs[1].weight.detach().abs().sum()) == 0, (
            "the copy's layers share the copy's generator"
        )
        assert torch.equal(hyper(x), before)


def test_precision_and_functional_calls():
    hyper, x = hyperize(build(), **SMALL), torch.randn(2, 3, 16, 16)
    double = copy.deepcopy(hyper).double()
    assert torch.allclose(double(x.double()).float(), hyper(x), atol=1e-4)
    state = {k: torch.zeros_like(v) for k, v in hyper.named_parameters() if ".generator." in k}
    made = torch.func.functional_call(hyper, state, (x,))
    assert not torch.equal(made, hyper(x)), "the shared generator is replaced for all layers"
    half = hyperize(nn.Conv2d(4, 4, 3).bfloat16())
    assert half.embedding.dtype == half.weight.dtype == torch.bfloat16


def test_one_layer_and_layers_by_hand():
    conv = nn.Conv2d(4, 6, 3, stride=2, bias=False)
    hyper = hyperize(conv, **SMALL)
    assert isinstance(hyper, HyperConv2d) and hyper.bias is None and hyper.stride == (2, 2)
    assert repr(materialize(hyper)) == repr(conv)
    first = HyperLinear(10, 20, bias=False, embedding_size=3, block=(5, 5))
    second = HyperLinear(20, 10, generator=first.weight_generator)
    assert count(second) == 10 + 8 * 3 and second(first(torch.randn(2, 10))).shape == (2, 10)
    generator = BlockGenerator((3,), embedding_size=2)
    assert HyperConv1d(3, 4, 3, generator=generator).weight.shape == (4, 3, 3)


def test_layers_start_anew_and_only_the_owner_resets_the_generator():
    first = HyperConv2d(4, 4, 3, **SMALL)
    second = HyperConv2d(4, 4, 3, bias=False, generator=first.weight_generator)
    before = {k: v.clone() for k, v in first.state_dict().items()}
    kept = second.embedding.detach().clone()
    second.reset_parameters()
    assert not torch.equal(second.embedding, kept)
    assert all(torch.equal(before[k], v) for k, v in first.state_dict().items())
    first.reset_parameters()
    moved = {k for k, v in first.state_dict().items() if not torch.equal(before[k], v)}
    assert {"embedding", "bias", "generator.project.weight", "generator.out.weight"} == moved
    assert float(first.bias.detach().abs().max()) <= 36**-0.5


def test_frozen_layers_are_refused_unless_they_are_skipped():
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    module[0].weight.requires_grad_(False)
    with pytest.raises(InputError, match="layer '0' is frozen"):
        hyperize(module, **SMALL)
    hyper = hyperize(module, skip=["0"], **SMALL)
    assert torch.equal(hyper[0].weight, module[0].weight) and not hyper[0].weight.requires_grad


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "separable", "embedding_size": 4}, "takes block, pattern_size; it has no option embedding"),
        ({"kind": "coordinates", "block": (4, 4)}, "no option block"),
        ({"block": 16}, "block is"),
        ({"skip": 5}, "skip is a list"),
        ({"skip": None}, "skip is a list"),
        ({"skip": [5]}, "skip is a list"),
        ({"kind": "coordinates", "frequency": "a"}, "frequency must be"),
        ({"kind": "coordinates", "depth": -1}, "depth must be a whole number of at least 0, not -1"),
        ({"activation": []}, "options of kind='blocks'"),
    ],
)
def test_options_that_make_no_sense_are_named(options, words):
    with pytest.raises(InputError, match=words):
        hyperize(build(), **options)


def test_separable_leaves_what_it_would_make_larger():
    wide, deep = nn.Conv2d(32, 8, 3), nn.Conv2d(8, 8, 3, groups=8)
    hyper = hyperize(nn.Sequential(wide, deep), kind="separable")
    assert isinstance(hyper[0], HyperConv2d) and type(hyper[1]) is nn.Conv2d
    with pytest.raises(InputError, match="no layer would be smaller"):
        hyperize(nn.Sequential(deep, nn.Conv2d(8, 4, 1)), kind="separable")


def test_what_does_not_fit_a_layer_is_named():
    hyper = hyperize(nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Flatten(), nn.Linear(8, 3)), linear=True)
    assert hyper(torch.zeros(2, 4, 3, 3)).shape == (2, 3)
    for wrong in (torch.zeros(2, 3, 3, 3), torch.zeros(3, 3, 3), torch.zeros(5), None):
        with pytest.raises(InputError, match="must have 4 channels"):
            hyper(wrong)
    with pytest.raises(InputError, match=r"8 channels for a weight of shape \(3, 8\), not \(2, 9\)"):
        hyper[2](torch.zeros(2, 9))
    with pytest.raises(InputError, match="no channels"), warnings.catch_warnings(action="ignore"):
        HyperConv2d(0, 8, 3)
    with pytest.raises(InputError, match="generator must be"):
        HyperConv2d(3, 8, 3, generator=5)
    with pytest.raises(InputError, match="generated already"):
        hyperize(hyperize(build(), **SMALL), **SMALL)
    for names in ([build()], {"a.b": build()}, {"": build()}):
        with pytest.raises(InputError, match="modules"):
            hyperize_together(names, **SMALL)


def test_several_architectures_share_one_hypernetwork():
    torch.manual_seed(0)
    nets = hyperize_together({name[:4].strip("("): build(name) for name in FAMILIES[:2]}, **SMALL)
    alone = sum(count(hyperize(build(name), **SMALL)) for name in FAMILIES[:2])
    assert count(nets) < alone
    x, y = torch.randn(8, 3, 16, 16), torch.randint(5, (8,))
    before = nets["resn"](x)
    with torch.no_grad():
        next(m for m in nets["cnn"].modules() if isinstance(m, HyperConv2d)).weight_generator.out.weight.mul_(
            2
        )
    assert not torch.equal(nets["resn"](x), before), "what one learns moves the other"
    sum(nn.functional.cross_entropy(net(x), y) for net in nets.values()).backward()
    for name, parameter in nets.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name
    alone = materialize(nets["resn"])
    assert torch.equal(alone(x), nets["resn"](x))
    assert len(nets.state_dict()) == len({v.data_ptr() for v in nets.state_dict().values()})


def test_compile_and_export():
    hyper, x = hyperize(build(), linear=True, **SMALL), torch.randn(2, 3, 16, 16)
    compiled = torch.compile(hyper, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x), hyper(x), atol=1e-5)
    exported = torch.export.export(hyper, (x,)).module()
    assert torch.allclose(exported(x), hyper(x), atol=1e-5)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(InputError, match=r"no convolution to generate .*linear=True"):
        hyperize(nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises(InputError, match="no convolution or linear layer"):
        hyperize(nn.ReLU(), linear=True)
    with pytest.raises(InputError, match="no layer is called 'conv9'"):
        hyperize(build(), skip=["conv9"])
    with pytest.raises(InputError, match="list of names"):
        hyperize(build(), skip="*")
    with pytest.raises(InputError, match="no convolution"):
        hyperize(build(), skip=["*"])
    with pytest.raises(UnknownNameError, match="blocks"):
        hyperize(build(), kind="block")
    with pytest.raises(InputError, match="embedding_size"):
        hyperize(build(), embedding_size=0)
    with pytest.raises(InputError, match="nonsense"):
        hyperize(build(), nonsense=1)
    with pytest.raises(InputError, match="at least one"):
        hyperize_together({})
    with pytest.raises(InputError, match="no generated layer"):
        materialize(build())
    with pytest.raises(InputError, match="has these already"):
        HyperConv2d(3, 3, 3, generator=BlockGenerator((3, 3)), embedding_size=3)
    with pytest.raises(InputError, match=r"not \(3, 3\)"):
        HyperConv2d(3, 3, 3, generator=BlockGenerator((5, 5)))
    tied = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))
    tied[1].weight = tied[0].weight
    with pytest.raises(InputError, match="share one weight"):
        hyperize(tied)
    embedding, out = nn.Embedding(5, 3), nn.Linear(3, 5)
    out.weight = embedding.weight
    with pytest.raises(InputError, match="share one weight"):
        hyperize(nn.Sequential(embedding, out), linear=True)


def test_what_is_no_module_is_a_sentence():
    for call in (lambda: hyperize([1]), lambda: materialize(3), lambda: hyperize_together({"a": 1})):
        with pytest.raises(InputError, match="a module is needed"):
            call()


def test_layers_whose_weights_are_made_stay_plain_or_are_a_sentence():
    x = torch.randn(2, 3, 8, 8)
    made = (
        nn.utils.weight_norm, nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        lambda layer: prune.l1_unstructured(layer, "bias", 0.5),
    )  # fmt: skip
    for change in made:
        with warnings.catch_warnings(action="ignore"):
            layer = change(nn.Conv2d(3, 8, 3)).eval()
        with pytest.raises(InputError, match="made of other tensors already"):
            hyperize(layer, embedding_size=4)
        hyper = hyperize(nn.Sequential(layer, nn.Conv2d(8, 8, 3)), embedding_size=4).eval()
        assert isinstance(hyper[1], HyperConv2d) and not isinstance(hyper[0], HyperConv2d)
        assert torch.equal(hyper[0](x), layer(x)) and hyper[0].bias is not layer.bias
        assert torch.equal(materialize(hyper)(x), hyper(x))


def test_layers_without_a_shape_are_a_sentence_or_skipped():
    with warnings.catch_warnings(action="ignore"):
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LazyConv2d(8, 3), nn.Flatten(), nn.LazyLinear(2))
    with pytest.raises(InputError, match=r"layer '1' \(LazyConv2d\) has no shape yet; run the module once"):
        hyperize(net, embedding_size=4)
    with pytest.raises(InputError, match=r"layer '3' \(LazyLinear\) has no shape yet"):
        hyperize(net, embedding_size=4, linear=True, skip=["1"])
    hyper = hyperize(net, embedding_size=4, skip=["1"])
    assert hyper(torch.randn(2, 3, 8, 8)).shape == (2, 2) and type(net[1]) is nn.LazyConv2d


def test_what_a_module_keeps_and_hooks_is_copied():
    class Keeping(nn.Sequential):
        def forward(self, x):
            self.last = [super().forward(x)]
            return self.last[0]

    net, got = Keeping(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)), []
    net[1].register_forward_hook(lambda layer, given, y: got.append(y) or y * 2)
    net(torch.randn(2, 3, 8, 8))
    hyper = hyperize(net, embedding_size=4)
    assert len(got) == 1 and hyper.last[0] is not net.last[0] and hyper.last[0].grad_fn is None
    with torch.no_grad():
        hyper(torch.randn(2, 3, 8, 8))
    assert len(got) == 2 and torch.equal(
        materialize(hyper)(torch.ones(1, 3, 8, 8)), hyper(torch.ones(1, 3, 8, 8))
    )
    pair = hyperize_together({"a": net, "b": nn.Sequential(net[0])}, embedding_size=4)
    assert pair["a"][0] is pair["b"][0], "what two networks share stays shared"


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_compiled_modules_are_plain_in_the_copy():
    hyper = hyperize(torch.compile(nn.Sequential(nn.Conv2d(3, 8, 3))), embedding_size=4)
    assert type(hyper) is nn.Sequential and "0.embedding" in hyper.state_dict()
    assert list(materialize(torch.compile(hyper)).state_dict()) == ["0.weight", "0.bias"]
