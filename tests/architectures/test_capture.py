"""From a module to its graph: kinds, edges, owners, refusals, and nothing of the caller's changed."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from weightloom.architectures import architecture_families, architectures, parse_architecture
from weightloom.architectures.capture import capture_graph, graph_of_trace
from weightloom.architectures.copying import copy_module
from weightloom.architectures.graph import KINDS, NORM_KINDS, WEIGHT_KINDS
from weightloom.architectures.tracing import export
from weightloom.errors import InputError, UnsupportedLayerError

TEXTS = [text for family in architecture_families() for text in architectures.get(family).example_texts()]


def built(text):
    spec = parse_architecture(text)
    spec = spec.resolve(classes=spec.classes or 10, input=spec.input or (3, 32, 32))
    with torch.device("meta"):
        return spec.build(), spec.input


def kinds(graph):
    return [node.kind for node in graph.nodes]


class Made(nn.Module):
    """A module of named parts and a function of them."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


@pytest.mark.parametrize("text", TEXTS)
def test_every_family_of_ours_is_captured_whole(text):
    module, shape = built(text)
    graph = capture_graph(module, shape)
    names = {n for n, _ in module.named_parameters()} | {n for n, _ in module.named_buffers()}
    assert graph.owner.keys() == names and not graph.unused and not graph.kept
    assert graph.nodes[0].kind == "input" and set(kinds(graph)) <= set(KINDS)
    assert [graph.nodes[i].name for i in graph.heads] == ["head.weight"]
    assert [graph.nodes[i].name for i in graph.head_biases] == ["head.bias"]
    reached = graph.distances[0]
    assert (reached[1:] > 0).all(), "every operation is reached from the picture"
    assert all(source < target for source, target in graph.edges)
    for name, parameter in module.named_parameters():
        node = graph.nodes[graph.owner[name]]
        held = next(t for t in node.tensors if t.name == name)
        assert held.shape == tuple(parameter.shape)
        if node.kind in WEIGHT_KINDS:
            assert torch.Size(node.shape).numel() == parameter.numel()
        if node.kind in NORM_KINDS:
            assert node.shape[0] == parameter.numel()


@pytest.mark.parametrize("text", TEXTS)
def test_torch_export_gives_the_same_graph(text):
    module, shape = built(text)
    recorded, exported = (
        capture_graph(module, shape),
        graph_of_trace(export(module, shape), module),
    )
    assert recorded.how == "recorded" and exported.how == "torch.export"
    assert (recorded.nodes, recorded.edges) == (exported.nodes, exported.edges)


def test_a_residual_network_by_hand():
    """input -> conv -> bn -> (conv -> bn) + shortcut -> mean -> head."""
    net = Made(
        lambda m, x: m.head(((y := F.relu(m.first(x))) + m.norm(m.second(y))).mean((2, 3))),
        first=nn.Conv2d(3, 4, 3, bias=False), second=nn.Conv2d(4, 4, 3, padding=1, bias=False),
        norm=nn.BatchNorm2d(4), head=nn.Linear(4, 2),
    )  # fmt: skip
    graph = capture_graph(net, (3, 8, 8))
    assert kinds(graph) == ["input", "conv", "conv", "batch_norm", "sum", "global_avg", "conv", "bias"]
    assert graph.edges == ((0, 1), (1, 2), (1, 4), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7))
    assert graph.distances[1].tolist() == [0, 0, 1, 2, 1, 2, 3, 4]
    assert graph.nodes[1].shape == (4, 3, 3, 3) and graph.nodes[6].shape == (2, 4, 1, 1)
    assert [t.role for t in graph.nodes[3].tensors] == ["weight", "bias", "mean", "variance", "counter"]


def test_kinds_of_convolutions():
    net = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=4, bias=False),
        nn.Conv2d(4, 8, 3, groups=2, dilation=2, bias=False),
        nn.Conv2d(8, 8, 3, dilation=2, bias=False),
        nn.Flatten(2),
        nn.Conv1d(8, 2, 5, bias=False),
    )
    graph = capture_graph(net, (4, 20, 20))
    assert kinds(graph)[1:] == ["group_conv", "dilated_conv", "conv", "conv"]
    assert [node.shape for node in graph.nodes[1:]] == [
        (4, 1, 3, 3),
        (8, 2, 3, 3),
        (8, 8, 3, 3),
        (2, 8, 1, 5),
    ]


