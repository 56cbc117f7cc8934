"""HyperLSTM against the equations written out step by step, against torch's LSTM, and against itself."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

from weightloom.errors import InputError
from weightloom.io import load_tensors, save_tensors
from weightloom.nn import HyperLSTM, HyperLSTMCell, HyperRNN

T, B, I, N, H, Z = 6, 3, 4, 5, 7, 2  # noqa: E741
OPTIONS = {"hyper_size": H, "embedding_size": Z}


def moved(module, scale=0.3):
    """Every parameter away from its start, where the hyper cell has no say yet."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module


def norm(x, gain, bias):
    centred = x - x.mean(-1, keepdim=True)
    return gain * centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() + bias


def equations(cell, inputs):
    """Equations 10 to 13, one gate at a time, one weight at a time; outputs and all states."""
    names, last = (
        "ifgo",
        (torch.zeros(len(inputs[0]), N).to(inputs), torch.zeros(len(inputs[0]), N).to(inputs)),
    )
    hyper = (torch.zeros(len(inputs[0]), H).to(inputs), torch.zeros(len(inputs[0]), H).to(inputs))
    w_h = dict(zip(names, cell.weight_hh.chunk(4), strict=True))
    w_x = dict(zip(names, cell.weight_ih.chunk(4), strict=True))
    b_0 = dict(zip(names, cell.bias.chunk(4), strict=True))
    hw_in = dict(zip(names, cell.hyper_weight_ih.chunk(4), strict=True))
    hw_h = dict(zip(names, cell.hyper_weight_hh.chunk(4), strict=True))
    hb = dict(zip(names, cell.hyper_bias.chunk(4), strict=True))
    embed, bias = cell.embed_weight.view(3, 4, Z, H), cell.embed_bias.view(2, 4, Z)
    spread = cell.spread.view(3, 4, Z, N)
    outputs = []
    for x in inputs:
        (h, c), (hat_h, hat_c) = last, hyper
        seen = torch.cat([h, x], 1)
        y = {k: seen @ hw_in[k].T + hat_h @ hw_h[k].T + hb[k] for k in names}
        if cell.layer_norm:
            y = {
                k: norm(y[k], cell.hyper_norm_weight[n], cell.hyper_norm_bias[n]) for n, k in enumerate(names)
            }
        hat_c = torch.sigmoid(y["f"] + cell.forget_bias) * hat_c + torch.sigmoid(y["i"]) * torch.tanh(y["g"])
        shown = hat_c
        if cell.layer_norm:
            shown = norm(hat_c, cell.hyper_memory_norm.weight, cell.hyper_memory_norm.bias)
        hat_h = torch.sigmoid(y["o"]) * torch.tanh(shown)
        for n, k in enumerate(names):
            z_h = hat_h @ embed[0, n].T + bias[0, n]
            z_x = hat_h @ embed[1, n].T + bias[1, n]
            z_b = hat_h @ embed[2, n].T
            d_h, d_x, b = z_h @ spread[0, n], z_x @ spread[1, n], z_b @ spread[2, n] + b_0[k]
            # The weights themselves are scaled, row by row, as the paper defines it.
            scaled_h = d_h[:, :, None] * w_h[k][None]  # (B, N, N)
            scaled_x = d_x[:, :, None] * w_x[k][None]  # (B, N, I)
            y[k] = (scaled_h @ h[:, :, None] + scaled_x @ x[:, :, None]).squeeze(-1) + b
            if cell.layer_norm:
                y[k] = norm(y[k], cell.norm_weight[n], cell.norm_bias[n])
        c = torch.sigmoid(y["f"] + cell.forget_bias) * c + torch.sigmoid(y["i"]) * torch.tanh(y["g"])
        shown = norm(c, cell.memory_norm.weight, cell.memory_norm.bias) if cell.layer_norm else c
        h = torch.sigmoid(y["o"]) * torch.tanh(shown)
        last, hyper = (h, c), (hat_h, hat_c)
        outputs.append(h)
    return torch.stack(outputs), (*last, *hyper)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_it_is_the_equations_gradients_included(layer_norm):
    torch.manual_seed(0)
    model = moved(HyperLSTM(I, N, layer_norm=layer_norm, **OPTIONS).double())
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    output, (h, c) = model(x)
    wanted, states = equations(model.cells[0], x)
    assert torch.allclose(output, wanted, rtol=1e-10, atol=1e-12)
    assert torch.allclose(h[0], states[0], atol=1e-12)
    assert torch.allclose(c[0], torch.cat(states[1:], 1), atol=1e-12)
    mix = torch.randn_like(wanted)
    parameters = [x, *model.parameters()]
    found = torch.autograd.grad((output * mix).sum() + c.sin().sum(), parameters)
    right = torch.autograd.grad((wanted * mix).sum() + torch.cat(states[1:], 1).sin().sum(), parameters)
    for name, a, b in zip(["x", *dict(model.named_parameters())], found, right, strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-11), name


