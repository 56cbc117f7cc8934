"""Finite scalar quantisation: levels, the reach of the bases, what training starts from."""

from __future__ import annotations

import pytest
import torch

from weightloom.errors import SpecError
from weightloom.tokenizers.fsq import FSQTokenizerConfig


def test_an_even_vocabulary_has_no_zero():
    with pytest.raises(SpecError, match="odd vocabulary, not 8"):
        FSQTokenizerConfig(vocabulary=8)


def test_codes_are_levels_from_minus_one_to_one(tiny):
    tokenizer = tiny("fsq")
    codes = torch.arange(5)[:, None].expand(-1, 4)
    latents = tokenizer.embed_codes(codes)
    assert latents[:, 0].tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]
    soft = tokenizer.embed(torch.full((1, 4, 5), 0.2))
    assert torch.allclose(soft, torch.zeros(1, 4), atol=1e-6)


def test_bases_rebuild_a_zoo_before_any_training(tiny, resolved, networks):
    spec = resolved("mlp(depth=1,width=4)")
    flats = networks(spec, 40, seed=4)
    tokenizer = tiny("fsq", moved=False, codes=16, vocabulary=33, bits=16.0)
    plain = tokenizer(spec, flats).weight_error().detach()
    tokenizer.initialise_bases([(spec, flats)])
    error = tokenizer(spec, flats).weight_error().detach()
    assert error < 0.1 * plain, f"{float(error)} against {float(plain)} without bases"


def test_fewer_networks_than_codes_leave_the_other_components_out(tiny, resolved, networks):
    spec = resolved("mlp(depth=1,width=4)")
    tokenizer = tiny("fsq", moved=False, codes=16, bits=16.0)
    tokenizer.initialise_bases([(spec, networks(spec, 3))])
    assert bool(torch.isfinite(tokenizer(spec, networks(spec, 3)).rebuilt).all())


def test_components_that_hold_nothing_get_no_giant_gradient(tiny, resolved, networks):
    """Two networks span one direction of a token; sixteen codes ask for sixteen."""
    spec = resolved("mlp(depth=1,width=4)")
    tokenizer = tiny("fsq", moved=False, codes=16, bits=16.0)
    tokenizer.initialise_bases([(spec, networks(spec, 3))])
    tokenizer.train()
    tokenizer(spec, networks(spec, 3)).weight_error().backward()
    norms = {n: float(p.grad.norm()) for n, p in tokenizer.named_parameters() if p.grad is not None}
    bases = max(value for name, value in norms.items() if "bases" in name)
    others = max(value for name, value in norms.items() if "bases" not in name)
    assert bases < 10 * others, f"gradient of the bases {bases:.3g}, of all others at most {others:.3g}"


def test_latents_beyond_the_levels_still_decode(tiny, resolved):
    tokenizer, spec = tiny("fsq"), resolved()
    tokens = tokenizer.bind(spec)[1].num_tokens
    for value in (-50.0, 1.0, 50.0):
        flats = tokenizer.decode_latents(spec, torch.full((1, tokens, 4), value))
        assert bool(torch.isfinite(flats).all())


def test_training_lowers_the_error(tiny, resolved, networks):
    spec, flats = resolved("mlp(depth=1,width=4)"), networks(resolved("mlp(depth=1,width=4)"))
    tokenizer = tiny("fsq", moved=False).train()
    optimiser = torch.optim.Adam(tokenizer.parameters(), 1e-2)
    errors = []
    for _ in range(30):
        optimiser.zero_grad()
        error = tokenizer(spec, flats).weight_error()
        error.backward()
        torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), 1.0)
        optimiser.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.7 * errors[0]


def test_only_what_is_allowed_is_ever_encoded(tiny, resolved, networks):
    """Networks far outside of the zoo reach for the outermost levels; none of them may be passed."""
    spec = resolved("mlp(depth=1,width=4)")
    tokenizer = tiny("fsq", moved=False, codes=16, vocabulary=41, bits=2.5)
    tokenizer.initialise_bases([(spec, networks(spec, 40, seed=4))])
    allowed = tokenizer.allowed(spec)
    assert bool(allowed.any(-1).all()) and not bool(allowed.all())
    far = networks(spec, 8) + 5 * torch.randn(8, 1)
    codes = tokenizer.encode(spec, torch.cat([networks(spec, 20, seed=9), far]))
    assert bool(allowed.expand(len(codes), -1, -1, -1).gather(-1, codes[..., None]).all())
    assert tokenizer.bits_per_weight(spec) <= 2.5


def test_sensitive_layers_get_finer_steps(tiny, resolved, networks):
    spec, made = resolved("mlp(depth=1,width=4)"), {}
    flats = networks(spec, 40, seed=4)
    for name, sensitivity in (("first", [100.0, 1.0]), ("last", [1.0, 100.0])):
        tokenizer = tiny("fsq", moved=False, codes=16, vocabulary=41, bits=3.0)
        tokenizer.initialise_bases([(spec, flats)], torch.tensor(sensitivity))
        output = tokenizer(spec, flats)
        error = ((output.tokens - output.rebuilt).square() * output.mask).sum((0, 2)).detach()  # (T,)
        head = tokenizer.bind(spec)[1].slots.class_index >= 0
        made[name] = float(error[~head].sum()), float(error[head].sum())
    assert made["first"][0] < made["last"][0] and made["first"][1] > made["last"][1]
