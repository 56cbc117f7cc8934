"""The paper's tokenizer: temperature, soft and hard codes, a loss with its three terms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from weightloom.errors import SpecError
from weightloom.tokenizers.gumbel import GumbelTokenizerConfig, annealed_temperature


def test_the_temperature_falls_in_cycles():
    found = [annealed_temperature(step, 100, cycles=4, low=1e-2) for step in range(100)]
    assert found[0] == found[25] == found[50] == found[75] == 1.0
    for start in (0, 25, 50, 75):
        cycle = found[start : start + 25]
        assert cycle == sorted(cycle, reverse=True) and cycle[-1] == pytest.approx(1e-2, rel=1e-4)
        assert cycle[12] == pytest.approx(0.1, rel=1e-4)  # geometric: half way is the root


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7])
def test_short_runs_have_a_temperature_too(steps):
    assert all(0 < annealed_temperature(step, steps) <= 1 for step in range(steps + 3))


def test_training_mixes_codes_softly_and_evaluation_picks_one(tiny, resolved, networks):
    tokenizer, spec = tiny("gumbel"), resolved()
    _, chunking, bound = tokenizer.bind(spec)
    tokens = chunking.to_tokens(bound.normalise(networks(spec)))
    slots = tokenizer.describe(spec)
    latents, codes, _ = tokenizer.encode_tokens(tokens, slots)
    assert torch.allclose(latents, tokenizer.embed_codes(codes), atol=1e-6)
    tokenizer.train()
    tokenizer.temperature = 5.0
    soft, same, _ = tokenizer.encode_tokens(tokens, slots)
    assert torch.equal(same, codes), "codes are the likeliest, whatever noise the training adds"
    assert not torch.allclose(soft, tokenizer.embed_codes(codes), atol=1e-2)
    tokenizer.temperature = 1e-4
    nearly, _, _ = tokenizer.encode_tokens(tokens, slots)
    vectors = nearly.unflatten(-1, (2, 4))
    distance = torch.cdist(vectors.flatten(0, 2), tokenizer.codebook.weight).min(-1).values
    assert float(distance.detach().median()) < 1e-3, "cold, every draw is one entry of the codebook"


def test_the_penalty_is_codebook_plus_commitment(tiny, resolved, networks):
    tokenizer, spec = tiny("gumbel", codebook_weight=2.0, commitment_weight=0.5), resolved()
    _, chunking, bound = tokenizer.bind(spec)
    tokens = chunking.to_tokens(bound.normalise(networks(spec)))
    slots = tokenizer.describe(spec)
    latents, _, penalty = tokenizer.encode_tokens(tokens, slots)
    z = tokenizer.encoder(tokens, slots.vectors)
    assert torch.allclose(penalty, 2.5 * F.mse_loss(latents, z), rtol=1e-4)


def test_training_lowers_the_error(tiny, resolved, networks):
    spec, flats = resolved("mlp(depth=1,width=4)"), networks(resolved("mlp(depth=1,width=4)"), 2)
    tokenizer = tiny("gumbel", moved=False, codes=4, vocabulary=16).train()
    optimiser = torch.optim.Adam(tokenizer.parameters(), 2e-2)
    tokenizer.temperature = 0.5
    errors = []
    for _ in range(50):
        optimiser.zero_grad()
        output = tokenizer(spec, flats)
        (output.weight_error() + output.penalty).backward()
        optimiser.step()
        errors.append(float(output.weight_error().detach()))
    assert sum(errors[-5:]) < 0.8 * sum(errors[:5])


def test_training_leaves_the_global_stream_alone(tiny, resolved, networks):
    tokenizer, spec = tiny("gumbel").train(), resolved()
    flats = networks(spec)
    before = torch.get_rng_state()
    tokenizer(spec, flats)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("bad", [{"code_width": 0}, {"codebook_weight": -1.0}, {"commitment_weight": -0.1}])
def test_bad_sizes_are_refused(bad):
    with pytest.raises(SpecError):
        GumbelTokenizerConfig(**bad)
