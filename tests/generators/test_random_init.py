from __future__ import annotations

import torch

from weightloom.generators.random_init import RandomInit


def test_samples_are_the_architectures_own_initialisation(igpg, resolved, rng_untouched):
    model = RandomInit.from_generator(igpg)
    samples = model.generate_many(resolved(), num_samples=3, seed=4)
    flats = torch.stack([one.flat for one in samples])
    assert len({tuple(flat.tolist()) for flat in flats}) == 3
    state = samples[0].state_dict
    variances = [v for k, v in state.items() if k.endswith("running_var")]
    assert variances and all(bool((v == 1).all()) for v in variances)
    assert samples[0].report["generator"] == samples[0].report["kind"] == "random-init"


def test_examples_only_calibrate_batch_norms(igpg, resolved, support):
    model = RandomInit.from_generator(igpg)
    plain = model.generate(resolved())
    kept = model.generate(resolved(), support=support, batch_norm="generated")
    assert torch.equal(plain.flat, kept.flat)
    measured = model.generate(resolved(), support=support)
    for name, value in measured.state_dict.items():
        assert torch.equal(value, plain.state_dict[name]) == ("running" not in name), name