def test_gates_tokens_positions_scales_and_attention():
    def forward(m, x):
        y = m.patch(x).flatten(2).transpose(1, 2)  # (B, 4, 2, 2) -> (B, 4, 4) -> (B, 4, 4)
        y = torch.cat([m.token.expand(len(y), 1, 4), y], 1) + m.position
        y = y + m.scale(m.attend(y, y, y, need_weights=False)[0])
        z = y.mean(1)
        return m.head(z * torch.sigmoid(m.gate(z)))

    net = Made(
        forward, patch=nn.Conv2d(3, 4, 4, 4), token=nn.Parameter(torch.zeros(1, 1, 4)),
        position=nn.Parameter(torch.zeros(1, 5, 4)),
        scale=Made(lambda m, x: m.gamma * x, gamma=nn.Parameter(torch.ones(4))),
        attend=nn.MultiheadAttention(4, 2, batch_first=True), gate=nn.Linear(4, 4), head=nn.Linear(4, 2),
    )  # fmt: skip
    graph = capture_graph(net.eval(), (3, 8, 8))
    owner = {name: graph.nodes[index].kind for name, index in graph.owner.items()}
    assert owner["token"] == owner["position"] == "position" and owner["scale.gamma"] == "scale"
    assert owner["attend.in_proj_weight"] == "conv" and owner["attend.in_proj_bias"] == "bias"
    assert {"attention", "gate", "concat", "sum", "global_avg"} <= set(kinds(graph))
    attention = kinds(graph).index("attention")
    assert graph.predecessors[attention] == (graph.owner["attend.in_proj_bias"],)


def test_hand_written_attention_is_found_by_its_softmax():
    def forward(m, x):
        y = x.flatten(2).transpose(1, 2)  # (B, 3, 4, 4) -> (B, 16, 3)
        weights = F.dropout(torch.softmax(m.q(y) @ m.k(y).transpose(1, 2), -1), 0.1, m.training)
        return m.head((weights @ m.v(y)).mean(1))

    parts = {name: nn.Linear(3, 3, bias=False) for name in ("q", "k", "v")}
    graph = capture_graph(Made(forward, head=nn.Linear(3, 2), **parts), (3, 4, 4))
    attention = kinds(graph).index("attention")
    assert {graph.nodes[i].name for i in graph.predecessors[attention]} == {
        "q.weight",
        "k.weight",
        "v.weight",
    }


def test_a_layer_that_is_used_twice_owns_its_weight_once_and_has_a_node_at_each_use():
    net = Made(
        lambda m, x: m.head(m.conv(m.conv(x)).flatten(1)),
        conv=nn.Conv2d(3, 3, 3, padding=1), head=nn.Linear(48, 2),
    )  # fmt: skip
    graph = capture_graph(net, (3, 4, 4))
    uses = [node for node in graph.nodes if node.name == "conv.weight"]
    assert len(uses) == 2 and uses[0].tensors and not uses[1].tensors and uses[0].shape == uses[1].shape
    assert graph.owner["conv.weight"] == 1


def test_weights_that_layers_share_are_named():
    conv, tied = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1, bias=False)
    tied.weight = conv.weight
    net = nn.Sequential(conv, nn.ReLU(), tied, nn.Flatten(), nn.Linear(48, 2))
    with pytest.raises(UnsupportedLayerError, match=r"0 \(Conv2d, shared with '2.weight'\)"):
        capture_graph(net, (3, 4, 4))
    graph = capture_graph(net, (3, 4, 4), partial=True)
    assert graph.kept == (("0.weight", "shared with '2.weight'"),)
    assert graph.owner.keys() == {"0.bias", "4.weight", "4.bias"}