@pytest.mark.parametrize("layer_norm", [False, True])
def test_single_precision_agrees_with_double(layer_norm):
    torch.manual_seed(0)
    model = moved(HyperLSTM(I, N, layer_norm=layer_norm, **OPTIONS))
    x = torch.randn(T, B, I)
    single, double = model(x)[0], equations(copy.deepcopy(model).double().cells[0], x.double())[0]
    assert float(((single - double).norm() / double.norm()).detach()) < 1e-6


@pytest.mark.parametrize("layer_norm", [False, True])
def test_gradcheck_of_the_cell(layer_norm):
    torch.manual_seed(0)
    cell = moved(HyperLSTMCell(2, 3, hyper_size=2, embedding_size=2, layer_norm=layer_norm)).double()
    state = [torch.randn(2, width, dtype=torch.float64, requires_grad=True) for width in (2, 3, 3 + 4)]

    def run(x, h, c, *_):
        return cell(x, cell(x.roll(1, 0), (h, c)))

    assert torch.autograd.gradcheck(run, (*state, *cell.parameters()))


def test_gradcheck_of_the_layer():
    torch.manual_seed(0)
    model = moved(HyperLSTM(2, 2, hyper_size=2, embedding_size=1, bidirectional=True)).double()
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: model(x)[0], (x, *model.parameters()))


def neutral(lstm, **options):
    """A HyperLSTM with the weights of ``lstm`` whose scalings are all 1 and whose shifts are all 0."""
    sizes = (lstm.input_size, lstm.hidden_size, lstm.num_layers)
    model = HyperLSTM(
        *sizes, bidirectional=lstm.bidirectional, batch_first=lstm.batch_first, forget_bias=0.0, **options
    )
    with torch.no_grad():
        for number, cell in enumerate(model.cells):
            layer, back = divmod(number, model.directions)
            end = f"l{layer}" + ("_reverse" if back else "")
            cell.weight_ih.copy_(getattr(lstm, f"weight_ih_{end}"))
            cell.weight_hh.copy_(getattr(lstm, f"weight_hh_{end}"))
            cell.bias.copy_(getattr(lstm, f"bias_ih_{end}") + getattr(lstm, f"bias_hh_{end}"))
            cell.spread[:8] = 1 / cell.embedding_size
    return model


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_with_a_neutral_hyper_cell_it_is_torchs_lstm(layers, bidirectional, batch_first):
    torch.manual_seed(0)
    lstm = nn.LSTM(I, N, layers, bidirectional=bidirectional, batch_first=batch_first)
    model = neutral(lstm, **OPTIONS)
    x = torch.randn(B, T, I)
    states = torch.randn(2, len(model.cells), B if batch_first else T, N)
    for hx in (None, tuple(states)):
        wanted, (h, c) = lstm(x, hx)
        output, (h_too, c_too) = model(x, hx)
        assert output.shape == wanted.shape and h_too.shape == h.shape
        assert torch.allclose(output, wanted, atol=1e-6) and torch.allclose(h_too, h, atol=1e-6)
        assert torch.allclose(c_too[..., :N], c, atol=1e-6)


