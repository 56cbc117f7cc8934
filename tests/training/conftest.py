"""A tiny zoo of real networks on scikit-learn's digits, and untrained models around it."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F

from weightloom.conditioning import TEXT_WIDTH, SupportEncoder
from weightloom.generators import Validity
from weightloom.generators.igpg import IGPG, IGPGConfig
from weightloom.seeding import torch_generator
from weightloom.tasks import TaskSampler
from weightloom.tokenizers import tokenizers
from weightloom.training.bank import BankedTask
from weightloom.training.parallel import Divisible, Part
from weightloom.training.tokenizer import initialise_bases, load_populations, measure_statistics
from weightloom.zoo import ZooRecipe, build_zoo

ZOO = {
    "kind": "zoo",
    "name": "tiny",
    "salt": "training-tests",
    "datasets": ("digits",),
    "architectures": ("mlp(depth=1,width=4)", "cnn(depth=1,width=4)"),
    "size": 8,
    "channels": 1,
    "start": {"tasks": 4, "classes": 3, "steps": 60, "batch_size": 32, "learning_rate": 0.02},
    "fit": {"steps": 40, "batch_size": 32, "learning_rate": 0.02, "snapshots": (30,)},
    "groups": (
        {"classes": 3, "tasks": 2, "repeats": 2},
        {"classes": 4, "tasks": 2},
        {"classes": 3, "tasks": 1, "split": "held-out-order"},
    ),
    "members_at_once": 4,
}
TOKENIZERS = {
    "fsq": {"chunk": 32, "codes": 6, "vocabulary": 5, "width": 16, "depth": 1},
    "gumbel": {"chunk": 32, "codes": 4, "vocabulary": 8, "code_width": 4, "width": 16, "depth": 1},
}
PRIOR = {"width": 16, "depth": 1, "heads": 2, "image_features": 8, "image_width": 8, "channels": 1}


@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
    """12 networks of 2 architectures, 24 checkpoints, and 2 starts; tests only read it."""
    return build_zoo(ZooRecipe(**ZOO), tmp_path_factory.mktemp("zoo") / "tiny")


@pytest.fixture(scope="session")
def populations(zoo):
    """The zoo's training checkpoints: two architectures, three and four classes each."""
    return load_populations(zoo)


@pytest.fixture(params=sorted(TOKENIZERS))
def kind(request):
    return request.param


@pytest.fixture
def tokenizer(populations):
    """Make an untrained tokenizer of a kind."""

    def make(kind="fsq", **changes):
        family = tokenizers.get(kind)
        config = family.config_type(**{**TOKENIZERS[kind], **changes})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            made = family(config, measure_statistics(populations))
        if kind == "fsq":
            initialise_bases(made, populations)
        return made.eval()

    return make


@pytest.fixture
def model(tokenizer, populations):
    """Make an untrained IGPG around an untrained tokenizer of a kind."""

    def make(kind="fsq", **changes):
        made = tokenizer(kind)
        validity = Validity(
            architectures=tuple(made.statistics), input=(1, 8, 8), min_classes=3, max_classes=4
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            igpg = IGPG(IGPGConfig(**{**PRIOR, **changes}), made, validity, name="tiny")
        igpg.images.requires_grad_(False)
        return igpg

    return make


def bank_of(encoder, tasks):
    """A bank whose wordings are random unit vectors: what a bank is to a prior, without words."""
    bank = {}
    for task in {str(task): task for task in tasks}.values():
        words = torch.randn(2, TEXT_WIDTH, generator=torch_generator("words", str(task)))
        images = [task.support(shots, seed=shots).images for shots in (6, 4)]
        with torch.no_grad():
            supports = torch.stack([encoder.describe(one) for one in images])
        bank[str(task)] = BankedTask(
            task, task.data("train"), F.normalize(words, dim=-1), supports, list(images)
        )
    return bank


@pytest.fixture
def banks(populations):
    """Make a model's banks: the zoo's tasks by name, and three fresh tasks of three and of four classes."""

    def make(model):
        seen = [record.parsed_task() for p in populations for record in p.records]
        fresh = {}
        for classes in (3, 4):
            sampler = TaskSampler(
                ["digits"], "training-tests", classes=(classes, classes), size=8, channels=1
            )
            fresh[classes] = list(bank_of(model.images, [sampler.task(1000 + i) for i in range(3)]).values())
        return bank_of(model.images, seen), fresh

    return make


@pytest.fixture
def adds_up():
    """Fails unless the parts of an objective's batch give the loss, gradient and numbers of the whole."""

    def run(modules, objective, step, *parts):
        modules.zero_grad(set_to_none=True)
        total, sums = 0.0, {}
        for part in parts:
            loss, numbers = objective(step, part) if part.count > 1 else objective(step)
            if loss.requires_grad:
                loss.backward()
            total += float(loss.detach())
            sums = {name: sums.get(name, 0.0) + numbers.get(name, 0.0) for name in {*sums, *numbers}}
        trained = {name: p for name, p in modules.named_parameters() if p.requires_grad}
        zero = {name: torch.zeros_like(p) for name, p in trained.items()}
        return total, sums, {n: zero[n] if p.grad is None else p.grad.clone() for n, p in trained.items()}

    def check(modules, objective, steps=(0, 1, 2), counts=(2, 3), rtol=1e-3):
        assert isinstance(objective, Divisible)
        for step in steps:
            loss, numbers, gradient = run(modules, objective, step, Part())
            longest = max(float(value.norm()) for value in gradient.values())
            assert longest > 0
            for count in counts:
                found = run(modules, objective, step, *(Part(index, count) for index in range(count)))
                assert found[0] == pytest.approx(loss, rel=1e-4, abs=1e-6)
                assert found[1] == pytest.approx(numbers, rel=1e-3, abs=1e-6)
                for name, value in found[2].items():
                    apart = float((value - gradient[name]).norm())
                    assert apart <= rtol * (float(gradient[name].norm()) + 1e-3 * longest), (step, name)

    return check


@pytest.fixture
def halves_well():
    """Fails unless an objective's loss in half the bits is near that in all, and teaches the same weights."""

    def check(modules, objective, rel=0.05):
        losses, taught = [], []
        for enabled in (False, True):
            modules.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")  # torch's own
                loss, _ = objective(1)
            loss.backward()
            losses.append(float(loss.detach()))
            taught.append({name for name, p in modules.named_parameters() if p.grad is not None})
            assert all(bool(torch.isfinite(p.grad).all()) for p in modules.parameters() if p.grad is not None)
        assert losses[0] != losses[1] == pytest.approx(losses[0], rel=rel) and taught[0] == taught[1]

    return check


@pytest.fixture
def encoder():
    """An untrained dataset encoder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return SupportEncoder(channels=1, features=8, width=8).eval()