@pytest.mark.parametrize(
    ("normed", "kept"),
    [
        (nn.utils.spectral_norm, 1),
        (nn.utils.parametrizations.spectral_norm, 1),
        (nn.utils.parametrizations.weight_norm, 2),
        (nn.utils.parametrizations.orthogonal, 1),
    ],
)
def test_weights_behind_a_parametrisation_are_named(normed, kept):
    net = nn.Sequential(normed(nn.Conv2d(3, 3, 3, padding=1)), nn.Flatten(), nn.Linear(48, 2)).eval()
    with pytest.raises(UnsupportedLayerError, match="behind a parametrisation"):
        capture_graph(net, (3, 4, 4))
    assert len(capture_graph(net, (3, 4, 4), partial=True).kept) == kept


@pytest.mark.parametrize("ran", ["not", "with gradients", "without gradients"])
def test_weights_that_hooks_make_are_named(ran):
    for changed, kept in (
        (nn.utils.weight_norm, ["0.weight_g", "0.weight_v"]),
        (nn.utils.spectral_norm, ["0.weight_orig"]),
        (lambda m: prune.random_unstructured(m, "weight", 0.5), ["0.weight_orig"]),
        (lambda m: prune.random_unstructured(m, "bias", 0.5), ["0.bias_orig"]),
    ):
        with warnings.catch_warnings(action="ignore"):
            net = nn.Sequential(changed(nn.Conv2d(3, 3, 3)), nn.Flatten(), nn.Linear(12, 2))
        if ran != "not":
            with torch.set_grad_enabled(ran == "with gradients"):
                net(torch.zeros(1, 3, 4, 4))
        with pytest.raises(UnsupportedLayerError, match=r"0 \(Conv2d, behind a parametrisation"):
            capture_graph(net, (3, 4, 4))
        assert [name for name, _ in capture_graph(net, (3, 4, 4), partial=True).kept] == kept


def test_what_a_module_keeps_for_later_is_no_weight():
    net = Made(lambda m, x: m.head(m.keep(x.flatten(1))), head=nn.Linear(48, 2))
    net.keep = lambda y: y
    net.last = net.head(torch.zeros(1, 48))
    assert not capture_graph(net, (3, 4, 4)).kept


def test_parameters_outside_any_layer_are_named():
    for use in (lambda m, x: m.head(x.flatten(1)) * m.loose, lambda m, x: m.head(x.flatten(1)) + m.loose):
        net = Made(use, head=nn.Linear(48, 2), loose=nn.Parameter(torch.ones(2)))
        with pytest.raises(UnsupportedLayerError, match=r"loose .*outside any layer"):
            capture_graph(net, (3, 4, 4))
        assert capture_graph(net, (3, 4, 4), partial=True).kept[0][0] == "loose"


def test_a_batch_norm_without_gain_and_shift():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Flatten(), nn.Linear(16, 2))
    graph = capture_graph(net, (3, 4, 4))
    assert kinds(graph)[3] == "batch_norm" and graph.channels[3] == 4


def test_unsupported_layers_are_named_all_at_once():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.PReLU(), nn.ConvTranspose2d(4, 4, 3), nn.Flatten(), nn.Linear(256, 2)
    )
    net[0].weight.requires_grad_(False)
    with pytest.raises(UnsupportedLayerError) as caught:
        capture_graph(net, (3, 8, 8))
    assert [(name, kind) for name, kind, _ in caught.value.layers] == [
        ("0", "Conv2d"), ("1", "PReLU"), ("2", "ConvTranspose2d"),
    ]  # fmt: skip
    message = str(caught.value)
    assert "3 layers" in message and "frozen" in message and "partial=True" in message and "\n" not in message
    graph = capture_graph(net, (3, 8, 8), partial=True)
    assert {name for name, _ in graph.kept} == {"0.weight", "1.weight", "2.weight", "2.bias"}
    assert graph.owner.keys() == {"0.bias", "4.weight", "4.bias"}


def test_parameters_that_are_never_used_are_told_and_no_fault():
    net = Made(lambda m, x: m.head(x.flatten(1)), head=nn.Linear(12, 2), auxiliary=nn.Linear(12, 2))
    graph = capture_graph(net, (3, 2, 2))
    assert graph.unused == ("auxiliary.weight", "auxiliary.bias") and len(graph) == 3