def test_a_neutral_one_reads_packed_and_unbatched_input_as_torch_does():
    torch.manual_seed(0)
    lstm = nn.LSTM(I, N, 2, bidirectional=True)
    model = neutral(lstm, **OPTIONS)
    packed = pack_sequence([torch.randn(length, I) for length in (2, 6, 1, 6)], enforce_sorted=False)
    (wanted, (h, c)), (output, (h_too, c_too)) = lstm(packed), model(packed)
    assert isinstance(output, PackedSequence)
    assert torch.allclose(output.data, wanted.data, atol=1e-6)
    assert torch.equal(output.batch_sizes, wanted.batch_sizes)
    assert torch.equal(output.unsorted_indices, wanted.unsorted_indices)
    assert torch.allclose(h_too, h, atol=1e-6) and torch.allclose(c_too[..., :N], c, atol=1e-6)
    x = torch.randn(T, I)
    (wanted, (h, c)), (output, (h_too, c_too)) = lstm(x), model(x)
    assert output.shape == wanted.shape and h_too.shape == h.shape
    assert torch.allclose(output, wanted, atol=1e-6) and torch.allclose(c_too[..., :N], c, atol=1e-6)


def test_the_cell_with_a_neutral_hyper_cell_is_torchs():
    torch.manual_seed(0)
    plain = nn.LSTMCell(I, N)
    cell = HyperLSTMCell(I, N, forget_bias=0.0, **OPTIONS)
    with torch.no_grad():
        cell.weight_ih.copy_(plain.weight_ih), cell.weight_hh.copy_(plain.weight_hh)
        cell.bias.copy_(plain.bias_ih + plain.bias_hh)
        cell.spread[:8] = 1 / Z
    for shape in ((B, I), (I,)):
        x, state = torch.randn(shape), torch.randn(2, *shape[:-1], N).unbind(0)
        (h, c), (h_too, c_too) = plain(x, state), cell(x, state)
        assert h_too.shape == h.shape and torch.allclose(h_too, h, atol=1e-6)
        assert torch.allclose(c_too[..., :N], c, atol=1e-6)


@pytest.fixture(params=["lstm", "lstm-norm", "rnn"])
def model(request):
    torch.manual_seed(0)
    options = {**OPTIONS, "num_layers": 2, "bidirectional": True}
    if request.param == "rnn":
        return moved(HyperRNN(I, N, **options))
    return moved(HyperLSTM(I, N, layer_norm=request.param == "lstm-norm", **options))


def states_of(found):
    return found if isinstance(found, tuple) else (found,)


def test_packed_is_padded_is_one_by_one(model):
    lengths = [6, 2, 1, 5]
    singles = [torch.randn(length, I) for length in lengths]
    padded = nn.utils.rnn.pad_sequence(singles, padding_value=7.0)
    packed = pack_padded_sequence(padded, torch.tensor(lengths), enforce_sorted=False)
    output, state, scales = model(packed, return_scales=True)
    outputs, found = pad_packed_sequence(output)
    assert found.tolist() == lengths
    for n, single in enumerate(singles):
        alone, last, own = model(single[:, None], return_scales=True)
        assert torch.allclose(outputs[: lengths[n], n], alone[:, 0], atol=1e-6)
        for a, b in zip(states_of(state), states_of(last), strict=True):
            assert torch.allclose(a[:, n], b[:, 0], atol=1e-6)
        for a, b in zip(scales, own, strict=True):
            assert torch.allclose(a[:, : lengths[n], n], b[:, :, 0], atol=1e-6)
            assert float(a[:, lengths[n] :, n].detach().abs().sum()) == 0


