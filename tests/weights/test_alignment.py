from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightloom.architectures import parse_architecture
from weightloom.errors import InputError
from weightloom.fitting import initial_flats, run_networks
from weightloom.weights import (
    align,
    layout_of,
    match_weights,
    permutation_spec,
    permute,
    random_permutations,
)

FAMILIES = [
    "mlp(depth=2,width=8)",
    "mlp(depth=2,width=8,norm=batch)",
    "cnn(depth=2,width=8)",
    "cnn(depth=2,width=16,norm=group)",
    "resnet(depth=8,width=4)",
    "mobilenet(depth=6,width=4)",
    "vgg(depth=4,width=4)",
    "tinycnn(variant=small,classes=10,input=1x28x28)",
    "vit(depth=2,width=8)",
]
# Sums of these are exact in float64 for small whole numbers, so another order of summing gives the same bits.
EXACT = [
    "mlp(depth=3,width=8)",
    "cnn(depth=2,width=8,norm=none)",
    "cnn(depth=2,width=8)",
    "resnet(depth=8,width=4,norm=none)",
    "resnet(depth=8,width=4)",
    "mobilenet(depth=3,width=4)",
    "vgg(depth=3,width=4)",
]


def resolve(text):
    spec = parse_architecture(text)
    return spec.resolve(classes=spec.classes or 3, input=spec.input or (1, 16, 16))


def network(spec, seed=0):
    """A network none of whose values is alike: norms' gains and biases are away from their start."""
    stream = torch.Generator().manual_seed(seed)
    flat = initial_flats(spec, [seed])[0]
    return flat + 0.1 * torch.rand(flat.shape, generator=stream)


def whole_number_network(spec, seed=0):
    stream = torch.Generator().manual_seed(seed)
    layout = layout_of(spec)
    flat = torch.randint(-1, 2, (layout.size,), generator=stream).double()
    # So that the root of variance plus 1e-5 is a power of two, exactly.
    root = 2.0 ** torch.randint(0, 2, (layout.size,), generator=stream).double()
    return torch.where(layout.is_variance, root.square() - 1e-5, flat)


@pytest.mark.parametrize("text", EXACT)
def test_a_permuted_network_is_the_same_function_bit_for_bit(text):
    spec = resolve(text)
    flat = whole_number_network(spec)
    images = torch.randint(-2, 3, (7, *spec.input), generator=torch.Generator().manual_seed(1)).double()
    for seed in range(3):
        permuted = permute(spec, flat, random_permutations(spec, seed))
        assert not torch.equal(permuted, flat)
        answers = run_networks(spec, torch.stack([flat, permuted]), images)
        assert bool(answers[0].any()) and answers.dtype == torch.float64
        assert torch.equal(answers[0], answers[1])


@pytest.mark.parametrize("text", FAMILIES)
def test_a_permuted_network_is_the_same_function(text):
    spec = resolve(text)
    flat = network(spec).double()
    images = torch.randn(7, *spec.input, generator=torch.Generator().manual_seed(1)).double()
    permuted = permute(spec, flat, random_permutations(spec))
    answers = run_networks(spec, torch.stack([flat, permuted]), images)
    assert float((permuted != flat).double().mean()) > 0.5
    assert torch.allclose(answers[0], answers[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", ["weights", "activations"])
@pytest.mark.parametrize("text", FAMILIES)
def test_alignment_finds_the_permutation_back(text, method):
    spec = resolve(text)
    flat = network(spec)
    images = torch.randn(40, *spec.input, generator=torch.Generator().manual_seed(1))
    hidden = torch.stack([permute(spec, flat, random_permutations(spec, seed)) for seed in (0, 1)])
    kept = hidden.clone()
    found = align(spec, flat, hidden, method=method, images=images)
    assert torch.equal(found, flat.expand(2, -1))
    assert torch.equal(hidden, kept)


@given(depth=st.integers(1, 3), width=st.integers(2, 9), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_any_perceptron_is_found_back(depth, width, seed):
    spec = resolve(f"mlp(depth={depth},width={width})")
    flat = network(spec, seed)
    hidden = permute(spec, flat, random_permutations(spec, seed))
    assert torch.equal(align(spec, flat, hidden[None])[0], flat)


@pytest.mark.parametrize("noise", [0.02, 0.05])
def test_a_noisy_copy_is_found_back(noise):
    spec = resolve("resnet(depth=8,width=8)")
    flat = network(spec)
    moved = flat + noise * torch.randn(flat.shape, generator=torch.Generator().manual_seed(3))
    hidden = permute(spec, moved, random_permutations(spec))
    assert torch.equal(align(spec, flat, hidden[None])[0], moved)


@pytest.mark.parametrize("text", ["mlp(depth=2,width=16)", "cnn(depth=2,width=8)", "vit(depth=1,width=8)"])
def test_strangers_come_nearer_and_never_farther(text):
    spec = resolve(text)
    flats = torch.stack([network(spec, seed) for seed in range(4)])
    found = align(spec, flats[0], flats)
    layout = layout_of(spec)
    size = torch.zeros(len(layout.slots)).index_add_(0, layout.slot_of_value, flats[0].square())
    size = (size / torch.bincount(layout.slot_of_value)).sqrt()[layout.slot_of_value]
    before = ((flats - flats[0]) / size).norm(dim=1)
    after = ((found - flats[0]) / size).norm(dim=1)
    assert torch.equal(found[0], flats[0])
    assert bool((after[1:] < before[1:]).all())
    # The same distance whatever order the stranger comes in: alignment looks at what it is, not how it lies.
    again = align(spec, flats[0], permute(spec, flats[1], random_permutations(spec))[None])
    assert float(((again[0] - flats[0]) / size).norm()) == pytest.approx(float(after[1]), rel=0.05)


def test_permutations_undo_each_other():
    spec = resolve("resnet(depth=8,width=4)")
    flat, there = network(spec), random_permutations(spec)
    back = tuple(p.argsort() for p in there)
    assert torch.equal(permute(spec, permute(spec, flat, there), back), flat)
    found = match_weights(spec, flat, permute(spec, flat, there))
    assert all(torch.equal(a, b) for a, b in zip(found, back, strict=True))


def test_nothing_is_drawn_from_the_global_stream(rng_untouched):
    spec = resolve("cnn(depth=2,width=8)")
    flats = torch.stack([network(spec, seed) for seed in range(2)])
    assert len(random_permutations(spec)) == len(permutation_spec(spec).sizes)
    align(spec, flats[0], flats)


def test_bad_input_is_refused():
    spec = resolve("mlp(depth=1,width=4)")
    flat = network(spec)
    broken = flat.clone()
    broken[3] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        align(spec, flat, broken[None])
    with pytest.raises(InputError, match="needs images"):
        align(spec, flat, flat[None], method="activations")
    with pytest.raises(InputError, match="'weights' or 'activations'"):
        align(spec, flat, flat[None], method="words")
    with pytest.raises(InputError, match="at least one"):
        align(spec, flat, flat[None], method="activations", images=torch.zeros(0, 1, 16, 16))
    assert align(spec, flat, flat[None][:0]).shape == (0, len(flat))


def test_networks_of_another_size_are_one_sentence():
    spec = parse_architecture("mlp(depth=1,width=4,classes=3,input=1x4x4)")
    flats = initial_flats(spec, [0, 1])
    for reference, others in ((flats[0, :-1], flats), (flats[0], flats[:, :-1]), (flats[0], flats[0])):
        with pytest.raises(InputError, match=r"values and the reference"):
            align(spec, reference, others)
