"""Whole numbers at the border: of whatever type, the same number; everything else is a sentence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

import weightloom as wl
from weightloom.errors import SpecError
from weightloom.evaluation import AuditSettings, LeaderboardSettings, SelectionSettings
from weightloom.evaluation.atlas import chart
from weightloom.fitting import FitSettings, finetune, fit_population, initial_flats
from weightloom.generators import Sampling
from weightloom.generators.ghn import GHN, GHNConfig, make_validity
from weightloom.generators.random_init import RandomInit
from weightloom.seeding import check_seed, numpy_generator, seed_for, torch_generator
from weightloom.training.loop import LoopSettings
from weightloom.weights.alignment import random_permutations
from weightloom.whole import whole_fields, whole_number

SPEC = wl.parse_architecture("mlp(depth=1,width=4,classes=3,input=1x8x8)")
TASK = wl.parse_task("digits[3,1,7]@8c1")
THREE = [np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), torch.tensor(3, dtype=torch.uint8)]
NOT_WHOLE = [
    True,
    np.True_,
    torch.tensor(True),
    1.0,
    np.float32(1),
    torch.tensor(1.0),
    "1",
    b"1",
    None,
    [1],
    1j,
]


class Odd:
    def __index__(self):
        return 3

    def __repr__(self):
        raise RuntimeError("no text of it")


def settings():
    return FitSettings(steps=1, batch_size=4)


def random_network(seed):
    model = RandomInit.from_generator(GHN(GHNConfig(classes=3, width=8), make_validity((1, 8, 8)), name="n"))
    sample = model.generate("mlp(depth=1,width=4,classes=3)", seed=seed)
    assert type(sample.report["seed"]) is int
    return sample.flat


SEEDED = {
    "seed_for": lambda seed: seed_for("a", seed),
    "torch": lambda seed: torch.randn(3, generator=torch_generator("a", seed)),
    "numpy": lambda seed: numpy_generator("a", seed).normal(),
    "support": lambda seed: TASK.support(2, seed=seed).images,
    "instructions": lambda seed: TASK.instructions(2, seed=seed),
    "initialise": lambda seed: initial_flats(SPEC, [seed]),
    "generate": random_network,
    "finetune": lambda seed: finetune(SPEC, initial_flats(SPEC, [0]), TASK, settings(), seed=seed).flats,
    "fit": lambda seed: (
        next(
            fit_population(SPEC, initial_flats(SPEC, [0]), [TASK.data("train")], settings(), seed=seed)
        ).flats
    ),
    "permutations": lambda seed: torch.cat(random_permutations(SPEC, seed)),
    "selection": lambda seed: SelectionSettings(seed=seed),
    "audit": lambda seed: AuditSettings(seed=seed),
    "zoo recipe": lambda seed: recipe(seed=seed),
}


def recipe(**changes):
    groups = ({"classes": 3, "tasks": 1},)
    parts = {"datasets": ("digits",), "architectures": ("mlp",), "groups": groups}
    return wl.ZooRecipe(kind="zoo", name="a", salt="b", **{**parts, **changes})


def same(one, other):
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("name", sorted(SEEDED))
def test_every_kind_of_a_seed_is_the_same_seed(name):
    call = SEEDED[name]
    wanted = call(3)
    for seed in THREE:
        assert same(call(seed), wanted), repr(seed)
    assert not same(call(-(10**30)), wanted) and same(call(-(10**30)), call(-(10**30)))
    assert not same(call(3 + 2**64), wanted), "a seed counts whole, not its last bits"


@pytest.mark.parametrize("name", sorted(SEEDED))
def test_what_is_no_seed_is_refused(name):
    for seed in NOT_WHOLE:
        if name in ("seed_for", "torch", "numpy") and isinstance(seed, str):
            continue  # text is a part of an address like any other
        with pytest.raises(ValueError, match="must be a whole number, not") as caught:
            SEEDED[name](seed)
        assert "\n" not in str(caught.value) or name == "zoo recipe"
    with pytest.raises(ValueError, match="must have at most 4,000 digits"):
        SEEDED[name](10**5000)


def test_a_map_takes_any_seed():
    with pytest.raises(wl.InputError, match=r"a seed must be a whole number, not 1\.5"):
        chart([], seed=1.5)  # type: ignore[arg-type]


COUNTED = {
    "samples": (lambda n: SelectionSettings(samples=n), SpecError),
    "shots": (lambda n: SelectionSettings(shots=n), SpecError),
    "entrants": (lambda n: SelectionSettings(entrants=n), SpecError),
    "audit": (lambda n: AuditSettings(tasks=n), SpecError),
    "leaderboard": (lambda n: LeaderboardSettings(seeds=n), SpecError),
    "steps": (lambda n: FitSettings(steps=n), SpecError),
    "loop": (lambda n: LoopSettings(steps=n), SpecError),
    "top_k": (lambda n: Sampling(top_k=n), SpecError),
    "support": (lambda n: TASK.support(n).images.shape, wl.InputError),
    "instructions": (lambda n: TASK.instructions(n), wl.InputError),
    "classes": (lambda n: wl.DatasetTask(dataset="digits", classes=(n, 5)), SpecError),
    "recipe": (lambda n: recipe(members_at_once=n), ValueError),
}


@pytest.mark.parametrize("name", sorted(COUNTED))
def test_every_kind_of_a_count_is_the_same_count(name):
    call, error = COUNTED[name]
    for count in THREE:
        assert call(count) == call(3), repr(count)
        assert repr(call(count)) == repr(call(3)), "kept as it came"
    for count in (*NOT_WHOLE, 10**5000):
        if count is None and name == "entrants":
            continue
        with pytest.raises(error, match=r"whole number|digits"):
            call(count)
    with pytest.raises(error):
        call(-1)


def test_the_number_of_samples():
    model = RandomInit.from_generator(GHN(GHNConfig(classes=3, width=8), make_validity((1, 8, 8)), name="n"))
    for count in THREE:
        assert len(model.generate_many(SPEC, num_samples=count)) == 3
    for count in (*NOT_WHOLE, 0, -1, 10**9):
        with pytest.raises(
            wl.InputError, match="the number of samples must be a whole number from 1 to 4,096"
        ):
            model.generate_many(SPEC, num_samples=count)


def test_ranges_are_said():
    assert whole_number(Odd(), "it") == 3
    with pytest.raises(wl.InputError, match=r"^it must be a whole number of at least 4, not a Odd$"):
        whole_number(Odd(), "it", 4)
    with pytest.raises(wl.InputError, match=r"^it must be a whole number from 1 to 2,000, not 0$"):
        whole_number(0, "it", 1, 2000)
    assert check_seed(-5) == -5

    @dataclass(frozen=True)
    class Sizes:
        width: object = 3

    sizes = Sizes(np.int64(5))
    whole_fields(sizes, {"width": (1, 9)})
    assert type(sizes.width) is int
    with pytest.raises(SpecError, match="width must be a whole number from 1 to 9, not 10"):
        whole_fields(Sizes(10), {"width": (1, 9)})