def test_sorted_packing_and_an_initial_state(model):
    x, lengths = torch.randn(6, B, I), [6, 4, 4]
    _, begin = model(torch.randn(2, B, I))
    sorted_ = model(pack_padded_sequence(x, lengths), begin)
    unsorted = model(pack_padded_sequence(x, lengths, enforce_sorted=False), begin)
    assert sorted_[0].sorted_indices is None
    assert torch.allclose(pad_packed_sequence(sorted_[0])[0], pad_packed_sequence(unsorted[0])[0], atol=1e-6)
    order = [2, 0, 1]  # sequences change places, and nothing else changes
    turned = tuple(part[:, order].contiguous() for part in states_of(begin))
    turned = turned if len(turned) > 1 else turned[0]
    shuffled = model(
        pack_padded_sequence(x[:, order], [lengths[n] for n in order], enforce_sorted=False), turned
    )
    assert torch.allclose(
        pad_packed_sequence(shuffled[0])[0], pad_packed_sequence(unsorted[0])[0][:, order], atol=1e-6
    )
    for a, b in zip(states_of(shuffled[1]), states_of(unsorted[1]), strict=True):
        assert torch.allclose(a, b[:, order], atol=1e-6)


@pytest.mark.parametrize("kind", [HyperLSTM, HyperRNN])
def test_two_directions_are_two_singles(kind):
    torch.manual_seed(0)
    both = moved(kind(I, N, bidirectional=True, **OPTIONS))
    ahead, back = kind(I, N, **OPTIONS), kind(I, N, **OPTIONS)
    ahead.cells[0].load_state_dict(both.cells[0].state_dict())
    back.cells[0].load_state_dict(both.cells[1].state_dict())
    x = torch.randn(T, B, I)
    output, state = both(x)
    first, second = ahead(x), back(x.flip(0))
    assert torch.allclose(output, torch.cat([first[0], second[0].flip(0)], -1), atol=1e-6)
    for whole, a, b in zip(states_of(state), states_of(first[1]), states_of(second[1]), strict=True):
        assert torch.allclose(whole, torch.cat([a, b]), atol=1e-6)


@pytest.mark.parametrize("kind", [HyperLSTM, HyperRNN])
@pytest.mark.parametrize("cut", [1, 3, 5])
def test_a_sequence_may_be_cut_anywhere(kind, cut):
    torch.manual_seed(0)
    model = moved(kind(I, N, num_layers=2, **OPTIONS))
    x = torch.randn(T, B, I)
    whole, last = model(x)
    first, state = model(x[:cut])
    # As training on pieces of a long text does it.
    state = tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()
    rest, end = model(x[cut:], state)
    assert torch.allclose(torch.cat([first, rest]), whole, atol=1e-6)
    for a, b in zip(states_of(end), states_of(last), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_the_cell_is_the_layer_step_by_step():
    torch.manual_seed(0)
    model, cell = (
        moved(HyperLSTM(I, N, layer_norm=True, **OPTIONS)),
        HyperLSTMCell(I, N, layer_norm=True, **OPTIONS),
    )
    cell.load_state_dict(model.cells[0].state_dict())
    x, state, outputs = torch.randn(T, B, I), None, []
    for step in x:
        state = cell(step, state)
        outputs.append(state[0])
    whole, (h, c) = model(x)
    assert torch.allclose(torch.stack(outputs), whole, atol=1e-6)
    assert torch.allclose(state[0], h[0], atol=1e-6) and torch.allclose(state[1], c[0], atol=1e-6)


def test_a_batch_equals_its_singles_and_layouts_agree(model):
    x = torch.randn(T, B, I)
    whole = model(x)[0]
    for n in range(B):
        assert torch.allclose(model(x[:, n])[0], whole[:, n], atol=1e-6)
    model.batch_first = True
    assert torch.allclose(model(x.transpose(0, 1))[0], whole.transpose(0, 1), atol=1e-6)


def test_gradients_reach_every_parameter(model):
    model(torch.randn(T, B, I))[0].square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name


@pytest.mark.parametrize("kind", [HyperLSTM, HyperRNN])
def test_the_papers_initialisation(kind):
    cell = kind(6, 10, hyper_size=8, embedding_size=4).cells[0]
    gates = cell.gates
    for weight in (cell.weight_hh, cell.weight_ih, cell.hyper_weight_ih, cell.hyper_weight_hh):
        for gate in weight.detach().chunk(gates):
            small = gate @ gate.T if gate.shape[0] <= gate.shape[1] else gate.T @ gate
            assert torch.allclose(small, torch.eye(len(small)), atol=1e-5)
    assert not cell.bias.any() and not cell.hyper_bias.any()
    split = 2 * gates
    assert not cell.embed_weight[: split * 4].any() and bool((cell.embed_bias == 1).all())
    assert 0.005 < float(cell.embed_weight[split * 4 :].detach().std()) < 0.02
    assert bool((cell.spread[:split] == 0.1 / 4).all()) and not cell.spread[split:].any()
    model = kind(6, 10, hyper_size=8, embedding_size=4)
    scales = model(torch.randn(5, 2, 6), return_scales=True)[2]
    assert torch.allclose(scales.recurrent, torch.tensor(0.1)) and torch.allclose(
        scales.input, torch.tensor(0.1)
    )
    assert not scales.shift.any() and not scales.change().any()


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, 4_911_874),
        ({"layer_norm": True}, 4_923_154),
        ({"layer_norm": True, "embedding_size": 16, "num_layers": 2}, 14_407_714),
        ({"hidden_size": 1800, "hyper_size": 256, "embedding_size": 64, "input_size": 205}, 18_708_213),
    ],
)
def test_counts_are_the_papers(options, wanted):
    """Character models with a softmax over the alphabet: 4.91 M, 4.92 M, 14.41 M and 18.71 M."""
    sizes = {"input_size": 50, "hidden_size": 1000, "hyper_size": 128, "embedding_size": 4, **options}
    with torch.device("meta"):
        found = sum(p.numel() for p in HyperLSTM(**sizes).parameters())
    assert found + sizes["input_size"] * (sizes["hidden_size"] + 1) == wanted