def test_nothing_of_the_callers_is_changed():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 2)
    ).train()
    net[4].eval()
    before, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    tensors, stream = [id(t) for t in net.parameters()], torch.get_rng_state()
    capture_graph(net, (3, 8, 8))
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert modes == [m.training for m in net.modules()] and tensors == [id(t) for t in net.parameters()]
    assert torch.equal(stream, torch.get_rng_state())
    assert not any(p.is_inference() or p.grad is not None for p in net.parameters())


def test_copies_keep_sharing_and_copy_no_old_weights():
    conv = nn.Conv2d(3, 3, 3)
    net = nn.Sequential(conv, nn.BatchNorm2d(3), conv)
    twin = copy_module(net, lambda name, old, is_buffer: torch.ones_like(old))
    assert twin[0] is twin[2] and twin[0] is not conv and bool((twin[0].weight == 1).all())
    assert isinstance(twin[0].weight, nn.Parameter) and "running_mean" in dict(twin[1].named_buffers())
    assert not bool((conv.weight == 1).all())


def test_where_the_recorder_fails_torch_export_is_asked():
    """A constant that insists on the CPU cannot meet tensors on the meta device."""
    net = Made(lambda m, x: m.head(x.flatten(1) * torch.arange(12, device="cpu")), head=nn.Linear(12, 2))
    graph = capture_graph(net, (3, 2, 2))
    assert graph.how == "torch.export" and kinds(graph) == ["input", "conv", "bias"]


@pytest.mark.parametrize(
    ("module", "shape", "words"),
    [
        (nn.Linear(5, 2), (3, 4, 4), "3x4x4"),
        (nn.Linear(4, 2), (), "whole numbers"),
        (nn.Linear(4, 2), (3, 0, 4), "whole numbers"),
        (Made(lambda m, x: m.w * 2, w=nn.Parameter(torch.ones(2))), (3, 4, 4), "does not depend"),
        (Made(lambda m, x: x if x.sum().item() > 0 else -x), (3, 4, 4), "cannot be traced"),
        (nn.LazyLinear(3), (3, 4, 4), "no shape yet"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_what_cannot_be_traced_is_one_sentence(module, shape, words):
    with pytest.raises(InputError, match=words) as caught:
        capture_graph(module, shape)
    assert "\n" not in str(caught.value)


def test_the_structure_ignores_widths_and_names_and_sees_connections():
    def structure(text):
        module, shape = built(text)
        return capture_graph(module, shape).structure

    assert structure("resnet(depth=8,width=4)") == structure("resnet(depth=8,width=12)")
    assert structure("resnet(depth=8,width=4)") != structure("resnet(depth=14,width=4)")
    assert structure("cnn(depth=3,kernel=3)") != structure("cnn(depth=3,kernel=5)")
    order = [
        Made(lambda m, x: m.a(x) + F.relu(m.b(m.a(x))), a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 3, 3, padding=1))
    ]
    order += [Made(lambda m, x: F.relu(m.b(y)) + y if (y := m.a(x)) is not None else y, a=nn.Conv2d(3, 3, 1),
                   b=nn.Conv2d(3, 3, 3, padding=1))]  # fmt: skip
    first, second = (capture_graph(net, (3, 4, 4)) for net in order)
    assert len(first) == len(second) + 2, "a layer that is called twice is two nodes"
    assert first.structure != second.structure


def test_a_path_that_depends_on_the_pixels_is_one_sentence_and_nothing_else(capfd):
    class Fickle(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(48, 2)

        def forward(self, x):
            return self.head(x.flatten(1)) if float(x.sum()) > 0 else self.head(-x.flatten(1))

    with pytest.raises(InputError, match="depends on the pixels"):
        capture_graph(Fickle(), (3, 4, 4))
    assert capfd.readouterr() == ("", "")


class Result:
    def __init__(self, logits):
        self.inside = [{"logits": logits}]


class Lazy:
    """Makes its tensor when it is asked for."""

    def __init__(self, make):
        self._make = make


def test_outputs_are_found_in_any_object_or_their_type_is_named():
    head = nn.Linear(12, 2)
    for wrap in (Result, lambda y: (y, None, "a"), lambda y: {"a": [y]}, lambda y: {1: Result((3, y))}):
        graph = capture_graph(Made(lambda m, x, wrap=wrap: wrap(m.head(x.flatten(1))), head=head), (3, 2, 2))
        assert kinds(graph) == ["input", "conv", "bias"]
    for wrap, name in (
        (lambda y: Lazy(lambda: y), "Lazy"),
        (lambda y: None, "NoneType"),
        (lambda y: {}, "dict"),
    ):
        with pytest.raises(InputError, match=f"object of type '{name}', in which no tensor is found"):
            capture_graph(Made(lambda m, x, wrap=wrap: wrap(m.head(x.flatten(1))), head=head), (3, 2, 2))


def test_hooks_are_not_run_and_what_fails_without_them_says_so():
    got, net = [], nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    net[1].register_forward_hook(lambda layer, given, y: got.append(y.numpy()))
    net[1].register_forward_pre_hook(lambda layer, given: got.append(given))
    capture_graph(net, (3, 4, 4))
    graph_of_trace(export(net, (3, 4, 4)), net)
    assert not got
    needed = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2))
    needed[0].register_forward_hook(lambda layer, given, y: y.mean((2, 3)))
    with pytest.raises(InputError, match="its hooks were not run"):
        capture_graph(needed, (3, 8, 8))


def test_a_weight_that_a_hook_of_the_callers_makes_is_named():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Flatten(), nn.Linear(16, 2))
    net[0].weight_orig = nn.Parameter(net[0].weight.detach().clone())
    del net[0]._parameters["weight"]
    net[0].weight = net[0].weight_orig.detach()
    net[0].register_forward_pre_hook(lambda layer, _: setattr(layer, "weight", layer.weight_orig * 2))
    with pytest.raises(UnsupportedLayerError, match=r"0 \(Conv2d, made into another tensor by a hook"):
        capture_graph(net, (3, 4, 4))


