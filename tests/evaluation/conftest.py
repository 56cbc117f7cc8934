"""A tiny zoo of trained networks on scikit-learn's digits, and generators whose novelty is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from weightloom.fitting import FitSettings, fit_population, initial_flats
from weightloom.generators import Generator, Validity
from weightloom.generators.base import sample_generators
from weightloom.weights import WeightStatistics, align, layout_of, permute, random_permutations
from weightloom.weights.mixing import add_noise
from weightloom.zoo import ZooRecipe, build_zoo

RECIPE = {
    "kind": "zoo",
    "name": "audited",
    "salt": "audit",
    "datasets": ("digits",),
    "architectures": ("mlp(depth=1,width=16)",),
    "size": 8,
    "channels": 1,
    "initialisation": "independent",
    "fit": {"steps": 120, "batch_size": 64, "learning_rate": 0.01},
    "groups": ({"classes": 4, "tasks": 2, "repeats": 6},),
    "members_at_once": 16,
}


class Known(Generator):
    """Makes networks whose novelty is known; ``how`` they are made of a zoo's checkpoints, or anew."""

    kind = "known"

    def __init__(self, zoo, how):
        self.how, self.name = how, f"known-{how}"
        self.members, specs = {}, []
        for spec, records in zoo.by_architecture(split="train", final=True):
            self.members[spec] = (records, zoo.load(records))
            specs.append(spec)
        self.validity = Validity(
            architectures=tuple(sorted({str(replace(s, classes=None)) for s in specs})),
            input=specs[0].input,
            min_classes=2,
            max_classes=10,
        )
        self.task = None

    def sample_flats(self, request):
        spec = request.architecture
        records, flats = self.members[spec]
        own = [i for i, record in enumerate(records) if record.task == self.task]
        made = []
        if self.how == "real":
            made = self.trained(spec, request)
        for number, stream in enumerate(sample_generators(request) if self.how != "real" else ()):
            one = flats[own[number % len(own)]]
            if self.how == "average":
                order = [own[i] for i in torch.randperm(len(own), generator=stream)[:3].tolist()]
                one = align(spec, flats[order[0]], flats[order]).mean(0)
            elif self.how == "noise":
                bound = WeightStatistics.measure([(layout_of(spec), flats)]).bind(layout_of(spec))
                one = add_noise(bound, one[None], [stream], 0.3)[0]
            elif self.how == "random":
                one = initial_flats(spec, [1000 + number])[0]
            # Hidden as well as it can be: no method may see through distance alone.
            made.append(permute(spec, one, random_permutations(spec, number)))
        return torch.stack(list(made)), [{} for _ in made]

    def trained(self, spec, request):
        from weightloom.tasks import parse_task

        seeds = [5000 + number for number in range(request.num_samples)]
        data = [parse_task(self.task).data("train")] * len(seeds)
        settings = FitSettings(steps=120, batch_size=64, learning_rate=0.01)
        (last,) = fit_population(spec, initial_flats(spec, seeds), data, settings, seed=77)
        return last.flats


@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
    """Tests do not write to it."""
    return build_zoo(ZooRecipe(**RECIPE), tmp_path_factory.mktemp("zoo") / "audited")


@pytest.fixture
def known(zoo):
    """Make a generator whose novelty is known, for one task of the zoo."""

    def make(how, task=None):
        model = Known(zoo, how)
        model.task = task or zoo.records(split="train")[0].task
        return model

    return make
