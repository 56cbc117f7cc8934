"""HyperLSTM and HyperRNN where their namesakes go: traced, exported, without memory, odd batches and states.

Each check is made of torch's own layer too, so that it says what a drop-in has to do.
"""

from __future__ import annotations

import copy
import io
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from weightloom.errors import InputError
from weightloom.nn import HyperLSTM, HyperLSTMCell, HyperRNN

T, B, I, N, H = 3, 2, 5, 6, 3  # noqa: E741
LAYERS = [nn.LSTM, HyperLSTM, HyperRNN]
BATCH = torch.export.Dim("B", min=2, max=64)


def make(kind, **options):
    torch.manual_seed(0)
    if kind is nn.LSTM:
        options.pop("layer_norm", None)
    model = kind(I, N, **options) if kind is nn.LSTM else kind(I, N, hyper_size=H, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_meta:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def states(kind, batch, cells=1, plain=False):
    torch.manual_seed(batch)
    if kind is HyperRNN:
        return torch.randn(cells, batch, N if plain else N + H)
    wide = N if plain or kind is nn.LSTM else N + 2 * H
    return torch.randn(cells, batch, N), torch.randn(cells, batch, wide)


class Stated(nn.Module):
    """States as plain arguments, and nothing but tensors comes out."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, *state):
        output, last = self.model(x, state if len(state) == 2 else state[0])
        return output, *(last if isinstance(last, tuple) else (last,))


def flat(output, state):
    return output, *(state if isinstance(state, tuple) else (state,))


def traced(model, given):
    with warnings.catch_warnings(action="ignore"):  # torch's own, of what is deprecated
        return torch.jit.trace(model, given)


OPTIONS = [{}, {"num_layers": 2, "bidirectional": True, "layer_norm": True}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_trace_computes_the_same_for_any_batch(kind, options):
    model, x, other = make(kind, **options), torch.randn(T, B, I), torch.randn(T, 7, I)
    made = traced(model, x)
    for found, wanted in zip(flat(*made(other)), flat(*model(other)), strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)
    cells = 4 if options else 1
    for plain in (False, True):
        given = [states(kind, batch, cells, plain) for batch in (B, 7)]
        given = [state if isinstance(state, tuple) else (state,) for state in given]
        made = traced(Stated(model), (x, *given[0]))
        for found, wanted in zip(made(other, *given[1]), Stated(model)(other, *given[1]), strict=True):
            assert torch.allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("kind", [HyperLSTM, HyperRNN])
def test_a_trace_of_other_lengths_fails_aloud(kind):
    """The steps are written down one by one; the page on hypernetworks says so."""
    made = traced(make(kind), torch.randn(T, B, I))
    for steps in (T - 1, T + 1):
        with pytest.raises(RuntimeError, match="elements in a list"):
            made(torch.randn(steps, B, I))


def test_a_saved_trace_needs_nothing_of_this_package():
    model, x, file = make(HyperLSTM), torch.randn(T, B, I), io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(traced(model, x), file)
        file.seek(0)
        again = torch.jit.load(file)
    assert torch.allclose(again(x)[0], model(x)[0], atol=1e-6)


@pytest.mark.filterwarnings("ignore:The tensor attributes self._flat_weights")
@pytest.mark.parametrize(
    ("kind", "options", "strict"),
    [(kind, {}, False) for kind in LAYERS] + [(HyperLSTM, OPTIONS[1], False), (HyperLSTM, {}, True)],
)
def test_an_export_keeps_a_dynamic_batch(kind, options, strict):
    model, x, other = make(kind, **options), torch.randn(T, B, I), torch.randn(T, 9, I)
    made = torch.export.export(model, (x,), dynamic_shapes=({1: BATCH},), strict=strict).module()
    for found, wanted in zip(flat(*made(other)), flat(*model(other)), strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(("kind", "plain"), [(HyperLSTM, False), (HyperLSTM, True), (HyperRNN, False)])
def test_an_export_keeps_a_dynamic_batch_of_states(kind, plain):
    model = Stated(make(kind, batch_first=True)).eval()
    given = [states(kind, batch, plain=plain) for batch in (B, 9)]
    given = [state if isinstance(state, tuple) else (state,) for state in given]
    dynamic = ({0: BATCH}, tuple({1: BATCH} for _ in given[0]))
    made = torch.export.export(model, (torch.randn(B, T, I), *given[0]), dynamic_shapes=dynamic).module()
    x = torch.randn(9, T, I)
    for found, wanted in zip(made(x, *given[1]), model(x, *given[1]), strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The tensor attributes self._flat_weights")
@pytest.mark.parametrize("kind", LAYERS)
def test_an_export_has_as_many_steps_as_it_was_made_with(kind):
    steps = torch.export.Dim("T", min=2, max=64)
    with pytest.raises(torch._dynamo.exc.UserError, match="T as dynamic"):
        torch.export.export(make(kind), (torch.randn(T, B, I),), dynamic_shapes=({0: steps},))


def test_a_cell_is_traced_and_exported_with_any_batch():
    cell = make(HyperLSTMCell)
    x, other = torch.randn(B, I), torch.randn(9, I)
    given = [tuple(part[0] for part in states(HyperLSTM, batch)) for batch in (B, 9)]

    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = cell

        def forward(self, x, h, c):
            return self.cell(x, (h, c))

    dynamic = ({0: BATCH},) * 3
    exported = torch.export.export(Called().eval(), (x, *given[0]), dynamic_shapes=dynamic).module()
    for made in (exported, traced(Called().eval(), (x, *given[0]))):
        for found, wanted in zip(made(other, *given[1]), cell(other, given[1]), strict=True):
            assert torch.allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("kind", LAYERS)
def test_without_memory_it_gives_shapes(kind):
    model = make(kind, num_layers=2, bidirectional=True, layer_norm=True, device="meta")
    output, _ = model(torch.zeros(T, B, I, device="meta"))
    assert output.is_meta and output.shape == (T, B, 2 * N)
    with torch.device("meta"):
        assert make(kind)(torch.zeros(T, B, I))[0].is_meta
    cell = HyperLSTMCell(I, N, hyper_size=H, device="meta")
    assert [part.shape for part in cell(torch.zeros(B, I, device="meta"))] == [(B, N), (B, N + 2 * H)]


@pytest.mark.parametrize("kind", LAYERS)
def test_no_sequence_at_all_is_no_fault(kind):
    model = make(kind, num_layers=2).train()
    output, state = model(torch.zeros(T, 0, I))
    assert output.shape == (T, 0, N) and flat(0, state)[1].shape[1] == 0
    output.sum().backward()
    assert not any(p.grad is None or p.grad.any() for p in model.parameters())
    cell = HyperLSTMCell(I, N, hyper_size=H)
    assert cell(torch.zeros(0, I))[0].shape == nn.LSTMCell(I, N)(torch.zeros(0, I))[0].shape


@pytest.mark.parametrize("kind", [HyperLSTM, HyperRNN])
@pytest.mark.parametrize(
    ("packed", "words"),
    [
        (PackedSequence(torch.zeros(3, I), torch.tensor([2, 1, 0])), r"at least one sequence: .*\[2, 1, 0\]"),
        (PackedSequence(torch.zeros(0, I), torch.tensor([0])), "at least one sequence"),
        (PackedSequence(torch.zeros(0, I), torch.tensor([], dtype=torch.long)), "0 rows"),
        (
            PackedSequence(torch.zeros(3, I), torch.tensor([2, 1]), torch.arange(3), torch.arange(3)),
            "no empty sequences: 3 are put in order, and batch_sizes begin with 2",
        ),
        (
            PackedSequence(
                torch.zeros(3, I), torch.tensor([2, 1]), torch.tensor([0, 7]), torch.tensor([0, 1])
            ),
            "each of 0 to 1 once",
        ),
    ],
)
def test_packed_batches_with_empty_sequences_are_refused(kind, packed, words):
    with pytest.raises(InputError, match=words):
        make(kind)(packed)


def test_torch_itself_packs_no_empty_sequence():
    with pytest.raises(RuntimeError, match="greater than 0"):
        pack_sequence([torch.zeros(2, I), torch.zeros(0, I)])


@pytest.mark.parametrize("kind", LAYERS)
def test_numbers_of_another_type_or_place_are_an_error(kind):
    model, x = make(kind), torch.randn(T, B, I)
    state = states(kind, B)
    double = tuple(part.double() for part in state) if isinstance(state, tuple) else state.double()
    for given in ((x.double(),), (x.long(),), (x, double), (torch.zeros(T, B, I, device="meta"),)):
        with pytest.raises((InputError, RuntimeError, ValueError)) as caught:
            model(*given)
        assert kind is nn.LSTM or (
            type(caught.value) is InputError and "the weights are" in str(caught.value)
        )
    assert model.double()(x.double())[0].dtype == torch.float64
    cell = HyperLSTMCell(I, N, hyper_size=H)
    for given in ((x[0].double(),), (x[0], (torch.zeros(B, N).double(), torch.zeros(B, N))), (3,), (x[0], 3)):
        with pytest.raises(InputError):
            cell(*given)


@pytest.mark.parametrize("kind", LAYERS)
def test_layouts_copies_and_names_that_code_for_the_namesake_uses(kind):
    model, x = make(kind, num_layers=2, bidirectional=True), torch.randn(T, B, I)
    wanted = model(x)[0]
    assert torch.allclose(model(x.permute(2, 0, 1).contiguous().permute(1, 2, 0))[0], wanted, atol=1e-6)
    assert torch.allclose(model(x[:, 0])[0], wanted[:, 0], atol=1e-6)
    assert torch.equal(copy.deepcopy(model)(x)[0], wanted)
    model.flatten_parameters()
    assert (model.bias, model.proj_size, model.num_layers, model.hidden_size) == (True, 0, 2, N)
    assert sum(p.numel() for each in model.all_weights for p in each) == sum(
        p.numel() for p in model.parameters()
    )
    assert len(model.all_weights) == 4


@pytest.mark.parametrize("kind", LAYERS)
def test_a_state_dict_goes_through_torchs_files(kind):
    model, x, file = make(kind), torch.randn(T, B, I), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    again = make(kind)
    again.reset_parameters()
    again.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(again(x)[0], model(x)[0])
    assert not list(again.buffers())


def test_script_is_refused_by_torch():
    """As the page on hypernetworks says; a trace works."""
    with warnings.catch_warnings(action="ignore"), pytest.raises(torch.jit.frontend.NotSupportedError):
        torch.jit.script(make(HyperLSTM))