@pytest.mark.parametrize("how", ["recorded", "exported"])
def test_one_layer_under_two_names_has_the_first(how):
    conv, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    net = Made(
        lambda m, x: m.head(m.body(x)), first=conv, body=nn.Sequential(conv, norm, nn.Flatten()),
        norms=nn.ModuleList([norm]), head=nn.Linear(16, 2),
    )  # fmt: skip
    net.name_of_its_own = conv.weight
    graph = capture_graph(net, (3, 4, 4))
    if how == "exported":
        graph = graph_of_trace(export(net, (3, 4, 4)), net)
    assert set(graph.owner) == {name for name, _ in (*net.named_parameters(), *net.named_buffers())}
    assert "name_of_its_own" in graph.owner and "body.1.running_mean" in graph.owner


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_names_are_those_without_torch_compile():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    plain = capture_graph(net, (3, 4, 4))
    assert capture_graph(torch.compile(net), (3, 4, 4)) == plain
    assert capture_graph(nn.Sequential(torch.compile(net[0]), *net[1:]), (3, 4, 4)) == plain


def test_constants_that_are_kept_are_read_in_an_export_too(capfd):
    net = Made(lambda m, x: m.head(x.flatten(1) * m.on[0].item()), head=nn.Linear(12, 2))
    net.on = [torch.ones(1, requires_grad=True) * 2]
    graph = capture_graph(net, (3, 2, 2))
    assert graph.how == "torch.export" and kinds(graph) == ["input", "conv", "bias"]
    assert capfd.readouterr() == ("", "")


def test_torch_says_nothing_of_what_cannot_be_exported(capfd, recwarn):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(12, 2)

        def forward(self, x):
            warnings.warn("said while it runs", stacklevel=1)
            return self.head(x.flatten(1)).numpy()

    with pytest.raises(InputError, match="cannot be traced"):
        capture_graph(Odd(), (3, 2, 2))
    assert capfd.readouterr() == ("", "") and not recwarn.list


def test_an_exported_module_is_read_with_the_batch_that_it_takes():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)).eval()
    with warnings.catch_warnings(action="ignore"):
        made = torch.export.export(net, (torch.zeros(5, 3, 4, 4),)).module()
    assert capture_graph(made, (3, 4, 4)).nodes == capture_graph(net, (3, 4, 4)).nodes
    inside = nn.Sequential(made, nn.Linear(2, 2))
    assert len(capture_graph(inside, (3, 4, 4))) == len(capture_graph(net, (3, 4, 4))) + 2