def test_scales_of_every_layer_direction_and_step(model):
    _, _, scales = model(torch.randn(T, B, I), return_scales=True)
    gates = model.cells[0].gates
    assert all(part.shape == (4, T, B, gates, N) for part in scales)
    assert scales.change().shape == (4, T, B) and bool((scales.change()[:, 1:] > 0).all())
    assert not scales.change()[:, 0].any()


def test_recurrent_dropout_is_of_what_is_written_and_only_in_training():
    torch.manual_seed(0)
    model = HyperLSTM(I, 400, recurrent_dropout=0.25, **OPTIONS)
    x = torch.randn(1, B, I)
    _, (_, dropped) = model(x)
    _, (_, whole) = model.eval()(x)
    assert torch.equal(model(x)[1][1], whole)
    ratio = dropped[..., :400] / whole[..., :400]  # the memory was empty: all of it is what was written
    kept = ratio.abs() > 0.5
    assert torch.allclose(ratio[kept], torch.tensor(1 / 0.75), atol=1e-3)
    assert 0.7 < float(kept.float().mean()) < 0.8
    assert torch.equal(dropped[..., 400:], whole[..., 400:]), "the hyper cell is not dropped"


def test_dropout_between_layers():
    model = HyperLSTM(I, N, num_layers=2, dropout=0.5, **OPTIONS)
    x = torch.randn(T, B, I)
    assert not torch.equal(model(x)[0], model(x)[0])
    model.eval()
    assert torch.equal(model(x)[0], model(x)[0])


def test_files_copies_and_precision(model, tmp_path):
    x = torch.randn(T, B, I)
    save_tensors(tmp_path / "model.safetensors", dict(model.state_dict()), {})
    other = copy.deepcopy(model)
    for cell in other.cells:
        cell.reset_parameters()
    assert not torch.equal(other(x)[0], model(x)[0])
    other.load_state_dict(load_tensors(tmp_path / "model.safetensors")[0])
    assert torch.equal(other(x)[0], model(x)[0])
    assert torch.equal(pickle.loads(pickle.dumps(model))(x)[0], model(x)[0])
    assert torch.allclose(model.bfloat16()(x.bfloat16())[0].float(), other(x)[0], atol=0.1)


