from __future__ import annotations

import pytest
import torch

from weightloom.errors import InputError, SpecError, UnsupportedRequestError
from weightloom.generators.kde import KernelDensity, bandwidth_factor
from weightloom.generators.nearest import NearestCheckpoint


class LayerwiseStandIn:
    """What baselines read of a generator without a tokenizer."""


@pytest.fixture
def request_of(igpg, resolved, support):
    def make(model, **options):
        spec = options.pop("spec", resolved())
        return model.check(
            spec, None, options.pop("support", support), options.pop("num_samples", 1), 0, None
        )

    return make


def test_only_the_best_share_of_each_near_task_is_kept(igpg, request_of):
    def kept(**options):
        model = KernelDensity.from_generator(igpg, **options)
        return model.kept(model.neighbours(request_of(model)))

    assert kept(tasks=1, share=0.3) == [1]  # the best one of 0.9, 0.95, 0.8
    assert kept(tasks=1, share=0.5) == [1, 0]
    assert kept(tasks=1, share=1.0) == [1, 0, 2]
    # Each task by itself: the second and third keep their best, though worse than all of the first.
    assert set(kept(tasks=3, share=0.3)) == {1, 4, 5}
    assert len(kept(tasks=9, share=1.0)) == 6


def test_draws_spread_around_the_checkpoints_kept(igpg, resolved, support):
    """Noise has the bandwidth of the rule, dimension by dimension; without spread there is none."""
    model = KernelDensity.from_generator(igpg, tasks=3, share=1.0)
    tokenizer = igpg.tokenizer
    group = igpg.zoo_index.groups[resolved()]
    latents = tokenizer.embed_codes(tokenizer.encode(resolved(), group.flats))
    seen = []
    real = tokenizer.decode_latents

    def spy(spec, one):
        seen.append(one[0])
        return real(spec, one)

    tokenizer.decode_latents = spy
    try:
        samples = model.generate_many(resolved(), support=support, num_samples=300, batch_norm="generated")
    finally:
        del tokenizer.decode_latents
    drawn = torch.stack(seen)
    centres = torch.stack([latents[int(s.report["checkpoint"].split("-")[1])] for s in samples])
    noise = drawn - centres
    wanted = latents.std(0) * 6**-0.2
    still = wanted == 0
    assert bool((noise[:, still] == 0).all())
    assert torch.allclose(noise.std(0)[~still], wanted[~still], rtol=0.25)
    chosen = {s.report["checkpoint"] for s in samples}
    assert len(chosen) == 6
    assert samples[0].report["checkpoints"] == 6
    assert samples[0].report["bandwidth"] == pytest.approx(6**-0.2)


def test_one_checkpoint_alone_is_given_as_the_tokenizer_rebuilds_it(igpg, resolved, supports):
    model = KernelDensity.from_generator(igpg, tasks=1)
    support = list(supports.values())[2]
    sample = model.generate(resolved(), support=support, batch_norm="generated")
    codes = igpg.tokenizer.encode(resolved(), igpg.zoo_index.groups[resolved()].flats[5:6])
    assert torch.allclose(sample.flat, igpg.tokenizer.decode(resolved(), codes)[0], atol=1e-5)


def test_bandwidth_rules():
    assert bandwidth_factor("scott", 1) == 1.0
    assert bandwidth_factor("scott", 243) == pytest.approx(1 / 3)
    assert bandwidth_factor("silverman", 100) == pytest.approx((3 * 100 / 4) ** -0.2)


@pytest.mark.parametrize(
    "bad", [{"tasks": 0}, {"share": 0.0}, {"share": 1.5}, {"bandwidth": "wide"}, {"share": -0.1}]
)
def test_bad_options_are_refused(igpg, bad):
    with pytest.raises(SpecError):
        KernelDensity.from_generator(igpg, **bad)


def test_what_it_cannot_do_is_refused(igpg, resolved, support):
    model = KernelDensity.from_generator(igpg)
    with pytest.raises(InputError, match="give examples"):
        model.generate(resolved())
    with pytest.raises(UnsupportedRequestError, match="no checkpoint of mlp"):
        model.generate(resolved("mlp(depth=1,width=4)"), support=support)


def test_without_a_tokenizer_there_are_no_latents_to_draw_in(igpg):
    model = LayerwiseStandIn()
    model.zoo_index, model.images, model.validity, model.name = (
        igpg.zoo_index, igpg.images, igpg.validity, "bare",
    )  # fmt: skip
    with pytest.raises(InputError, match="bare has no weight tokenizer"):
        KernelDensity.from_generator(model)
    NearestCheckpoint.from_generator(model)
