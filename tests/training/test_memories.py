"""What is kept of the zoo's tasks: codes that decode to better networks than its checkpoints."""

from __future__ import annotations

import pytest
import torch

from weightloom.errors import SpecError
from weightloom.fitting import recalibrate, run_networks
from weightloom.training.memories import MemorySettings, make_memories, refine_codes


def losses(tokenizer, spec, codes, data):
    found = []
    for one, task in zip(tokenizer.decode(spec, codes), data, strict=True):
        images, labels = task.all()
        measured = recalibrate(spec, one[None], images)
        answers = run_networks(spec, measured, images)[0]
        found.append(float(torch.nn.functional.cross_entropy(answers, labels)))
    return found


def test_refined_codes_decode_to_better_networks(tokenizer, populations):
    made = tokenizer(codes=12, vocabulary=21, bits=16.0).requires_grad_(False)
    for population in populations:
        flats, data = population.flats[:3], population.data[:3]
        settings = MemorySettings(steps=60, batch_size=32, learning_rate=0.05, epsilon=1e-6)
        codes = refine_codes(made, population.spec, flats, data, settings)
        before = losses(made, population.spec, made.encode(population.spec, flats), data)
        after = losses(made, population.spec, codes, data)
        assert sum(after) < 0.9 * sum(before), (population.spec, before, after)


def test_they_are_codes_that_may_be_drawn(tokenizer, populations, kind):
    made = tokenizer(kind).requires_grad_(False)
    population = populations[0]
    codes = refine_codes(
        made,
        population.spec,
        population.flats[:2],
        population.data[:2],
        MemorySettings(steps=3, batch_size=8),
    )
    allowed = made.allowed(population.spec).expand(2, -1, -1, -1)
    assert bool(allowed.gather(-1, codes[..., None]).all())


def test_no_steps_keep_the_mean_of_the_checkpoints(tokenizer, populations):
    made = tokenizer().requires_grad_(False)
    for population in populations:
        kept = make_memories(made, population, MemorySettings(steps=0))
        finals = [row for row, record in enumerate(population.records) if record.final]
        assert set(kept) == {population.records[row].task for row in finals}
        for task, codes in kept.items():
            own = [row for row in finals if population.records[row].task == task]
            mean = population.flats[own].mean(0, keepdim=True)
            assert torch.equal(codes, made.encode(population.spec, mean)[0])


def test_the_same_seed_keeps_the_same(tokenizer, populations, rng_untouched):
    made, population = tokenizer().requires_grad_(False), populations[0]
    settings = MemorySettings(steps=4, batch_size=8, learning_rate=0.2)

    def kept(seed):
        return torch.stack(list(make_memories(made, population, settings, seed=seed).values()))

    assert torch.equal(kept(0), kept(0))
    assert not torch.equal(kept(0), kept(1))


@pytest.mark.parametrize("bad", [{"steps": -1}, {"batch_size": 1}, {"learning_rate": 0.0}, {"epsilon": 0.0}])
def test_settings_that_make_no_sense(bad):
    with pytest.raises(SpecError, match=r"memories need|must be a whole number"):
        MemorySettings(**bad)