def test_lower_precision_by_autocast(model):
    x = torch.randn(T, B, I)
    wanted = model(x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, state = model(x)
        found.float().sum().backward()
        rest, _ = model(x, state)
    assert torch.allclose(found.float(), wanted, atol=0.05) and bool(torch.isfinite(rest).all())


def test_many_models_at_once_under_vmap():
    models = [moved(HyperLSTM(I, N, layer_norm=True, **OPTIONS)) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(models)
    x = torch.randn(T, B, I)

    def run(p, b):
        return torch.func.functional_call(models[0], (p, b), (x,))[0]

    found = torch.func.vmap(run)(parameters, buffers)
    for one, model in zip(found, models, strict=True):
        assert torch.allclose(one, model(x)[0], atol=1e-6)
    own = torch.func.vmap(lambda each: models[0](each)[0])(torch.randn(2, T, B, I))
    assert own.shape == (2, T, B, N)


def test_compile_and_export():
    torch.manual_seed(0)
    model, x = moved(HyperLSTM(I, N, layer_norm=True, bidirectional=True, **OPTIONS)), torch.randn(3, B, I)
    wanted = model(x)
    for found in (
        torch.compile(model, backend="aot_eager", fullgraph=True)(x),
        torch.export.export(model, (x,)).module()(x),
    ):
        assert torch.allclose(found[0], wanted[0], atol=1e-6)
        assert torch.allclose(found[1][1], wanted[1][1], atol=1e-6)


def test_it_learns_what_needs_memory():
    """The first symbol has to be told after a row of noise."""
    torch.manual_seed(0)
    model, head = HyperLSTM(3, 24, batch_first=True, hyper_size=8, layer_norm=True), nn.Linear(24, 2)
    optimiser = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=1e-2)
    draw = torch.Generator().manual_seed(0)
    for _ in range(60):
        y = torch.randint(2, (64,), generator=draw)
        x = torch.randn(64, 10, 3, generator=draw)
        x[:, 0, 0] = 4.0 * y - 2
        loss = nn.functional.cross_entropy(head(model(x)[0][:, -1]), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"proj_size": 3}, "proj_size=3"),
        ({"bias": False}, "bias=False"),
        ({"embedding_size": 0}, "embedding_size must be"),
        ({"hyper_size": 0}, "hyper_size must be"),
        ({"hidden_size": 0}, "hidden_size must be"),
        ({"num_layers": 0}, "num_layers must be"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"dropout": "a"}, "dropout must be"),
        ({"recurrent_dropout": -0.1}, "recurrent_dropout must be"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        HyperLSTM(**{"input_size": I, "hidden_size": N, **options})


def test_half_precision_starts_as_whole_precision_does():
    for dtype in (torch.bfloat16, torch.float16):
        model = HyperLSTM(I, N, dtype=dtype, **OPTIONS)
        gate = model.cells[0].weight_hh.chunk(4)[0].float()
        assert model.cells[0].weight_hh.dtype == dtype and torch.allclose(
            gate @ gate.T, torch.eye(N), atol=0.02
        )


def test_bad_input_is_refused():
    model = HyperLSTM(I, N, **OPTIONS)
    wide = N + 2 * H
    bad = torch.randn(T, B, I)
    bad[2, 1, 0] = torch.nan
    for x, hx, words in [
        (torch.zeros(T, B, 9), None, rf"end in {I} features.*\({T}, {B}, 9\)"),
        (torch.zeros(T), None, "features"),
        (torch.zeros(0, B, I), None, r"at least one step.*\(0, 3\)"),
        (bad, None, "not finite"),
        (
            torch.zeros(T, B, I),
            (torch.zeros(1, B, N), torch.zeros(1, 2, N)),
            rf"c must .*\(1, 3, {wide}\).*\(1, 2, 5\)",
        ),
        (
            torch.zeros(T, B, I),
            (torch.zeros(1, B, 4), torch.zeros(1, B, N)),
            r"h must .*\(1, 3, 5\).*\(1, 3, 4\)",
        ),
        (torch.zeros(T, B, I), torch.zeros(1, B, N), "2 tensors, not 1"),
    ]:
        with pytest.raises(InputError, match=words):
            model(x, hx)
    cell = HyperLSTMCell(I, N, **OPTIONS)
    for x, hx, words in [
        (torch.zeros(B, 9), None, rf"\(batch, {I}\).*\({B}, 9\)"),
        (torch.zeros(B, I) / 0, None, "not finite"),
        (torch.zeros(B, I), (torch.zeros(2, N), torch.zeros(B, N)), r"h must .*\(3, 5\).*\(2, 5\)"),
        (torch.zeros(B, I), (torch.zeros(B, N), torch.zeros(B, 7)), rf"c must .*\(3, {wide}\).*\(3, 7\)"),
    ]:
        with pytest.raises(InputError, match=words):
            cell(x, hx)
    with pytest.raises(InputError, match="bias=False"):
        HyperLSTMCell(I, N, bias=False)
    with pytest.raises(InputError, match="nonlinearity must be 'tanh' or 'relu'"):
        HyperRNN(I, N, nonlinearity="sin")
    with pytest.raises(InputError, match=r"h must have the shape \(1, 3, 12\)"):
        HyperRNN(I, N, **OPTIONS)(torch.zeros(T, B, I), torch.zeros(1, B, 6))


def test_rnn_is_the_equations_and_neutral_is_torchs():
    torch.manual_seed(0)
    model = moved(HyperRNN(I, N, **OPTIONS).double())
    cell, x = model.cells[0], torch.randn(T, B, I, dtype=torch.float64)
    h, hat = torch.zeros(B, N).double(), torch.zeros(B, H).double()
    embed, spread = cell.embed_weight.view(3, Z, H), cell.spread
    for t in range(T):
        seen = torch.cat([h, x[t]], 1)
        hat = torch.tanh(hat @ cell.hyper_weight_hh.T + seen @ cell.hyper_weight_ih.T + cell.hyper_bias)
        d_h = (hat @ embed[0].T + cell.embed_bias[:Z]) @ spread[0]
        d_x = (hat @ embed[1].T + cell.embed_bias[Z:]) @ spread[1]
        b = hat @ embed[2].T @ spread[2] + cell.bias
        h = torch.tanh(d_h * (h @ cell.weight_hh.T) + d_x * (x[t] @ cell.weight_ih.T) + b)
        assert torch.allclose(model(x[: t + 1])[0][-1], h, atol=1e-12)
    plain = nn.RNN(I, N, nonlinearity="relu")
    other = HyperRNN(I, N, nonlinearity="relu", **OPTIONS)
    with torch.no_grad():
        other.cells[0].weight_ih.copy_(plain.weight_ih_l0), other.cells[0].weight_hh.copy_(plain.weight_hh_l0)
        other.cells[0].bias.copy_(plain.bias_ih_l0 + plain.bias_hh_l0)
        other.cells[0].spread[:2] = 1 / Z
    y = torch.randn(T, B, I)
    assert torch.allclose(other(y)[0], plain(y)[0], atol=1e-6)


def test_foreign_input_and_states_are_a_sentence():
    model, x = HyperLSTM(3, 4, hyper_size=2), torch.randn(5, 2, 3)
    state = (torch.full((1, 2, 4), float("nan")), torch.zeros(1, 2, 4))
    grown = PackedSequence(torch.randn(5, 3), torch.tensor([1, 2, 2]))
    missing = PackedSequence(torch.randn(5, 3), torch.tensor([3, 3]))
    for given, said in (
        ((x, state), "hx: h holds numbers"),
        ((x, (None, None)), "hx: h must be a tensor"),
        ((x.double(),), "torch.float64"),
        (([1, 2],), "a tensor or a packed sequence, not list"),
        ((grown,), r"\[1, 2, 2\] must not grow"),
        ((missing,), "the 5 rows"),
    ):
        with pytest.raises(InputError, match=said):
            model(*given)
