"""Baselines that mix checkpoints: per-parameter Gaussian, noise, interpolation."""

from __future__ import annotations

import pytest
import torch

from weightloom.errors import InputError, SpecError, UnsupportedRequestError
from weightloom.generators.gaussian import GaussianWeights
from weightloom.generators.interpolation import AlignedInterpolation, Interpolation
from weightloom.generators.kde import KernelDensity
from weightloom.generators.noisy import NoisyCheckpoint
from weightloom.weights import permute, random_permutations

KINDS = [GaussianWeights, NoisyCheckpoint, Interpolation, AlignedInterpolation]


def many(model, spec, support, count=1, **options):
    options = {"batch_norm": "generated", **options}
    return model.generate_many(spec, support=support, num_samples=count, **options)


def test_a_gaussian_is_drawn_around_the_nearest_tasks_checkpoints(igpg, resolved, support):
    zoo = igpg.zoo_index.groups[resolved()].flats
    bound = igpg.zoo_index.bind(resolved())
    samples = many(GaussianWeights.from_generator(igpg), resolved(), support, 400)
    drawn = bound.normalise(torch.stack([s.flat for s in samples]))
    wanted = bound.normalise(zoo[:3])
    assert torch.allclose(drawn.mean(0), wanted.mean(0), atol=0.2)
    assert torch.allclose(drawn.std(0), wanted.std(0, correction=0), rtol=0.3, atol=0.02)
    assert samples[0].report["checkpoints"] == 3
    wide = many(GaussianWeights.from_generator(igpg, tasks=9), resolved(), support)[0]
    assert wide.report["checkpoints"] == 6 and len(wide.report["checkpoint_tasks"]) == 3


def test_noise_is_added_to_checkpoints_of_the_nearest_task(igpg, resolved, support):
    zoo = igpg.zoo_index.groups[resolved()].flats
    bound = igpg.zoo_index.bind(resolved())
    samples = many(NoisyCheckpoint.from_generator(igpg, noise=0.5), resolved(), support, 6)
    for sample in samples:
        row = int(sample.report["checkpoint"].split("-")[1])
        moved = bound.normalise(sample.flat) - bound.normalise(zoo[row])
        assert float(moved.square().mean().sqrt()) == pytest.approx(0.5, rel=0.2)
    assert {s.report["checkpoint_task"] for s in samples} == {"digits[3,1,7]@8c1"}
    assert len({s.report["checkpoint"] for s in samples}) > 1


def test_a_mixture_lies_between_its_two_checkpoints(igpg, resolved, support):
    zoo = igpg.zoo_index.groups[resolved()].flats
    for sample in many(Interpolation.from_generator(igpg), resolved(), support, 12):
        one, other = (zoo[int(name.split("-")[1])] for name in sample.report["checkpoints"])
        assert 0 < sample.report["share"] < 1
        assert torch.allclose(sample.flat, torch.lerp(one, other, sample.report["share"]), atol=1e-6)
        assert set(sample.report["checkpoint_tasks"]) == {"digits[3,1,7]@8c1"}


def test_alignment_takes_a_permutation_away(igpg, resolved, support, monkeypatch):
    """Between a checkpoint and its permuted copy every aligned mixture is the checkpoint itself."""
    spec = resolved()
    zoo = igpg.zoo_index.groups[spec].flats[:1]
    twins = torch.cat([zoo, permute(spec, zoo, random_permutations(spec, 1)), zoo])
    assert not torch.equal(twins[0], twins[1])
    models = [kind.from_generator(igpg) for kind in (Interpolation, AlignedInterpolation)]
    for model in models:
        monkeypatch.setattr(model, "flats", lambda found: twins)
    plain, aligned = (many(model, spec, support, 12) for model in models)
    kept = [s for s in aligned if s.report["checkpoints"][0] != "checkpoint-1"]
    assert kept and all(torch.allclose(s.flat, zoo[0], atol=1e-6) for s in kept)
    assert any(not torch.allclose(s.flat, zoo[0], atol=1e-2) for s in plain)


def test_a_task_with_one_checkpoint_gives_that_one(igpg, resolved, supports):
    spec, support = resolved(), list(supports.values())[2]
    wanted = igpg.zoo_index.groups[spec].flats[5]
    for kind in (GaussianWeights, Interpolation, AlignedInterpolation):
        (sample,) = many(kind.from_generator(igpg), spec, support)
        assert torch.allclose(sample.flat, wanted, atol=1e-5), kind


def test_subsampling_keeps_the_best_of_its_draws(igpg, resolved, support):
    """More candidates never do worse on the examples, and the first of them is the plain draw."""
    spec = resolved()
    losses = []
    for candidates in (1, 4, 16):
        model = KernelDensity.from_generator(igpg, share=1.0, candidates=candidates)
        samples = many(model, spec, support, 4, batch_norm="support")
        assert samples[0].report["candidates"] == candidates
        losses.append(torch.tensor([s.report["support_loss"] for s in samples]))
    assert bool((losses[1] <= losses[0] + 1e-6).all()) and bool((losses[2] <= losses[1] + 1e-6).all())
    assert float(losses[2].mean()) < float(losses[0].mean())


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_done_is_refused(kind, igpg, resolved, support):
    model = kind.from_generator(igpg)
    with pytest.raises(InputError, match="give examples"):
        model.generate(resolved())
    with pytest.raises(UnsupportedRequestError, match="no checkpoint of mlp"):
        model.generate(resolved("mlp(depth=1,width=4)"), support=support)


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (GaussianWeights, {"tasks": 0}),
        (Interpolation, {"tasks": 1.5}),
        (NoisyCheckpoint, {"noise": -0.1}),
        (NoisyCheckpoint, {"noise": float("nan")}),
        (KernelDensity, {"candidates": 0}),
    ],
)
def test_bad_options_are_refused(kind, bad, igpg):
    with pytest.raises(SpecError):
        kind.from_generator(igpg, **bad)
